"""Folders of images: every file is read, refused or counted."""

import dataclasses
import itertools
import os
import re
import stat
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddpmbench.checksums import DamageError, unverified_json
from ddpmbench.data.arrays import pixels_of
from ddpmbench.data.file_kinds import (
    ARCHIVE_SUFFIXES,
    IMAGE_SUFFIXES,
    UNREAD_SUFFIXES,
    WEIGHTS_SUFFIXES,
    first_bytes,
    kind_of,
    require_regular,
    special_kind,
)
from ddpmbench.data.images import ARCHIVE, ImageSet, packed, shape_words
from ddpmbench.data.pixel_store import store
from ddpmbench.errors import InputError, count_to_read, listed, printable, refusal

_SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "icon\r"})
_CIFAR10_BATCHES = {"data_batch_1", "test_batch"}
_RUN_RECORDS, _SAMPLES = ("run.json", "summary.json"), "samples.npz"  # of a run folder
_HIDDEN, _OTHER = "hidden", "other"
_MOST_ENDINGS = 20
"""Endings that are counted one by one; the rarer ones are counted together."""


@dataclasses.dataclass(frozen=True, eq=False)
class FolderContents:
    """The files of a folder and its subfolders.

    Attributes:
        names: names of the images to read, relative with slashes, in natural order: 2.png before
            10.png.
        refused: a line for each image that cannot be read, by name.
        passed_over: number of other files of each kind: by ending, "hidden" with files left by
            operating systems, "archive or array", "no ending", and "other".
        archives: the names of the archives and arrays.
        folders: the names of the direct subfolders, without hidden ones.
    """

    names: tuple[str, ...]
    refused: dict[str, str]
    passed_over: dict[str, int]
    archives: tuple[str, ...]
    folders: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the class folders, sorted; empty unless every image lies in one.

        A folder without readable images counts as well, so that the others keep their numbers.

        Source: torchvision's ImageFolder, which numbers them in this order.
        """
        return self.folders if all("/" in name for name in self.names) else ()

    @classmethod
    def scan(cls, folder: Path) -> "FolderContents":
        """List a folder.

        Files without the ending of an image are opened, to see whether they are images.

        Raises:
            InputError: links form a circle, a name is not UTF-8, or it is or holds a run folder.
            OSError: a folder cannot be listed.
        """
        names: list[str] = []
        refused: dict[str, str] = {}
        archives: list[str] = []
        counts: Counter[str] = Counter()
        paths, folders = _files(folder, counts)
        for path in paths:
            if path.name in _RUN_RECORDS:
                _refuse_run(path)
        for name, path in sorted(
            ((path.relative_to(folder).as_posix(), path) for path in paths),
            key=lambda pair: natural_key(pair[0]),
        ):
            kind, reason = _classified(path)
            if kind == "read":
                names.append(_utf8(name))
            elif kind == "unread":
                refused[name] = str(refusal(path, reason))
            else:
                counts[kind] += 1
                if kind == ARCHIVE:
                    archives.append(name)
        classes = sorted(map(_utf8, folders))
        endings = [kind for kind, _ in counts.most_common() if kind.startswith(".")]
        for kind in endings[_MOST_ENDINGS:]:
            counts[_OTHER] += counts.pop(kind)
        passed_over = {printable(kind): count for kind, count in (+counts).most_common()}
        return cls(tuple(names), refused, passed_over, tuple(archives), tuple(classes))


@dataclasses.dataclass(frozen=True)
class FolderOptions:
    """How the images of a folder are read.

    Attributes:
        skip_bad: skip, and list, files that are not images like the others.
        convert: "rgb" repeats gray to three channels, "gray" takes the luma of color; None reads
            images as they are stored.
        class_names: the class folders in the order of the classes; None for sorted.
        any_size: accept images that differ in size and channels.
    """

    skip_bad: bool = False
    convert: str | None = None
    class_names: tuple[str, ...] | None = None
    any_size: bool = False


def _refuse_run(record: Path) -> None:
    """Refuse a run folder by its record, because its figures are images, too."""
    try:
        schema = unverified_json(record).get("schema")
    except DamageError:
        return
    if str(schema).startswith("ddpmbench."):
        samples = record.parent / _SAMPLES
        what = f"{samples} for its samples" if samples.exists() else "the images that it evaluated"
        raise refusal(record.parent, f"is a run folder, whose figures are no data; give {what}")


def natural_key(name: str) -> tuple[str, str]:
    """Sort key: 2.png before 10.png, and the files of a folder together."""

    # One string, because lists of parts would take many times its memory. A number becomes its
    # length and its digits; the end of a part sorts before a number, and a number before text.
    def number(match: re.Match[str]) -> str:
        digits = match[0].lstrip("0")
        return f"\1{chr(len(digits))}{digits}"

    return re.sub("[0-9]+", number, name.replace("/", "\0")), name


def _files(folder: Path, counts: "Counter[str]") -> tuple[list[Path], list[str]]:
    """All files but hidden ones, which are counted; and the direct subfolders."""
    paths: list[Path] = []
    top: list[str] | None = None
    visited = set()
    # A link to a parent would be followed until the path is too long for the system.
    for parent, subfolders, files in os.walk(folder, followlinks=True, onerror=_raise):
        real = os.path.realpath(parent)
        if real in visited:
            raise refusal(parent, "links to a folder that is read already; remove the link")
        visited.add(real)
        counts[_HIDDEN] += sum(map(_is_hidden, [*subfolders, *files]))
        subfolders[:] = [name for name in subfolders if not _is_hidden(name)]
        top = [*subfolders] if top is None else top
        paths += [Path(parent, name) for name in files if not _is_hidden(name)]
    return paths, top or []


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


def _classified(path: Path) -> tuple[str, str]:
    """Whether a file is "read", or "unread" and why, or else its kind, for counting."""
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return "read", ""
    if suffix in UNREAD_SUFFIXES:
        return "unread", f"{suffix} is not read from a folder; save it as PNG"
    if suffix in ARCHIVE_SUFFIXES:
        return ARCHIVE, ""
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            return "unread", f"is {special_kind(mode)}, not a file; remove it"
        group, name = kind_of(first_bytes(path)) or ("", "")
    except OSError:
        group = ""
    if group == "data":
        return ARCHIVE, ""
    if group == "read":
        return "unread", f"is a {name} image without its ending; rename it to end in one, or remove"
    if group == "unread":
        return "unread", f"is an image ({name}) that is not read; save it as PNG, or remove it"
    is_usual = re.fullmatch(r"\.\w{1,12}", suffix)
    return suffix if is_usual else _OTHER if suffix else "no ending", ""


def _raise(error: OSError) -> None:
    raise error


def _utf8(name: str) -> str:
    # Ids go into tables, which are UTF-8; refused now rather than at the end of a run.
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise refusal(os.fsencode(name), "the name is not UTF-8; rename the file") from error
    return name


# ---- reading

_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF")
_OR_SKIP = "; or pass over it with `on_bad=skip`"


def read_folder(
    folder: Path, contents: FolderContents, num_images: int | None, options: FolderOptions
) -> ImageSet:
    """The images of a folder and its subfolders, in natural order: 2.png before 10.png.

    Pixels are taken as stored: an EXIF orientation is not applied (that of a TIFF is, as its format
    demands), and no color space is converted. The ids are paths relative to the folder, with
    slashes. Only the first `num_images` images are decoded. Where every image lies in a class
    folder, its label is the index of that folder in sorted order.

    Args:
        folder: the path of the folder.
        contents: its files.
        num_images: number of images to read, from the first on; None for all.
        options: the options of the reader.

    Raises:
        InputError: there is no image; or, unless such images are skipped, one has a format that is
            not read, is not 8-bit gray or RGB, has several frames, cannot be decoded or, unless any
            size is accepted, differs from the first in size or channels.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError(
            f"Pillow, which reads images, cannot be imported ({error}): pip install pillow"
        ) from error

    if contents.refused and not options.skip_bad:
        raise InputError(f"{next(iter(contents.refused.values()))}{_OR_SKIP}")
    if not contents.names:
        raise _no_images(folder, contents)
    names, skipped = list(contents.names), tuple(contents.refused.values())
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        if options.skip_bad:
            names, bad = _good_names(folder, names, options)
            skipped += bad
        names = names[: count_to_read(num_images, len(names), folder)]
        images, shapes = _decoded(folder, names, options), None
        if options.any_size:
            pixels, shapes = packed(images)
        else:
            first = next(images)
            alike = (image[None] for image in itertools.chain([first], images))
            pixels = store((len(names), *first.shape), alike, np.uint8)
    classes, labels = _classes(folder, contents, options.class_names), None
    if classes:
        numbers = {name: number for number, name in enumerate(classes)}
        labels = np.array([numbers[_class_folder(name)] for name in names], np.int64)
    return ImageSet(
        pixels=pixels,
        ids=names,
        source=str(folder),
        labels=labels,
        skipped=skipped,
        classes=classes,
        class_order_open=options.class_names is None and _sorts_otherwise(classes),
        passed_over=contents.passed_over,
        archives=contents.archives,
        shapes=shapes,
    )


def _no_images(folder: Path, contents: FolderContents) -> InputError:
    if contents.refused:
        problem = f"holds no image that can be read; {next(iter(contents.refused.values()))}"
    elif _CIFAR10_BATCHES & {name.rsplit("/", 1)[-1] for name in contents.archives}:
        problem = "holds the batches of CIFAR-10; name the data set, cifar10:train or cifar10:test"
    elif arrays := [n for n in contents.archives if not n.lower().endswith(WEIGHTS_SUFFIXES)]:
        problem = (
            f"holds no images, but {listed(arrays)}; give the path of one, as in "
            f"{folder / arrays[0]}"
        )
    elif contents.archives:
        problem = (
            f"holds no images, but {listed(contents.archives)}; give a folder of images (and a "
            "checkpoint as `ckpt`)"
        )
    else:
        problem = f"holds no images; their names must end in one of {' '.join(IMAGE_SUFFIXES)}"
    return refusal(folder, problem)


def _sorts_otherwise(classes: tuple[str, ...]) -> bool:
    return all(name.isdecimal() for name in classes) and list(classes) != sorted(classes, key=int)


def _class_folder(name: str) -> str:
    return name.split("/", 1)[0]


def _classes(
    folder: Path, contents: FolderContents, names: tuple[str, ...] | None
) -> tuple[str, ...]:
    """The name of each class, in order; empty where images do not lie in class folders."""
    if names is None:
        return contents.classes
    problem = None
    if not contents.classes:
        problem = f"not every image of {folder} lies in a class folder; leave it out"
    elif len(set(names)) != len(names):
        problem = "names a class twice; name each once"
    elif unnamed := sorted({_class_folder(name) for name in contents.names}.difference(names)):
        problem = f"lacks {unnamed[0]}, a folder of {folder}; name every class folder"
    if problem is not None:
        raise refusal("`class_names`", problem)
    return names


def _decoded(folder: Path, names: list[str], options: FolderOptions) -> Iterator[NDArray[np.uint8]]:
    """The images, (C, H, W) each, of one shape unless any size is accepted."""
    first = None
    for name in names:
        try:
            image = _decode(folder / name, options.convert)
        except InputError as error:
            raise InputError(f"{error}{_OR_SKIP}") from error
        first = image.shape if first is None else first
        if image.shape != first and not options.any_size:
            repeats = "; `convert=rgb` repeats gray to RGB" if image.shape[1:] == first[1:] else ""
            raise refusal(
                folder / name,
                f"is {shape_words([image.shape])}, but {names[0]} is {shape_words([first])}; make "
                "all images of the folder alike, or pass over those that differ from most with "
                f"`on_bad=skip` (fid takes images of any size as they are){repeats}",
            )
        yield image


def _good_names(
    folder: Path, names: list[str], options: FolderOptions
) -> tuple[list[str], tuple[str, ...]]:
    """Names of the images of the most common shape, or of any; and a line for each other image.

    Raises:
        InputError: there is no such image.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    problems: dict[str, str] = {}
    for name in names:
        try:
            shapes[name] = _decode(folder / name, options.convert).shape
        except InputError as error:
            problems[name] = str(error)
    if not shapes:
        raise refusal(folder, f"holds no image that can be read; {problems[names[0]]}")
    usual = Counter(shapes.values()).most_common(1)[0][0]
    for name, shape in shapes.items():
        if shape != usual and not options.any_size:
            reason = f"is {shape_words([shape])}, but most are {shape_words([usual])}"
            problems[name] = str(refusal(folder / name, reason))
    good = [name for name in names if name not in problems]
    return good, tuple(problems[name] for name in names if name in problems)


def _decode(path: Path, convert: str | None) -> NDArray[np.uint8]:
    """The image, (C, H, W)."""
    from PIL import Image

    try:
        require_regular(path)
        with Image.open(path, formats=_FORMATS) as image:
            return pixels_of(image, convert)
    except InputError as error:
        raise refusal(path, str(error)) from error
    # Decoders may raise anything for a damaged file.
    except Exception as error:
        raise refusal(
            path, f"cannot be read as an image ({error}); replace or remove it"
        ) from error
