"""Units: nats and bits per dimension, 8-bit pixels and the range [-1, 1]."""

import math

import torch
from torch import Tensor

NATS_PER_BIT = math.log(2.0)


def to_unit_range(pixels: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """8-bit pixels to the range of the model.

    Args:
        pixels: (B, C, H, W) uint8, levels 0..255.
        dtype: floating type of the result.

    Returns:
        ``pixels / 127.5 - 1``, the same shape, in [-1, 1].
    """
    return pixels.to(dtype) / 127.5 - 1.0


def to_pixels(x: Tensor) -> Tensor:
    """The nearest 8-bit levels; what is outside [-1, 1] becomes 0 or 255.

    Args:
        x: finite, any shape.

    Returns:
        uint8, the same shape.
    """
    return ((x + 1.0) * 127.5).round().clamp(0.0, 255.0).to(torch.uint8)
