"""From a file to an array of pixels, a portion at a time."""

import math
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ddpmbench.array_store import store

_PORTION = 1 << 24  # bytes read at a time


class ByteStream(Protocol):
    """What can be read from: a file, compressed or not."""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes, none at the end."""


def read_pixels(
    stream: ByteStream, shape: tuple[int, int, int, int], count: int
) -> NDArray[np.uint8]:
    """The first images of a stream of pixels, the channels put first.

    Args:
        stream: stands at the first pixel; is left after the last that was wanted.
        shape: (N, H, W, C) of what it holds.
        count: how many images to read.

    Returns:
        (count, C, H, W), contiguous and read-only; those of a large set lie in a file.

    Raises:
        EOFError: if the stream ends early.
        MemoryError: if a single image is too large.
        InputError: if there is no room for a temporary file.
    """
    _, height, width, channels = shape
    size = math.prod(shape[1:])
    try:
        buffer = np.empty((min(count, max(1, _PORTION // size)), *shape[1:]), np.uint8)
    except (ValueError, MemoryError) as error:
        raise MemoryError(f"it claims the shape {shape}") from error
    portions = (part.transpose(0, 3, 1, 2) for part in _portions(stream, buffer, count, shape[0]))
    return store((count, channels, height, width), portions, np.uint8)


def refuse_shorter(size: int, shape: tuple[int, ...]) -> None:
    """Raise EOFError where a file is too short for what it claims, before room is made for it."""
    if size < math.prod(shape):
        raise EOFError(f"it holds {size} bytes of {math.prod(shape)}")


def _portions(
    stream: ByteStream, buffer: NDArray[np.uint8], count: int, total: int
) -> Iterator[NDArray[np.uint8]]:
    """(B, H, W, C) each, all in the same memory."""
    size = math.prod(buffer.shape[1:])
    for start in range(0, count, len(buffer)):
        part = buffer[: count - start]
        view, filled = part.data.cast("B"), 0
        while filled < len(view):
            content = stream.read(len(view) - filled)
            if not content:
                raise EOFError(f"it holds {start * size + filled} bytes of {total * size}")
            view[filled : filled + len(content)] = content
            filled += len(content)
        yield part
