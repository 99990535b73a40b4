"""Distortion of progressive lossy decoding: the error of the predicted x_start at each timestep.

A receiver that holds x_t shows the network's prediction of x_start. Its error against the rate is
the rate-distortion curve of the model.
"""

import dataclasses
from collections.abc import Iterable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ddpmbench.likelihood.bound import pair_moments
from ddpmbench.likelihood.designs import EveryPairDesign, ImportanceDesign
from ddpmbench.likelihood.image_sampling import ImageSample
from ddpmbench.likelihood.regression import FeatureTable
from ddpmbench.likelihood.terms import TermTable, columns_of_bound

WINDOW_TERMS = 60
"""A timestep borrows the terms of its neighbors until it has this many."""
_WIDEST = 1.5  # ratio of timesteps
_STEEPEST = 2.0  # a ratio of errors does not change by more within a window


@dataclasses.dataclass(frozen=True, eq=False)
class Distortion:
    """The error of the predicted x_start at each timestep t = 1..T, in the data range.

    Attributes:
        rmse: (T,) mean over the images of their root mean squared errors.
        rmse_standard_error: (T,) of `rmse` for these images; NaN where it is unknown.
        mse: (T,) mean over the images of their mean squared errors.
        mse_standard_error: (T,) of `mse` for these images; NaN where it is unknown.
    """

    rmse: NDArray[np.float64]
    rmse_standard_error: NDArray[np.float64]
    mse: NDArray[np.float64]
    mse_standard_error: NDArray[np.float64]


def every_pair_distortion(
    design: EveryPairDesign, tables: Iterable[TermTable], *, clip: bool = True
) -> Distortion:
    """The distortion from the tables of `estimate_bound`; its errors are those of the noise.

    Source: Ho, Jain & Abbeel 2020, section 4.3.
    """
    _, column, _ = columns_of_bound(clip=clip)
    errors = (
        TermTable(table.index, {"rmse": np.sqrt(table.values[column]), "mse": table.values[column]})
        for table in tables
    )
    parts = []
    for moments in pair_moments(design, errors, ("rmse", "mse")).values():
        error = np.sqrt(moments.squares / design.draws) / design.num_images
        parts += [moments.mean, error if design.draws > 1 else np.full_like(error, np.nan)]
    return Distortion(*parts)


def importance_distortion(
    design: ImportanceDesign,
    tables: Iterable[TermTable],
    features: FeatureTable,
    *,
    clip: bool = True,
) -> Distortion:
    r"""The distortion from an importance sample, by a ratio estimator.

    .. math:: \hat d_t = \frac{\sum_{i: t_i = t} d_i}{\sum_{i: t_i = t} g_i} \, \bar g_t

    At t = 1 every sampled image has a term. At other timesteps the distortion g of the linear
    denoiser, whose mean over all images is known, is multiplied by the ratio of the two at the
    terms of this timestep or, where these are few, by a line in log t through the terms around it
    (`RatioLine`). Without such terms it is NaN. Arguments as in `regression_estimate`.

    Source: Cochran 1977, chapter 6, for the ratio and its error.
    """
    _, column, _ = columns_of_bound(clip=clip)
    mse = np.empty(design.t.shape)
    first = np.full((2, design.num_sampled), np.nan)  # at t = 1, draws 0 and 1
    for table in tables:
        image, t, draw = design.position[table.index.image], table.index.t, table.index.draw
        values, later = table.values[column], t > 1
        mse[draw[later], image[later]] = values[later]
        early = ~later & (draw < 2)
        first[draw[early], image[early]] = values[early]
    scale = features.error_scale[0]
    linear = features.at_terms * scale[design.t - 2]
    known = (features.root_means * np.sqrt(scale), features.timestep_means[:, 0] * scale)
    roots, squares = (np.sqrt(mse), np.sqrt(linear), np.sqrt(first)), (mse, linear, first)
    windows: list[slice] | None = None
    parts = []
    for (y, x, at_first), mean_of_linear in zip((roots, squares), known, strict=True):
        moments = ratio_moments(design.t, y, x, design.num_timesteps)
        windows = windows or timestep_windows(moments[0])
        ratio = np.array([_ratio(moments, index, window) for index, window in enumerate(windows)])
        mean, noise = _decoder(at_first, features.sample)
        parts.append(np.append(mean, ratio[:, 0] * mean_of_linear))
        parts.append(np.append(noise, ratio[:, 1] * mean_of_linear))
    rmse, _, mse_at_t, _ = parts
    # The mean of squares is no less than the square of the mean; the two lines are fitted
    # separately.
    np.maximum(mse_at_t, np.square(rmse), out=mse_at_t)
    return Distortion(*parts)


def ratio_moments(
    t: NDArray[np.int64], y: NDArray[np.float64], x: NDArray[np.float64], num_timesteps: int
) -> NDArray[np.float64]:
    """(6, T - 1) sums of 1, y, x, y^2, y x and x^2 over the terms at each timestep t = 2..T.

    The ratio is that of y to x, both of the shape of `t`.
    """
    index, y, x = t.ravel() - 2, y.ravel(), x.ravel()
    parts = (np.ones_like(x), y, x, y * y, y * x, x * x)
    return np.stack(
        [np.bincount(index, part, num_timesteps - 1).astype(np.float64) for part in parts]
    )


def _decoder(draws: NDArray[np.float64], sample: ImageSample) -> tuple[float, float]:
    """Weighted mean of the first of (2, M) draws, and its standard error for these images."""
    of_pair = np.square(draws[0] - draws[1]) / 2
    twice = np.isfinite(of_pair)
    noise = of_pair[twice].mean() * np.square(sample.weights).sum() if twice.any() else np.nan
    variance = noise + sample.variance(draws[0], float(noise))
    return float(sample.weights @ draws[0]), float(np.sqrt(variance))


def timestep_windows(count: NDArray[np.float64]) -> list[slice]:
    """The timesteps that each t = 2..T borrows from, counted from t = 2."""
    t = np.arange(2, len(count) + 2)
    before = np.append(0.0, np.cumsum(count))
    start, stop = t - 2, t - 1
    for factor in np.geomspace(1.0, _WIDEST, 60):
        few = before[stop] - before[start] < WINDOW_TERMS
        start = np.where(few, np.ceil(np.maximum(t / factor, 2)).astype(np.int64) - 2, start)
        stop = np.where(few, np.minimum(t * factor, t[-1]).astype(np.int64) - 1, stop)
    return [slice(*ends) for ends in zip(start.tolist(), stop.tolist(), strict=True)]


@dataclasses.dataclass(frozen=True, eq=False)
class RatioLine:
    """The ratio at a timestep: a line in log t through the terms of its window.

    Attributes:
        powers: (1 or 2, K) of log t, about the timestep, at the K timesteps of the window.
        inverse: of the normal equations.
        freedom: number of terms less that of coefficients.
    """

    powers: NDArray[np.float64]
    inverse: NDArray[np.float64]
    freedom: float

    @classmethod
    def of(cls, moments: NDArray[np.float64], index: int, window: slice) -> "RatioLine | None":
        """The line at a timestep; None where its window has no terms.

        It is constant with too few terms for a slope, at a single timestep, and where a slope would
        change it by more than `_STEEPEST`, as at the end of a window with few terms.

        Args:
            moments: of `ratio_moments`.
            index: of the timestep, counted from t = 2.
            window: the timesteps that are borrowed from.
        """
        count, y, x = moments[:3, window]
        level = y.sum() / x.sum() if count.any() else 0.0
        u = np.log(np.arange(window.start, window.stop) + 2) - np.log(index + 2)
        powers = np.stack([np.ones_like(u), u])
        for terms in (2, 1) if np.count_nonzero(count) > 2 else (1,):
            try:
                inverse = np.linalg.inv((powers[:terms] * x) @ powers[:terms].T)
            except np.linalg.LinAlgError:
                return None
            line = cls(powers[:terms], inverse, float(count.sum() - terms))
            if level / _STEEPEST < line.weights @ y < level * _STEEPEST:
                break
        return line

    @cached_property
    def weights(self) -> NDArray[np.float64]:
        """(K,) weights of the sums of y at the timesteps of the window."""
        return np.asarray((self.inverse @ self.powers)[0])


def _ratio(moments: NDArray[np.float64], index: int, window: slice) -> tuple[float, float]:
    """The ratio at a timestep, and its standard error."""
    line = RatioLine.of(moments, index, window)
    if line is None or line.freedom <= 0:
        return np.nan, np.nan  # without an error the ratio is not shown
    count, y, _, yy, yx, xx = moments[:, window]
    coefficients = line.inverse @ (line.powers @ y)
    fitted = coefficients @ line.powers
    squares = np.maximum(yy - 2 * fitted * yx + fitted**2 * xx, 0.0)
    variance = (np.square(line.weights) @ squares) * count.sum() / line.freedom
    return float(coefficients[0]), float(np.sqrt(variance))
