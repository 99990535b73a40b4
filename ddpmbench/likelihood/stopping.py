"""When an importance sample has enough replicates, and the bound while terms still arrive."""

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
    """Replicates before the first interval: at least two, and `INITIAL_TERMS` terms.

    To stop where the interval happens to be narrow makes it too narrow, unless its width is well
    known by then; at 8 images with two replicates it covered 88 %.
    """
    return max(2, -(-INITIAL_TERMS // num_images))


def initial_terms(num_images: int) -> int:
    """Terms before the first interval."""
    return num_terms(num_images, initial_replicates(num_images))


def replicates_needed(design: ImportanceDesign, bound: SampledBound, half_width: float) -> int:
    """Replicates for an interval of a half width, at most twice as many as there are.

    Begin with `initial_replicates`; estimate, extend the design to this number, evaluate the new
    terms, and estimate again, until the number stays. It at most doubles, because a first estimate
    may have seen little of the variance. The interval at the end covers as one that was not chosen.

    Args:
        design: of the terms that the bound is estimated from.
        bound: the estimate.
        half_width: the aim, for these images, nats per dimension.

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
    """A bound with its interval, during a run.

    Attributes:
        nats: the bound, nats per dimension.
        half_width: of its 95 % interval for the images, nats per dimension.
        is_rough: whether the terms count as independent, which makes the interval wider than that
            of the estimate from the same terms.
    """

    nats: float
    half_width: float
    is_rough: bool = False

    def plus(self, correction: Correction | None) -> "RoughBound":
        """The bound with a correction, if there is one."""
        if correction is None:
            return self
        half_width = math.hypot(self.half_width, correction.half_width)
        return RoughBound(self.nats + correction.nats, half_width, self.is_rough)


class RunningBound:
    """The Horvitz-Thompson estimate so far, as if every term were drawn independently.

    It ignores the strata, so its interval is wider than that of the final estimate.
    """

    def __init__(self, design: ImportanceDesign, prior: float) -> None:
        """Begin without terms.

        Args:
            design: of the terms to come.
            prior: mean L_T, nats per dimension.
        """
        self._design, self._prior = design, prior
        self._decoder, self._kl = _Moments(), _Moments()

    def add(self, table: TermTable) -> RoughBound | None:
        """Add terms; the bound so far, None until there are terms at t = 1 and later."""
        t, nats = table.index.t, table.values["nats"]
        self._decoder.add(nats[(t == 1) & (table.index.draw == 0)])
        self._kl.add(nats[t > 1] / self._design.density[t[t > 1] - 2])
        if self._kl.count < 2 or self._decoder.count < min(2, self._design.num_images):
            return None
        left = 1 - self._decoder.count / self._design.num_images
        variance = self._decoder.variance_of_mean * left + self._kl.variance_of_mean
        nats_so_far = self._prior + self._decoder.mean + self._kl.mean
        return RoughBound(nats_so_far, 1.96 * math.sqrt(variance), is_rough=True)


class _Moments:
    """Count, mean and variance of numbers that arrive in portions."""

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
