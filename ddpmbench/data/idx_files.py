"""The idx file format of MNIST and its successors, as images with labels."""

import contextlib
import gzip
import io
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddpmbench.data.image_files import ImageData, PositionIds, image_shape
from ddpmbench.data.pixel_store import read_pixels, refuse_shorter
from ddpmbench.errors import count_to_read, refusal

_GZIP_MAGIC = b"\x1f\x8b"
_TYPES = (0x08, 0x09, 0x0B, 0x0C, 0x0D, 0x0E)
_UINT8 = 0x08
_IMAGES = re.compile(r"(.*)images([-.]idx)[0-9]-ubyte(\.gz)?")
_PREFIXES = {"train": "train", "t10k": "test", "test": "test"}
IDX_SPLITS = ("train", "test")
"""Splits that the names of idx files can have."""

_Bytes = gzip.GzipFile | io.BufferedReader


def read_idx(path: Path, num_images: int | None = None) -> ImageData:
    """The images of an idx file, gzipped or not, and the labels of its sibling if there is one.

    The sibling of NAME-images-idx3-ubyte is NAME-labels-idx1-ubyte, either with or without .gz.
    With `num_images`, what follows the last image wanted is not read, nor checked.

    Raises:
        InputError: if it is not an idx file of unsigned bytes (N, H, W) or (N, H, W, C), is cut
            short or too long, or its labels do not match in number.

    Source: LeCun, "The MNIST database of handwritten digits", file formats.
    """
    with _damage_refused(path), open_maybe_gzip(path) as file:
        shape = _shape(file, path)
        if len(shape) not in (3, 4):
            what = "a labels file" if len(shape) == 1 else f"{len(shape)}-dimensional"
            raise refusal(path, f"is {what}; give the idx file of images, with 3 or 4 dimensions")
        count = count_to_read(num_images, shape[0], path)
        images = image_shape(shape, str(path))
        if isinstance(file, io.BufferedReader):
            refuse_shorter(path.stat().st_size - file.tell(), (count, *images[1:]))
        pixels = read_pixels(file, images, count)
        if count == shape[0]:
            _refuse_more(file, shape, path)
    labels = _labels(path, shape[0])
    labels = None if labels is None else labels[:count]
    return ImageData(pixels, PositionIds(range(count)), labels)


def chosen_idx(folder: Path, names: Sequence[str], split: str) -> str:
    """The idx file of images among those of a folder.

    Args:
        folder: for messages.
        names: of its files, relative.
        split: "train" or "test", as the names begin; empty where there is but one.

    Raises:
        InputError: there is none, or the choice is open.
    """
    # Beside a file there may be the same file gzipped.
    candidates = {name.removesuffix(".gz"): name for name in sorted(names, reverse=True)}
    if split:
        of_split = [name for name in candidates.values() if _split(name) == split]
        if len(of_split) != 1:
            raise refusal(
                f"{folder}:{split}",
                f"the folder holds {len(of_split)} idx files of images of this split; give the "
                "path of one",
            )
        return of_split[0]
    if len(candidates) > 1:
        splits = sorted({_split(name) for name in candidates} - {""}, reverse=True)
        choices = " or ".join(f"{folder}:{split}" for split in splits)
        raise refusal(
            folder,
            f"holds the idx files {', '.join(sorted(candidates.values()))}; give "
            f"{choices or 'the path of one'}",
        )
    return next(iter(candidates.values()))


def _split(name: str) -> str:
    base = name.rsplit("/", 1)[-1]
    return next((split for prefix, split in _PREFIXES.items() if base.startswith(prefix)), "")


def is_idx_of_images(name: str) -> bool:
    """Whether a file's name is that of an idx file of images."""
    return _IMAGES.fullmatch(name.rsplit("/", 1)[-1]) is not None


@contextlib.contextmanager
def _damage_refused(path: Path) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise refusal(path, f"is cut short or corrupt ({error}); copy it again") from error
    except MemoryError as error:
        raise refusal(
            path, f"is too large for memory ({error}); take fewer images with `num_images`"
        ) from error


def open_maybe_gzip(path: Path) -> _Bytes:
    """A file's content, unpacked where it is gzipped."""
    with open(path, "rb") as file:
        is_gzip = file.read(2) == _GZIP_MAGIC
    return gzip.open(path, "rb") if is_gzip else open(path, "rb")


def _shape(file: _Bytes, path: Path) -> tuple[int, ...]:
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


def _labels(path: Path, num_images: int) -> NDArray[np.int64] | None:
    match = _IMAGES.fullmatch(path.name)
    if match is None:
        return None
    stem = f"{match[1]}labels{match[2]}1-ubyte"
    suffixes = (".gz", "") if match[3] else ("", ".gz")
    siblings = [path.with_name(stem + suffix) for suffix in suffixes]
    sibling = next((candidate for candidate in siblings if candidate.exists()), None)
    if sibling is None:
        return None
    with _damage_refused(sibling), open_maybe_gzip(sibling) as file:
        shape = _shape(file, sibling)
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
