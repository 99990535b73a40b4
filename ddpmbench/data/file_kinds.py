"""Kinds of files, by ending and first bytes, and how to convert a kind that is not read."""

import gzip
import io
import os
import re
import stat
import zlib
from pathlib import Path

from ddpmbench.errors import refusal

IMAGE_SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jfif", ".jfi", ".jpe", ".jif"),
    *(".bmp", ".dib", ".webp", ".tif", ".tiff", ".gif"),
)
"""Endings of image files that are read."""

_UNREAD = (
    ".avif .avifs .heic .heics .heif .heifs .hif .jp2 .j2k .j2c .jpc .jpf .jpx .jpm .jph .jhc "
    ".jxl .jxr .wdp .hdp .jls .jng .mng .flif .bpg .pgm .ppm .pnm .pbm .pam .pfm .phm .qoi .ff "
    ".exr .hdr .rgbe .tga .icb .vda .vst .ico .cur .icns .pcx .dcx .dds .psd .psb .xcf .kra "
    ".svg .svgz .eps .wmf .emf .sgi .rgb .rgba .bw .ras .sun .xbm .xpm .wbmp .dpx .cin .fits "
    ".fit .fts .dcm .dicom .nii .nrrd .mha .mhd .raw .dng .cr2 .cr3 .nef .arw .orf .rw2 .raf "
    ".pef .srw .ktx .ktx2 .btf .ome .svs .ndpi .czi .npy"
)
UNREAD_SUFFIXES = frozenset(_UNREAD.split())
"""Endings of image files, and of arrays that may be images, that are not read from a folder."""

_ARCHIVES = (
    ".npz .zip .tar .tgz .tbz .tbz2 .txz .gz .bz2 .xz .zst .lz4 .7z .rar .parquet .arrow "
    ".feather .h5 .hdf5 .hdf .mat .pkl .pickle .pt .pth .safetensors .tfrecord .tfrecords "
    ".record .mdb .lmdb .sqlite .db3 .zarr .beton .webdataset"
)
ARCHIVE_SUFFIXES = frozenset(_ARCHIVES.split())
"""Endings of archives and arrays, which may hold images."""

_SIGNATURES = {
    "read": {
        "PNG": rb"\x89PNG\r\n\x1a\n",
        "JPEG": rb"\xff\xd8\xff",
        "GIF": rb"GIF8[79]a",
        "WebP": rb"RIFF....WEBP",
        "TIFF": rb"II\*\0|MM\0\*|II\+\0|MM\0\+",
        "BMP": rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    },
    "unread": {
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
    },
    "data": {
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
        "MATLAB file": rb"MATLAB [57]\.",
        "SQLite file": rb"SQLite format 3",
        "LMDB file": rb".{16}\xde\xc0\xef\xbe",
        "idx file": rb"\0\0\x08[\x03\x04]",
        "pickle": rb"\x80[\x02-\x05]",
    },
}
_KINDS = [
    (group, name, re.compile(pattern, re.DOTALL))
    for group, patterns in _SIGNATURES.items()
    for name, pattern in patterns.items()
]
_HEAD = 512  # bytes, enough for all signatures


def kind_of(content: bytes) -> tuple[str, str] | None:
    """The kind of a file by its first bytes.

    Returns:
        "read" for an image that is read, "unread" for another image, or "data" for an archive or an
        array; and the name of its format. None for any other file.
    """
    return next(((group, name) for group, name, mark in _KINDS if mark.match(content)), None)


def first_bytes(path: Path) -> bytes:
    """The first bytes of a file, enough for `kind_of`.

    Raises:
        OSError: the file cannot be read, or is not a regular file.
    """
    require_regular(path)
    with open(path, "rb") as file:
        return file.read(_HEAD)


def require_regular(path: Path) -> None:
    """Raise OSError for a pipe, a socket or a device, which may block forever when opened."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise OSError(f"it is {special_kind(mode)}, not a file")


def special_kind(mode: int) -> str:
    """The kind of a special file."""
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a named pipe"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"


def open_maybe_gzip(path: Path) -> gzip.GzipFile | io.BufferedReader:
    """Open a file, decompressing gzip."""
    with open(path, "rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if is_gzip else open(path, "rb")


WEIGHTS_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
"""Endings of files that hold weights."""
_PACKED = (
    *("zip archive", "tar archive", "7z archive", "rar archive"),
    *("gzip file", "bzip2 file", "xz file", "zstd file"),
)
_SAVE = "save its images as PNG files in a folder, or as uint8 (N, H, W, C) with np.savez"


def refuse_unread(path: Path, kind: str) -> None:
    """Refuse a file of a kind that is not read.

    Args:
        path: a regular file.
        kind: the name of its format; see `kind_of`.

    Raises:
        InputError: it is of such a kind; the message says how to convert it.
    """
    suffix, remedy = path.suffix.lower(), _SAVE
    is_saved_by_torch = kind in ("zip archive", "pickle") and suffix in WEIGHTS_SUFFIXES
    if suffix == ".safetensors" or is_saved_by_torch:
        kind, remedy = "file of weights", f"{_SAVE} (a checkpoint is given as `ckpt`)"
    elif kind in ("", "idx file") or (
        kind == "gzip file" and _content_of_gzip(path) in (None, "idx file")
    ):
        return
    elif kind in _PACKED:
        remedy = f"unpack it, or {_SAVE}"
    raise refusal(path, f"is a {kind}; {remedy}")


def _content_of_gzip(path: Path) -> str | None:
    """The format within a gzip file; None if unknown or damaged."""
    try:
        with gzip.open(path, "rb") as file:
            group_and_name = kind_of(file.read(_HEAD))
    except (OSError, EOFError, zlib.error):
        return None
    return None if group_and_name is None else group_and_name[1]
