"""Readers of image files: a folder or an npz, as 8-bit pixels, never converted."""

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
    """Put images of any sizes together; those of a large set lie in a file (`array_store`).

    Args:
        images: (C, H, W) each, in order. None is needed again, nor kept.

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
    """What a file or folder holds.

    Attributes:
        pixels: (N, C, H, W) uint8, or flat; see `packed_images.packed`.
        ids: (N,) a name for each image.
        labels: (N,) int64 classes, or None.
        skipped: a line for each file that was passed over because it holds no such image.
        classes: the name of each class, where labels are of class folders.
        passed_over: how many other files the folder holds, by kind.
        archives: the names of those that are archives or arrays.
        shapes: (N, 3) of images that differ in it; else None.
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
        skip_bad: pass over files that do not hold an image like the others, and list them.
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
    """Names for images that have only a position: "0", "1", ..., made when asked for."""

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
        folder: which.
        contents: what it holds.
        num_images: how many, from the first on; None for all.
        options: how.

    Raises:
        InputError: if there is no image, or, unless it is passed over, one that is not read, is not
            8-bit gray or RGB, has more than one frame, cannot be decoded, or, unless any size is
            taken, differs from the first in size or channels.
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
        header = _npy_header(file)
        shape = _npy_shape(header, "the array", path)
        count = count_to_read(num_images, shape[0], path)
        refuse_shorter(path.stat().st_size - file.tell(), (count, *shape[1:]))
        if header[1]:
            file.seek(0)
            return ImageData(_fortran_pixels(file, shape, count), PositionIds(range(count)))
        return ImageData(read_pixels(file, shape, count), PositionIds(range(count)))


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
        return refusal(
            folder, f"holds no image that can be read; {next(iter(contents.refused.values()))}"
        )
    if _CIFAR10_BATCHES & {name.rsplit("/", 1)[-1] for name in contents.archives}:
        return refusal(
            folder,
            "holds the batches of CIFAR-10; name the data set, cifar10:train or cifar10:test",
        )
    if contents.archives:
        return refusal(
            folder,
            f"holds no images, but {listed(contents.archives)}; give the path of one, as in "
            f"{folder / contents.archives[0]}",
        )
    return refusal(
        folder, f"holds no images; their names must end in one of {' '.join(IMAGE_SUFFIXES)}"
    )


def _classes(
    folder: Path, contents: FolderContents, names: tuple[str, ...] | None
) -> tuple[str, ...]:
    """The name of each class, in order; empty where images do not lie in class folders."""
    if names is None:
        return contents.classes
    if not contents.classes:
        raise refusal(
            "`class_names`", f"not every image of {folder} lies in a class folder; leave it out"
        )
    if len(set(names)) != len(names):
        raise refusal("`class_names`", "names a class twice; name each once")
    if unnamed := sorted({class_folder(name) for name in contents.names}.difference(names)):
        raise refusal(
            "`class_names`", f"lacks {unnamed[0]}, a folder of {folder}; name every class folder"
        )
    return names


def _folder_labels(names: Sequence[str], classes: tuple[str, ...]) -> NDArray[np.int64]:
    numbers = {name: number for number, name in enumerate(classes)}
    return np.array([numbers[class_folder(name)] for name in names], np.int64)


def _folder_pixels(
    folder: Path, names: list[str], options: FolderOptions
) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
    images = _images(folder, names, options.convert)
    if options.any_size:
        return packed(images)
    alike = _images_alike(folder, names, images)
    first = next(alike)
    shape = (len(names), *first.shape[1:])
    return store(shape, itertools.chain([first], alike), np.uint8), None


def _images(folder: Path, names: list[str], convert: str | None) -> Iterator[NDArray[np.uint8]]:
    """(C, H, W) each."""
    for name in names:
        try:
            yield _decode(folder / name, convert)
        except InputError as error:
            raise InputError(f"{error}{_OR_SKIP}") from error


def _images_alike(
    folder: Path, names: list[str], images: Iterator[NDArray[np.uint8]]
) -> Iterator[NDArray[np.uint8]]:
    """(1, C, H, W) each."""
    first = None
    for name, image in zip(names, images, strict=True):
        first = image if first is None else first
        if image.shape != first.shape:
            sizes_differ = image.shape[1:] != first.shape[1:]
            remedy = "make all images of the folder alike, or pass over those that differ from "
            remedy += "most with `on_bad=skip` (fid takes images of any size as they are)"
            if not sizes_differ:
                remedy += "; `convert=rgb` repeats gray to RGB"
            raise refusal(
                folder / name,
                f"is {_describe(image.shape)}, but {names[0]} is {_describe(first.shape)}; "
                f"{remedy}",
            )
        yield image[None]


def _good_names(
    folder: Path, names: list[str], options: FolderOptions
) -> tuple[list[str], tuple[str, ...]]:
    """Those of images of the size that most have, or of any, and what is wrong with each other one.

    Raises:
        InputError: there is none.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    complaints: dict[str, str] = {}
    for name in names:
        try:
            shapes[name] = _decode(folder / name, options.convert).shape
        except InputError as error:
            complaints[name] = str(error)
    if not shapes:
        raise refusal(folder, f"holds no image that can be read; {complaints[names[0]]}")
    usual = Counter(shapes.values()).most_common(1)[0][0]
    for name, shape in shapes.items():
        if shape != usual and not options.any_size:
            complaints[name] = str(
                refusal(folder / name, f"is {_describe(shape)}, but most are {_describe(usual)}")
            )
    good = [name for name in names if name not in complaints]
    return good, tuple(complaints[name] for name in names if name in complaints)


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
    complaint = _complaint(image, convert)
    if complaint is not None:
        raise InputError(complaint)
    image.load()
    pixels = np.asarray(image if convert is None else image.convert(_CONVERTED[convert]))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _complaint(image: "Image", convert: str | None) -> str | None:
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
    channels, height, width = shape
    return f"{width}x{height} {'gray' if channels == 1 else 'RGB'}"


def _npz_images(archive: zipfile.ZipFile, num_images: int | None, path: Path) -> ImageData:
    names = [name.removesuffix(".npy") for name in archive.namelist()]
    if "arr_0" not in names:
        raise refusal(
            path, f"has no array arr_0 but {names}; save it with np.savez(path, arr_0=pixels)"
        )
    classes = _npz_array(archive, "arr_1") if "arr_1" in names else None
    with archive.open("arr_0.npy") as file:
        header = _npy_header(file)
        shape = _npy_shape(header, "arr_0", path)
        count = count_to_read(num_images, shape[0], path)
        labels = None if classes is None else _npz_labels(classes, shape[0], path)[:count]
        # As far as the archive says: what is read is checked again.
        refuse_shorter(archive.getinfo("arr_0.npy").file_size, (count, *shape[1:]))
        if header[1]:
            with archive.open("arr_0.npy") as whole:
                pixels = _fortran_pixels(whole, shape, count)
        else:
            pixels = read_pixels(file, shape, count)
    others = len(set(names) - {"arr_0", "arr_1"})
    passed_over = {"array": others} if others else {}
    return ImageData(pixels, PositionIds(range(count)), labels, passed_over=passed_over)


def _npy_shape(
    header: tuple[tuple[int, ...], bool, np.dtype[Any]], name: str, path: Path
) -> tuple[int, int, int, int]:
    """(N, H, W, C) of an array that holds pixels.

    Raises:
        InputError: it holds something else.
    """
    shape, _, dtype = header
    if dtype != np.uint8:
        raise refusal(path, f"{name} is {dtype}; save the pixels as uint8, 0..255")
    # (N, H, W) to the letter, but more likely one color image that lacks its first axis.
    if len(shape) == 3 and shape[-1] in (3, 4):
        raise shape_refusal(f"{path}: {name}", shape)
    return image_shape(shape, f"{path}: {name}")


def _fortran_pixels(
    file: IO[bytes], shape: tuple[int, int, int, int], count: int
) -> NDArray[np.uint8]:
    whole = np.asarray(npy.read_array(file, allow_pickle=False))
    images = whole.reshape(shape).transpose(0, 3, 1, 2)
    return store((count, *images.shape[1:]), [images[:count]], np.uint8)


def _npz_array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    with archive.open(f"{name}.npy") as file:
        return np.asarray(npy.read_array(file, allow_pickle=False))


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether the order is Fortran's, and dtype; the pixels follow."""
    is_first = npy.read_magic(file) == (1, 0)
    header = (npy.read_array_header_1_0 if is_first else npy.read_array_header_2_0)(file)
    if header[2].hasobject:
        raise ValueError("Object arrays cannot be loaded")
    return header


def _npz_labels(classes: NDArray[Any], num_images: int, path: Path) -> NDArray[np.int64]:
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
