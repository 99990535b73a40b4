"""How far the predicted x_start is from x_start at each step: the distortion of lossy decoding.

A receiver that holds x_t shows the network's prediction. Its error grows with t; a curve of it over
the rate, which falls with t, is the rate-distortion curve of the model.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ddpmbench.likelihood.designs import EveryPairDesign, ImportanceDesign
from ddpmbench.likelihood.regression import FeatureTable
from ddpmbench.likelihood.terms import TermTable, columns_of_bound

WINDOW_ROWS = 60
"""A sampled step borrows the rows of the steps around it until it has so many."""
_WIDEST = 1.5  # ratio of steps
_STEEPEST = 2.0  # a ratio of errors does not change by more within a window

_ROOT, _MSE = range(2)


@dataclasses.dataclass(frozen=True, eq=False)
class Distortion:
    """The error of the predicted x_start at each step t = 1..T, in the model's numbers.

    It is over the images.

    Attributes:
        rmse: (T,) mean of the images' root mean squared errors.
        rmse_standard_error: (T,) on this image set; NaN where it cannot be known.
        mse: (T,) mean of their mean squared errors.
        mse_standard_error: (T,) the same of that.
    """

    rmse: NDArray[np.float64]
    rmse_standard_error: NDArray[np.float64]
    mse: NDArray[np.float64]
    mse_standard_error: NDArray[np.float64]


def every_pair_distortion(
    design: EveryPairDesign, tables: Iterable[TermTable], *, clip: bool = True
) -> Distortion:
    """The distortion from every pair; what is not known is the noise.

    Args:
        design: the rows that were computed.
        tables: the terms of every row once, with the draws of a pair side by side.
        clip: whether the prediction is clamped to the data's range.

    Source: Ho, Jain & Abbeel 2020, section 4.3.
    """
    _, column, _ = columns_of_bound(clip=clip)
    sums, squares = np.zeros((2, 2, design.num_timesteps))
    for table in tables:
        index = table.index.t[:: design.draws] - 1
        by_draw = _both(table.values[column]).reshape(2, -1, design.draws)
        for which in (_ROOT, _MSE):
            np.add.at(sums[which], index, by_draw[which].mean(1))
            if design.draws > 1:
                np.add.at(squares[which], index, by_draw[which].var(axis=1, ddof=1))
    mean = sums / design.num_images
    error = np.sqrt(squares / design.draws) / design.num_images
    if design.draws == 1:
        error[:] = np.nan
    return Distortion(mean[_ROOT], error[_ROOT], mean[_MSE], error[_MSE])


def importance_distortion(
    design: ImportanceDesign,
    tables: Iterable[TermTable],
    features: FeatureTable,
    *,
    clip: bool = True,
) -> Distortion:
    """The distortion from the rows of an importance sample.

    At t = 1 every image has a row. At another step it is the linear denoiser's distortion, which
    is known for all images, times the ratio of the two at the rows of this step; where they are
    few, a line in log t through the rows of the steps around it. Where there are none it is NaN.

    Args:
        design: the rows that were computed.
        tables: the terms of every row once, in any order and any portions.
        features: of the same images and rows.
        clip: whether the prediction is clamped to the data's range.

    Source: Cochran 1977, chapter 6, for the ratio and its error.
    """
    _, column, _ = columns_of_bound(clip=clip)
    size = design.num_timesteps - 1
    moments = np.zeros((2, 6, size))
    first = np.full((2, 2, design.num_images), np.nan)  # of draws 0 and 1
    for table in tables:
        image, t, draw = table.index.image, table.index.t, table.index.draw
        both = _both(table.values[column])
        for k in (0, 1):
            of_draw = (t == 1) & (draw == k)
            first[:, k, image[of_draw]] = both[:, of_draw]
        later = t > 1
        step = t[later] - 2
        linear = features.at_terms[draw[later], image[later]] * features.error_scale[0, step]
        for which, (y, x) in enumerate(zip(both[:, later], _both(linear), strict=True)):
            for k, values in enumerate((np.ones_like(x), y, x, y * y, y * x, x * x)):
                moments[which, k] += np.bincount(step, weights=values, minlength=size)
    scale = features.error_scale[0]
    known = (features.root_means * np.sqrt(scale), features.timestep_means[:, 0] * scale)
    windows = timestep_windows(moments[_ROOT, 0])
    parts = []
    for which in (_ROOT, _MSE):
        ratio = np.array([_ratio(moments[which], t, window) for t, window in enumerate(windows)])
        mean, noise = _decoder(first[which])
        parts.append(np.append(mean, ratio[:, 0] * known[which]))
        parts.append(np.append(noise, ratio[:, 1] * known[which]))
    rmse, _, mse, _ = parts
    # The mean of squares is no less than the square of the mean, whatever the two lines make of it.
    np.maximum(mse, np.square(rmse), out=mse)
    return Distortion(*parts)


def _decoder(draws: NDArray[np.float64]) -> tuple[float, float]:
    """Mean of the first of (2, N) draws, and the standard error that the noise gives it."""
    of_pair = np.square(draws[0] - draws[1]) / 2
    twice = np.isfinite(of_pair)
    if not twice.any():
        return float(draws[0].mean()), np.nan
    noise = of_pair[twice].mean() / draws.shape[1]
    return float(draws[0].mean()), float(np.sqrt(noise))


def _both(mse: NDArray[np.float64]) -> NDArray[np.float64]:
    """(2, B) roots, and the errors themselves."""
    return np.stack([np.sqrt(mse), mse])


def timestep_windows(count: NDArray[np.float64]) -> list[slice]:
    """Of each step t = 2..T the steps that it borrows from, counted from t = 2."""
    t = np.arange(2, len(count) + 2)
    before = np.append(0.0, np.cumsum(count))
    start, stop = t - 2, t - 1
    for factor in np.geomspace(1.0, _WIDEST, 60):
        few = before[stop] - before[start] < WINDOW_ROWS
        start = np.where(few, np.ceil(np.maximum(t / factor, 2)).astype(np.int64) - 2, start)
        stop = np.where(few, np.minimum(t * factor, t[-1]).astype(np.int64) - 1, stop)
    return [slice(*ends) for ends in zip(start.tolist(), stop.tolist(), strict=True)]


@dataclasses.dataclass(frozen=True, eq=False)
class RatioLine:
    """The ratio at a step: a line in log t through the rows of its window.

    Attributes:
        powers: (1 or 2, K) of log t, about the step, at the K steps of the window.
        inverse: of the normal equations.
        freedom: rows less coefficients.
    """

    powers: NDArray[np.float64]
    inverse: NDArray[np.float64]
    freedom: float

    @classmethod
    def of(cls, moments: NDArray[np.float64], index: int, window: slice) -> "RatioLine | None":
        """The line at a step; None where its window has no rows.

        It is level with too few rows for another, at a single step, and where another would
        leave the level by more than `_STEEPEST`, as at the end of one through few rows.

        Args:
            moments: (3, T - 1) or more at each step t = 2..T: rows, and their sums of what the
                ratio is of and of what it is to.
            index: of the step.
            window: the steps that are borrowed from.
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

    @property
    def weights(self) -> NDArray[np.float64]:
        """(K,) what the sum of what the ratio is of counts at each step of the window."""
        return np.asarray((self.inverse @ self.powers)[0])


def _ratio(moments: NDArray[np.float64], index: int, window: slice) -> tuple[float, float]:
    """The ratio at a step, and the standard error."""
    found = RatioLine.of(moments, index, window)
    if found is None:
        return np.nan, np.nan
    count, y, _, yy, yx, xx = moments[:, window]
    powers, inverse = found.powers, found.inverse
    line = inverse @ (powers @ y)
    fitted = line @ powers
    squares = np.maximum(yy - 2 * fitted * yx + fitted**2 * xx, 0.0)
    if found.freedom <= 0:
        return np.nan, np.nan  # a number that nothing is known of is none
    covariance = inverse @ ((powers * squares) @ powers.T) @ inverse
    return float(line[0]), float(np.sqrt(covariance[0, 0] * count.sum() / found.freedom))
