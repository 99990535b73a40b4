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
