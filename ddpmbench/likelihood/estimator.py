"""The bound from the rows of an importance sample: two estimators, each with its two intervals."""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ddpmbench.likelihood.bound import cumulative_rate
from ddpmbench.likelihood.designs import ImportanceDesign
from ddpmbench.likelihood.intervals import (
    freedom_of_sum,
    half_width_of,
    quantile,
    squares_over_freedom,
)
from ddpmbench.likelihood.per_timestep import TimestepTable, rate_standard_error, timestep_table
from ddpmbench.likelihood.regression import FeatureTable, Predictions, no_predictions, predict
from ddpmbench.likelihood.sampled_terms import NATS, SampledTerms, sampled_terms
from ddpmbench.likelihood.terms import TermTable, image_blocks

KNOTS = 40
"""The contribution of the step is a line in log t between about this many steps."""
_ROWS_A_KNOT = 5


@dataclasses.dataclass(frozen=True, eq=False)
class TwoWayFit:
    """The rows of an importance sample, taken apart.

    Attributes:
        image: (N,) mean over the replicates of each image, without the contribution of the cells.
        spread: (N,) variance among replicates of each image, without that contribution.
        stratum: (N,) contribution of each cell, up to a constant.
        mean: over all rows.
        variance: of that mean.
    """

    image: NDArray[np.float64]
    spread: NDArray[np.float64]
    stratum: NDArray[np.float64]
    mean: float
    variance: float


def two_way_fit(design: ImportanceDesign, values: NDArray[np.float64]) -> TwoWayFit:
    """Take image and cell out of the rows by least squares.

    Args:
        design: the rows; at least two replicates.
        values: (r, N) what each row contributes, an estimate of its image's total.

    Source: Owen 1992, "A central limit theorem for Latin hypercube sampling", for the variance.
    """
    num_replicates, num_images = values.shape
    freedom = num_images * (num_replicates - 1)
    hats = _hats(design, freedom // _ROWS_A_KNOT)
    of_cells = StratumMeans(design, hats)
    columns = hats.shape[1]
    gram, moment = np.zeros((columns, columns)), np.zeros(columns)
    for part in image_blocks(num_images, num_replicates):
        x = _within(of_cells.at(design.stratum[:, part]))
        gram += np.einsum("jnk,jnl->kl", x, x, optimize=True)
        moment += np.einsum("jnk,jn->k", x, _within(values[:, part]), optimize=True)
    trend, _, rank, _ = np.linalg.lstsq(gram, moment, rcond=1e-10)
    stratum = stratum_means(design, hats @ trend)
    image, spread = np.empty(num_images), np.empty(num_images)
    for part in image_blocks(num_images, num_replicates):
        left = values[:, part] - stratum[design.stratum[:, part]]
        image[part] = left.mean(0)
        spread[part] = left.var(axis=0, ddof=1) * freedom / (freedom - rank)
    # The images of a replicate share the cells among themselves: N / (N - 1).
    shared = num_images / max(num_images - 1, 1)
    return TwoWayFit(
        image=image,
        spread=spread,
        stratum=stratum,
        mean=float(values.mean()),
        variance=float(spread.sum() / num_replicates / num_images**2 * shared),
    )


def _within(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(values - values.mean(0))


class StratumMeans:
    """Means over cells of the density, of values that belong to the steps."""

    def __init__(self, design: ImportanceDesign, values: NDArray[np.float64]) -> None:
        """Integrate the values over the density.

        Args:
            design: its density divides [0, 1] among the steps, its images divide it into cells.
            values: (T - 1, ...) at t = 2..T.
        """
        self._num_cells, self._values = design.num_images, values
        self._start = np.append(0.0, np.cumsum(design.density)[:-1])  # (T - 1,) of each step
        weighted = (design.density * values.T).T
        before = np.zeros_like(weighted[:1])
        self._integral = np.concatenate([before, np.cumsum(weighted, axis=0)[:-1]])

    def at(self, cell: NDArray[np.int64]) -> NDArray[np.float64]:
        """The means over some of the N cells; as many axes of them as `cell` has come first."""
        return np.asarray((self._up_to(cell + 1) - self._up_to(cell)) * self._num_cells)

    def _up_to(self, edge: NDArray[np.int64]) -> NDArray[np.float64]:
        place = edge / self._num_cells
        step = np.searchsorted(self._start, place, side="right") - 1
        within = place - self._start[step]
        within = within.reshape(within.shape + (1,) * (self._values.ndim - 1))
        return np.asarray(self._integral[step] + self._values[step] * within)


def stratum_means(design: ImportanceDesign, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) means over each cell of (T - 1,) values that belong to the steps."""
    means, of_cells = np.empty(design.num_images), StratumMeans(design, values)
    for part in image_blocks(design.num_images):
        means[part] = of_cells.at(np.arange(part.start, part.stop))
    return means


def _hats(design: ImportanceDesign, count: int) -> NDArray[np.float64]:
    """(T - 1, columns) functions that are linear in log t between knots.

    They span all such functions up to a constant.
    """
    inner = min(KNOTS, count - 2)  # with too few rows the steps' contribution counts as error
    last = len(design.density) - 1
    index = np.searchsorted(np.cumsum(design.density), (np.arange(inner) + 0.5) / max(inner, 1))
    knots = np.unique(np.minimum([0, *index, *([last] if inner > 0 else [])], last))
    log_t = np.log(np.arange(2, design.num_timesteps + 1))
    hats = [np.interp(log_t, log_t[knots], row) for row in np.eye(len(knots))[1:]]
    return np.stack(hats, axis=1) if hats else np.zeros((len(log_t), 0))


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
        rate_standard_error: (T,) of the rate at t, the prior and the terms of the steps after t.
        num_evaluations: (T,) network calls; those of the pilot are not among them.
        num_replicates: how often every image was sampled.
        half_width: of the 95 % interval for these images: sampling of rows and noise.
        half_width_population: of the 95 % interval for the population the images are drawn
            from; it contains the other. None for a single image.
        image_deviation: standard deviation over the images of their bounds, without the error of
            each; 0 where that error hides it, None for a single image.
        kl_variance: the part of the first interval's variance that is the sampling of rows.
        decoder_variance: the part that is the noise of the decoder's rows.
        predictions: of the terms, which were subtracted from them at the rows.
        image_prior: (N,) L_T of each image.
        image_decoder: (N,) L_0 of each image, mean over its draws.
    """

    prior: float
    kl: float
    decoder: float
    term: NDArray[np.float64]
    term_standard_error: NDArray[np.float64]
    x_start_mse: NDArray[np.float64]
    eps_mse: NDArray[np.float64]
    rate_standard_error: NDArray[np.float64]
    num_evaluations: NDArray[np.int64]
    num_replicates: int
    half_width: float
    half_width_population: float | None
    image_deviation: float | None
    kl_variance: float
    decoder_variance: float
    predictions: Predictions
    image_prior: NDArray[np.float64]
    image_decoder: NDArray[np.float64]

    @property
    def nats(self) -> float:
        """The bound: the mean over the images."""
        return self.prior + self.kl + self.decoder

    @property
    def rate(self) -> NDArray[np.float64]:
        """(T,) what has been sent once x_t is known: the prior and the terms after t."""
        return cumulative_rate(self.prior, self.term)


def sampled_bound(
    prior: NDArray[np.float64],
    rows: SampledTerms,
    parts: TwoWayFit,
    *,
    steps: TimestepTable,
    rate_error: NDArray[np.float64],
    predictions: Predictions,
) -> SampledBound:
    """The estimate, from its decoder and its later steps: here they become intervals."""
    num_images, num_replicates = len(prior), len(rows.replicates[NATS])
    variance = parts.variance + rows.decoder_variance
    of_image = prior + rows.decoder[NATS] + parts.image
    half_width = _half_width(rows, parts.spread, parts.variance, num_replicates)
    population, deviation = None, None
    if num_images > 1:
        spread = float(of_image.var(ddof=1))
        # The spread of the images' estimates already contains the error of each; where the images
        # are alike it may come out smaller by chance, or because it has more degrees of freedom.
        population = quantile(num_images - 1) * math.sqrt(spread / num_images)
        population = max(population, half_width)
        deviation = math.sqrt(max(0.0, spread - num_images * variance))
    return SampledBound(
        prior=float(prior.mean()),
        kl=parts.mean,
        decoder=float(rows.decoder[NATS].mean()),
        term=steps.term,
        term_standard_error=steps.standard_error,
        x_start_mse=steps.x_start_mse,
        eps_mse=steps.eps_mse,
        rate_standard_error=rate_error,
        num_evaluations=steps.num_evaluations,
        num_replicates=num_replicates,
        half_width=half_width,
        half_width_population=population,
        image_deviation=deviation,
        kl_variance=parts.variance,
        decoder_variance=rows.decoder_variance,
        predictions=predictions,
        image_prior=prior,
        image_decoder=rows.decoder[NATS],
    )


def _half_width(
    rows: SampledTerms, spread: NDArray[np.float64], kl_variance: float, num_replicates: int
) -> float:
    # Each part with the degrees of freedom of its images.
    of_rows = _freedom(spread, np.full(len(spread), num_replicates - 1))
    of_decoder = _freedom(rows.decoder_squares, rows.decoder_draws - 1)
    parts = np.array([kl_variance, rows.decoder_variance])
    freedom = _freedom(parts, np.array([of_rows, of_decoder]))
    half_width = half_width_of(kl_variance + rows.decoder_variance, freedom)
    return math.nan if half_width is None else half_width


def _freedom(variances: NDArray[np.float64], freedom: NDArray[np.float64 | np.int64]) -> float:
    return freedom_of_sum(float(variances.sum()), squares_over_freedom(variances, freedom))


def horvitz_thompson(
    design: ImportanceDesign,
    prior: NDArray[np.float64],
    tables: Iterable[TermTable],
    *,
    clip: bool = True,
) -> SampledBound:
    """The bound with every row counted by the inverse of its density.

    Args:
        design: the rows that were computed; at least two replicates.
        prior: (N,) L_T of each image, nats per dimension.
        tables: the terms of every row once, in any order and any portions.
        clip: whether `x_start_mse` is that of the clipped prediction.

    Returns:
        The estimate. A step at which no row fell has a term of 0, as it must for the terms to be
        unbiased and to sum to the bound, and errors of NaN.

    Raises:
        ValueError: a row is missing or comes twice, or there is a single replicate.

    Source: Horvitz & Thompson 1952.
    """
    rows = sampled_terms(design, tables, clip=clip)
    return _estimate(design, prior, rows, no_predictions(design), None)


def regression_estimate(
    design: ImportanceDesign,
    prior: NDArray[np.float64],
    tables: Iterable[TermTable],
    features: FeatureTable,
    *,
    clip: bool = True,
) -> SampledBound:
    """The generalized regression estimator: predictions everywhere, corrected at the rows.

    Args:
        design: the rows that were computed; at least two replicates.
        prior: (N,) L_T of each image, nats per dimension.
        tables: the terms of every row once, in any order and any portions.
        features: of the same images and rows. They bear on the width of the intervals only.
        clip: whether `x_start_mse` is that of the clipped prediction.

    Returns:
        The estimate. A step at which no row fell has its prediction.

    Raises:
        ValueError: a row is missing or comes twice, or there is a single replicate.

    Source: Saerndal, Swensson & Wretman 1992, chapter 6.
    """
    _check(design)
    rows = sampled_terms(design, tables, clip=clip)
    predictions = predict(design, rows.replicates[NATS], features)
    return _estimate(design, prior, rows, predictions, features)


def difference_estimate(
    design: ImportanceDesign,
    prior: NDArray[np.float64],
    tables: Iterable[TermTable],
    predictions: Predictions,
    *,
    clip: bool = True,
) -> SampledBound:
    """The estimate of `regression_estimate` with predictions that are at hand.

    All of it is linear in terms and predictions: from the differences between two models' terms,
    and between the predictions of these, it is the difference between their bounds.

    Args:
        design: the rows; at least two replicates.
        prior: (N,) L_T of each image, nats per dimension.
        tables: the terms of every row once, in any order and any portions.
        predictions: of the same rows; those of a replicate must not depend on its terms.
        clip: whether `x_start_mse` is that of the clipped prediction.

    Raises:
        ValueError: a row is missing or comes twice, or there is a single replicate.

    Source: Saerndal, Swensson & Wretman 1992, chapter 6.
    """
    rows = sampled_terms(design, tables, clip=clip)
    return _estimate(design, prior, rows, predictions, None)


def _check(design: ImportanceDesign) -> None:
    if design.num_replicates < 2:
        raise ValueError("the error of a single replicate cannot be known; take two")


def _estimate(
    design: ImportanceDesign,
    prior: NDArray[np.float64],
    rows: SampledTerms,
    predictions: Predictions,
    features: FeatureTable | None,
) -> SampledBound:
    _check(design)
    part = contributions(design, rows, predictions)
    parts = two_way_fit(design, part.totals)
    rate_error = rate_standard_error(
        design.num_timesteps,
        np.arange(design.num_replicates),
        design.t,
        without_strata(design, part.rows, parts),
    )
    return sampled_bound(
        prior,
        rows,
        parts,
        steps=timestep_table(design, rows, predictions, features),
        rate_error=rate_error,
        predictions=predictions,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Contributions:
    """What every row contributes to the sum of the terms over t = 2..T.

    Attributes:
        predicted: (r, N) the prediction of that sum.
        rows: (r, N) what depends on which row it is.
    """

    predicted: NDArray[np.float64]
    rows: NDArray[np.float64]

    @property
    def totals(self) -> NDArray[np.float64]:
        """(r, N) an estimate of the sum of its image; their mean is that of the bound."""
        return np.asarray(self.predicted + self.rows)


def contributions(
    design: ImportanceDesign, rows: SampledTerms, predictions: Predictions
) -> Contributions:
    """What every row contributes.

    What the predictions of a replicate have in common in a cell is no error, because every cell
    has its row; but it differs between replicates, and is counted with the row.
    """
    of_rows = np.empty(design.t.shape)
    for j, mean in enumerate(predictions.timesteps):
        common = StratumMeans(design, mean / design.density)
        for part in image_blocks(design.num_images):
            left = rows.replicates[NATS, j, part] - predictions.terms[j, part]
            weighted = left / design.density[design.t[j, part] - 2]
            of_rows[j, part] = weighted + common.at(design.stratum[j, part]) - mean.sum()
    return Contributions(predictions.totals, of_rows)


def without_strata(
    design: ImportanceDesign, rows: NDArray[np.float64], parts: TwoWayFit
) -> NDArray[np.float64]:
    """(r, N) contributions without those of their cells, 0 in the mean."""
    left = np.empty_like(rows)
    for j, of_replicate in enumerate(rows):
        np.subtract(of_replicate, parts.stratum[design.stratum[j]], out=left[j])
    left -= left.mean()
    return left
