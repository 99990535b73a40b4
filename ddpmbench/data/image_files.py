"""Readers of image files: a folder, an npz or an npy, as 8-bit pixels."""

import contextlib
import dataclasses
import itertools
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self, overload

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ddpmbench.data.folder_contents import (
    IMAGE_SUFFIXES,
    FolderContents,
    class_folder,
    require_regular,
)
from ddpmbench.data.pixel_store import read_pixels, refuse_shorter, store, store_flat
from ddpmbench.errors import InputError, count_to_read, listed, refusal

if TYPE_CHECKING:
    from PIL.Image import Image


_COLORS = {1: "gray", 3: "RGB"}


def packed(
    images: Iterable[NDArray[np.uint8]],
) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
    """Images of any sizes in one array, which of a large set is a file (`pixel_store`).

    Args:
        images: (C, H, W) each, in order; none is kept.

    Returns:
        pixels: (N, C, H, W) where all have one shape; else flat, one image after another.
        shapes: (N, 3), C, H, W of each; None where they have one.

    Raises:
        InputError: there is no room for a temporary file.
    """
    shapes: list[tuple[int, ...]] = []

    def flat() -> Iterator[NDArray[np.uint8]]:
        for image in images:
            shapes.append(image.shape)
            yield image.reshape(-1)

    pixels = store_flat(flat())
    if len(set(shapes)) == 1:
        return pixels.reshape(len(shapes), *shapes[0]), None
    return pixels, np.array(shapes, np.int64)


def shape_words(shapes: NDArray[np.int64]) -> str:
    """Sizes and colors of images of (N, 3) shapes: "of 3 sizes from 8x8 to 32x16, gray and RGB"."""
    sizes = sorted({(h * w, w, h) for _, h, w in shapes.tolist()})
    names = [f"{width}x{height}" for _, width, height in sizes]
    colors = " and ".join(_COLORS[channels] for channels in sorted(set(shapes[:, 0].tolist())))
    if len(names) == 1:
        return f"{names[0]} {colors}"
    return f"of {len(names)} sizes from {names[0]} to {names[-1]}, {colors}"


_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF")
_MODES = {
    "1": "has 1 bit a pixel",
    "P": "has a palette",
    "PA": "has a palette and transparency",
    "LA": "has transparency",
    "RGBA": "has transparency",
    "I": "has more than 8 bits a channel",
    "I;16": "has more than 8 bits a channel",
    "I;16B": "has more than 8 bits a channel",
    "F": "has floating-point pixels",
}
_REMEDY = "save it as 8-bit gray or 8-bit RGB without transparency"
_CIFAR10_BATCHES = {"data_batch_1", "test_batch"}
_OR_SKIP = "; or pass over it with `on_bad=skip`"
_CONVERTED = {"rgb": "RGB", "gray": "L"}


@dataclasses.dataclass(frozen=True, eq=False)
class ImageData:
    """The images of a file or folder.

    Attributes:
        pixels: (N, C, H, W) uint8, or flat; see `packed`.
        ids: (N,) a name for each image.
        labels: (N,) int64 classes, or None.
        skipped: a line for each image file that was passed over.
        classes: the name of each class, where labels are of class folders.
        passed_over: number of other files in the folder, by kind.
        archives: names of its archives and arrays.
        shapes: (N, 3) of images of several shapes; else None.
    """

    pixels: NDArray[np.uint8]
    ids: Sequence[str]
    labels: NDArray[np.int64] | None = None
    skipped: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    passed_over: dict[str, int] = dataclasses.field(default_factory=dict)
    archives: tuple[str, ...] = ()
    shapes: NDArray[np.int64] | None = None


@dataclasses.dataclass(frozen=True)
class FolderOptions:
    """How the images of a folder are read.

    Attributes:
        skip_bad: pass over files without an image like the others, and list them.
        convert: "rgb" repeats gray to three channels, "gray" takes the luma of color; None reads
            images as they are stored.
        class_names: the class folders in the order of the classes; None for sorted.
        any_size: take images that differ in size and channels.
    """

    skip_bad: bool = False
    convert: str | None = None
    class_names: tuple[str, ...] | None = None
    any_size: bool = False


_AS_STORED = FolderOptions()


@dataclasses.dataclass(frozen=True)
class PositionIds(Sequence[str]):
    """Names of images by their index: "0", "1", ..."""

    positions: range

    def __len__(self) -> int:
        return len(self.positions)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> "str | Self":
        if isinstance(index, slice):
            return dataclasses.replace(self, positions=self.positions[index])
        return str(self.positions[index])


def read_folder(
    folder: Path,
    contents: FolderContents,
    num_images: int | None = None,
    options: FolderOptions = _AS_STORED,
) -> ImageData:
    """The images of a folder and its subfolders, in natural order: 2.png before 10.png.

    Pixels are taken as stored: an EXIF orientation is not applied (that of a TIFF is, as its format
    asks), no color space is converted. The ids are paths relative to the folder, with slashes. Only
    the first `num_images` images are decoded. Where every image lies in a class folder, its label
    is the position of that folder among the sorted ones.

    Args:
        folder: its path.
        contents: its files.
        num_images: how many, from the first on; None for all.
        options: of the reader.

    Raises:
        InputError: there is no image; or, unless it is passed over, one has a format that is not
            read, is not 8-bit gray or RGB, has several frames, cannot be decoded or, unless any
            size is taken, differs from the first in size or channels.
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
        pixels, shapes = _folder_pixels(folder, names, options)
    classes = _classes(folder, contents, options.class_names)
    labels = _folder_labels(names, classes) if classes else None
    return ImageData(
        pixels, names, labels, skipped, classes, contents.passed_over, contents.archives, shapes
    )


def read_npy(path: Path, num_images: int | None = None) -> ImageData:
    """The images of an npy file: uint8 (N, H, W, C) or (N, H, W).

    With `num_images`, what follows the last image wanted is not read.

    Raises:
        InputError: if it is cut short or corrupt, or holds anything but 8-bit gray or RGB images.
    """
    with _damage_refused(path, "np.save"), path.open("rb") as file:
        size = path.stat().st_size
        pixels, _ = _npy_pixels(file, size, num_images, name="the array", path=path)
    return ImageData(pixels, PositionIds(range(len(pixels))))


def is_npz(path: Path) -> bool:
    """Whether a file is a zip archive of arrays, whatever it is called."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".npy") for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError):
        return False


def read_npz(path: Path, num_images: int | None = None) -> ImageData:
    """The images of an npz archive: arr_0 uint8 (N, H, W, C) or (N, H, W), arr_1 labels if any.

    With `num_images`, what follows the last image wanted is not read, nor checked. An array in
    Fortran order, in which the images are interleaved, is read into memory whole.

    Raises:
        InputError: if it is cut short or corrupt, or holds anything but 8-bit gray or RGB
            images and one integer label for each.
    """
    if not zipfile.is_zipfile(path):
        raise refusal(path, "is not an npz archive, or is cut short; copy or save it again")
    with _damage_refused(path, "np.savez"), zipfile.ZipFile(path) as archive:
        return _npz_images(archive, num_images, path)


@contextlib.contextmanager
def _damage_refused(path: Path, function: str) -> Iterator[None]:
    try:
        yield
    except (InputError, MemoryError):
        raise
    # numpy and zipfile raise whatever a damaged archive or header leads them to.
    except Exception as error:
        raise refusal(
            path, f"cannot be read ({error}); save it with {function} and plain uint8 pixels"
        ) from error


def image_shape(shape: tuple[int, ...], subject: str) -> tuple[int, int, int, int]:
    """(N, H, W, C) for images of that shape or of (N, H, W).

    Raises:
        InputError: naming `subject`, if the shape is another, or there is no image.
    """
    if 0 in shape:
        raise refusal(subject, f"is empty, of shape {shape}; give at least one image")
    if len(shape) == 3:
        return (*shape, 1)
    if len(shape) == 4 and shape[-1] in (1, 3):
        return shape
    raise shape_refusal(subject, shape)


def shape_refusal(subject: str, shape: tuple[int, ...]) -> InputError:
    """The error to raise for a shape that is not that of images."""
    order = ": x.transpose(0, 2, 3, 1)" if len(shape) == 4 and shape[1] in (1, 3) else ""
    return refusal(
        subject,
        f"has shape {shape}; save gray as (N, H, W) or (N, H, W, 1), RGB as (N, H, W, 3){order}",
    )


def _no_images(folder: Path, contents: FolderContents) -> InputError:
    if contents.refused:
        problem = f"holds no image that can be read; {next(iter(contents.refused.values()))}"
    elif _CIFAR10_BATCHES & {name.rsplit("/", 1)[-1] for name in contents.archives}:
        problem = "holds the batches of CIFAR-10; name the data set, cifar10:train or cifar10:test"
    elif contents.archives:
        problem = (
            f"holds no images, but {listed(contents.archives)}; give the path of one, as in "
            f"{folder / contents.archives[0]}"
        )
    else:
        problem = f"holds no images; their names must end in one of {' '.join(IMAGE_SUFFIXES)}"
    return refusal(folder, problem)


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
    elif unnamed := sorted({class_folder(name) for name in contents.names}.difference(names)):
        problem = f"lacks {unnamed[0]}, a folder of {folder}; name every class folder"
    if problem is not None:
        raise refusal("`class_names`", problem)
    return names


def _folder_labels(names: Sequence[str], classes: tuple[str, ...]) -> NDArray[np.int64]:
    numbers = {name: number for number, name in enumerate(classes)}
    return np.array([numbers[class_folder(name)] for name in names], np.int64)


def _folder_pixels(
    folder: Path, names: list[str], options: FolderOptions
) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
    images = _images(folder, names, options)
    if options.any_size:
        return packed(images)
    first = next(images)
    alike = (image[None] for image in itertools.chain([first], images))
    return store((len(names), *first.shape), alike, np.uint8), None


def _images(folder: Path, names: list[str], options: FolderOptions) -> Iterator[NDArray[np.uint8]]:
    """(C, H, W) each, of one shape unless any size is taken."""
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
                f"is {_describe(image.shape)}, but {names[0]} is {_describe(first)}; make all "
                "images of the folder alike, or pass over those that differ from most with "
                f"`on_bad=skip` (fid takes images of any size as they are){repeats}",
            )
        yield image


def _good_names(
    folder: Path, names: list[str], options: FolderOptions
) -> tuple[list[str], tuple[str, ...]]:
    """Names of the images of the commonest shape, or of any; and a line for each other one.

    Raises:
        InputError: there is none.
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
            problems[name] = str(
                refusal(folder / name, f"is {_describe(shape)}, but most are {_describe(usual)}")
            )
    good = [name for name in names if name not in problems]
    return good, tuple(problems[name] for name in names if name in problems)


def _decode(path: Path, convert: str | None) -> NDArray[np.uint8]:
    """(C, H, W)."""
    from PIL import Image

    try:
        require_regular(path)
        with Image.open(path, formats=_FORMATS) as image:
            return pixels_of(image, convert)
    except InputError as error:
        raise refusal(path, str(error)) from error
    # The decoders raise whatever a damaged file leads them to.
    except Exception as error:
        raise refusal(
            path, f"cannot be read as an image ({error}); replace or remove it"
        ) from error


def pixels_of(image: "Image", convert: str | None) -> NDArray[np.uint8]:
    """The pixels of a Pillow image, (C, H, W).

    Raises:
        InputError: it is not 8-bit gray or RGB, nor can become so.
    """
    if (problem := _problem(image, convert)) is not None:
        raise InputError(problem)
    image.load()
    pixels = np.asarray(image if convert is None else image.convert(_CONVERTED[convert]))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _problem(image: "Image", convert: str | None) -> str | None:
    if getattr(image, "is_animated", False):
        return "has more than one frame; save each frame as a file of its own"
    raw_mode = _scaled_raw_mode(image)
    is_convertible = _is_convertible(image) and (raw_mode is None or image.mode == "P")
    if image.mode not in ("L", "RGB") and not (is_convertible and convert):
        remedy = f"{_REMEDY}, or convert it with `convert=rgb`" if is_convertible else _REMEDY
        return f"{_MODES.get(image.mode, 'is not gray or RGB')} (mode {image.mode}); {remedy}"
    if "transparency" in image.info:
        return f"has a transparent color; {_REMEDY}"
    if raw_mode is not None and image.mode != "P":
        return f"does not have 8 bits a channel ({raw_mode}); {_REMEDY}"
    return None


def _scaled_raw_mode(image: "Image") -> str | None:
    """Where a file has other than 8 bits a channel, how it holds them, as in "RGB;16B".

    Pillow scales 2, 4, 5 and 16 bits a channel to 8 unasked.
    """
    for tile in getattr(image, "tile", ()):
        raw_mode = str(tile[3] if isinstance(tile[3], str) else tile[3][0])
        if re.search(";[0-9]", raw_mode):
            return raw_mode
    return None


def _is_convertible(image: "Image") -> bool:
    """Whether RGB holds all there is in an image of another mode."""
    if image.mode in ("LA", "RGBA"):
        return image.getchannel("A").getextrema() == (255, 255)
    return image.mode in ("1", "P") and "transparency" not in image.info


def _describe(shape: tuple[int, ...]) -> str:
    return shape_words(np.array([shape]))


def _npz_images(archive: zipfile.ZipFile, num_images: int | None, path: Path) -> ImageData:
    names = [name.removesuffix(".npy") for name in archive.namelist()]
    if "arr_0" not in names:
        raise refusal(
            path, f"has no array arr_0 but {names}; save it with np.savez(path, arr_0=pixels)"
        )
    with archive.open("arr_0.npy") as file:
        size = archive.getinfo("arr_0.npy").file_size
        pixels, total = _npy_pixels(file, size, num_images, name="arr_0", path=path)
    labels = _npz_labels(archive, total, path)[: len(pixels)] if "arr_1" in names else None
    others = len(set(names) - {"arr_0", "arr_1"})
    passed_over = {"array": others} if others else {}
    return ImageData(pixels, PositionIds(range(len(pixels))), labels, passed_over=passed_over)


def _npy_pixels(
    file: IO[bytes], size: int, num_images: int | None, *, name: str, path: Path
) -> tuple[NDArray[np.uint8], int]:
    """The first images of an array in npy format, and how many there are.

    Args:
        file: seekable.
        size: of the file in bytes, by its own account.
        num_images: how many to read, from the first on; None for all.
        name: of the array, for messages.
        path: of the file, for messages.
    """
    shape, is_fortran, dtype = _npy_header(file)
    images = _npy_shape(shape, dtype, name, path)
    count = count_to_read(num_images, images[0], path)
    refuse_shorter(size - file.tell(), (count, *images[1:]))
    if not is_fortran:
        return read_pixels(file, images, count), images[0]
    file.seek(0)
    whole = np.asarray(npy.read_array(file, allow_pickle=False))
    channels_first = whole.reshape(images).transpose(0, 3, 1, 2)[:count]
    return store(channels_first.shape, [channels_first], np.uint8), images[0]


def _npy_shape(
    shape: tuple[int, ...], dtype: np.dtype[Any], name: str, path: Path
) -> tuple[int, int, int, int]:
    """(N, H, W, C) of an array of pixels.

    Raises:
        InputError: it is none.
    """
    if dtype != np.uint8:
        raise refusal(path, f"{name} is {dtype}; save the pixels as uint8, 0..255")
    # (N, H, W) to the letter, but more likely one color image that lacks its first axis.
    if len(shape) == 3 and shape[-1] in (3, 4):
        raise shape_refusal(f"{path}: {name}", shape)
    return image_shape(shape, f"{path}: {name}")


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether the order is Fortran's, and dtype; the pixels follow."""
    is_first = npy.read_magic(file) == (1, 0)
    header = (npy.read_array_header_1_0 if is_first else npy.read_array_header_2_0)(file)
    if header[2].hasobject:
        raise ValueError("Object arrays cannot be loaded")
    return header


def _npz_labels(archive: zipfile.ZipFile, num_images: int, path: Path) -> NDArray[np.int64]:
    with archive.open("arr_1.npy") as file:
        classes = np.asarray(npy.read_array(file, allow_pickle=False))
    if classes.dtype.kind not in "iu":
        raise refusal(
            path, f"arr_1 is {classes.dtype}; save the labels as integers, or leave them out"
        )
    if classes.shape != (num_images,):
        raise refusal(
            path,
            f"arr_1 has shape {classes.shape} for {num_images} images; save one label an image",
        )
    labels = classes.astype(np.int64, copy=False)
    if (labels < 0).any():
        raise refusal(path, "arr_1 holds labels outside 0..2^63-1; number the classes from 0")
    return labels
