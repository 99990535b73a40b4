"""Kinds of files, by ending and first bytes, and how to convert a kind that is not read."""

import gzip
import io
import os
import re
import stat
import tarfile
import zipfile
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


_TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
WEIGHTS_SUFFIXES = (*_TORCH_SUFFIXES, ".safetensors")
"""Endings of files that hold weights."""


def refuse_unread(path: Path, kind: str) -> None:
    """Refuse a file of a kind that is not read.

    Args:
        path: a regular file.
        kind: the name of its format; see `kind_of`.

    Raises:
        InputError: it is of such a kind; the message says how to convert it.
    """
    if path.suffix.lower() == ".safetensors":
        kind = "safetensors file"
    if kind in ("", "idx file"):
        return
    if _is_tar(path):
        kind = "tar archive"
    if kind == "gzip file":  # an idx file, perhaps
        return
    is_pickle = kind == "pickle" and path.suffix.lower() in _TORCH_SUFFIXES
    if is_pickle or (kind == "zip archive" and _is_torch(path)):
        kind = "torch file"
    remedy = "save its images as PNG files in a folder, or as uint8 (N, H, W, C) with np.savez"
    if kind in ("zip archive", "tar archive"):
        module, target = f"{kind[:3]}file", f"{path}-images"
        remedy = f"unpack it with: python -m {module} -e {path} {target}, and give {target}"
    elif kind in ("torch file", "safetensors file"):
        remedy += " (a checkpoint is given as `ckpt`)"
    elif kind == "parquet file":
        try:
            remedy = _parquet_remedy(path)
        except Exception:  # readers may raise anything for a damaged file
            remedy = "it cannot be read; copy or save it again"
    raise refusal(path, f"is a {kind}; {remedy}")


def _is_tar(path: Path) -> bool:
    """Whether it is a tar archive, compressed or not."""
    try:
        return tarfile.is_tarfile(path)
    except (OSError, EOFError, zlib.error):  # for a damaged file
        return False


def _is_torch(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _parquet_remedy(path: Path) -> str:
    """The command that converts the file to an npz beside it."""
    from pyarrow import parquet, types

    image = labels = ""
    schema = parquet.read_schema(path)
    for field in schema:
        kind, value = field.type, f"d[{field.name!r}]"
        is_struct = types.is_struct(kind) and "bytes" in {part.name for part in kind}
        if not image and (types.is_binary(kind) or is_struct):
            content = "v['bytes']" if is_struct else "v"
            decoded = f"np.asarray(PIL.Image.open(io.BytesIO({content})))"
            image = f"np.stack([{decoded} for v in {value}])"
        elif types.is_integer(kind) and ("label" in field.name or "class" in field.name):
            labels = labels or f", arr_1={value}"
    if not image:
        return f"none of its columns, {', '.join(schema.names)}, holds image files"
    target = str(path.with_suffix(".npz"))
    code = (
        "import numpy as np, pandas as pd, io, PIL.Image; "
        f"d = pd.read_parquet({str(path)!r}); np.savez({target!r}, arr_0={image}{labels})"
    )
    return f'make an npz with: python -c "{code}", and give {target}'
