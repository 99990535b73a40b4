"""The bound from an importance sample: Horvitz-Thompson and regression estimators.

Each term estimates the sum over t = 2..T of its image: by its value over the density, or by
a prediction of the sum plus the error of the prediction over the density. The mean over all terms
is the bound, and the variance among the replicates of an image gives the interval for the images.
"""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ddpmbench.diffusion.data_range import NATS_PER_BIT
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
from ddpmbench.records import short_repr

KNOTS = 40
"""The effect of the timestep is linear in log t between about this many timesteps."""
_TERMS_A_KNOT = 5


@dataclasses.dataclass(frozen=True, eq=False)
class TwoWayFit:
    """An additive fit of image and stratum effects to the contributions of terms.

    Attributes:
        image: (N,) mean over the replicates of each image, without the effects of its strata.
        spread: (N,) variance among the replicates of each image, without these effects.
        stratum: (N,) effect of each stratum, up to a constant.
        mean: of all contributions.
        variance: of that mean.
    """

    image: NDArray[np.float64]
    spread: NDArray[np.float64]
    stratum: NDArray[np.float64]
    mean: float
    variance: float


def two_way_fit(design: ImportanceDesign, values: NDArray[np.float64]) -> TwoWayFit:
    r"""Fit image and stratum effects by least squares.

    .. math:: y_{jn} = \alpha_n + \beta(s_{jn}) + \varepsilon_{jn}

    Every replicate has each stratum once, so that the effects of strata are no error of the mean;
    and the residuals have

    .. math:: \mathrm{Var}(\bar y) = \frac{1}{r (N - 1) N} \sum_n \mathrm{Var}_j(\varepsilon_{jn})

    Args:
        design: of the terms; at least two replicates.
        values: (r, N) contributions y, each an estimate of its image's sum.

    Source: Owen 1992, "A central limit theorem for Latin hypercube sampling", for the variance.
    """
    replicates, num_images = values.shape
    freedom = num_images * (replicates - 1)
    hats = _hat_functions(design, freedom // _TERMS_A_KNOT)
    means = StratumMeans(design, hats)
    columns = hats.shape[1]
    gram, moment = np.zeros((columns, columns)), np.zeros(columns)
    for part in image_blocks(num_images, replicates):
        x = _within(means.at(design.stratum[:, part]))
        gram += np.einsum("jnk,jnl->kl", x, x, optimize=True)
        moment += np.einsum("jnk,jn->k", x, _within(values[:, part]), optimize=True)
    trend, _, rank, _ = np.linalg.lstsq(gram, moment, rcond=1e-10)
    stratum = stratum_means(design, hats @ trend)
    image, spread = np.empty(num_images), np.empty(num_images)
    for part in image_blocks(num_images, replicates):
        left = values[:, part] - stratum[design.stratum[:, part]]
        image[part] = left.mean(0)
        spread[part] = left.var(axis=0, ddof=1) * freedom / (freedom - rank)
    # The images of a replicate share the strata among themselves: N / (N - 1).
    shared = num_images / max(num_images - 1, 1)
    return TwoWayFit(
        image=image,
        spread=spread,
        stratum=stratum,
        mean=float(values.mean()),
        variance=float(spread.sum() / replicates / num_images**2 * shared),
    )


def _within(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(values - values.mean(0))


class StratumMeans:
    """Means over the strata of a function of the timestep, under the proposal density."""

    def __init__(self, design: ImportanceDesign, values: NDArray[np.float64]) -> None:
        """Integrate the function.

        Args:
            design: its density divides [0, 1] among the timesteps, its images into strata.
            values: (T - 1, ...) at t = 2..T.
        """
        self._num_strata, self._values = design.num_images, values
        self._start = np.append(0.0, np.cumsum(design.density)[:-1])  # (T - 1,) of each timestep
        weighted = (design.density * values.T).T
        before = np.zeros_like(weighted[:1])
        self._integral = np.concatenate([before, np.cumsum(weighted, axis=0)[:-1]])

    def at(self, stratum: NDArray[np.int64]) -> NDArray[np.float64]:
        """The means over some of the N strata; the axes of `stratum` come first."""
        return np.asarray((self._up_to(stratum + 1) - self._up_to(stratum)) * self._num_strata)

    def _up_to(self, edge: NDArray[np.int64]) -> NDArray[np.float64]:
        place = edge / self._num_strata
        index = np.searchsorted(self._start, place, side="right") - 1
        within = place - self._start[index]
        within = within.reshape(within.shape + (1,) * (self._values.ndim - 1))
        return np.asarray(self._integral[index] + self._values[index] * within)


def stratum_means(design: ImportanceDesign, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) means over all strata of (T - 1,) values at t = 2..T."""
    result, means = np.empty(design.num_images), StratumMeans(design, values)
    for part in image_blocks(design.num_images):
        result[part] = means.at(np.arange(part.start, part.stop))
    return result


def _hat_functions(design: ImportanceDesign, count: int) -> NDArray[np.float64]:
    """(T - 1, columns) that span the piecewise linear functions of log t, up to a constant."""
    inner = min(KNOTS, count - 2)  # with too few terms the effect of the timestep counts as error
    last = len(design.density) - 1
    index = np.searchsorted(np.cumsum(design.density), (np.arange(inner) + 0.5) / max(inner, 1))
    knots = np.unique(np.minimum([0, *index, *([last] if inner > 0 else [])], last))
    log_t = np.log(np.arange(2, design.num_timesteps + 1))
    hats = [np.interp(log_t, log_t[knots], row) for row in np.eye(len(knots))[1:]]
    return np.stack(hats, axis=1) if hats else np.zeros((len(log_t), 0))


@dataclasses.dataclass(frozen=True, eq=False)
class SampledBound:
    """The bound on a set of N images from a sample of its terms, in nats per dimension.

    Attributes:
        prior: mean L_T.
        kl: estimated mean of the sum of L_{t-1} over t = 2..T.
        decoder: mean L_0, evaluated for every image.
        term: (T,) estimated mean over the images of the term at t, unbiased; the decoder's at
            t = 1. They and the prior sum to the bound.
        term_standard_error: (T,) of `term` for these images.
        x_start_mse: (T,) estimated mean squared error of the predicted x_start.
        eps_mse: (T,) estimated mean squared error of the predicted noise.
        rate_standard_error: (T,) of `rate`.
        num_evaluations: (T,) network evaluations, without those of the pilot.
        num_replicates: r.
        half_width: of the 95 % interval for these images: sampled timesteps and noise.
        half_width_population: of the 95 % interval for the population that the images are drawn
            from, which contains the other; None for one image.
        image_deviation: standard deviation over the images of their bounds, without the error of
            each; 0 where that error is larger, None for one image.
        kl_variance: the part of the variance for these images from sampled timesteps.
        decoder_variance: the part from the noise of the decoder terms.
        predictions: that were subtracted from the terms.
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

    __repr__ = short_repr

    @property
    def nats(self) -> float:
        """The bound: the mean over the images."""
        return self.prior + self.kl + self.decoder

    @property
    def bits_per_dim(self) -> float:
        """The bound in bits per dimension."""
        return self.nats / NATS_PER_BIT

    @property
    def rate(self) -> NDArray[np.float64]:
        """(T,) see `cumulative_rate`."""
        return cumulative_rate(self.prior, self.term)


def sampled_bound(
    prior: NDArray[np.float64],
    terms: SampledTerms,
    fit: TwoWayFit,
    *,
    timesteps: TimestepTable,
    rate_error: NDArray[np.float64],
    predictions: Predictions,
) -> SampledBound:
    """The bound and its two intervals.

    Args:
        prior: (N,) L_T of each image.
        terms: the sample; here its decoder terms.
        fit: of the contributions to the sum over t = 2..T.
        timesteps: the estimate at each timestep.
        rate_error: (T,) standard error of the rate.
        predictions: of the terms.
    """
    num_images, replicates = len(prior), len(terms.replicates[NATS])
    variance = fit.variance + terms.decoder_variance
    of_image = prior + terms.decoder[NATS] + fit.image
    half_width = _half_width(terms, fit, replicates)
    population, deviation = None, None
    if num_images > 1:
        spread = float(of_image.var(ddof=1))
        # The variance of the images' estimates contains that of the error of each. Where the images
        # are alike it may come out smaller by chance, or because it has more degrees of freedom.
        population = quantile(num_images - 1) * math.sqrt(spread / num_images)
        population = max(population, half_width)
        deviation = math.sqrt(max(0.0, spread - num_images * variance))
    return SampledBound(
        prior=float(prior.mean()),
        kl=fit.mean,
        decoder=float(terms.decoder[NATS].mean()),
        rate_standard_error=rate_error,
        num_replicates=replicates,
        half_width=half_width,
        half_width_population=population,
        image_deviation=deviation,
        kl_variance=fit.variance,
        decoder_variance=terms.decoder_variance,
        predictions=predictions,
        image_prior=prior,
        image_decoder=terms.decoder[NATS],
        **vars(timesteps),
    )


def _half_width(terms: SampledTerms, fit: TwoWayFit, replicates: int) -> float:
    # Each part with the degrees of freedom of its images.
    of_kl = _freedom(fit.spread, np.full(len(fit.spread), replicates - 1))
    of_decoder = _freedom(terms.decoder_squares, terms.decoder_draws - 1)
    parts = np.array([fit.variance, terms.decoder_variance])
    freedom = _freedom(parts, np.array([of_kl, of_decoder]))
    half_width = half_width_of(fit.variance + terms.decoder_variance, freedom)
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
    r"""The Horvitz-Thompson estimator: every term over its density.

    .. math:: \hat L = \frac{1}{N} \sum_n \Bigl( L_T(n) + L_0(n)
              + \frac{1}{r} \sum_{j=1}^r \frac{L_{t_{jn} - 1}(n)}{q(t_{jn})} \Bigr)

    Args:
        design: of the terms; at least two replicates.
        prior: (N,) L_T of each image, nats per dimension.
        tables: every term once, in any order and portions.
        clip: whether `x_start_mse` is that of the clipped prediction.

    Returns:
        The bound in nats per dimension. The term of a timestep that was not sampled is 0, so that
        the terms are unbiased and sum to the bound; its errors are NaN.

    Raises:
        ValueError: a term is missing or comes twice, or there is one replicate.

    Source: Horvitz & Thompson 1952.
    """
    terms = sampled_terms(design, tables, clip=clip)
    return _estimate(design, prior, terms, no_predictions(design), None)


def regression_estimate(
    design: ImportanceDesign,
    prior: NDArray[np.float64],
    tables: Iterable[TermTable],
    features: FeatureTable,
    *,
    clip: bool = True,
) -> SampledBound:
    r"""The generalized regression (GREG) estimator: predictions, corrected by the sample.

    .. math:: \hat L = \frac{1}{N} \sum_n \Bigl( L_T(n) + L_0(n)
              + \frac{1}{r} \sum_{j=1}^r \Bigl[ \sum_{t=2}^T \hat y_{jn}(t)
              + \frac{L_{t_{jn} - 1}(n) - \hat y_{jn}(t_{jn})}{q(t_{jn})} \Bigr] \Bigr)

    The predictions of a replicate are fitted to the other replicates (`predict`), so that the
    estimate is unbiased whatever the features; they bear on the width of the intervals only.

    Args:
        design: of the terms; at least two replicates.
        prior: (N,) L_T of each image, nats per dimension.
        tables: every term once, in any order and portions.
        features: of the same images and terms.
        clip: whether `x_start_mse` is that of the clipped prediction.

    Returns:
        The bound in nats per dimension. The term of a timestep that was not sampled is its
        prediction.

    Raises:
        ValueError: a term is missing or comes twice, or there is one replicate.

    Source: Saerndal, Swensson & Wretman 1992, chapter 6.
    """
    terms = sampled_terms(design, tables, clip=clip)
    predictions = predict(design, terms.replicates[NATS], features)
    return _estimate(design, prior, terms, predictions, features)


def difference_estimate(
    design: ImportanceDesign,
    prior: NDArray[np.float64],
    tables: Iterable[TermTable],
    predictions: Predictions,
    *,
    clip: bool = True,
) -> SampledBound:
    """The difference estimator: `regression_estimate` with given predictions.

    It is linear in terms and predictions. From the differences of two models' terms and of their
    predictions it is the difference of their bounds.

    Args:
        design: of the terms; at least two replicates.
        prior: (N,) L_T of each image, nats per dimension.
        tables: every term once, in any order and portions.
        predictions: of these terms; those of a replicate must not depend on its terms.
        clip: whether `x_start_mse` is that of the clipped prediction.

    Raises:
        ValueError: a term is missing or comes twice, or there is one replicate.

    Source: Saerndal, Swensson & Wretman 1992, section 6.3.
    """
    return _estimate(design, prior, sampled_terms(design, tables, clip=clip), predictions, None)


def _estimate(
    design: ImportanceDesign,
    prior: NDArray[np.float64],
    terms: SampledTerms,
    predictions: Predictions,
    features: FeatureTable | None,
) -> SampledBound:
    at_terms = contributions(design, terms, predictions)
    fit = two_way_fit(design, predictions.totals + at_terms)
    rate_error = rate_standard_error(
        design.num_timesteps,
        np.arange(design.num_replicates),
        design.t,
        without_strata(design, at_terms, fit),
    )
    return sampled_bound(
        prior,
        terms,
        fit,
        timesteps=timestep_table(design, terms, predictions, features),
        rate_error=rate_error,
        predictions=predictions,
    )


def contributions(
    design: ImportanceDesign, terms: SampledTerms, predictions: Predictions
) -> NDArray[np.float64]:
    """(r, N) the errors of the predictions over the density; 0 predictions give the terms.

    With `Predictions.totals` they estimate the sums of the images over t = 2..T. The mean
    prediction in a stratum is no error, because every stratum has a term; but it differs between
    replicates, and is added here.
    """
    result = np.empty(design.t.shape)
    for j, mean in enumerate(predictions.timesteps):
        common = StratumMeans(design, mean / design.density)
        for part in image_blocks(design.num_images):
            left = terms.replicates[NATS, j, part] - predictions.terms[j, part]
            weighted = left / design.density[design.t[j, part] - 2]
            result[j, part] = weighted + common.at(design.stratum[j, part]) - mean.sum()
    return result


def without_strata(
    design: ImportanceDesign, values: NDArray[np.float64], fit: TwoWayFit
) -> NDArray[np.float64]:
    """(r, N) contributions without the effects of their strata, 0 in the mean."""
    left = np.empty_like(values)
    for j, of_replicate in enumerate(values):
        np.subtract(of_replicate, fit.stratum[design.stratum[j]], out=left[j])
    left -= left.mean()
    return left
