"""The bound from an importance sample: Horvitz-Thompson and regression estimators.

Each term estimates the sum over t = 2..T of its image: by its value over the density, or by
a prediction of the sum plus the error of the prediction over the density. The mean over all terms
is the bound, and the variance among the replicates of an image gives the interval for the images.
Replicates are added until that is narrow enough (`replicates_needed`).
"""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ddpmbench.diffusion.data_range import NATS_PER_BIT
from ddpmbench.likelihood.bound import cumulative_rate, freedom_of_parts, half_width_of, quantile
from ddpmbench.likelihood.designs import ImportanceDesign, decoder_draws, num_terms
from ddpmbench.likelihood.per_timestep import TimestepTable, rate_standard_error, timestep_table
from ddpmbench.likelihood.precision import Correction
from ddpmbench.likelihood.regression import FeatureTable, Predictions, no_predictions, predict
from ddpmbench.likelihood.sampled_terms import (
    NATS,
    SampledTerms,
    TwoWayFit,
    contributions,
    sampled_terms,
    two_way_fit,
    without_strata,
)
from ddpmbench.likelihood.terms import TermTable
from ddpmbench.records import short_repr


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
    # Each part of the variance with the degrees of freedom of its images.
    parts = np.array([fit.variance, terms.decoder_variance])
    of_kl = freedom_of_parts(fit.spread, np.full(num_images, replicates - 1))
    of_decoder = freedom_of_parts(terms.decoder_squares, terms.decoder_draws - 1)
    freedom = freedom_of_parts(parts, np.array([of_kl, of_decoder]))
    known = half_width_of(variance, freedom)
    half_width = math.nan if known is None else known
    population, deviation = None, None
    if num_images > 1:
        spread = float((prior + terms.decoder[NATS] + fit.image).var(ddof=1))
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
    estimate is unbiased whatever the features; they bear on the width of the intervals only. The
    features are those of the same images and terms, everything else is as in `horvitz_thompson`;
    but the term of a timestep that was not sampled is its prediction.

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
    predictions it is the difference of their bounds. The predictions of a replicate must not depend
    on its terms.

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
    The half width is that for these images, nats per dimension.

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
        """Begin without terms of a design; `prior` is the mean L_T, nats per dimension."""
        self._design, self._prior = design, prior
        # Count, sum and sum of squares: of the decoder terms, and of the others over the density.
        self._sums = np.zeros((2, 3))

    def add(self, table: TermTable) -> RoughBound | None:
        """Add terms; the bound so far, None until there are terms at t = 1 and later."""
        t, nats = table.index.t, table.values["nats"]
        decoder = nats[(t == 1) & (table.index.draw == 0)]
        later = nats[t > 1] / self._design.density[t[t > 1] - 2]
        for sums, values in zip(self._sums, (decoder, later), strict=True):
            sums += len(values), values.sum(), np.square(values).sum()
        count, total, squares = self._sums.T
        if count[1] < 2 or count[0] < min(2, self._design.num_images):
            return None
        mean = total / count
        variance = np.maximum(squares / count - mean**2, 0) / np.maximum(count - 1, 1)
        left = 1 - count[0] / self._design.num_images  # the images whose decoder term is unknown
        half_width = 1.96 * math.sqrt(variance[0] * left + variance[1])
        return RoughBound(self._prior + float(mean.sum()), half_width, is_rough=True)
