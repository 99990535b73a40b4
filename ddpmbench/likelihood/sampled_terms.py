"""The terms of an importance sample, the effects of their strata, the estimate at each timestep."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from ddpmbench.likelihood.bound import TimestepTable, sum_after
from ddpmbench.likelihood.designs import ImportanceDesign, decoder_draws
from ddpmbench.likelihood.image_sampling import ImageSample
from ddpmbench.likelihood.regression import FeatureTable, Predictions, log_bins
from ddpmbench.likelihood.terms import TermTable, image_blocks

NATS, X_START, EPS = range(3)
"""The columns of a bound (`columns_of_bound`): the term itself, the mean squared errors of x_start
and of the noise."""
_KNOTS = 40  # the timestep effect is piecewise linear in log t, with about this many knots
_TERMS_A_KNOT = 5
_FEWEST_TERMS = 10
"""Least terms for a standard error of a sum over timesteps."""
_TIMESTEP_PRIOR = 20.0  # in terms, the weight of a bin's ratio at one of its timesteps
_RATIO_PRIOR = 4.0  # in terms, the weight of all bins' ratio in that of one


@dataclasses.dataclass(frozen=True, eq=False)
class SampledTerms:
    """Some columns of all terms of an importance sample, such as `NATS`, `X_START` and `EPS`.

    Attributes:
        replicates: (C, r, M) the columns of each image in each replicate.
        decoder: (C + D, M) the same at t = 1, mean over the draws, then the decoder columns.
        decoder_draws: (M,) number of draws at t = 1.
        decoder_squares: (C + D, M) sum of the squared deviations at t = 1 from the mean.
    """

    replicates: NDArray[np.float64]
    decoder: NDArray[np.float64]
    decoder_draws: NDArray[np.int64]
    decoder_squares: NDArray[np.float64]

    def decoder_variance(self, weights: NDArray[np.float64], column: int = NATS) -> float:
        """Variance of the weighted sum of the decoder terms, from their noise.

        The variance of a draw is pooled over the images.
        """
        of_draw = float(self.decoder_squares[column].sum() / (self.decoder_draws - 1).sum())
        return of_draw * float((np.square(weights) / self.decoder_draws).sum())

    def decoder_error(self, sample: ImageSample) -> float:
        """Variance of the weighted sum from the noise and the choice of images."""
        noise = self.decoder_variance(sample.weights)
        return noise + sample.variance(self.decoder[NATS], noise)


def sampled_terms(
    design: ImportanceDesign,
    tables: Iterable[TermTable],
    columns: Sequence[str],
    decoders: Sequence[str] = (),
) -> SampledTerms:
    """Sort the terms of a design, in any order and portions, by replicate and image.

    Args:
        design: of the terms.
        tables: every term once.
        columns: the first has a value in every term.
        decoders: columns of t = 1 alone.

    Raises:
        ValueError: a term is missing, comes twice, or is not one of the design, or there is one
            replicate.
    """
    if design.num_replicates < 2:
        raise ValueError("the error of one replicate is unknown; take two")
    num_images, draws = design.num_sampled, 1 + decoder_draws(design.num_replicates)
    replicates = np.full((len(columns), design.num_replicates, num_images), np.nan)
    mean, squares = np.zeros((2, len(columns) + len(decoders), num_images))
    is_known = np.zeros((draws, num_images), dtype=bool)
    count = np.zeros(num_images, dtype=np.int64)
    length = 0
    for table in tables:
        image, t, draw = design.position[table.index.image], table.index.t, table.index.draw
        values = np.stack([table.values[name] for name in (*columns, *decoders)])
        first = t == 1
        later = (draw[~first], image[~first])
        is_other = (image < 0).any() or (design.t[later] != t[~first]).any()
        if is_other or (draw[first] >= draws).any():
            raise ValueError("the tables hold terms of another design")
        replicates[:, *later] = values[: len(columns), ~first]
        for k in np.unique(draw[first]):
            of_draw = np.flatnonzero(first & (draw == k))
            x, of_image = values[:, of_draw], image[of_draw]
            # Welford 1962.
            count[of_image] += 1
            deviation = x - mean[:, of_image]
            mean[:, of_image] += deviation / count[of_image]
            squares[:, of_image] += deviation * (x - mean[:, of_image])
            is_known[k, of_image] = ~np.isnan(x[0])
        length += len(table)
    known = int(is_known.sum()) + int((~np.isnan(replicates[0])).sum())
    if length != len(design) or known != len(design):
        raise ValueError("the tables do not hold every term of the design exactly once")
    return SampledTerms(replicates, mean, count, squares)


@dataclasses.dataclass(frozen=True, eq=False)
class TwoWayFit:
    """An additive fit of image and stratum effects to the contributions of terms.

    Attributes:
        image: (M,) mean over the replicates of each image, without the effects of its strata.
        spread: (M,) variance among the replicates of each image, without the stratum effects.
        trend: (T - 1,) function of the timestep whose strata means are the stratum effects, up to a
            constant.
    """

    image: NDArray[np.float64]
    spread: NDArray[np.float64]
    trend: NDArray[np.float64]

    def variance(self, weights: NDArray[np.float64], num_replicates: int) -> float:
        """Variance of the weighted sum of (M,) means of r replicates; the weights sum to 1."""
        # The images of a replicate share the strata, hence M / (M - 1).
        count = len(weights)
        shared = count / max(count - 1, 1)
        return float(np.square(weights) @ self.spread) / num_replicates * shared


def two_way_fit(design: ImportanceDesign, values: NDArray[np.float64]) -> TwoWayFit:
    r"""Fit image and stratum effects by least squares.

    .. math:: y_{jn} = \alpha_n + \beta(s_{jn}) + \varepsilon_{jn}

    Every replicate has each stratum once, so that stratum effects do not contribute to the error of
    the mean, and the residuals have

    .. math:: \mathrm{Var}(\bar y) = \frac{1}{r (M - 1) M} \sum_n \mathrm{Var}_j(\varepsilon_{jn})

    Args:
        design: of the terms; at least two replicates.
        values: (r, M) contributions y, each an estimate of its image's sum.

    Source: Owen 1992, "A central limit theorem for Latin hypercube sampling", for the variance.
    """
    replicates, num_images = values.shape
    freedom = num_images * (replicates - 1)
    hats = _hat_functions(design, freedom // _TERMS_A_KNOT)
    means = StratumMeans(design, hats)
    columns = hats.shape[1]
    gram, moment = np.zeros((columns, columns)), np.zeros(columns)
    for part in image_blocks(num_images, replicates):
        y = _within(values[:, part]).ravel()
        x = _within(means.at(part)).reshape(y.size, columns)
        gram += x.T @ x
        moment += x.T @ y
    coefficients, _, rank, _ = np.linalg.lstsq(gram, moment, rcond=1e-10)
    trend = hats @ coefficients
    effects = StratumMeans(design, trend)
    image, spread = np.empty(num_images), np.empty(num_images)
    for part in image_blocks(num_images, replicates):
        left = values[:, part] - effects.at(part)
        image[part] = left.mean(0)
        spread[part] = left.var(axis=0, ddof=1) * freedom / (freedom - rank)
    return TwoWayFit(image, spread, trend)


def _within(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(values - values.mean(0))


class StratumMeans:
    """Means of a function of the timestep over the strata, under the proposal density."""

    def __init__(self, design: ImportanceDesign, values: NDArray[np.float64]) -> None:
        """Integrate the function, (T - 1, ...) values at t = 2..T.

        The density divides [0, 1] among the timesteps, the images into strata.
        """
        start = np.append(0.0, np.cumsum(design.density)[:-1])  # (T - 1,) of each timestep
        weighted = (design.density * values.T).T
        before = np.zeros_like(weighted[:1])
        integral = np.concatenate([before, np.cumsum(weighted, axis=0)[:-1]])
        # Blocks of as many images have the same strata.
        sizes, size = np.unique(np.diff(design.block_ends), return_inverse=True)
        means = []
        for count in sizes:
            place = np.arange(count + 1) / count
            index = np.searchsorted(start, place, side="right") - 1
            within = (place - start[index]).reshape(-1, *[1] * (values.ndim - 1))
            means.append(count * np.diff(integral[index] + values[index] * within, axis=0))
        self._means, self._stratum = np.concatenate(means), design.stratum
        # The place of the first stratum of each block.
        self._ends, self._first = design.block_ends[1:], (np.cumsum(sizes) - sizes)[size]

    def at(self, part: slice) -> NDArray[np.float64]:
        """(r, B, ...) the means over the strata of some images in every replicate."""
        return np.asarray(self._means[self._place(part)])

    def of_replicates(self, part: slice) -> NDArray[np.float64]:
        """(r, B) the same if the last axis of the values is that of the replicates."""
        place = self._place(part)
        return np.asarray(self._means[place, np.arange(len(place))[:, None]])

    def _place(self, part: slice) -> NDArray[np.int64]:
        block = np.searchsorted(self._ends, np.arange(part.start, part.stop), side="right")
        return np.asarray(self._first[block] + self._stratum[:, part])


def _hat_functions(design: ImportanceDesign, count: int) -> NDArray[np.float64]:
    """(T - 1, columns) basis of the piecewise linear functions of log t, up to a constant."""
    inner = min(_KNOTS, count - 2)  # with too few terms the timestep effect counts as error
    last = len(design.density) - 1
    index = np.searchsorted(np.cumsum(design.density), (np.arange(inner) + 0.5) / max(inner, 1))
    knots = np.unique(np.minimum([0, *index, *([last] if inner > 0 else [])], last))
    log_t = np.log(np.arange(2, design.num_timesteps + 1))
    hats = [np.interp(log_t, log_t[knots], row) for row in np.eye(len(knots))[1:]]
    return np.stack(hats, axis=1) if hats else np.zeros((len(log_t), 0))


class Contributions:
    """The errors of the predictions over the density, which correct them: (r, M) `at_terms`.

    Added to `Predictions.totals` they estimate the images' sums over t = 2..T; without predictions
    they are the terms over the density.

    Attributes:
        sums: (M,) estimated sum of each image, mean over the replicates.
        at_terms: (r, M) plus the strata's share of the mean prediction, which has mean 0.
            Predictions, and so this share, differ between replicates; with it a stratum has the
            same effect in all of them. It adds no error, because every stratum has a term.
    """

    def __init__(
        self, design: ImportanceDesign, nats: NDArray[np.float64], predictions: Predictions
    ) -> None:
        """Correct the predictions by (r, M) terms."""
        self._design, self._predictions = design, predictions
        self.at_terms = np.empty(design.t.shape)
        for part in image_blocks(design.num_sampled, design.num_replicates):
            left = nats[:, part] - predictions.terms[:, part]
            self.at_terms[:, part] = left / design.density[design.t[:, part] - 2]
        self.sums = self.totals.mean(0)
        common = StratumMeans(design, (predictions.timesteps / design.density).T)
        total = predictions.timesteps.sum(1)[:, None]
        for part in image_blocks(design.num_sampled, design.num_replicates):
            self.at_terms[:, part] += common.of_replicates(part) - total

    @property
    def totals(self) -> NDArray[np.float64]:
        """(r, M) estimates of the sum of each image over t = 2..T."""
        return self._predictions.totals + self.at_terms

    def without_strata(self, fit: TwoWayFit) -> NDArray[np.float64]:
        """(r, M) `at_terms` without stratum effects, mean 0."""
        left, effects = np.empty_like(self.at_terms), StratumMeans(self._design, fit.trend)
        for part in image_blocks(self._design.num_sampled, self._design.num_replicates):
            np.subtract(self.at_terms[:, part], effects.at(part), out=left[:, part])
        left -= left.mean()
        return left


def timestep_table(
    design: ImportanceDesign,
    sample: ImageSample,
    terms: SampledTerms,
    predictions: Predictions,
    features: FeatureTable | None,
) -> TimestepTable:
    r"""Split the estimate among the timesteps.

    .. math:: \hat L_{t-1} = \bar y(t) + \frac{1}{r q(t)} \sum_{(j, n): t_{jn} = t}
              g_n \bigl( L_{t-1}(n) - \hat y_{jn}(t) \bigr)

    with the weights g of the images and the weighted mean prediction y, 0 for the Horvitz-Thompson
    estimator; so the terms are unbiased and sum to the estimate. A mean squared error is the mean
    over the terms at t, corrected by its ratio to the linear denoiser's error for the same images.
    With few terms it relies mostly on that ratio, with none on it alone; without features it is
    then NaN.
    """
    count = np.bincount(design.t.ravel(), minlength=design.num_timesteps + 1)[2:]
    left = terms.replicates[NATS] - predictions.terms
    weighted = _sums(design, left * sample.weights) / design.num_replicates
    term = predictions.timesteps.mean(0) + weighted / design.density
    standard_error = np.sqrt(_variance(design, left, count))
    errors = [_errors(design, terms, count, features, which) for which in (X_START, EPS)]
    first = terms.decoder @ sample.weights
    return TimestepTable(
        term=np.append(first[NATS], term),
        term_standard_error=np.append(np.sqrt(terms.decoder_error(sample)), standard_error),
        x_start_mse=np.append(first[X_START], errors[0]),
        eps_mse=np.append(first[EPS], errors[1]),
        num_evaluations=np.append(terms.decoder_draws.sum(), count),
    )


def _sums(design: ImportanceDesign, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(T - 1,) sums over the terms at each timestep."""
    length = design.num_timesteps + 1
    sums = np.bincount(design.t.ravel(), weights=values.ravel(), minlength=length)
    return np.asarray(sums[2:])


def _variance(
    design: ImportanceDesign, left: NDArray[np.float64], count: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(T - 1,) variance of each term: from the sampled images at t, and from their number."""
    # Over the density: mean and sum of squared deviations of the terms at each timestep.
    mean = _sums(design, left) / np.maximum(count, 1)
    squares = np.zeros(len(count))
    for part in image_blocks(design.num_sampled, design.num_replicates):
        t = design.t[:, part] - 2
        deviation = (left[:, part] - mean[t]).ravel()
        squares += np.bincount(t.ravel(), weights=np.square(deviation), minlength=len(count))
    mean, squares = mean / design.density, squares / np.square(design.density)
    # Few timesteps have enough terms; divided by the density, the terms of a bin are alike.
    bins = log_bins(design.num_timesteps)
    in_bin = np.maximum(np.bincount(bins, weights=count), 1)
    of_bin = np.bincount(bins, weights=count * mean) / in_bin
    within = squares + count * np.square(mean - of_bin[bins])
    spread = np.bincount(bins, weights=within) / np.maximum(in_bin - 1, 1)
    together = (count @ mean) / count.sum()
    pooled = (squares + count * np.square(mean - together)).sum() / count.sum()
    spread = np.where(np.bincount(bins, weights=count) < 2, pooled, spread)
    scale = design.num_sampled * design.num_replicates
    expected, of_count = design.num_sampled * design.density, _count_variance(design)
    total = expected * spread[bins] + of_count * np.square(of_bin[bins])
    return np.asarray(total * design.num_replicates / scale**2)


def _count_variance(design: ImportanceDesign) -> NDArray[np.float64]:
    """(T - 1,) variance of the number of a replicate's terms at each timestep."""
    sizes, blocks = np.unique(np.diff(design.block_ends), return_counts=True)
    of_blocks = [_count_variance_of(design.density, int(size)) for size in sizes]
    return np.asarray(blocks @ np.stack(of_blocks))


def _count_variance_of(density: NDArray[np.float64], num_strata: int) -> NDArray[np.float64]:
    # A timestep has all strata inside its share of [0, 1]; those that straddle an end of the share
    # it has by chance.
    end = np.cumsum(density) * num_strata
    end[-1] = num_strata
    start = np.append(0.0, end[:-1])
    inside_one = np.floor(start) >= np.ceil(end) - 1
    low, high = np.ceil(start) - start, end - np.floor(end)
    within = np.clip(end - start, 0, 1)
    apart = low * (1 - low) + high * (1 - high)
    return np.asarray(np.where(inside_one, within * (1 - within), apart))


def rate_standard_error(
    num_timesteps: int,
    replicate: NDArray[np.int64],
    t: NDArray[np.int64],
    values: NDArray[np.float64],
    *,
    sample: ImageSample,
    predictions: Predictions,
) -> NDArray[np.float64]:
    """Standard error of the rate at each timestep.

    Contributions of one image in two replicates differ in timestep and noise; those of two images
    also differ in the image. Terms up to t count as 0.

    Args:
        num_timesteps: T.
        replicate: (K,) the replicates 0, 1, ..., at least two; repeated where contributions come
            from several designs.
        t: (K, M) the timestep of each sampled image.
        values: (K, M) its contribution to the sum over t = 2..T, without the stratum effect.
        sample: the images.
        predictions: of the terms.

    Returns:
        (T,) standard error of the sum over s > t, t = 1..T; 0 at T.
    """
    num_replicates, num_images = int(replicate.max()) + 1, t.shape[1]
    unseen = sample.unseen
    squares = np.zeros(num_timesteps + 1)
    for part in image_blocks(num_images, len(t)):
        of_part, value = t[:, part], values[:, part]
        for k in range(len(t)):
            # Two terms count together as long as the earlier one counts.
            earlier, product = np.minimum(of_part[k], of_part[k:]), value[k] * value[k:]
            within = (replicate[k:] == replicate[k]) - 1 / num_replicates
            # Within images, over r - 1 degrees of freedom, and among images.
            share = (1 - unseen) * within / (num_replicates - 1) + unseen / num_replicates
            share[1:] *= 2
            weights = (share[:, None] * product).ravel()
            squares += np.bincount(earlier.ravel(), weights=weights, minlength=num_timesteps + 1)
    scale = num_images**2 * num_replicates
    variance = np.maximum(sum_after(squares[1:]), 0.0) / scale
    if unseen:
        # The predicted totals of the images vary, too; their error is shared among the timesteps as
        # the mean prediction is.
        of_image = sample.residuals(predictions.totals.mean(0))
        mean = np.append(0.0, predictions.timesteps.mean(0))
        share = np.clip(sum_after(mean) / (mean.sum() or 1.0), 0.0, 1.0)
        weights = (values * of_image).ravel()
        together = np.bincount(t.ravel(), weights=weights, minlength=num_timesteps + 1)
        both = 2 * sum_after(together[1:]) / num_replicates + share * np.square(of_image).sum()
        variance = np.maximum(variance + unseen * share * both / num_images**2, 0.0)
    error = np.sqrt(variance)
    # The variance of a few terms is unreliable; the error of a longer sum is no smaller.
    count = np.bincount(t.ravel(), minlength=num_timesteps + 1)[1:]
    few = sum_after(count) < _FEWEST_TERMS
    few[-1] = False  # nothing is after T
    longer = np.flatnonzero(~few[:-1])
    if len(longer):
        error[few] = np.maximum(error[few], error[longer[-1]])
    return np.asarray(error)


def _errors(
    design: ImportanceDesign,
    terms: SampledTerms,
    count: NDArray[np.int64],
    features: FeatureTable | None,
    which: int,
) -> NDArray[np.float64]:
    """(T - 1,) mean squared error at each timestep, `X_START` or `EPS`."""
    values = terms.replicates[which]
    sums = _sums(design, values)
    if features is None:
        return np.where(count > 0, sums / np.maximum(count, 1), np.nan)
    scale = features.error_scale[which - X_START]
    linear, ratios = _sums(design, features.at_terms), _sums(design, values / features.at_terms)
    bins, together = log_bins(design.num_timesteps), (ratios / scale).sum() / count.sum()
    left = np.bincount(bins, weights=ratios / scale - together * count)
    of_bin = together + left / (np.bincount(bins, weights=count) + _RATIO_PRIOR)
    ratio = of_bin[bins] * scale
    # A few terms say little about the mean, however large their residuals from the ratio.
    left_at_t = (sums - ratio * linear) / (count + _TIMESTEP_PRIOR)
    return np.asarray(np.maximum(ratio * features.timestep_means[:, 0] + left_at_t, 0.0))
