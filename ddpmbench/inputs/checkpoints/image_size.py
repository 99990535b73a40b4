"""The size of a model's images: one number where they are square."""

from typing import TypeAlias

ImageSize: TypeAlias = int | tuple[int, int]
"""Height and width; one number stands for both."""


def sides_of(size: ImageSize) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else size


def size_words(size: ImageSize) -> str:
    """As people write it, the width first: 32x16."""
    height, width = sides_of(size)
    return f"{width}x{height}"
