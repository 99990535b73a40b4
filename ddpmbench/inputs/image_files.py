"""Readers of image files: a folder or an npz, as 8-bit pixels, never converted."""

import dataclasses
import itertools
import os
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self, overload

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ddpmbench.array_store import store
from ddpmbench.errors import InputError
from ddpmbench.inputs.pixel_store import read_pixels

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif")

# To pass over these as if they were stray notes would drop images from the set unseen.
_UNREAD_SUFFIXES = (".avif", ".heic", ".heif", ".jp2", ".jxl", ".pgm", ".ppm", ".pnm", ".npy")
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


@dataclasses.dataclass(frozen=True, eq=False)
class ImageData:
    """What a file or folder holds.

    Attributes:
        pixels: (N, C, H, W) uint8.
        ids: (N,) a name for each image.
        labels: (N,) int64 classes, or None.
        skipped: a line for each file that was passed over because it holds no such image.
    """

    pixels: NDArray[np.uint8]
    ids: Sequence[str]
    labels: NDArray[np.int64] | None = None
    skipped: tuple[str, ...] = ()


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


def refusal(subject: object, reason: str) -> InputError:
    """The error to raise: one line, whatever a path or another library's message holds."""
    return InputError(" ".join(f"{subject}: {reason}".splitlines()))


def count_to_read(num_images: int | None, total: int, source: object) -> int:
    """How many images to take of those there are.

    Raises:
        InputError: if `num_images` lies outside 1..total.
    """
    if num_images is None:
        return total
    if not 1 <= num_images <= total:
        raise refusal(
            f"--num-images {num_images}",
            f"{source} holds {total} images; give a number from 1 to {total}",
        )
    return num_images


def read_folder(
    folder: Path, num_images: int | None = None, *, skip_bad: bool = False
) -> ImageData:
    """The images of a folder and its subfolders, in natural order: 2.png before 10.png.

    Hidden files and files without an image's suffix are passed over. Pixels are taken as stored:
    an EXIF orientation is not applied (that of a TIFF is, as its format asks), no color space is
    converted. The ids are paths relative to the folder, with slashes. Only the first
    `num_images` files are opened.

    Args:
        folder: which.
        num_images: how many, from the first on; None for all.
        skip_bad: pass over files that do not hold an image like the others, and say which.

    Raises:
        InputError: if there is no image, or, unless it is passed over, one that is not 8-bit gray
            or RGB, has more than one frame, cannot be decoded, or differs from the first in size
            or channels.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError(
            f"Pillow, which reads images, cannot be imported ({error}): pip install pillow"
        ) from error

    names = _image_names(folder)
    if not names:
        raise refusal(
            folder, f"holds no images; their names must end in one of {' '.join(IMAGE_SUFFIXES)}"
        )
    skipped: tuple[str, ...] = ()
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        if skip_bad:
            names, skipped = _good_names(folder, names)
        names = names[: count_to_read(num_images, len(names), folder)]
        images = _images_alike(folder, names)
        first = next(images)
        shape = (len(names), *first.shape[1:])
        pixels = store(shape, itertools.chain([first], images), np.uint8)
    return ImageData(pixels, names, skipped=skipped)


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
    try:
        with zipfile.ZipFile(path) as archive:
            return _npz_images(archive, num_images, path)
    except (InputError, MemoryError):
        raise
    # numpy and zipfile raise whatever a damaged archive or header leads them to.
    except Exception as error:
        raise refusal(
            path, f"cannot be read ({error}); save it with np.savez and plain uint8 pixels"
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
    return refusal(
        subject, f"has shape {shape}; save gray as (N, H, W) or (N, H, W, 1), RGB as (N, H, W, 3)"
    )


def _image_names(folder: Path) -> list[str]:
    names = []
    seen = set()
    # A link that leads back up would be walked until the path is too long for the system.
    for parent, subfolders, files in os.walk(folder, followlinks=True, onerror=_raise):
        real = os.path.realpath(parent)
        if real in seen:
            raise refusal(parent, "links to a folder that is read already; remove the link")
        seen.add(real)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in files:
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if suffix in _UNREAD_SUFFIXES:
                raise refusal(Path(parent, name), f"{suffix} is not read; save it as PNG")
            if suffix in IMAGE_SUFFIXES:
                names.append(_text(Path(parent, name).relative_to(folder).as_posix()))
    return sorted(names, key=_natural_key)


def _raise(error: OSError) -> None:
    raise error


def _text(name: str) -> str:
    # An id goes into tables, which are UTF-8: better refused now than at the end of a run.
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise refusal(os.fsencode(name), "the name is not UTF-8; rename the file") from error
    return name


def _natural_key(name: str) -> tuple[str, str]:
    # One text, because lists of a name's parts would take many times its memory. A number is its
    # length and its digits; the end of a part comes before a number, which comes before text.
    def number(match: re.Match[str]) -> str:
        digits = match[0].lstrip("0")
        return f"\1{chr(len(digits))}{digits}"

    return re.sub("[0-9]+", number, name.replace("/", "\0")), name


def _images_alike(folder: Path, names: list[str]) -> Iterator[NDArray[np.uint8]]:
    """(1, C, H, W) each."""
    first = None
    for name in names:
        image = _decode(folder / name)
        first = image if first is None else first
        if image.shape != first.shape:
            raise refusal(
                folder / name,
                f"is {_describe(image.shape)}, but {names[0]} is {_describe(first.shape)}; "
                "make all images of the folder alike",
            )
        yield image[None]


def _good_names(folder: Path, names: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """Those of images of the size that most have, and what is wrong with each other one.

    Raises:
        InputError: there is none.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    complaints: dict[str, str] = {}
    for name in names:
        try:
            shapes[name] = _decode(folder / name).shape
        except InputError as error:
            complaints[name] = str(error)
    if not shapes:
        raise refusal(folder, f"holds no image that can be read; {complaints[names[0]]}")
    usual = Counter(shapes.values()).most_common(1)[0][0]
    for name, shape in shapes.items():
        if shape != usual:
            complaints[name] = str(
                refusal(folder / name, f"is {_describe(shape)}, but most are {_describe(usual)}")
            )
    good = [name for name in names if name not in complaints]
    return good, tuple(complaints[name] for name in names if name in complaints)


def _decode(path: Path) -> NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(path, formats=_FORMATS) as image:
            complaint = _complaint(image)
            if complaint is None:
                image.load()
                pixels = np.asarray(image)
    # The decoders raise whatever a damaged file leads them to.
    except Exception as error:
        raise refusal(
            path, f"cannot be read as an image ({error}); replace or remove it"
        ) from error
    if complaint is not None:
        raise refusal(path, complaint)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _complaint(image: "Image") -> str | None:
    if getattr(image, "is_animated", False):
        return "has more than one frame; save each frame as a file of its own"
    if image.mode not in ("L", "RGB"):
        return f"{_MODES.get(image.mode, 'is not gray or RGB')} (mode {image.mode}); {_REMEDY}"
    if "transparency" in image.info:
        return f"has a transparent color; {_REMEDY}"
    # Pillow scales 2, 4, 5 and 16 bits a channel to 8 unasked; the raw mode tells, as in "RGB;16B".
    for tile in getattr(image, "tile", ()):
        raw_mode = tile[3] if isinstance(tile[3], str) else tile[3][0]
        if re.search(";[0-9]", str(raw_mode)):
            return f"does not have 8 bits a channel ({raw_mode}); {_REMEDY}"
    return None


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
        shape, is_fortran, dtype = _npy_header(file)
        if dtype != np.uint8:
            raise refusal(path, f"arr_0 is {dtype}; save the pixels as uint8, 0..255")
        # (N, H, W) to the letter, but more likely one color image that lacks its first axis.
        if len(shape) == 3 and shape[-1] in (3, 4):
            raise shape_refusal(f"{path}: arr_0", shape)
        shape = image_shape(shape, f"{path}: arr_0")
        count = count_to_read(num_images, shape[0], path)
        labels = None if classes is None else _npz_labels(classes, shape[0], path)[:count]
        if is_fortran:
            whole = _npz_array(archive, "arr_0").reshape(shape).transpose(0, 3, 1, 2)
            pixels = store((count, *whole.shape[1:]), [whole[:count]], np.uint8)
        else:
            pixels = read_pixels(file, shape, count)
    return ImageData(pixels, PositionIds(range(count)), labels)


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
