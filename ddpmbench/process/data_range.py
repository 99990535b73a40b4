"""The range of numbers that a model takes its images in, and how many levels a pixel has."""

import dataclasses
import math

from ddpmbench.errors import InputError


@dataclasses.dataclass(frozen=True)
class DataRange:
    """`levels` evenly spaced numbers from `low` to `high`.

    Attributes:
        low: what the darkest level becomes.
        high: what the brightest becomes.
        levels: how many a pixel can have, 2..256; the 8-bit pixels of an image are reduced to
            their top bits where there are fewer.

    Raises:
        InputError: it is no range, or has no such number of levels.
    """

    low: float = -1.0
    high: float = 1.0
    levels: int = 256

    def __post_init__(self) -> None:
        """Refuse what is no range."""
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise InputError(
                f"--data-range {self.low:g},{self.high:g}: the lowest and the highest value of "
                "an image, as in -1,1"
            )
        if not 2 <= self.levels <= 256:
            raise InputError(f"--levels {self.levels}: choose from 2 to 256")

    def __str__(self) -> str:
        """In words."""
        return f"[{self.low:g}, {self.high:g}], {self.levels} levels"


UNIT_RANGE = DataRange()
"""[-1, 1] with 256 levels, that of Ho et al. 2020."""
