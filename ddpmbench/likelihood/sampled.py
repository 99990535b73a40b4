"""The bound from the rows of a rotated warp: two estimators, each with its two intervals."""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ddpmbench.likelihood.bound import CONFIDENCE
from ddpmbench.likelihood.panel import cell_means, interaction
from ddpmbench.likelihood.regression import FeatureTable, Predictions, no_predictions, predict
from ddpmbench.likelihood.sampled_rows import NATS, SampledRows, sampled_rows
from ddpmbench.likelihood.sampled_steps import step_table
from ddpmbench.likelihood.terms import TermTable
from ddpmbench.likelihood.warp import RotatedWarp, decoder_draws

FIRST_ROWS = 400


@dataclasses.dataclass(frozen=True, eq=False)
class SampledBound:
    """The bound on a set of images from some of its rows, in nats per dimension.

    Attributes:
        prior: mean L_T.
        kl: estimated mean of the sum of L_{t-1} over t = 2..T.
        decoder: mean L_0, computed on every image.
        term: (T,) estimated mean over the images of the term at t, unbiased; the decoder's at
            t = 1. They and the prior sum to the bound.
        term_standard_error: (T,) its standard error on this image set.
        x_start_mse: (T,) estimated mean squared error of the predicted x_start.
        eps_mse: (T,) the same of the predicted noise.
        num_evaluations: (T,) network calls; those of the pilot are not among them.
        rotations: how often every image was sampled.
        half_width: of the 95 % interval for these images: sampling of rows and noise.
        half_width_population: of the 95 % interval for the population the images are drawn
            from; it contains the other. None for a single image.
        image_deviation: standard deviation over the images of their bounds, without the error of
            each; 0 where that error hides it, None for a single image.
        kl_variance: the part of the first interval's variance that is the sampling of rows.
        decoder_variance: the part that is the noise of the decoder's rows.
    """

    prior: float
    kl: float
    decoder: float
    term: NDArray[np.float64]
    term_standard_error: NDArray[np.float64]
    x_start_mse: NDArray[np.float64]
    eps_mse: NDArray[np.float64]
    num_evaluations: NDArray[np.int64]
    rotations: int
    half_width: float
    half_width_population: float | None
    image_deviation: float | None
    kl_variance: float
    decoder_variance: float

    @property
    def nats(self) -> float:
        """The bound: the mean over the images."""
        return self.prior + self.kl + self.decoder


def horvitz_thompson(
    design: RotatedWarp,
    prior: NDArray[np.float64],
    tables: Iterable[TermTable],
    *,
    clip: bool = True,
) -> SampledBound:
    """The bound with every row counted by the inverse of its density.

    Args:
        design: the rows that were computed; at least two rotations.
        prior: (N,) L_T of each image, nats per dimension.
        tables: the terms of every row once, in any order and any portions.
        clip: whether `x_start_mse` is that of the clipped prediction.

    Returns:
        The estimate. A step at which no row fell has a term of 0, as it must for the terms to be
        unbiased and to sum to the bound, and errors of NaN.

    Raises:
        ValueError: a row is missing or comes twice, or there is a single rotation.

    Source: Horvitz & Thompson 1952.
    """
    rows = sampled_rows(design, tables, clip=clip)
    return _estimate(design, prior, rows, no_predictions(design), None)


def greg(
    design: RotatedWarp,
    prior: NDArray[np.float64],
    tables: Iterable[TermTable],
    features: FeatureTable,
    *,
    clip: bool = True,
) -> SampledBound:
    """The generalized regression estimator: predictions everywhere, corrected at the rows.

    Args:
        design: the rows that were computed; at least two rotations.
        prior: (N,) L_T of each image, nats per dimension.
        tables: the terms of every row once, in any order and any portions.
        features: of the same images and rows. They bear on the width of the intervals only.
        clip: whether `x_start_mse` is that of the clipped prediction.

    Returns:
        The estimate. A step at which no row fell has its prediction.

    Raises:
        ValueError: a row is missing or comes twice, or there is a single rotation.

    Source: Saerndal, Swensson & Wretman 1992, chapter 6.
    """
    _check(design)
    rows = sampled_rows(design, tables, clip=clip)
    predictions = predict(design, rows.rotations[NATS], features)
    return _estimate(design, prior, rows, predictions, features)


def first_rotations(num_images: int) -> int:
    """How many rotations to compute before looking how wide the interval is: `FIRST_ROWS` rows.

    To stop where the interval happens to be narrow makes it too narrow unless its width is known
    well by then; at 8 images with two rotations it covered 88 %.
    """
    return max(2, -(-FIRST_ROWS // num_images))


def rotations_needed(design: RotatedWarp, bound: SampledBound, half_width: float) -> int:
    """How many rotations the next look should have: those there are where they suffice.

    Begin with `first_rotations`. Look, extend the design to this number, compute the new rows, and
    look again, until it is the number there is. It at most doubles from look to look, because what
    a first look has of the variance may be little. The interval at which this ends covers as one
    that was not chosen.

    Args:
        design: the rows the bound was estimated from.
        bound: the estimate.
        half_width: the interval for this image set that is wanted, nats per dimension.

    Raises:
        ValueError: the half width is not positive.
    """
    if not half_width > 0:
        raise ValueError(f"half_width must be positive, not {half_width}")
    rotations = design.rotations
    if rotations < first_rotations(design.num_images):
        return first_rotations(design.num_images)
    if bound.half_width <= half_width:
        return rotations
    goal = (bound.kl_variance + bound.decoder_variance) * (half_width / bound.half_width) ** 2
    for more in range(rotations + 1, 2 * rotations):
        draws = decoder_draws(rotations) / decoder_draws(more)
        if bound.kl_variance * rotations / more + bound.decoder_variance * draws <= goal:
            return more
    return 2 * rotations


def _check(design: RotatedWarp) -> None:
    if design.rotations < 2:
        raise ValueError("the error of a single rotation cannot be known; take two")


def _estimate(
    design: RotatedWarp,
    prior: NDArray[np.float64],
    rows: SampledRows,
    predictions: Predictions,
    features: FeatureTable | None,
) -> SampledBound:
    _check(design)
    step = design.t - 2
    weighted = (rows.rotations[NATS] - predictions.rows) / design.density[step]
    totals = predictions.totals + weighted  # (r, N) estimates of each image's sum over t >= 2
    # What the predictions of a rotation have in common in a cell is no error: every cell has its
    # row. But it differs between rotations.
    common = [cell_means(design, mean / design.density) for mean in predictions.steps]
    surplus = np.take_along_axis(np.stack(common), design.cell, axis=1)
    parts = interaction(design, totals + surplus - predictions.steps.sum(1)[:, None])
    variance = parts.variance + rows.decoder_variance
    of_image = prior + rows.decoder[NATS] + parts.image
    steps = step_table(design, rows, predictions, features)
    population, deviation = None, None
    if design.num_images > 1:
        spread = float(of_image.var(ddof=1))
        # The spread of the images' estimates already contains the error of each.
        root = math.sqrt(spread / design.num_images)
        population = _quantile(design.num_images - 1) * root
        deviation = math.sqrt(max(0.0, spread - design.num_images * variance))
    return SampledBound(
        prior=float(prior.mean()),
        kl=float(totals.mean()),
        decoder=float(rows.decoder[NATS].mean()),
        term=steps.term,
        term_standard_error=steps.standard_error,
        x_start_mse=steps.x_start_mse,
        eps_mse=steps.eps_mse,
        num_evaluations=steps.num_evaluations,
        rotations=design.rotations,
        half_width=_half_width(rows, parts.spread, parts.variance, design.rotations),
        half_width_population=population,
        image_deviation=deviation,
        kl_variance=parts.variance,
        decoder_variance=rows.decoder_variance,
    )


def _half_width(
    rows: SampledRows, spread: NDArray[np.float64], kl_variance: float, rotations: int
) -> float:
    variance = kl_variance + rows.decoder_variance
    if variance == 0:
        return 0.0
    # Satterthwaite 1946, each part with the degrees of freedom of its images.
    of_rows = _freedom(spread, np.full(len(spread), rotations - 1))
    of_decoder = _freedom(rows.decoder_squares, rows.decoder_draws - 1)
    parts = np.array([kl_variance, rows.decoder_variance])
    freedom = _freedom(parts, np.array([of_rows, of_decoder]))
    return float(_quantile(freedom) * math.sqrt(variance))


def _freedom(squares: NDArray[np.float64], freedom: NDArray[np.float64 | np.int64]) -> float:
    """Of a sum of variances that differ, from their multiples of chi-square and degrees each."""
    # The square of a chi-square with f degrees is f (f + 2) on average, not f^2; and what is found
    # for a single one must be f.
    total = float(squares.sum())
    if total == 0:
        return 1.0
    return max(1.0, total**2 / float((np.square(squares) / (freedom + 2)).sum()) - 2)


def _quantile(freedom: float) -> float:
    return float(stats.t.ppf(0.5 + CONFIDENCE / 2, freedom))
