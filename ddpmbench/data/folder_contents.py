"""The files of a folder of images; every one is read, refused or counted."""

import dataclasses
import os
import re
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ddpmbench.errors import listed, printable, refusal

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
    """The first bytes of a file, enough for `kind_of`.

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
    """The kind of a special file."""
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a named pipe"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"


def kind_of(content: bytes) -> tuple[str, str] | None:
    """The kind of a file by its first bytes.

    Returns:
        "read" for an image that is read, "unread" for another one, or "data" for an archive or an
        array; and its format's name. None for any other file.
    """
    for group, patterns in _KINDS.items():
        for name, pattern in patterns.items():
            if pattern.match(content):
                return group, name
    return None


_MOST_KINDS = 20
"""Endings that are counted one by one; the rarer ones are counted together."""
_ARCHIVE = "archive or array"
_HIDDEN = "hidden"
_OTHER = "other"


@dataclasses.dataclass(frozen=True, eq=False)
class FolderContents:
    """The files of a folder and its subfolders.

    Attributes:
        names: of the images to read, relative with slashes, in natural order: 2.png before 10.png.
        refused: a line for each image that cannot be read, by its name.
        passed_over: number of other files of each kind: by ending, "hidden" with those
            that systems leave, "archive or array", "no ending", and "other".
        archives: the names of the archives and arrays.
        folders: the names of the folders in the folder itself, but for hidden ones.
    """

    names: tuple[str, ...]
    refused: dict[str, str]
    passed_over: dict[str, int]
    archives: tuple[str, ...]
    folders: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the class folders, sorted; empty unless every image lies in one.

        A folder without an image that is read counts, too: the others keep their numbers.

        Source: torchvision's ImageFolder, which numbers them in this order.
        """
        return self.folders if all("/" in name for name in self.names) else ()

    @classmethod
    def of(cls, folder: Path) -> "FolderContents":
        """List a folder.

        Files without an image's ending are opened, to see whether they are images nevertheless.

        Raises:
            InputError: links lead in a circle, or a name is not UTF-8.
            OSError: a folder cannot be listed.
        """
        names: list[str] = []
        refused: dict[str, str] = {}
        archives: list[str] = []
        counts: Counter[str] = Counter()
        paths, folders = _files(folder, counts)
        for path in paths:
            kind, reason = _classified(path)
            name = path.relative_to(folder).as_posix()
            if kind == "read":
                names.append(_text(name))
            elif kind == "unread":
                refused[name] = str(refusal(path, reason))
            else:
                counts[kind] += 1
                if kind == _ARCHIVE:
                    archives.append(name)
        return cls(
            tuple(sorted(names, key=natural_key)),
            {name: refused[name] for name in sorted(refused, key=natural_key)},
            _commonest(counts),
            tuple(sorted(archives, key=natural_key)),
            tuple(sorted(map(_text, folders))),
        )


def class_folder(name: str) -> str:
    """The class folder of an image: the first folder of its name."""
    return name.split("/", 1)[0]


def passed_over_words(passed_over: Mapping[str, int], archives: Sequence[str]) -> str:
    """Files that were passed over, in words: "3 hidden, 1 archive or array (all.npz), 1 .csv"."""
    words = {kind: f"{count:,} {kind}" for kind, count in passed_over.items()}
    if archives:
        words[_ARCHIVE] += f" ({listed(archives)})"
    return ", ".join(words.values())


def natural_key(name: str) -> tuple[str, str]:
    """Sort key: 2.png before 10.png, and the files of a folder together."""

    # One text, because lists of a name's parts would take many times its memory. A number is its
    # length and its digits; the end of a part comes before a number, which comes before text.
    def number(match: re.Match[str]) -> str:
        digits = match[0].lstrip("0")
        return f"\1{chr(len(digits))}{digits}"

    return re.sub("[0-9]+", number, name.replace("/", "\0")), name


def _files(folder: Path, counts: "Counter[str]") -> tuple[list[Path], list[str]]:
    """Every file but the hidden ones, which are counted; and the folders in the folder itself."""
    paths: list[Path] = []
    top: list[str] | None = None
    seen = set()
    # A link that leads back up would be walked until the path is too long for the system.
    for parent, subfolders, files in os.walk(folder, followlinks=True, onerror=_raise):
        real = os.path.realpath(parent)
        if real in seen:
            raise refusal(parent, "links to a folder that is read already; remove the link")
        seen.add(real)
        counts[_HIDDEN] += sum(map(is_system_file, [*subfolders, *files]))
        subfolders[:] = [name for name in subfolders if not is_system_file(name)]
        top = [*subfolders] if top is None else top
        paths += [Path(parent, name) for name in files if not is_system_file(name)]
    return paths, top or []


def _classified(path: Path) -> tuple[str, str]:
    """Whether a file is "read", or "unread" and why, or else its kind for the count."""
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return "read", ""
    if suffix in UNREAD_SUFFIXES:
        return "unread", f"{suffix} is not read from a folder; save it as PNG"
    if holds_data(suffix):
        return _ARCHIVE, ""
    kind = suffix if re.fullmatch(r"\.\w{1,12}", suffix) else _OTHER if suffix else "no ending"
    try:
        content = first_bytes(path)
    except OSError:
        mode = _mode(path)
        if mode is not None and not stat.S_ISREG(mode):
            return "unread", f"is {special_kind(mode)}, not a file; remove it"
        return kind, ""
    group, name = kind_of(content) or ("", "")
    if group == "data":
        return _ARCHIVE, ""
    if group == "read":
        return "unread", f"is a {name} image without its ending; rename it to end in one, or remove"
    if group == "unread":
        return "unread", f"is an image ({name}) that is not read; save it as PNG, or remove it"
    return kind, ""


def _mode(path: Path) -> int | None:
    try:
        return os.stat(path).st_mode
    except OSError:
        return None


def _commonest(counts: "Counter[str]") -> dict[str, int]:
    counts = +counts  # without those that are zero
    common = dict(counts.most_common(_MOST_KINDS))
    if rest := counts.total() - sum(common.values()):
        common[_OTHER] = common.get(_OTHER, 0) + rest
    return {printable(kind): count for kind, count in common.items()}


def _raise(error: OSError) -> None:
    raise error


def _text(name: str) -> str:
    # An id goes into tables, which are UTF-8: better refused now than at the end of a run.
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise refusal(os.fsencode(name), "the name is not UTF-8; rename the file") from error
    return name
