"""The table of steps from the rows of a rotated warp."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from ddpmbench.likelihood.regression import FeatureTable, Predictions, log_bins
from ddpmbench.likelihood.sampled_rows import EPS, NATS, X_START, SampledRows
from ddpmbench.likelihood.warp import RotatedWarp

_RATIO_PRIOR_ROWS = 4.0  # what the ratio of all bins is worth in the ratio of one


@dataclasses.dataclass(frozen=True, eq=False)
class StepTable:
    """Means over the images at each step t = 1..T; see `SampledBound`.

    Attributes:
        term: (T,) nats per dimension.
        standard_error: (T,) of the term on this image set.
        x_start_mse: (T,) mean squared error of the predicted x_start.
        eps_mse: (T,) mean squared error of the predicted noise.
        num_evaluations: (T,) rows.
    """

    term: NDArray[np.float64]
    standard_error: NDArray[np.float64]
    x_start_mse: NDArray[np.float64]
    eps_mse: NDArray[np.float64]
    num_evaluations: NDArray[np.int64]


def step_table(
    design: RotatedWarp,
    rows: SampledRows,
    predictions: Predictions,
    features: FeatureTable | None,
) -> StepTable:
    """Split the estimate among the steps.

    A term is the mean prediction plus what its rows differ from theirs by, over the density; so
    the terms are unbiased and sum to the estimate. An error is the mean over the step's rows,
    corrected for which images they are by the ratio to the linear denoiser's error; where no row
    fell it is that ratio's alone, and NaN without features.

    Args:
        design: the rows.
        rows: their values.
        predictions: of their terms; zeros for the Horvitz-Thompson estimator.
        features: of the same rows, or None.
    """
    step = (design.t - 2).ravel()
    size = len(design.density)
    count = np.bincount(step, minlength=size)
    left = (rows.rotations[NATS] - predictions.rows).ravel()
    expected = design.num_images * design.rotations * design.density
    term = predictions.steps.mean(0) + np.bincount(step, weights=left, minlength=size) / expected
    standard_error = np.sqrt(_variance(design, step, left))
    errors = []
    for which in (X_START, EPS):
        values = rows.rotations[which].ravel()
        mean, at_rows = np.full(size, np.nan), np.zeros(len(step))
        if features is not None:
            mean, at_rows = _by_ratio(design, values, features, 0 if which == X_START else 1)
        sums = np.bincount(step, weights=values - at_rows, minlength=size)
        base = np.zeros(size) if features is None else mean
        errors.append(np.where(count > 0, base + sums / np.maximum(count, 1), mean))
    first = rows.decoder.mean(1)
    return StepTable(
        term=np.append(first[NATS], term),
        standard_error=np.append(np.sqrt(rows.decoder_variance), standard_error),
        x_start_mse=np.append(first[X_START], errors[0]),
        eps_mse=np.append(first[EPS], errors[1]),
        num_evaluations=np.append(rows.decoder_draws.sum(), count),
    )


def _variance(
    design: RotatedWarp, step: NDArray[np.int64], left: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(T - 1,) of each term: which images fell on the step, and how many."""
    # At few steps are there rows enough; over the density, those of a bin are alike.
    bins = log_bins(design.num_timesteps)
    weighted, b = left / design.density[step], bins[step]
    rows = np.maximum(np.bincount(b, minlength=bins[-1] + 1), 1)
    mean = np.bincount(b, weights=weighted, minlength=len(rows)) / rows
    spread = np.bincount(b, weights=np.square(weighted - mean[b]), minlength=len(rows))
    spread = spread / np.maximum(rows - 1, 1)
    bare = np.bincount(b, minlength=len(rows)) < 2
    pooled = weighted.var()
    spread = np.where(bare, pooled, spread)
    scale = design.num_images * design.rotations
    expected, of_count = design.num_images * design.density, _count_variance(design)
    total = expected * spread[bins] + of_count * np.square(mean[bins])
    return np.asarray(total * design.rotations / scale**2)


def _count_variance(design: RotatedWarp) -> NDArray[np.float64]:
    """(T - 1,) variance of the number of a rotation's rows at each step."""
    # A step has all of the cells inside its share of [0, 1], and those that reach over an end of
    # the share by chance.
    end = np.cumsum(design.density) * design.num_images
    end[-1] = design.num_images
    start = np.append(0.0, end[:-1])
    inside_one = np.floor(start) >= np.ceil(end) - 1
    low, high = np.ceil(start) - start, end - np.floor(end)
    within = np.clip(end - start, 0, 1)
    apart = low * (1 - low) + high * (1 - high)
    return np.asarray(np.where(inside_one, within * (1 - within), apart))


def _by_ratio(
    design: RotatedWarp, values: NDArray[np.float64], features: FeatureTable, which: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(T - 1,) predicted mean error at each step, and the predicted error of every row."""
    bins, step = log_bins(design.num_timesteps), (design.t - 2).ravel()
    scale = features.error_scale[which]
    linear = features.rows.ravel() * scale[step]
    ratio, b = values / linear, bins[step]
    together = float(ratio.mean())
    sums = np.bincount(b, weights=ratio - together, minlength=bins[-1] + 1)
    count = np.bincount(b, minlength=bins[-1] + 1)
    of_bin = together + sums / (count + _RATIO_PRIOR_ROWS)
    return of_bin[bins] * features.step_means[:, 0] * scale, of_bin[b] * linear
