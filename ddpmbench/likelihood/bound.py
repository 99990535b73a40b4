"""From terms to the variational bound and its two intervals."""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ddpmbench.likelihood.designs import EveryPairDesign
from ddpmbench.likelihood.intervals import (
    freedom_of_sum,
    half_width_of,
    least_freedom_of_sum,
    quantile,
)
from ddpmbench.likelihood.terms import TermTable, columns_of_bound


@dataclasses.dataclass(frozen=True, eq=False)
class BoundEstimate:
    """The bound on a set of images, in nats per dimension.

    Attributes:
        prior: (N,) L_T of each image.
        kl: (N,) sum of L_{t-1} over t = 2..T of each image, mean over draws.
        decoder: (N,) L_0 of each image, mean over draws.
        term: (T,) mean over the images of the term at t; the decoder's at t = 1.
        term_standard_error: (T,) its standard error on this image set, that of the noise; NaN
            with a single draw, where it cannot be known.
        x_start_mse: (T,) mean squared error of the predicted x_start.
        eps_mse: (T,) mean squared error of the predicted noise.
        rate_standard_error: (T,) of the rate at t, from the noise; NaN with a single draw.
        num_evaluations: (T,) network calls.
        half_width: of the 95 % interval for these images: the error of the noise. None with a
            single draw.
        half_width_population: of the 95 % interval for the population the images are drawn
            from; it contains the error of the noise. None for a single image.
    """

    prior: NDArray[np.float64]
    kl: NDArray[np.float64]
    decoder: NDArray[np.float64]
    term: NDArray[np.float64]
    term_standard_error: NDArray[np.float64]
    x_start_mse: NDArray[np.float64]
    eps_mse: NDArray[np.float64]
    rate_standard_error: NDArray[np.float64]
    num_evaluations: NDArray[np.int64]
    half_width: float | None
    half_width_population: float | None

    @property
    def total(self) -> NDArray[np.float64]:
        """(N,) the bound of each image."""
        return self.prior + self.kl + self.decoder

    @property
    def nats(self) -> float:
        """The bound: the mean over the images."""
        return float(self.total.mean())

    @property
    def rate(self) -> NDArray[np.float64]:
        """(T,) what has been sent once x_t is known: the prior and the terms after t."""
        return cumulative_rate(float(self.prior.mean()), self.term)


def cumulative_rate(prior: float, term: NDArray[np.float64]) -> NDArray[np.float64]:
    """(T,) the prior and the terms of the steps s > t, from (T,) terms.

    Source: Ho, Jain & Abbeel 2020, section 4.3.
    """
    return prior + _after(term)


def _after(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.append(np.cumsum(values[:0:-1])[::-1], 0.0)


def estimate_bound(
    design: EveryPairDesign,
    prior: NDArray[np.float64],
    tables: Iterable[TermTable],
    *,
    clip: bool = True,
) -> BoundEstimate:
    """The bound from all rows of a design.

    Args:
        design: the rows that were computed.
        prior: (N,) L_T of each image, nats per dimension.
        tables: the terms of every row once, in any order and any portions, but with the draws of
            a pair side by side.
        clip: whether `x_start_mse` is that of the clipped prediction.

    Raises:
        ValueError: a row is missing or comes twice.

    Source: Ho, Jain & Abbeel 2020, eq. 5.
    """
    num_images, num_timesteps, draws = design.num_images, design.num_timesteps, design.draws
    kl, decoder = np.zeros(num_images), np.zeros(num_images)
    rows_of_image = np.zeros(num_images, dtype=np.int64)
    num_evaluations = np.zeros(num_timesteps, dtype=np.int64)
    columns = columns_of_bound(clip=clip)
    sums = {name: np.zeros(num_timesteps) for name in columns}
    squares = np.zeros(num_timesteps)  # sum over images of the variance among draws
    fourth = 0.0  # sum over pairs of that variance squared
    for table in tables:
        image, index = table.index.image[::draws], table.index.t[::draws] - 1
        by_draw = table.values["nats"].reshape(-1, draws)
        term = by_draw.mean(1)
        np.add.at(kl, image, np.where(index > 0, term, 0.0))
        np.add.at(decoder, image, np.where(index == 0, term, 0.0))
        np.add.at(rows_of_image, image, draws)
        np.add.at(num_evaluations, index, draws)
        for name, total in sums.items():
            np.add.at(total, index, table.values[name].reshape(-1, draws).mean(1))
        if draws > 1:
            spread = by_draw.var(axis=1, ddof=1)
            np.add.at(squares, index, spread)
            fourth += float(np.square(spread).sum())
    if (rows_of_image != num_timesteps * draws).any() or (
        num_evaluations != num_images * draws
    ).any():
        raise ValueError("the tables do not hold every row of the design exactly once")
    total = prior + kl + decoder
    variance = squares / draws / num_images**2
    unknown = np.full(num_timesteps, math.nan)
    half_width = noise_half_width(float(squares.sum()), fourth, design)
    return BoundEstimate(
        prior=prior,
        kl=kl,
        decoder=decoder,
        term=sums["nats"] / num_images,
        term_standard_error=np.sqrt(variance) if draws > 1 else unknown,
        x_start_mse=sums[columns[1]] / num_images,
        eps_mse=sums["eps_mse"] / num_images,
        rate_standard_error=np.sqrt(_after(variance)) if draws > 1 else unknown,
        num_evaluations=num_evaluations,
        half_width=half_width,
        half_width_population=_population_half_width(total, half_width),
    )


def noise_half_width(squares: float, fourth: float, design: EveryPairDesign) -> float | None:
    """Half width of the 95 % interval that the noise of every pair leaves.

    Args:
        squares: sum over the pairs of the variance among their draws.
        fourth: sum of the squares of these.
        design: of a single draw a pair nothing is known; None is returned.
    """
    if design.draws == 1:
        return None
    # Each pair has draws - 1 degrees of freedom. Where a few of them carry the sum, what is
    # estimated is too large by about four.
    estimated = freedom_of_sum(squares, fourth / (design.draws + 1))
    freedom = max(least_freedom_of_sum(squares, fourth / (design.draws - 1)), estimated - 4)
    return half_width_of(squares / design.draws / design.num_images**2, freedom)


def _population_half_width(total: NDArray[np.float64], noise: float | None) -> float | None:
    # The spread of the observed totals already contains the noise of their terms; of a few
    # totals it may come out smaller by chance, which the noise tells.
    if len(total) < 2:
        return None
    spread = quantile(len(total) - 1) * total.std(ddof=1) / math.sqrt(len(total))
    return max(float(spread), noise or 0.0)
