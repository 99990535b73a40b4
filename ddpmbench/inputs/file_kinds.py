"""What a file is: by its ending, and by its first bytes where the ending says nothing."""

import os
import re
import stat
from pathlib import Path

IMAGE_SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jfif", ".jfi", ".jpe", ".jif"),
    *(".bmp", ".dib", ".webp", ".tif", ".tiff", ".gif"),
)
"""Endings of the image files that are read."""

_UNREAD_IMAGES = (
    ".avif .avifs .heic .heics .heif .heifs .hif .jp2 .j2k .j2c .jpc .jpf .jpx .jpm .jph .jhc .jxl "
    ".jxr .wdp .hdp .jls .jng .mng .flif .bpg .pgm .ppm .pnm .pbm .pam .pfm .phm .qoi .ff .exr "
    ".hdr .rgbe .tga .icb .vda .vst .ico .cur .icns .pcx .dcx .dds .psd .psb .xcf .kra .svg .svgz "
    ".eps .wmf .emf .sgi .rgb .rgba .bw .ras .sun .xbm .xpm .wbmp .dpx .cin .fits .fit .fts .dcm "
    ".dicom .nii .nrrd .mha .mhd .raw .dng .cr2 .cr3 .nef .arw .orf .rw2 .raf .pef .srw .ktx .ktx2 "
    ".btf .ome .svs .ndpi .czi .npy"
)
UNREAD_SUFFIXES = frozenset(_UNREAD_IMAGES.split())
"""Endings of image files, and of arrays that may be one, that are not read from a folder."""

_ARCHIVES = (
    ".npz .zip .tar .tgz .tbz .tbz2 .txz .gz .bz2 .xz .zst .lz4 .7z .rar .parquet .arrow .feather "
    ".h5 .hdf5 .hdf .mat .pkl .pickle .pt .pth .safetensors .tfrecord .tfrecords .record .mdb "
    ".lmdb .sqlite .db3 .zarr .beton .webdataset"
)
_DATA_SUFFIXES = frozenset(_ARCHIVES.split())
_SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "icon\r"})

_READ = {
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "JPEG": rb"\xff\xd8\xff",
    "GIF": rb"GIF8[79]a",
    "WebP": rb"RIFF....WEBP",
    "TIFF": rb"II\*\0|MM\0\*|II\+\0|MM\0\+",
    "BMP": rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",
}
_UNREAD = {
    "AVIF or HEIF": rb".{4}ftyp(?:avi[fs]|he[iv][cxms]|mif1|msf1)",
    "JPEG 2000": rb"\0\0\0\x0cjP|\xff\x4f\xff\x51",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "JPEG XR": rb"II\xbc\x01",
    "PNM": rb"P[1-6fF]\s+(?:#[^\n]*\n\s*)*[0-9]+\s+[0-9]+\s|P7\nWIDTH ",
    "QOI": rb"qoif",
    "EXR": rb"v/1\x01",
    "radiance HDR": rb"#\?R(?:ADIANCE|GBE)",
    "Photoshop": rb"8BPS",
    "GIMP": rb"gimp xcf",
    "icon": rb"\0\0[\x01\x02]\0[^\0]\0",
    "Apple icon": rb"icns",
    "DDS": rb"DDS ",
    "DPX": rb"SDPX|XPDS",
    "FITS": rb"SIMPLE  =",
    "DICOM": rb".{128}DICM",
    "NIfTI": rb".{344}(?:n\+1|ni1)\0",
    "NRRD": rb"NRRD000",
    "farbfeld": rb"farbfeld",
    "Sun raster": rb"\x59\xa6\x6a\x95",
    "SGI": rb"\x01\xda[\0\x01][\x01\x02]",
    "SVG": rb"\s*(?:<\?xml.*|<!--.*|<!DOCTYPE svg.*)?<svg\b",
    "npy": rb"\x93NUMPY",
}
_DATA = {
    "zip archive": rb"PK\x03\x04|PK\x05\x06",
    "tar archive": rb".{257}ustar",
    "gzip file": rb"\x1f\x8b",
    "bzip2 file": rb"BZh[1-9]",
    "xz file": rb"\xfd7zXZ\0",
    "zstd file": rb"\x28\xb5\x2f\xfd",
    "7z archive": rb"7z\xbc\xaf\x27\x1c",
    "rar archive": rb"Rar!\x1a",
    "parquet file": rb"PAR1",
    "arrow file": rb"ARROW1",
    "HDF5 file": rb"\x89HDF\r\n\x1a\n",
    "MATLAB file": rb"MATLAB 5\.0",
    "HDF5 file, of MATLAB": rb"MATLAB 7\.3",
    "SQLite file": rb"SQLite format 3",
    "LMDB file": rb".{16}\xde\xc0\xef\xbe",
    "idx file": rb"\0\0\x08[\x03\x04]",
    "pickle": rb"\x80[\x02-\x05]",
}
_MOST_READ = 512  # bytes, which reach beyond the last of the marks
_KINDS = {
    group: {name: re.compile(pattern, re.DOTALL) for name, pattern in patterns.items()}
    for group, patterns in (("read", _READ), ("unread", _UNREAD), ("data", _DATA))
}


def is_system_file(name: str) -> bool:
    """Whether a file or folder is hidden, or one that systems leave in folders of images."""
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


def holds_data(suffix: str) -> bool:
    """Whether a file with this ending is an archive or an array, which may hold images."""
    return suffix in _DATA_SUFFIXES


def first_bytes(path: Path) -> bytes:
    """The first bytes of a file, as many as its kind shows in.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    require_regular(path)
    with open(path, "rb") as file:
        return file.read(_MOST_READ)


def require_regular(path: Path) -> None:
    """Raise OSError for a pipe, a socket or a device: to open one may wait forever."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise OSError(f"it is {special_kind(mode)}, not a file")


def special_kind(mode: int) -> str:
    """What `stat` says that something is which is no regular file."""
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a named pipe"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"


def kind_of(content: bytes) -> tuple[str, str] | None:
    """What the first bytes of a file say that it is.

    Returns:
        "read" for an image that is read, "unread" for another one, or "data" for an archive or an
        array; and its format's name. None if they say nothing.
    """
    for group, patterns in _KINDS.items():
        for name, pattern in patterns.items():
            if pattern.match(content):
                return group, name
    return None
