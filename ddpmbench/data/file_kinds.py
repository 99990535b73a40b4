"""Kinds of files, by their ending and first bytes, and the command that converts an unread one.

No file's code is run: a pickle's opcodes are listed; of other files, the headers are read.
"""

import gzip
import io
import os
import pickletools
import re
import stat
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ddpmbench.errors import refusal

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jfif", ".jfi", ".jpe", ".jif"),
    *(".bmp", ".dib", ".webp", ".tif", ".tiff", ".gif"),
)
"""Endings of the image files that are read."""

_UNREAD = (
    ".avif .avifs .heic .heics .heif .heifs .hif .jp2 .j2k .j2c .jpc .jpf .jpx .jpm .jph .jhc "
    ".jxl .jxr .wdp .hdp .jls .jng .mng .flif .bpg .pgm .ppm .pnm .pbm .pam .pfm .phm .qoi .ff "
    ".exr .hdr .rgbe .tga .icb .vda .vst .ico .cur .icns .pcx .dcx .dds .psd .psb .xcf .kra "
    ".svg .svgz .eps .wmf .emf .sgi .rgb .rgba .bw .ras .sun .xbm .xpm .wbmp .dpx .cin .fits "
    ".fit .fts .dcm .dicom .nii .nrrd .mha .mhd .raw .dng .cr2 .cr3 .nef .arw .orf .rw2 .raf "
    ".pef .srw .ktx .ktx2 .btf .ome .svs .ndpi .czi .npy"
)
UNREAD_SUFFIXES = frozenset(_UNREAD.split())
"""Endings of image files, and of arrays that may be one, that are not read from a folder."""

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
        "MATLAB file": rb"MATLAB 5\.0",
        "HDF5 file, of MATLAB": rb"MATLAB 7\.3",
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
_HEAD = 512  # bytes, which reach beyond the last of the signatures


def kind_of(content: bytes) -> tuple[str, str] | None:
    """The kind of a file by its first bytes.

    Returns:
        "read" for an image that is read, "unread" for another one, or "data" for an archive or an
        array; and its format's name. None for any other file.
    """
    return next(((group, name) for group, name, mark in _KINDS if mark.match(content)), None)


def first_bytes(path: Path) -> bytes:
    """The first bytes of a file, enough for `kind_of`.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    require_regular(path)
    with open(path, "rb") as file:
        return file.read(_HEAD)


def require_regular(path: Path) -> None:
    """Raise OSError for a pipe, a socket or a device: to open one may wait forever."""
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
    """A file's content, unpacked where it is gzipped."""
    with open(path, "rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if is_gzip else open(path, "rb")


_TAR, _TORCH = "tar archive", "torch file"
_TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")


def refuse_unread(path: Path, kind: str) -> None:
    """Refuse a file of a kind that is not read.

    Args:
        path: a regular file.
        kind: its format's name; see `kind_of`.

    Raises:
        InputError: it is of such a kind; the message names the command that converts it.
    """
    suffix = path.suffix.lower()
    if kind == "gzip file" and (suffix == ".tgz" or _is_tar(path)):
        kind = _TAR
    if kind in ("bzip2 file", "xz file") and ".t" in path.name.lower():
        kind = _TAR
    if suffix in _TORCH_SUFFIXES if kind == "pickle" else kind == "zip archive" and _is_torch(path):
        kind = _TORCH
    if kind in ("", "gzip file", "idx file"):
        return
    try:
        remedy = _REMEDIES.get(kind, _export)(path)
    except Exception:  # whatever the readers of a damaged file raise
        remedy = "it cannot be read; copy or save it again"
    raise refusal(path, f"is a {kind}; {remedy}")


def _is_tar(path: Path) -> bool:
    try:
        with open_maybe_gzip(path) as file:
            return file.read(512)[257:262] == b"ustar"
    except (OSError, EOFError):
        return False


def _is_torch(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _export(path: Path) -> str:
    return "save its images as PNG files in a folder, or as uint8 (N, H, W, C) with np.savez"


def _unpack(module: str) -> Callable[[Path], str]:
    def remedy(path: Path) -> str:
        target = f"{path}-images"
        return f"unpack it with: python -m {module} -e {path} {target}, and give {target}"

    return remedy


def _python(path: Path, imports: str, pixels: str, *, first: str = "", labels: str = "") -> str:
    """The command that writes an npz beside it."""
    target = str(path.with_suffix(".npz"))
    more = f", arr_1={labels}" if labels else ""
    code = f"import numpy as np, {imports}; {first}np.savez({target!r}, arr_0={pixels}{more})"
    return f'make an npz with: python -c "{code}", and give {target}'


def _parquet(path: Path) -> str:
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
            labels = labels or value
    if not image:
        return f"none of its columns, {', '.join(schema.names)}, holds image files"
    read = f"d = pd.read_parquet({str(path)!r}); "
    return _python(path, "pandas as pd, io, PIL.Image", image, first=read, labels=labels)


def _matlab(path: Path) -> str:
    from scipy.io import whosmat

    images = [(name, shape) for name, shape, _ in whosmat(str(path)) if len(shape) in (3, 4)]
    if not images:
        return "none of its arrays has the shape of images"
    name, shape = images[0]
    # MATLAB counts along the last axis what NumPy counts along the first.
    is_last = shape[-1] not in (1, 3) if len(shape) == 4 else shape[0] == shape[1]
    order = (".transpose(3, 0, 1, 2)" if len(shape) == 4 else ".transpose(2, 0, 1)") * is_last
    return _python(path, "scipy.io", f"scipy.io.loadmat({str(path)!r})[{name!r}]{order}")


def _hdf5(path: Path) -> str:
    name = "NAME"
    try:
        import h5py  # type: ignore[import-not-found]  # which is no dependency

        with h5py.File(path) as file:
            name = next(n for n in file if getattr(file[n], "ndim", 0) in (3, 4))
    except (ImportError, StopIteration):
        pass
    return _python(path, "h5py", f"h5py.File({str(path)!r})[{name!r}][:]")


def _torch(path: Path) -> str:
    import torch

    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception:  # whatever a file that is more than tensors leads it to
        return "it holds more than tensors; save its pixels as uint8 (N, H, W, C) with np.savez"
    parts: Iterable[tuple[str, object]] = [("x", content)]
    if isinstance(content, dict):
        parts = ((f"x[{key!r}]", part) for key, part in content.items())
    elif isinstance(content, tuple | list):
        parts = ((f"x[{index}]", part) for index, part in enumerate(content))
    tensors = [(name, part) for name, part in parts if isinstance(part, torch.Tensor)]
    images = [(name, part) for name, part in tensors if part.ndim in (3, 4)]
    if not images:
        return "none of its tensors has the shape of images (a checkpoint is given as `ckpt`)"
    image = images[0][1]
    labels = [
        f"{name}.numpy()"
        for name, part in tensors
        if part.shape == image.shape[:1] and not part.is_floating_point()
    ]
    return _python(
        path,
        "torch",
        _as_pixels(*images[0]),
        first=f"x = torch.load({str(path)!r}, weights_only=True); ",
        labels=labels[0] if labels else "",
    )


def _as_pixels(name: str, tensor: "Tensor") -> str:
    order = ".permute(0, 2, 3, 1)" if tensor.ndim == 4 and tensor.shape[1] in (1, 3) else ""
    if tensor.is_floating_point():
        is_signed = float(tensor.min()) < 0
        scaled = f"(127.5 * {name} + 127.5)" if is_signed else f"(255 * {name})"
        name = f"{scaled}.round().byte()"
    elif str(tensor.dtype) != "torch.uint8":
        name += ".byte()"
    return f"{name}{order}.numpy()"


def _pickle(path: Path) -> str:
    with path.open("rb") as file:
        texts = {
            argument.decode("latin1") if isinstance(argument, bytes) else argument
            for opcode, argument, _ in pickletools.genops(file)
            if isinstance(argument, str | bytes) and len(argument) < 100
        }
    warning = "loading a pickle runs whatever code is in it: only of a source that you trust, "
    labels = next((name for name in ("labels", "fine_labels") if name in texts), None)
    if "data" not in texts or labels is None:
        return f"{warning}load it and save its pixels as uint8 (N, H, W, C) with np.savez"
    return warning + _python(
        path,
        "pickle",
        "d['data'].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)",
        first=f"d = pickle.load(open({str(path)!r}, 'rb'), encoding='latin1'); ",
        labels=f"d[{labels!r}]",
    )


_REMEDIES: dict[str, Callable[[Path], str]] = {
    "zip archive": _unpack("zipfile"),
    _TAR: _unpack("tarfile"),
    "parquet file": _parquet,
    "MATLAB file": _matlab,
    "HDF5 file": _hdf5,
    "pickle": _pickle,
    _TORCH: _torch,
}
