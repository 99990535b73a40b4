"""The estimate at each timestep from an importance sample."""

import numpy as np
from numpy.typing import NDArray

from ddpmbench.likelihood.bound import TimestepTable, sum_after
from ddpmbench.likelihood.designs import ImportanceDesign
from ddpmbench.likelihood.image_sampling import ImageSample
from ddpmbench.likelihood.regression import FeatureTable, Predictions, log_bins
from ddpmbench.likelihood.sampled_terms import EPS, NATS, X_START, SampledTerms
from ddpmbench.likelihood.terms import image_blocks

_FEWEST_TERMS = 10
"""Least terms for a standard error of a sum over timesteps."""
_TIMESTEP_PRIOR = 20.0  # in terms, the weight of a bin's ratio at one of its timesteps
_RATIO_PRIOR = 4.0  # in terms, the weight of all bins' ratio in that of one


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
