"""Images of several sizes, one after another in one array."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from ddpmbench.array_store import store_flat

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
