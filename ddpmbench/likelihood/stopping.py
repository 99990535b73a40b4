"""The bound while rows are still coming: rough, but at once."""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from ddpmbench.likelihood.designs import ImportanceDesign, decoder_draws, num_terms
from ddpmbench.likelihood.estimator import SampledBound
from ddpmbench.likelihood.precision import Correction
from ddpmbench.likelihood.terms import TermTable

INITIAL_TERMS = 400


def initial_replicates(num_images: int) -> int:
    """How many replicates to compute before looking how wide the interval is: `INITIAL_TERMS` rows.

    To stop where the interval happens to be narrow makes it too narrow unless its width is known
    well by then; at 8 images with two replicates it covered 88 %.
    """
    return max(2, -(-INITIAL_TERMS // num_images))


def initial_terms(num_images: int) -> int:
    """How many rows there are at that look."""
    return num_terms(num_images, initial_replicates(num_images))


def replicates_needed(design: ImportanceDesign, bound: SampledBound, half_width: float) -> int:
    """How many replicates the next look should have: those there are where they suffice.

    Begin with `initial_replicates`. Look, extend the design to this number, compute the new rows,
    and look again, until it is the number there is. It at most doubles from look to look, because
    a first look may see little of the variance. The interval at which this ends covers as one that
    was not chosen.

    Args:
        design: the rows the bound was estimated from.
        bound: the estimate.
        half_width: the interval for this image set that is wanted, nats per dimension.

    Raises:
        ValueError: the half width is not positive.
    """
    if not half_width > 0:
        raise ValueError(f"half_width must be positive, not {half_width}")
    num_replicates = design.num_replicates
    if num_replicates < initial_replicates(design.num_images):
        return initial_replicates(design.num_images)
    if bound.half_width <= half_width:
        return num_replicates
    goal = (bound.kl_variance + bound.decoder_variance) * (half_width / bound.half_width) ** 2
    for more in range(num_replicates + 1, 2 * num_replicates):
        draws = decoder_draws(num_replicates) / decoder_draws(more)
        if bound.kl_variance * num_replicates / more + bound.decoder_variance * draws <= goal:
            return more
    return 2 * num_replicates


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

    It takes no account of what the rows of a replicate have in common, so its interval is wider
    than the one the same rows have at the end.
    """

    def __init__(self, design: ImportanceDesign, prior: float) -> None:
        """Begin without rows.

        Args:
            design: what they will be rows of.
            prior: mean L_T, nats per dimension.
        """
        self._design, self._prior = design, prior
        self._decoder, self._steps = _Moments(), _Moments()

    def add(self, table: TermTable) -> RoughBound | None:
        """Count in some rows; the bound so far, None before there is a row of either kind."""
        rows, nats = table.index, table.values["nats"]
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
