"""The bound from an importance sample: Horvitz-Thompson and regression estimators.

Each term estimates the sum over t = 2..T of its image: by its value over the density, or by a
predicted sum plus the prediction's error over the density. The bound is the weighted mean over the
sampled images. Its interval comes from the variance among replicates of an image and, where not all
are sampled, among images. Images, and then replicates, are added until it is narrow enough
(`design_needed`).
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from ddpmbench.likelihood.bound import (
    Bound,
    ImageBounds,
    TimestepTable,
    freedom_of_parts,
    half_width_of,
    quantile,
)
from ddpmbench.likelihood.designs import ImportanceDesign, blocks_of, decoder_draws, num_terms
from ddpmbench.likelihood.image_sampling import ImageSample
from ddpmbench.likelihood.precision import Correction
from ddpmbench.likelihood.regression import FeatureTable, Predictions, no_predictions, predict
from ddpmbench.likelihood.sampled_terms import (
    NATS,
    Contributions,
    SampledTerms,
    TwoWayFit,
    rate_standard_error,
    sampled_terms,
    timestep_table,
    two_way_fit,
)
from ddpmbench.likelihood.terms import TermTable, columns_of_bound
from ddpmbench.records import short_repr


@dataclasses.dataclass(frozen=True, eq=False)
class SampledMean:
    """The mean over N images of their terms at t = 1..T, and its variance; see `SampledBound`."""

    kl: float
    decoder: float
    kl_variance: float
    decoder_variance: float
    image_variance: float
    half_width: float


@dataclasses.dataclass(frozen=True, eq=False)
class SampledBound(SampledMean, Bound):
    """The bound on a set of N images from a sample of its terms, in nats per dimension.

    Attributes:
        prior: mean L_T.
        kl: estimated mean of the sum of L_{t-1} over t = 2..T.
        decoder: estimated mean L_0.
        term: (T,) estimated mean over the images of the term at t, unbiased; the decoder's at
            t = 1. With the prior they sum to the bound.
        term_standard_error: (T,) of `term` for these images.
        x_start_mse: (T,) estimated mean squared error of the predicted x_start.
        eps_mse: (T,) estimated mean squared error of the predicted noise.
        rate_standard_error: (T,) of `rate`.
        num_evaluations: (T,) network evaluations, not counting the pilot.
        num_replicates: r.
        half_width: of the 95 % interval for these images: sampled images and timesteps, and noise.
        half_width_population: of the 95 % interval for the population the images are drawn from, at
            least `half_width`; None for one image.
        image_deviation: standard deviation of the images' bounds, their estimation error removed; 0
            where that error is larger, None for one image.
        kl_variance: the part of the variance for these images from sampled timesteps.
        decoder_variance: the part from the noise of the decoder terms.
        image_variance: the part from sampled images; 0 where all N are.
        predictions: the predictions subtracted from the terms.
        sample: the images that were evaluated, and their weights.
        image_prior: (N,) L_T of each image.
        image_decoder: (N,) L_0 of each image, mean over its draws; NaN where it was not evaluated.
    """

    prior: float
    num_replicates: int
    image_deviation: float | None
    predictions: Predictions
    sample: ImageSample
    image_prior: NDArray[np.float64]
    image_decoder: NDArray[np.float64]

    __repr__ = short_repr

    @property
    def by_image(self) -> ImageBounds:
        """The parts of each image; its KL terms are unknown, and the decoder's if not sampled."""
        unknown = np.full(len(self.image_prior), np.nan)
        return ImageBounds(self.image_prior, unknown, self.image_decoder)

    @property
    def variance(self) -> float:
        """Variance of the bound for these images."""
        return self.kl_variance + self.decoder_variance + self.image_variance


def sampled_mean(
    sample: ImageSample,
    sums: NDArray[np.float64],
    fit: TwoWayFit,
    terms: SampledTerms,
    column: int = NATS,
) -> SampledMean:
    """The mean over all images from a sample of them.

    Args:
        sample: the images.
        sums: (M,) estimated sum over t = 2..T of each, mean over the replicates.
        fit: of these estimates.
        terms: of the decoder.
        column: of `terms.decoder`.
    """
    weights, decoder = sample.weights, terms.decoder[column]
    count, replicates = len(weights), terms.replicates.shape[1]
    # Strata cause no error of a mean with equal weights, but do with others.
    of_strata = float(np.square(weights - 1 / count).sum() * (sums - fit.image).var())
    kl_variance = fit.variance(weights, replicates) + of_strata
    decoder_variance = terms.decoder_variance(weights, column)
    image_variance = sample.variance(decoder + fit.image, kl_variance + decoder_variance)
    # Each part of the variance has the degrees of freedom of its images.
    parts = np.array([kl_variance, decoder_variance, image_variance])
    of_kl = freedom_of_parts(fit.spread, np.full(count, replicates - 1))
    of_decoder = freedom_of_parts(terms.decoder_squares[column], terms.decoder_draws - 1)
    freedom = freedom_of_parts(parts, np.array([of_kl, of_decoder, max(count - 1, 1)]))
    half_width = half_width_of(float(parts.sum()), freedom)
    means = float(weights @ sums), float(weights @ decoder)
    return SampledMean(*means, kl_variance, decoder_variance, image_variance, half_width)


def sampled_bound(
    design: ImportanceDesign,
    sample: ImageSample,
    prior: NDArray[np.float64],
    terms: SampledTerms,
    sums: NDArray[np.float64],
    fit: TwoWayFit,
    *,
    timesteps: TimestepTable,
    rate_error: NDArray[np.float64],
    predictions: Predictions,
) -> SampledBound:
    """The bound and its two intervals: `sampled_mean` with the rest of `SampledBound`."""
    num_images, mean = design.num_images, sampled_mean(sample, sums, fit, terms)
    population, deviation = None, None
    if (count := design.num_sampled) > 1:
        # The variance of the images' estimates includes their errors. For similar images it may be
        # smaller by chance, or because it has more degrees of freedom.
        spread = float((prior[design.image] + terms.decoder[NATS] + fit.image).var(ddof=1))
        error = mean.kl_variance + mean.decoder_variance
        of_images = max(0.0, spread - count * error)
        whole = of_images + num_images * (error + mean.image_variance) if sample.unseen else spread
        population = max(quantile(count - 1) * math.sqrt(whole / num_images), mean.half_width)
        deviation = math.sqrt(of_images)
    image_decoder = np.full(num_images, np.nan)
    image_decoder[design.image] = terms.decoder[NATS]
    return SampledBound(
        prior=float(prior.mean()),
        rate_standard_error=rate_error,
        num_replicates=design.num_replicates,
        half_width_population=population,
        image_deviation=deviation,
        predictions=predictions,
        sample=sample,
        image_prior=prior,
        image_decoder=image_decoder,
        **vars(mean),
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

    .. math:: \hat L = \frac{1}{N} \sum_n L_T(n) + \frac{1}{M} \sum_n \Bigl( L_0(n)
              + \frac{1}{r} \sum_{j=1}^r \frac{L_{t_{jn} - 1}(n)}{q(t_{jn})} \Bigr)

    with the first sum over all N images, the second over the M sampled ones.

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
    terms = sampled_terms(design, tables, columns_of_bound(clip=clip))
    return _estimate(design, prior, terms, no_predictions(design), None, ImageSample.of(design))


def regression_estimate(
    design: ImportanceDesign,
    prior: NDArray[np.float64],
    tables: Iterable[TermTable],
    features: FeatureTable,
    *,
    clip: bool = True,
) -> SampledBound:
    r"""The generalized regression (GREG) estimator: predictions, corrected by the sample.

    .. math:: \hat L = \frac{1}{N} \sum_n L_T(n) + \sum_n g_n \Bigl( L_0(n)
              + \frac{1}{r} \sum_{j=1}^r \Bigl[ \sum_{t=2}^T \hat y_{jn}(t)
              + \frac{L_{t_{jn} - 1}(n) - \hat y_{jn}(t_{jn})}{q(t_{jn})} \Bigr] \Bigr)

    with weights g that make the sampled images represent all (`ImageSample`). The predictions of a
    replicate are fitted to the other replicates (`predict`), so that the estimate is unbiased
    whatever the features; these only affect the width of the intervals. `features` are of the same
    images and terms; all else is as in `horvitz_thompson`, except that the term of a timestep that
    was not sampled is its prediction.

    Source: Saerndal, Swensson & Wretman 1992, chapter 6.
    """
    terms = sampled_terms(design, tables, columns_of_bound(clip=clip))
    predictions = predict(design, terms.replicates[NATS], features)
    return _estimate(design, prior, terms, predictions, features, features.sample)


def difference_estimate(
    design: ImportanceDesign,
    prior: NDArray[np.float64],
    tables: Iterable[TermTable],
    predictions: Predictions,
    sample: ImageSample,
    *,
    clip: bool = True,
) -> SampledBound:
    """The difference estimator: `regression_estimate` with given predictions and images.

    It is linear in terms and predictions, so that differences of two models' terms and predictions
    give the difference of their bounds. The predictions of a replicate must not depend on its
    terms.

    Source: Saerndal, Swensson & Wretman 1992, section 6.3.
    """
    terms = sampled_terms(design, tables, columns_of_bound(clip=clip))
    return _estimate(design, prior, terms, predictions, None, sample)


def _estimate(
    design: ImportanceDesign,
    prior: NDArray[np.float64],
    terms: SampledTerms,
    predictions: Predictions,
    features: FeatureTable | None,
    sample: ImageSample,
) -> SampledBound:
    values = Contributions(design, terms.replicates[NATS], predictions)
    fit = two_way_fit(design, values.totals)
    rate_error = rate_standard_error(
        design.num_timesteps,
        np.arange(design.num_replicates),
        design.t,
        values.without_strata(fit),
        sample=sample,
        predictions=predictions,
    )
    return sampled_bound(
        design,
        sample,
        prior,
        terms,
        values.sums,
        fit,
        timesteps=timestep_table(design, sample, terms, predictions, features),
        rate_error=rate_error,
        predictions=predictions,
    )


INITIAL_TERMS = 400


def initial_replicates(num_images: int) -> int:
    """Replicates before the first interval: at least two, and `INITIAL_TERMS` terms.

    Stopping where the interval happens to be narrow makes it too narrow, unless its width is well
    known by then; with 8 images and two replicates it covered 88 %.
    """
    return max(2, -(-INITIAL_TERMS // num_images))


def initial_blocks(num_images: int) -> int:
    """Blocks of images before the first interval: a tenth, at least two where there are two."""
    blocks = blocks_of(num_images)
    return min(blocks, max(2, blocks // 10))


def initial_design(
    num_images: int, num_timesteps: int, density: NDArray[np.float64], seed: int
) -> ImportanceDesign:
    """The terms before the first interval."""
    size = (initial_replicates(num_images), initial_blocks(num_images))
    return ImportanceDesign(num_images, num_timesteps, density, seed, *size)


def initial_terms(num_images: int) -> int:
    """Number of terms before the first interval."""
    return num_terms(num_images, initial_replicates(num_images), initial_blocks(num_images))


def design_needed(
    design: ImportanceDesign, bound: SampledBound, half_width: float
) -> ImportanceDesign:
    """The design for an interval of a given half width, at most doubling the number of terms.

    Begin with `initial_design`; estimate, evaluate the new terms of this design, and estimate
    again, until it stays the same. Images are added before replicates. Their number at most
    doubles, because a first estimate may miss much of the variance. The final interval covers as
    well as one of a fixed design. The half width is for these images, nats per dimension.

    Raises:
        ValueError: the half width is not positive.
    """
    if not half_width > 0:
        raise ValueError(f"half_width must be positive, not {half_width}")
    size = (design.num_images, design.num_timesteps)
    first = initial_design(*size, design.density, design.seed)
    if len(design) < len(first):
        return first
    if bound.half_width <= half_width:
        return design
    goal = bound.variance * (half_width / bound.half_width) ** 2
    longer = list(longer_designs(design))
    for more in longer:
        if _variance_of(more, design, bound) <= goal:
            return more
    return longer[-1]


def longer_designs(design: ImportanceDesign) -> Iterator[ImportanceDesign]:
    """Longer designs, up to twice the size: more images, or more replicates of all images.

    Replicates grow by at least a tenth, so that few interim estimates are needed.
    """
    whole = blocks_of(design.num_images)
    if design.blocks < whole:
        for blocks in range(design.blocks + 1, min(2 * design.blocks, whole) + 1):
            yield dataclasses.replace(design, num_blocks=blocks)
    else:
        most = 2 * design.num_replicates
        for replicates in range(math.ceil(1.1 * design.num_replicates), most + 1):
            yield dataclasses.replace(design, num_replicates=replicates)


def _variance_of(more: ImportanceDesign, design: ImportanceDesign, bound: SampledBound) -> float:
    """Variance of the bound from a longer design, extrapolated from a shorter one."""
    images = design.num_sampled / more.num_sampled
    replicates = design.num_replicates / more.num_replicates
    draws = decoder_draws(design.num_replicates) / decoder_draws(more.num_replicates)
    variance = images * (bound.kl_variance * replicates + bound.decoder_variance * draws)
    if bound.image_variance:
        left = more.num_images - more.num_sampled
        variance += bound.image_variance * images * left / (design.num_images - design.num_sampled)
    return variance


@dataclasses.dataclass(frozen=True)
class RoughBound:
    """A bound with its interval, during a run.

    Attributes:
        nats: the bound, nats per dimension.
        half_width: of its 95 % interval for the images, nats per dimension.
        is_rough: whether the terms count as independent, which makes the interval wider than that
            of the final estimate from the same terms.
    """

    nats: float
    half_width: float
    is_rough: bool = False

    def plus(self, correction: Correction | None) -> "RoughBound":
        """The bound with a correction, if any."""
        if correction is None:
            return self
        half_width = math.hypot(self.half_width, correction.half_width)
        return RoughBound(self.nats + correction.nats, half_width, self.is_rough)


class RunningBound:
    """The Horvitz-Thompson estimate so far, as if terms were drawn independently.

    It ignores the strata, so its interval is wider than that of the final estimate.
    """

    def __init__(self, design: ImportanceDesign, prior: float) -> None:
        """Begin without terms; `prior` is the mean L_T, nats per dimension."""
        self._design, self._prior = design, prior
        # Count, sum and sum of squares of the decoder terms, and of the others over the density.
        self._sums = np.zeros((2, 3))

    def add(self, table: TermTable) -> RoughBound | None:
        """Add terms; return the bound so far, None until there are terms at t = 1 and later."""
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
        left = (
            1 - count[0] / self._design.num_images
        )  # share of images whose decoder term is unknown
        half_width = 1.96 * math.sqrt(variance[0] * left + variance[1])
        return RoughBound(self._prior + float(mean.sum()), half_width, is_rough=True)
