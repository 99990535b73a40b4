"""Arithmetic on the rows of all images, a few images at a time."""

from collections.abc import Iterator

ROWS = 4096
"""Temporary arrays hold about this many rows; then they stay in the processor's cache."""


def image_blocks(num_images: int, rows_an_image: int = 1) -> Iterator[slice]:
    """Slices that cover the images, each of at most about `ROWS` rows."""
    size = max(1, ROWS // rows_an_image)
    for start in range(0, num_images, size):
        yield slice(start, min(start + size, num_images))
