"""A variational bound, and its estimate with two intervals from the terms of every pair.

The variances are estimated, so the 95 % intervals use Student's t.
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from ddpmbench.diffusion.data_range import NATS_PER_BIT
from ddpmbench.likelihood.designs import EveryPairDesign
from ddpmbench.likelihood.terms import TermTable, columns_of_bound
from ddpmbench.records import short_repr

CONFIDENCE = 0.95


def half_width_of(variance: float, freedom: float) -> float:
    r"""Half width of the 95 % interval of an estimate, :math:`t_{0.975, f} \sqrt{V}`.

    Args:
        variance: V, of the estimate; NaN where it is unknown.
        freedom: f, the degrees of freedom of V.

    Returns:
        In the unit of the estimate; NaN where the variance is unknown.
    """
    return quantile(freedom) * math.sqrt(variance) if variance else 0.0


def quantile(freedom: float) -> float:
    """Half width of the 95 % interval in standard errors, by Student's t."""
    return float(stdtrit(freedom, 0.5 + CONFIDENCE / 2))


def freedom_of_sum(variance: float, over_freedom: float) -> float:
    r"""Degrees of freedom of a sum of estimated variances, at least 1.

    .. math:: f = \frac{(\sum_i V_i)^2}{S} - 2, \quad S = \sum_i \frac{V_i^2}{f_i + 2}

    Satterthwaite's formula takes the true variances v_i. An estimate V_i with f_i degrees has
    E V_i^2 = (f_i + 2) / f_i v_i^2, hence the f_i + 2. Subtracting 2 gives f_i for one variance.

    Args:
        variance: sum of V_i.
        over_freedom: S; 0 for infinitely many degrees.

    Source: Satterthwaite 1946.
    """
    if variance == 0:
        return 1.0
    return max(1.0, variance**2 / over_freedom - 2) if over_freedom > 0 else math.inf


def freedom_of_parts(
    variances: NDArray[np.float64], freedom: NDArray[np.float64 | np.int64]
) -> float:
    """`freedom_of_sum` of (n,) variances V_i, each with (n,) degrees of freedom f_i."""
    over_freedom = (np.square(variances) / (freedom + 2)).sum()
    return freedom_of_sum(float(variances.sum()), float(over_freedom))


def least_freedom_of_sum(variance: float, over_freedom: float) -> float:
    r"""Satterthwaite's degrees of freedom with estimates for the true variances, at least 1.

    .. math:: f = \frac{(\sum_i V_i)^2}{\sum_i V_i^2 / f_i}

    They are too few on average, which widens the interval. Use it for sums of a few variances, or
    of dependent ones, where `freedom_of_sum` may be too large.

    Args:
        variance: sum of V_i.
        over_freedom: sum of V_i^2 / f_i; 0 for infinitely many degrees.

    Source: Satterthwaite 1946.
    """
    return max(1.0, variance**2 / over_freedom) if over_freedom > 0 else math.inf


@dataclasses.dataclass(frozen=True, eq=False)
class ImageBounds:
    """(N,) the parts of the bound of each image, nats per dimension; NaN where unknown."""

    prior: NDArray[np.float64]
    kl: NDArray[np.float64]
    decoder: NDArray[np.float64]

    @property
    def total(self) -> NDArray[np.float64]:
        """(N,) the bound of each image."""
        return self.prior + self.kl + self.decoder


@dataclasses.dataclass(frozen=True, eq=False)
class TimestepTable:
    """(T,) means over the images at each timestep t = 1..T; see `Bound`."""

    term: NDArray[np.float64]
    term_standard_error: NDArray[np.float64]
    x_start_mse: NDArray[np.float64]
    eps_mse: NDArray[np.float64]
    num_evaluations: NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False)
class Bound(TimestepTable, ABC):
    """The bound on a set of N images, by any estimator, in nats per dimension.

    Attributes:
        prior: L_T, its mean over the images or that of each.
        kl: sum of L_{t-1} over t = 2..T, likewise.
        decoder: L_0, likewise.
        term: (T,) mean over the images of the term at t; the decoder's at t = 1.
        term_standard_error: (T,) of `term` for these images; NaN where unknown.
        x_start_mse: (T,) mean squared error of the predicted x_start.
        eps_mse: (T,) mean squared error of the predicted noise.
        rate_standard_error: (T,) of `rate`; NaN where unknown.
        num_evaluations: (T,) network evaluations.
        half_width: of the 95 % interval for these images; None where unknown.
        half_width_population: of the 95 % interval for the population that the images are drawn
            from; None for one image.
    """

    prior: NDArray[np.float64] | float
    kl: NDArray[np.float64] | float
    decoder: NDArray[np.float64] | float
    rate_standard_error: NDArray[np.float64]
    half_width: float | None
    half_width_population: float | None

    @property
    @abstractmethod
    def by_image(self) -> ImageBounds:
        """The bound of each image, as far as known."""

    @property
    def nats(self) -> float:
        """The bound: the mean over the images."""
        return float(np.mean(self.prior + self.kl + self.decoder))

    @property
    def bits_per_dim(self) -> float:
        """The bound in bits per dimension."""
        return self.nats / NATS_PER_BIT

    @property
    def rate(self) -> NDArray[np.float64]:
        """(T,) see `cumulative_rate`."""
        return cumulative_rate(float(np.mean(self.prior)), self.term)


@dataclasses.dataclass(frozen=True, eq=False)
class BoundEstimate(Bound):
    """The bound on a set of N images from every pair, in nats per dimension.

    Attributes:
        prior: (N,) L_T of each image.
        kl: (N,) sum of L_{t-1} over t = 2..T, mean over the draws.
        decoder: (N,) L_0, mean over the draws.
        term: (T,) mean over the images of the term at t; the decoder's at t = 1.
        term_standard_error: (T,) of `term` for these images, from the noise; NaN with one draw.
        x_start_mse: (T,) mean squared error of the predicted x_start.
        eps_mse: (T,) mean squared error of the predicted noise.
        rate_standard_error: (T,) of `rate`, from the noise; NaN with one draw.
        num_evaluations: (T,) network evaluations.
        half_width: of the 95 % interval for these images, from the noise; None with one draw.
        half_width_population: of the 95 % interval for the population that the images are drawn
            from, noise included; None for one image.
    """

    prior: NDArray[np.float64]
    kl: NDArray[np.float64]
    decoder: NDArray[np.float64]

    __repr__ = short_repr

    @property
    def by_image(self) -> ImageBounds:
        """The bound of each image."""
        return ImageBounds(self.prior, self.kl, self.decoder)

    @property
    def total(self) -> NDArray[np.float64]:
        """(N,) the bound of each image."""
        return self.by_image.total


def cumulative_rate(prior: float, term: NDArray[np.float64]) -> NDArray[np.float64]:
    r"""(T,) the rate of progressive coding: the code length up to x_t.

    .. math:: R_t = L_T + \sum_{s > t} L_{s-1}

    Args:
        prior: L_T.
        term: (T,) terms at t = 1..T, in the same unit.

    Source: Ho, Jain & Abbeel 2020, section 4.3.
    """
    return prior + sum_after(term)


def sum_after(values: NDArray[np.float64 | np.int64]) -> NDArray[np.float64]:
    """(T,) sums over s > t, from (T,) values."""
    return np.append(np.cumsum(values[:0:-1])[::-1], 0.0)


@dataclasses.dataclass(frozen=True, eq=False)
class PairMoments:
    """Moments of one column over all pairs, at each timestep; of a decoder column at t = 1.

    Attributes:
        mean: (T,) or (1,) over images and draws.
        squares: same shape, sum over the images of the variance among draws; 0 with one draw.
        fourth: same shape, sum of the squares of these variances.
    """

    mean: NDArray[np.float64]
    squares: NDArray[np.float64]
    fourth: NDArray[np.float64]


def pair_moments(
    design: EveryPairDesign, tables: Iterable[TermTable], columns: Iterable[str]
) -> dict[str, PairMoments]:
    """The moments of some columns, in one pass over the tables of `estimate_bound`."""
    sums = {
        name: np.zeros((3, 1 if name.startswith("decoder") else design.num_timesteps))
        for name in columns
    }
    for table in tables:
        t = table.index.t[:: design.draws] - 1
        for name, (mean, squares, fourth) in sums.items():
            by_draw = table.values[name].reshape(-1, design.draws)
            has_value = t < len(mean)
            by_draw, index = by_draw[has_value], t[has_value]
            np.add.at(mean, index, by_draw.mean(1))
            if design.draws > 1:
                variance = by_draw.var(axis=1, ddof=1)
                np.add.at(squares, index, variance)
                np.add.at(fourth, index, np.square(variance))
    return {
        name: PairMoments(mean / design.num_images, squares, fourth)
        for name, (mean, squares, fourth) in sums.items()
    }


def estimate_bound(
    design: EveryPairDesign,
    prior: NDArray[np.float64],
    tables: Iterable[TermTable],
    *,
    clip: bool = True,
) -> BoundEstimate:
    r"""The bound from every pair of image and timestep.

    .. math:: L = \frac{1}{N} \sum_{n=1}^N \Bigl( L_T(n) + \sum_{t=1}^T \frac{1}{K}
              \sum_{k=1}^K L_{t-1}(n, k) \Bigr)

    Args:
        design: the design of the terms: N images, T timesteps, K draws.
        prior: (N,) L_T of each image, nats per dimension (`prior_nats`).
        tables: every term once, in any order and portions, but with the draws of a pair side by
            side (`BoundTerms.table`).
        clip: whether `x_start_mse` is that of the clipped prediction.

    Returns:
        The bound in nats per dimension, with its intervals.

    Raises:
        ValueError: a term is missing or comes twice.

    Source: Ho, Jain & Abbeel 2020, eq. 5.
    """
    num_images, num_timesteps, draws = design.num_images, design.num_timesteps, design.draws
    kl, decoder = np.zeros((2, num_images))
    of_image = np.zeros(num_images, dtype=np.int64)
    num_evaluations = np.zeros(num_timesteps, dtype=np.int64)

    def counted() -> Iterator[TermTable]:
        for table in tables:
            image, t = table.index.image[::draws], table.index.t[::draws]
            term = table.values["nats"].reshape(-1, draws).mean(1)
            np.add.at(kl, image, np.where(t > 1, term, 0.0))
            np.add.at(decoder, image, np.where(t == 1, term, 0.0))
            np.add.at(of_image, image, draws)
            np.add.at(num_evaluations, t - 1, draws)
            yield table

    columns = columns_of_bound(clip=clip)
    moments = pair_moments(design, counted(), columns)
    term, x_start, eps = (moments[name] for name in columns)
    is_whole = (of_image == num_timesteps * draws).all()
    if not is_whole or (num_evaluations != num_images * draws).any():
        raise ValueError("the tables do not hold every term of the design exactly once")
    variance = term.squares / draws / num_images**2 if draws > 1 else np.full(num_timesteps, np.nan)
    half_width = noise_half_width(float(term.squares.sum()), float(term.fourth.sum()), design)
    total = prior + kl + decoder
    return BoundEstimate(
        prior=prior,
        kl=kl,
        decoder=decoder,
        term=term.mean,
        term_standard_error=np.sqrt(variance),
        x_start_mse=x_start.mean,
        eps_mse=eps.mean,
        rate_standard_error=np.sqrt(sum_after(variance) if draws > 1 else variance),
        num_evaluations=num_evaluations,
        half_width=half_width,
        half_width_population=population_half_width(total, half_width),
    )


def population_half_width(total: NDArray[np.float64], half_width: float | None) -> float | None:
    """Half width of the 95 % interval for the population the images are drawn from.

    Args:
        total: (N,) the bound of each image.
        half_width: that for these images, from the noise; None where it is unknown.

    Returns:
        None for one image.
    """
    if len(total) < 2:
        return None
    # The variance of the totals includes their noise. With few images it may be smaller by chance,
    # but the interval is never narrower than the one from the noise.
    spread = quantile(len(total) - 1) * total.std(ddof=1) / math.sqrt(len(total))
    return max(float(spread), half_width or 0.0)


def noise_half_width(squares: float, fourth: float, design: EveryPairDesign) -> float | None:
    r"""Half width of the 95 % interval for these images, from the noise of every pair.

    .. math:: t_{0.975, f} \Bigl( \frac{1}{N^2 K} \sum_{n,t} V_{n,t} \Bigr)^{1/2}

    with V the variance among the K draws of a pair, `squares` their sum and `fourth` the sum of
    V^2. None with one draw.
    """
    draws = design.draws
    if draws == 1:
        return None
    # Each V has K - 1 degrees of freedom. `freedom_of_sum` is too large where few pairs dominate
    # the sum: by 1 to 2 for up to 40 equal variances, and by 3 to 9 for log-normal ones (20 to 40,
    # K = 2, simulated). The 4 is a margin of that size, not derived: with it the simulated
    # intervals cover 95 to 98 %, without it 94.4 to 95 %. Satterthwaite's number, too small on
    # average, is the lower limit.
    estimated = freedom_of_sum(squares, fourth / (draws + 1))
    freedom = max(least_freedom_of_sum(squares, fourth / (draws - 1)), estimated - 4)
    half_width = half_width_of(squares / draws / design.num_images**2, freedom)
    return None if math.isnan(half_width) else half_width
