"""The correction of a bound in low precision, from a few terms in both precisions.

A two-phase difference estimator: the bound from all terms in low precision, plus the mean
difference to strict float32 over the terms of a separate design. Such a term has the same image,
timestep and noise in both precisions, so that the difference varies far less than the terms. It is
linear in them: the difference of two models is corrected by the difference of their corrections.
"""

import dataclasses
import math
from collections.abc import Iterable
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ddpmbench.likelihood.bound import freedom_of_parts, half_width_of
from ddpmbench.likelihood.designs import (
    CORRECTION_OF_DECODER,
    CORRECTION_OF_KL,
    CORRECTION_TIMESTEP,
    ranks,
    unit_interval,
    words,
)
from ddpmbench.likelihood.terms import TermIndex, TermTable

CORRECTION_DRAW = 3 * 2**30
"""Draw of the first term; each next term has the next draw. No term of another design, and no
sample, shares their noise."""
CONTINUOUS_DRAW = CORRECTION_DRAW + 2**29
"""The same for a `ContinuousDesign`."""
MOST_TERMS, FEWEST_TERMS = 1000, 100
"""Least and most terms of a correction."""
SHARE = 20
"""About this many terms of all images for one of the correction, above the least."""


def num_correction_terms(num_terms: int) -> int:
    """Number of correction terms of a run that has `num_terms` terms on all images."""
    return min(MOST_TERMS, max(FEWEST_TERMS, num_terms // SHARE))


def density_in_log_t(num_timesteps: int) -> NDArray[np.float64]:
    """(T - 1,) density even in log t over t = 2..T: log t - log(t - 1), scaled to sum to 1."""
    t = np.arange(2, num_timesteps + 1)
    return np.asarray(-np.log1p(-1 / t) / math.log(num_timesteps))


@dataclasses.dataclass(frozen=True)
class CorrectionDesign:
    """A third of the terms at t = 1, the others over t = 2..T evenly in log t.

    The later timesteps are stratified: each term draws from one of equal strata of the distribution
    function of `density`, in order of t. Either kind cycles through all images in random order, so
    that the images' numbers of terms differ by at most one, and every term has any image with the
    same probability. All is a function of the fields.

    Attributes:
        num_images: N.
        num_timesteps: T; where it is 1, all terms are at t = 1.
        seed: 0 <= seed < 2^64.
        num_terms: m, at least 6.

    Raises:
        ValueError: too few terms, no image or no timestep.
    """

    num_images: int
    num_timesteps: int
    seed: int
    num_terms: int

    first_draw: ClassVar[int] = CORRECTION_DRAW
    purposes: ClassVar[tuple[int, int]] = CORRECTION_TIMESTEP, CORRECTION_OF_KL

    def __post_init__(self) -> None:
        """Refuse a design whose error cannot be estimated."""
        if self.num_images < 1 or self.num_timesteps < 1 or self.num_terms < 6:
            raise ValueError(
                f"needs an image, a timestep and 6 terms, not {self.num_images}, "
                f"{self.num_timesteps} and {self.num_terms}"
            )

    @property
    def num_decoder_terms(self) -> int:
        """Number of terms at t = 1; they come first, and the number of the others is even."""
        return self.num_terms - (2 * (self.num_terms // 3) if self.num_timesteps > 1 else 0)

    @cached_property
    def density(self) -> NDArray[np.float64]:
        """(T - 1,) over t = 2..T, see `density_in_log_t`."""
        return density_in_log_t(self.num_timesteps)

    @cached_property
    def t(self) -> NDArray[np.int64]:
        """(m,) timestep of each term."""
        t = 2 + np.searchsorted(np.cumsum(self.density)[:-1], self.strata, side="right")
        return np.append(np.ones(self.num_decoder_terms, dtype=np.int64), t)

    @cached_property
    def strata(self) -> NDArray[np.float64]:
        """Position of each later term in [0, 1], the range of the distribution function."""
        later = self.num_terms - self.num_decoder_terms
        u = unit_interval(words(later, self.seed, turn=0, purpose=self.purposes[0])[0])
        return np.asarray((np.arange(later) + u) / max(later, 1))

    @cached_property
    def image(self) -> NDArray[np.int64]:
        """(m,) image of each term."""
        decoder = self.num_decoder_terms
        parts = ((decoder, CORRECTION_OF_DECODER), (self.num_terms - decoder, self.purposes[1]))
        return np.concatenate([self._images(count, purpose) for count, purpose in parts])

    def _images(self, count: int, purpose: int) -> NDArray[np.int64]:
        turns = [
            np.argsort(ranks(words(self.num_images, self.seed, turn=turn, purpose=purpose)[0]))
            for turn in range(-(-count // self.num_images))
        ]
        return np.concatenate([*turns, np.zeros(0, dtype=np.int64)])[:count]

    def __len__(self) -> int:
        """Number of terms, each with a network evaluation in both precisions."""
        return self.num_terms

    def index(self, start: int, stop: int) -> TermIndex:
        """The index of the terms at positions start..stop - 1."""
        stop = min(stop, self.num_terms)
        draw = self.first_draw + np.arange(start, stop, dtype=np.int64)
        return TermIndex(image=self.image[start:stop], t=self.t[start:stop], draw=draw)


@dataclasses.dataclass(frozen=True)
class Correction:
    """The correction of a bound in low precision, nats per dimension.

    Attributes:
        kl: of the sum of the terms over t = 2..T.
        decoder: of the term at t = 1.
        variance: of their sum.
        half_width: of its 95 % interval.
        num_terms: m.
    """

    kl: float
    decoder: float
    variance: float
    half_width: float
    num_terms: int

    @property
    def nats(self) -> float:
        """The amount to add to the bound."""
        return self.kl + self.decoder

    @property
    def num_evaluations(self) -> int:
        """Network evaluations in both precisions."""
        return 2 * self.num_terms


def differences(
    design: CorrectionDesign, strict: Iterable[TermTable], low: Iterable[TermTable]
) -> NDArray[np.float64]:
    """(m,) the difference of each term, strict float32 minus low precision, nats per dimension.

    Both sequences are in order, in any portions.

    Raises:
        ValueError: a term is missing.
    """
    one, other = (
        np.concatenate([table.values["nats"] for table in tables] or [np.zeros(0)])
        for tables in (strict, low)
    )
    if len(one) != len(design) or len(other) != len(design):
        raise ValueError("the tables do not hold every term of the correction")
    return np.asarray(one - other)


def estimate_correction(design: CorrectionDesign, difference: NDArray[np.float64]) -> Correction:
    r"""The correction and its interval.

    .. math:: \hat\Delta = \frac{1}{m_1} \sum_{i: t_i = 1} \delta_i
              + \frac{1}{m - m_1} \sum_{i: t_i > 1} \frac{\delta_i}{q(t_i)}

    The variance of the later terms is that between pairs of neighbors in t. It includes the change
    of the difference from one stratum to the next, and so tends to be too large.

    Args:
        design: of the terms.
        difference: (m,) from `differences`, or that of one model minus that of another.

    Source: Cochran 1977, sections 5A.12 (collapsed strata) and 12.6 (two phases); Saerndal,
        Swensson & Wretman 1992, section 9.6.
    """
    decoder, later = np.split(difference, [design.num_decoder_terms])
    weighted = later / design.density[design.t[design.num_decoder_terms :] - 2]
    # The parts of the variance, each with its degrees of freedom.
    of_decoder = float(decoder.var(ddof=1)) / len(decoder) if len(decoder) else 0.0
    of_pairs = np.square(weighted[::2] - weighted[1::2]) / max(len(later), 1) ** 2
    squares = np.append(of_pairs, of_decoder)
    freedom = np.append(np.ones(len(of_pairs)), max(len(decoder) - 1, 1))
    variance = float(squares.sum())
    return Correction(
        kl=float(weighted.mean()) if len(later) else 0.0,
        decoder=float(decoder.mean()) if len(decoder) else 0.0,
        variance=variance,
        half_width=half_width_of(variance, freedom_of_parts(squares, freedom)),
        num_terms=len(design),
    )
