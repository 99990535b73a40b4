"""The bound while rows are still coming: rough, but at once."""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from ddpmbench.likelihood.correction import Correction
from ddpmbench.likelihood.terms import TermTable
from ddpmbench.likelihood.warp import RotatedWarp


@dataclasses.dataclass(frozen=True)
class RoughBound:
    """A bound and how far off it may be.

    Attributes:
        nats: the bound, nats per dimension.
        half_width: of its 95 % interval for the images.
        is_rough: whether the rows count as independent, which makes the interval wider than that
            of the estimate from the same rows.
    """

    nats: float
    half_width: float
    is_rough: bool = False

    def plus(self, correction: Correction | None) -> "RoughBound":
        """The bound corrected, if it is to be."""
        if correction is None:
            return self
        half_width = math.hypot(self.half_width, correction.half_width)
        return RoughBound(self.nats + correction.nats, half_width, self.is_rough)


class RunningBound:
    """Horvitz and Thompson's estimate from the rows so far, as if each were drawn by itself.

    It takes no account of what the rows of a rotation have in common, so its interval is wider
    than the one the same rows have at the end.
    """

    def __init__(self, design: RotatedWarp, prior: float) -> None:
        """Begin without rows.

        Args:
            design: what they will be rows of.
            prior: mean L_T, nats per dimension.
        """
        self._design, self._prior = design, prior
        self._decoder, self._steps = _Moments(), _Moments()

    def add(self, table: TermTable) -> RoughBound | None:
        """Count in some rows; the bound so far, None before there is a row of either kind."""
        rows, nats = table.rows, table.values["nats"]
        later = rows.t > 1
        self._decoder.add(nats[~later & (rows.draw == 0)])
        self._steps.add(nats[later] / self._design.density[rows.t[later] - 2])
        if self._steps.count < 2 or self._decoder.count < min(2, self._design.num_images):
            return None
        left = 1 - self._decoder.count / self._design.num_images
        variance = self._decoder.variance_of_mean * left + self._steps.variance_of_mean
        nats_so_far = self._prior + self._decoder.mean + self._steps.mean
        return RoughBound(nats_so_far, 1.96 * math.sqrt(variance), is_rough=True)


class _Moments:
    """Count, mean and variance of numbers that come in portions."""

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0, 0.0, 0.0

    def add(self, values: NDArray[np.float64]) -> None:
        # Chan, Golub & LeVeque 1983.
        if not len(values):
            return
        count, shift = self.count + len(values), float(values.mean()) - self.mean
        self._squares += float(values.var()) * len(values)
        self._squares += shift**2 * self.count * len(values) / count
        self.mean += shift * len(values) / count
        self.count = count

    @property
    def variance_of_mean(self) -> float:
        return self._squares / max(self.count - 1, 1) / self.count
