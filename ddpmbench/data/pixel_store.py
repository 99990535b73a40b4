"""Large arrays in a temporary file, written in portions and memory-mapped."""

import contextlib
import errno
import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ddpmbench.errors import InputError

IN_MEMORY = 1 << 26
"""Larger arrays, in bytes, are kept in a temporary file."""

Scalar = TypeVar("Scalar", bound=np.generic)


def store(
    shape: tuple[int, ...], portions: Iterable[NDArray[Scalar]], dtype: type[Scalar]
) -> NDArray[Scalar]:
    """One array of portions.

    Beyond `IN_MEMORY` bytes it is a temporary file without a name, which is deleted with the array
    or the process. The file is written first and then mapped, because pages written through a
    mapping would count as memory of this process.

    Args:
        shape: (N, ...) of the array.
        portions: (B, ...) each, in order; none is kept.
        dtype: dtype of every portion.

    Returns:
        (N, ...), contiguous and read-only.

    Raises:
        InputError: the file cannot be written, for example on a full disk.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return store_flat(portions, count=shape[0], size=size).view(dtype).reshape(shape)


def store_flat(
    portions: Iterable[NDArray[Any]], *, count: int = 0, size: int = 0
) -> NDArray[np.uint8]:
    """The bytes of portions, one after another; see `store`.

    Args:
        portions: in order; none is kept.
        count: number of images, for messages; 0 if each portion is an image.
        size: bytes of all portions; 0 if unknown.

    Returns:
        Flat, contiguous and read-only.

    Raises:
        InputError: the file cannot be written, for example on a full disk.
    """
    written = number = 0
    # Unbuffered, because closing would write the rest of a buffer and fail a second time.
    with tempfile.SpooledTemporaryFile(IN_MEMORY, buffering=0) as file:
        if size > IN_MEMORY:
            with _no_room_refused(count, size):
                file.rollover()
                if shutil.disk_usage(tempfile.gettempdir()).free < size:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for number, part in enumerate(portions, start=1):
            written += part.nbytes
            left = np.ascontiguousarray(part).reshape(-1).view(np.uint8).data
            with _no_room_refused(count or number, size or written):
                while left:
                    left = left[file.write(left) :]
        if written <= IN_MEMORY:
            file.seek(0)
            return np.frombuffer(file.read(), np.uint8)
        with _no_room_refused(count or number, written):
            return np.asarray(np.memmap(file, np.uint8, "r"))


def release(array: NDArray[Any]) -> None:
    """Release the resident pages of a stored array; they are read again on the next access.

    Until then the system counts them as memory of this process. An array in memory is unaffected.
    """
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


@contextlib.contextmanager
def _no_room_refused(num_images: int, size: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = (
            f"{num_images} images take a temporary file of {size:,} bytes, which cannot "
            f"be had ({error}); set TMPDIR to a folder with room, or take fewer with `num_images`"
        )
        raise InputError(" ".join(message.splitlines())) from error


_PORTION = 1 << 24  # bytes read at a time


class ByteStream(Protocol):
    """A file, compressed or not."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; empty at the end."""


def read_pixels(
    stream: ByteStream, shape: tuple[int, int, int, int], count: int
) -> NDArray[np.uint8]:
    """The first images of a stream of pixels, with the channels first.

    Args:
        stream: at the first pixel; left after the last pixel read.
        shape: (N, H, W, C) of all its images.
        count: number of images to read.

    Returns:
        (count, C, H, W), contiguous and read-only.

    Raises:
        EOFError: the stream ends early.
        MemoryError: a single image is too large.
        InputError: there is no space for a temporary file.
    """
    total, height, width, channels = shape
    size = height * width * channels
    try:
        buffer = np.empty((min(count, max(1, _PORTION // size)), *shape[1:]), np.uint8)
    except (ValueError, MemoryError) as error:
        raise MemoryError(f"it claims the shape {shape}") from error

    def portions() -> Iterator[NDArray[np.uint8]]:
        for start in range(0, count, len(buffer)):
            part = buffer[: count - start]
            view, filled = part.data.cast("B"), 0
            while filled < len(view):
                content = stream.read(len(view) - filled)
                if not content:
                    raise EOFError(f"it holds {start * size + filled} bytes of {total * size}")
                view[filled : filled + len(content)] = content
                filled += len(content)
            yield part.transpose(0, 3, 1, 2)

    return store((count, channels, height, width), portions(), np.uint8)


def refuse_shorter(size: int, shape: tuple[int, ...]) -> None:
    """Raise EOFError, before memory is allocated, where a file is too short for its header."""
    if size < math.prod(shape):
        raise EOFError(f"it holds {size} bytes of {math.prod(shape)}")
