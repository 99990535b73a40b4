"""Units: nats and bits per dimension, 8-bit pixels and the range [-1, 1]."""

import math
from enum import StrEnum

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


class EightBit(StrEnum):
    """How a real number becomes one of 256 levels; published evaluations differ."""

    ROUND = "round"
    """to the nearest"""
    TRUNCATE = "truncate"
    """to the one below, as in the code of Dhariwal & Nichol 2021"""


def to_pixels(x: Tensor, how: EightBit = EightBit.ROUND) -> Tensor:
    """8-bit levels; what is outside [-1, 1] becomes 0 or 255.

    Args:
        x: finite, any shape.
        how: to the nearest level or to the one below.

    Returns:
        uint8, the same shape.
    """
    levels = (x + 1.0) * 127.5
    levels = levels.round() if how is EightBit.ROUND else levels.floor()
    return levels.clamp(0.0, 255.0).to(torch.uint8)
