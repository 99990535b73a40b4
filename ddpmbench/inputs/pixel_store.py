"""From a file to an array, a portion at a time: of a large set little is ever in memory."""

import contextlib
import math
import mmap
import tempfile
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ddpmbench.errors import InputError

IN_MEMORY = 1 << 26
"""Sets of more bytes than this are kept in a temporary file."""

_PORTION = 1 << 24  # bytes read at a time


class ByteStream(Protocol):
    """What can be read from: a file, compressed or not."""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes, none at the end."""


def store(shape: tuple[int, ...], portions: Iterable[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Put together images that come in portions.

    Beyond `IN_MEMORY` they lie in a temporary file without a name, which goes when the array goes
    or the process ends. The file is written, and mapped when it is whole: pages written through a
    mapping would count as memory of this process.

    Args:
        shape: (N, C, H, W) of all together.
        portions: (B, C, H, W) each, in order. None is needed again, nor kept.

    Returns:
        (N, C, H, W), contiguous and read-only.

    Raises:
        InputError: if the file cannot be written, as on a full disk.
    """
    if math.prod(shape) <= IN_MEMORY:
        pixels = np.empty(shape, np.uint8)
        start = 0
        for part in portions:
            pixels[start : start + len(part)] = part
            start += len(part)
        pixels.setflags(write=False)
        return pixels
    with contextlib.ExitStack() as stack:
        with _no_room_refused(shape):
            # Without a buffer: closing would write the rest of it, and fail a second time.
            file = stack.enter_context(tempfile.TemporaryFile(buffering=0))
        for part in portions:
            left = np.ascontiguousarray(part).data.cast("B")
            with _no_room_refused(shape):
                while left:
                    left = left[file.write(left) :]
        with _no_room_refused(shape):
            return np.asarray(np.memmap(file, np.uint8, "r", shape=shape))


def read_pixels(
    stream: ByteStream, shape: tuple[int, int, int, int], count: int
) -> NDArray[np.uint8]:
    """The first images of a stream of pixels, the channels put first.

    Args:
        stream: stands at the first pixel; is left after the last that was wanted.
        shape: (N, H, W, C) of what it holds.
        count: how many images to read.

    Returns:
        (count, C, H, W), contiguous and read-only.

    Raises:
        EOFError: if the stream ends early.
        MemoryError: if a single image is too large.
        InputError: if there is no room for a temporary file.
    """
    _, height, width, channels = shape
    portions = (part.transpose(0, 3, 1, 2) for part in _portions(stream, shape, count))
    return store((count, channels, height, width), portions)


def release(pixels: NDArray[np.uint8]) -> None:
    """Take what was read of a stored set out of this process's memory, until it is read again.

    The system would do so when memory is short; until then it counts as used. Of a set that lies
    in memory nothing is taken.
    """
    base: object = pixels
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def _portions(
    stream: ByteStream, shape: tuple[int, ...], count: int
) -> Iterator[NDArray[np.uint8]]:
    """(B, H, W, C) each, all in the same memory."""
    size = math.prod(shape[1:])
    try:
        buffer = np.empty((min(count, max(1, _PORTION // size)), *shape[1:]), np.uint8)
    except (ValueError, MemoryError) as error:
        raise MemoryError(f"it claims the shape {shape}") from error
    for start in range(0, count, len(buffer)):
        part = buffer[: count - start]
        view, filled = part.data.cast("B"), 0
        while filled < len(view):
            content = stream.read(len(view) - filled)
            if not content:
                raise EOFError(f"it holds {start * size + filled} bytes of {math.prod(shape)}")
            view[filled : filled + len(content)] = content
            filled += len(content)
        yield part


@contextlib.contextmanager
def _no_room_refused(shape: tuple[int, ...]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = (
            f"{shape[0]} images take a temporary file of {math.prod(shape):,} bytes, which cannot "
            f"be had ({error}); set TMPDIR to a folder with room, or take fewer with --num-images"
        )
        raise InputError(" ".join(message.splitlines())) from error
