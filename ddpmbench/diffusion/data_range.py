"""The range of an image's values in a model, and the number of levels of a pixel."""

import dataclasses
import math
from enum import StrEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpmbench.errors import InputError

NATS_PER_BIT = math.log(2.0)


class EightBit(StrEnum):
    """Rounding of a real number to a level; published evaluations differ."""

    ROUND = "round"
    """to the nearest"""
    TRUNCATE = "truncate"
    """to the one below, as in the code of Dhariwal & Nichol 2021"""


_ALL = 256  # levels of an 8-bit pixel


@dataclasses.dataclass(frozen=True)
class DataRange:
    r"""L evenly spaced levels from `low` to `high`.

    .. math::
        x_k = \text{low} + k\, \frac{\text{high} - \text{low}}{L - 1}, \qquad k = 0, \dots, L - 1

    The bin of a level extends half way to the next; the outermost bins are unbounded. The level of
    an 8-bit pixel p is its top bits, p L // 256; level k is shown as the pixel nearest to 255 k /
    (L - 1).

    Attributes:
        low: value of the darkest level.
        high: value of the brightest level.
        levels: L, 2..256.

    Raises:
        InputError: `low` is not below `high`, one is not finite, or `levels` is not in 2..256.

    Source: Ho, Jain & Abbeel 2020, eq. 13, which has [-1, 1] and 256 levels.
    """

    low: float = -1.0
    high: float = 1.0
    levels: int = _ALL

    def __post_init__(self) -> None:
        """Check the range and the number of levels."""
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise InputError(
                f"`data_range={self.option}`: takes two finite numbers, the lower one first, as in "
                "-1,1: between which an image lies"
            )
        if not 2 <= self.levels <= _ALL:
            raise InputError(f"`levels={self.levels}`: choose from 2 to 256")

    def __str__(self) -> str:
        """In words."""
        return f"{self.interval}, {self.levels} levels"

    @property
    def interval(self) -> str:
        """[LOW, HIGH]."""
        return f"[{self.low:.12g}, {self.high:.12g}]"

    @property
    def option(self) -> str:
        """LOW,HIGH, as the command line takes it."""
        return f"{self.low:.12g},{self.high:.12g}"

    @property
    def record(self) -> dict[str, object]:
        """The range as records of a result hold it."""
        return {"data_range": self.interval, "levels": self.levels}

    @property
    def identity(self) -> dict[str, object]:
        """The range in the identity of a run; empty for that of Ho et al."""
        return {} if self == UNIT_RANGE else self.record

    @property
    def half_bin(self) -> float:
        """Half the distance between two neighboring levels, h of `discretized_normal_log_prob`."""
        return 0.5 / self._steps_a_unit

    @property
    def levels_a_unit(self) -> float:
        """Factor from a distance in the model to one on 0..255, for any number of levels."""
        return (_ALL - 1) / (self.high - self.low)

    @property
    def log_width(self) -> float:
        """Log of the distance from `low` to `high`."""
        return math.log(self.high - self.low)

    @property
    def _steps_a_unit(self) -> float:
        return (self.levels - 1) / (self.high - self.low)

    def reduced(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The levels of 8-bit pixels: uint8, the same shape."""
        if self.levels == _ALL:
            return pixels
        return (pixels.astype(np.uint16) * self.levels // _ALL).astype(np.uint8)

    def to_model(self, pixels: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """8-bit pixels as the model's input: in [low, high], the same shape."""
        if self.levels != _ALL:
            pixels = pixels.to(torch.int32) * self.levels // _ALL
        return pixels.to(dtype) / self._steps_a_unit + self.low

    def array_to_model(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """`to_model` of an array, in float64."""
        return np.asarray(self.reduced(pixels).astype(np.float64) / self._steps_a_unit + self.low)

    def to_pixels(self, x: Tensor, how: EightBit = EightBit.ROUND) -> Tensor:
        """Finite values as 8-bit pixels, the same shape; outside [low, high] they are 0 or 255."""
        level = (x - self.low) * self._steps_a_unit
        level = level.round() if how is EightBit.ROUND else level.floor()
        level = level.clamp(0.0, self.levels - 1.0)
        if self.levels != _ALL:
            level = (level * ((_ALL - 1) / (self.levels - 1))).round()
        return level.to(torch.uint8)

    def shown(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """8-bit pixels reduced to the levels, as pixels again: uint8, the same shape."""
        return self.pixels_of(self.reduced(pixels))

    def pixels_of(self, level: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The pixels that show levels: uint8, the same shape."""
        if self.levels == _ALL:
            return level
        return np.rint(level.astype(np.float64) * ((_ALL - 1) / (self.levels - 1))).astype(np.uint8)

    def clamp(self, x: Tensor) -> Tensor:
        """The values clamped to the range."""
        return x.clamp(self.low, self.high)


UNIT_RANGE = DataRange()
"""[-1, 1] with 256 levels, that of Ho et al. 2020."""
