"""Files of arrays as images with labels: npy, npz, and the idx format of MNIST."""

import contextlib
import gzip
import io
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ddpmbench.data.arrays import image_shape, shape_refusal
from ddpmbench.data.file_kinds import open_maybe_gzip
from ddpmbench.data.images import ImageSet, PositionIds
from ddpmbench.data.pixel_store import read_pixels, refuse_shorter, store
from ddpmbench.errors import InputError, count_to_read, refusal
from ddpmbench.files import JOINED, is_alone


def read_npy(path: Path, num_images: int | None = None) -> ImageSet:
    """The images of an npy file: uint8 (N, H, W, C) or (N, H, W).

    With `num_images`, nothing after the last requested image is read.

    Raises:
        InputError: the file is truncated or damaged, or holds anything but 8-bit gray or RGB
            images.
    """
    with _npy_damage_refused(path, "np.save"), path.open("rb") as file:
        pixels, _ = _npy_pixels(file, path.stat().st_size, num_images, "the array", path)
    return ImageSet(pixels, PositionIds(range(len(pixels))), str(path))


def is_npz(path: Path) -> bool:
    """Whether a file is a zip archive of arrays, whatever its name."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".npy") for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError):
        return False


def read_npz(path: Path, num_images: int | None = None) -> ImageSet:
    """The images of an npz archive: arr_0 uint8 (N, H, W, C) or (N, H, W), arr_1 labels if any.

    With `num_images`, nothing after the last requested image is read or verified. An array in
    Fortran order, in which the images are interleaved, is read into memory entirely.

    Raises:
        InputError: the file is truncated or damaged, or holds anything but 8-bit gray or RGB images
            with one integer label each.
    """
    if not zipfile.is_zipfile(path):
        raise refusal(path, "is not an npz archive, or is cut short; copy or save it again")
    with _npy_damage_refused(path, "np.savez"), zipfile.ZipFile(path) as archive:
        if not is_alone(archive):
            raise refusal(path, JOINED)
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        if "arr_0" not in names:
            raise refusal(
                path, f"has no array arr_0 but {names}; save it with np.savez(path, arr_0=pixels)"
            )
        with archive.open("arr_0.npy") as file:
            size = archive.getinfo("arr_0.npy").file_size
            pixels, total = _npy_pixels(file, size, num_images, "arr_0", path)
        labels = _npz_labels(archive, total, path)[: len(pixels)] if "arr_1" in names else None
    others = len(set(names) - {"arr_0", "arr_1"})
    passed_over = {"array": others} if others else {}
    ids = PositionIds(range(len(pixels)))
    return ImageSet(pixels, ids, str(path), labels, passed_over=passed_over)


@contextlib.contextmanager
def _npy_damage_refused(path: Path, function: str) -> Iterator[None]:
    try:
        yield
    except (InputError, MemoryError):
        raise
    # numpy and zipfile may raise anything for a damaged archive or header.
    except Exception as error:
        raise refusal(
            path, f"cannot be read ({error}); save it with {function} and plain uint8 pixels"
        ) from error


def _npy_pixels(
    file: IO[bytes], size: int, num_images: int | None, name: str, path: Path
) -> tuple[NDArray[np.uint8], int]:
    """The first images of an array in npy format, and the number of images in it.

    Args:
        file: seekable.
        size: size of the file in bytes, as claimed.
        num_images: number of images to read, from the first on; None for all.
        name: the name of the array, for messages.
        path: the path of the file, for messages.
    """
    shape, is_fortran, dtype = _npy_header(file)
    if dtype != np.uint8:
        raise refusal(path, f"{name} is {dtype}; save the pixels as uint8, 0..255")
    # Formally (N, H, W), but more likely one color image without its first axis.
    if len(shape) == 3 and shape[-1] in (3, 4):
        raise shape_refusal(f"{path}: {name}", shape)
    images = image_shape(shape, f"{path}: {name}")
    if size - file.tell() > math.prod(shape):
        raise refusal(path, f"{name} is followed by other data; save each array by itself")
    count = count_to_read(num_images, images[0], path)
    refuse_shorter(size - file.tell(), (count, *images[1:]))
    if not is_fortran:
        return read_pixels(file, images, count), images[0]
    file.seek(0)
    array = np.asarray(npy.read_array(file, allow_pickle=False))
    channels_first = array.reshape(images).transpose(0, 3, 1, 2)[:count]
    return store(channels_first.shape, [channels_first], np.uint8), images[0]


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether the order is Fortran's, and dtype; the pixels follow in the file."""
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
            f"arr_1 has shape {classes.shape} for {num_images} images; save one label per image",
        )
    labels = classes.astype(np.int64, copy=False)
    if (labels < 0).any():
        raise refusal(path, "arr_1 holds labels outside 0..2^63-1; number the classes from 0")
    return labels


# ---- idx

IDX_SPLITS = ("train", "test")
"""Splits that may occur in the names of idx files."""
_PREFIXES = {"train": "train", "t10k": "test", "test": "test"}
_IMAGES = re.compile(r"(.*)images([-.]idx)[0-9]-ubyte(\.gz)?")
_TYPES, _UINT8 = (0x08, 0x09, 0x0B, 0x0C, 0x0D, 0x0E), 0x08
_Bytes = gzip.GzipFile | io.BufferedReader


def read_idx(path: Path, num_images: int | None = None, *, source: str = "") -> ImageSet:
    """The images of an idx file, gzipped or not, with the labels of its sibling if there is one.

    The sibling of NAME-images-idx3-ubyte is NAME-labels-idx1-ubyte, either with or without .gz.
    With `num_images`, nothing after the last requested image is read or verified. `source` is the
    user's name for the file, if that is not its path.

    Raises:
        InputError: it is not an idx file of unsigned bytes (N, H, W) or (N, H, W, C), has the wrong
            length, or its labels do not match in number.

    Source: LeCun, "The MNIST database of handwritten digits", file formats.
    """
    with _idx_damage_refused(path), open_maybe_gzip(path) as file:
        shape = _idx_shape(file, path)
        if len(shape) not in (3, 4):
            kind = "a labels file" if len(shape) == 1 else f"{len(shape)}-dimensional"
            raise refusal(path, f"is {kind}; give the idx file of images, with 3 or 4 dimensions")
        count = count_to_read(num_images, shape[0], source or path)
        images = image_shape(shape, str(path))
        if isinstance(file, io.BufferedReader):
            refuse_shorter(path.stat().st_size - file.tell(), (count, *images[1:]))
        pixels = read_pixels(file, images, count)
        if count == shape[0]:
            _refuse_more(file, shape, path)
    labels = _idx_labels(path, shape[0])
    if labels is not None:
        labels = labels[:count]
    return ImageSet(pixels, PositionIds(range(count)), source or str(path), labels)


def is_idx_of_images(name: str) -> bool:
    """Whether a file name is that of an idx file of images."""
    return _IMAGES.fullmatch(name.rsplit("/", 1)[-1]) is not None


def chosen_idx(folder: Path, names: Sequence[str], split: str) -> str:
    """The idx file of images among the files of a folder.

    Args:
        folder: for messages.
        names: the file names, relative to the folder.
        split: "train" or "test", the beginning of the name; empty if there is only one.

    Raises:
        InputError: there is none, or the choice is ambiguous.
    """
    # The same file may also be there gzipped.
    candidates = {name.removesuffix(".gz"): name for name in sorted(names, reverse=True)}
    chosen = [name for name in candidates.values() if split in ("", _split(name))]
    if split and len(chosen) != 1:
        raise refusal(
            f"{folder}:{split}",
            f"the folder holds {len(chosen)} idx files of images of this split; give the path of "
            "one",
        )
    if len(chosen) > 1:
        splits = sorted({_split(name) for name in candidates} - {""}, reverse=True)
        choices = " or ".join(f"{folder}:{split}" for split in splits) or "the path of one"
        raise refusal(folder, f"holds the idx files {', '.join(sorted(chosen))}; give {choices}")
    return chosen[0]


def _split(name: str) -> str:
    base = name.rsplit("/", 1)[-1]
    return next((split for prefix, split in _PREFIXES.items() if base.startswith(prefix)), "")


@contextlib.contextmanager
def _idx_damage_refused(path: Path) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise refusal(path, f"is cut short or corrupt ({error}); copy it again") from error
    except MemoryError as error:
        raise refusal(
            path, f"is too large for memory ({error}); take fewer images with `num_images`"
        ) from error


def _idx_shape(file: _Bytes, path: Path) -> tuple[int, ...]:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _TYPES:
        raise refusal(path, "is not an idx file; give a folder of images, an .npz or an idx file")
    if magic[2] != _UINT8:
        raise refusal(path, "does not hold unsigned bytes; save the pixels as uint8, 0..255")
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise EOFError("its header ends early")
    return struct.unpack(f">{magic[3]}I", sizes)


def _refuse_more(file: _Bytes, shape: tuple[int, ...], path: Path) -> None:
    if file.read(1):
        raise refusal(path, f"holds more than its shape {shape} says; copy it again")


def _idx_labels(path: Path, num_images: int) -> NDArray[np.int64] | None:
    match = _IMAGES.fullmatch(path.name)
    if match is None:
        return None
    plain = path.with_name(f"{match[1]}labels{match[2]}1-ubyte")
    siblings = (plain, plain.with_name(f"{plain.name}.gz"))
    existing = [sibling for sibling in siblings if sibling.exists()]
    if not existing:
        return None
    sibling = existing[-1 if match[3] else 0]
    with _idx_damage_refused(sibling), open_maybe_gzip(sibling) as file:
        shape = _idx_shape(file, sibling)
        if shape != (num_images,):
            raise refusal(
                sibling,
                f"has shape {shape} for the {num_images} images of {path.name}; put the labels "
                "that belong to them there, or remove it",
            )
        values = file.read(num_images)
        if len(values) < num_images:
            raise EOFError(f"it holds {len(values)} bytes of {num_images}")
        _refuse_more(file, shape, sibling)
        return np.frombuffer(values, np.uint8).astype(np.int64)
