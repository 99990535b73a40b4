"""What a low precision does to the bound, from a few rows computed in both precisions.

A two-phase difference estimator: the bound of the network in low precision, from all rows of its
design, plus the mean difference to strict float32, from rows of a design of their own. Image, step
and noise of such a row are the same in both, so the difference varies far less than the terms. It
is linear in them, and so the difference between two models has the difference of their
corrections.
"""

import dataclasses
import math
from collections.abc import Iterable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ddpmbench.likelihood.designs import (
    CORRECTION_OF_DECODER,
    CORRECTION_OF_KL,
    CORRECTION_TIMESTEP,
    ranks,
    unit_interval,
    words,
)
from ddpmbench.likelihood.intervals import freedom_of_sum, half_width_of, squares_over_freedom
from ddpmbench.likelihood.terms import TermIndex, TermTable

CORRECTION_DRAW = 3 * 2**30
"""The draw of the first row here, of the next one more: no row of another design, and no sample,
shares noise with them."""
MOST_ROWS, FEWEST_ROWS = 1000, 100
"""How many rows a correction has."""
SHARE = 20
"""A run has at least so many rows for one of its correction, unless these are the fewest."""


def num_correction_terms(num_terms: int) -> int:
    """How many rows the correction of a run has.

    Args:
        num_terms: of the run, as many as are certain before any is computed.
    """
    return min(MOST_ROWS, max(FEWEST_ROWS, num_terms // SHARE))


@dataclasses.dataclass(frozen=True)
class CorrectionDesign:
    """A third of the rows at t = 1, the others spread over t = 2..T evenly in log t.

    The later steps are stratified: their rows divide the distribution function of `density` into
    equal cells, one each, in order of t. Either kind goes through all images in random order, and
    then again, so that no image has two rows more than another. Every row is of any image with
    the same probability, whatever its step. All of it follows from the fields: neither the rows
    of the estimate nor anything that was computed enters.

    Attributes:
        num_images: N.
        num_timesteps: T; where it is 1, all rows are there.
        seed: 0 <= seed < 2^64.
        num_terms: m, at least 6.

    Raises:
        ValueError: there are too few rows, no image or no step.
    """

    num_images: int
    num_timesteps: int
    seed: int
    num_terms: int

    def __post_init__(self) -> None:
        """Refuse what leaves an error unknown."""
        if self.num_images < 1 or self.num_timesteps < 1 or self.num_terms < 6:
            raise ValueError(
                f"needs an image, a step and 6 rows, not {self.num_images}, "
                f"{self.num_timesteps} and {self.num_terms}"
            )

    @property
    def num_decoder_terms(self) -> int:
        """How many rows are at t = 1; they come first, and the number of the others is even."""
        return self.num_terms - (2 * (self.num_terms // 3) if self.num_timesteps > 1 else 0)

    @cached_property
    def density(self) -> NDArray[np.float64]:
        """(T - 1,) of the later rows over t = 2..T: log t - log(t - 1), scaled to sum 1."""
        t = np.arange(2, self.num_timesteps + 1)
        return np.asarray(-np.log1p(-1 / t) / math.log(self.num_timesteps))

    @cached_property
    def t(self) -> NDArray[np.int64]:
        """(m,) step of each row."""
        later = self.num_terms - self.num_decoder_terms
        u = unit_interval(words(later, self.seed, turn=0, purpose=CORRECTION_TIMESTEP)[0])
        place = (np.arange(later) + u) / max(later, 1)
        step = 2 + np.searchsorted(np.cumsum(self.density)[:-1], place, side="right")
        return np.append(np.ones(self.num_decoder_terms, dtype=np.int64), step)

    @cached_property
    def image(self) -> NDArray[np.int64]:
        """(m,) image of each row."""
        decoder = self.num_decoder_terms
        parts = ((decoder, CORRECTION_OF_DECODER), (self.num_terms - decoder, CORRECTION_OF_KL))
        return np.concatenate([self._images(count, purpose) for count, purpose in parts])

    def _images(self, count: int, purpose: int) -> NDArray[np.int64]:
        turns = [
            np.argsort(ranks(words(self.num_images, self.seed, turn=turn, purpose=purpose)[0]))
            for turn in range(-(-count // self.num_images))
        ]
        return np.concatenate([*turns, np.zeros(0, dtype=np.int64)])[:count]

    def __len__(self) -> int:
        """Number of rows; there are that many network calls in either precision."""
        return self.num_terms

    def index(self, start: int, stop: int) -> TermIndex:
        """The rows at positions start..stop - 1."""
        stop = min(stop, self.num_terms)
        draw = CORRECTION_DRAW + np.arange(start, stop, dtype=np.int64)
        return TermIndex(image=self.image[start:stop], t=self.t[start:stop], draw=draw)


@dataclasses.dataclass(frozen=True)
class Correction:
    """What is to be added to a bound in low precision, nats per dimension.

    Attributes:
        kl: to the sum of the terms over t = 2..T.
        decoder: to the term at t = 1.
        variance: of their sum.
        half_width: of its 95 % interval.
        num_terms: it is from; each took a network call in either precision.
    """

    kl: float
    decoder: float
    variance: float
    half_width: float
    num_terms: int

    @property
    def nats(self) -> float:
        """What is to be added to the bound."""
        return self.kl + self.decoder

    @property
    def num_evaluations(self) -> int:
        """Network calls in both precisions."""
        return 2 * self.num_terms


def differences(
    design: CorrectionDesign, strict: Iterable[TermTable], low: Iterable[TermTable]
) -> NDArray[np.float64]:
    """What strict float32 changes in the term of each row.

    Args:
        design: the rows.
        strict: their terms in strict float32, in order, in any portions.
        low: the same in low precision.

    Returns:
        (m,) nats per dimension.

    Raises:
        ValueError: a row is missing.
    """
    one, other = (
        np.concatenate([table.values["nats"] for table in tables] or [np.zeros(0)])
        for tables in (strict, low)
    )
    if len(one) != len(design) or len(other) != len(design):
        raise ValueError("the tables do not hold a term for every row of the correction")
    return np.asarray(one - other)


def estimate_correction(design: CorrectionDesign, difference: NDArray[np.float64]) -> Correction:
    """The correction and its interval.

    Every row counts by the inverse of its density. The variance of the later rows is that between
    neighbors in t, two and two: it contains how the difference changes from one cell to the next,
    and so is rather too large than too small.

    Args:
        design: the rows.
        difference: (m,) what `differences` returns, or such a thing of one model less another.

    Source: Cochran 1977, sections 5A.12 (collapsed strata) and 12.6 (two phases); Saerndal,
        Swensson & Wretman 1992, section 9.6.
    """
    decoder, later = np.split(difference, [design.num_decoder_terms])
    weighted = later / design.density[design.t[design.num_decoder_terms :] - 2]
    # Of either kind the parts of the variance, and the degrees of freedom of each.
    of_decoder = float(decoder.var(ddof=1)) / len(decoder)
    of_pairs = np.square(weighted[::2] - weighted[1::2]) / max(len(later), 1) ** 2
    squares = np.append(of_pairs, of_decoder)
    freedom = np.append(np.ones(len(of_pairs)), len(decoder) - 1)
    variance = float(squares.sum())
    half_width = half_width_of(
        variance, freedom_of_sum(variance, squares_over_freedom(squares, freedom))
    )
    assert half_width is not None
    return Correction(
        kl=float(weighted.mean()) if len(later) else 0.0,
        decoder=float(decoder.mean()),
        variance=variance,
        half_width=half_width,
        num_terms=len(design),
    )
