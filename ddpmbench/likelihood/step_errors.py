"""How far the predicted x_start is off at each step, and how well any sum of that is known."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from ddpmbench.likelihood.design import EveryPair
from ddpmbench.likelihood.distortion import RatioLine, step_windows
from ddpmbench.likelihood.pair_sums import ColumnSums
from ddpmbench.likelihood.regression import FeatureTable
from ddpmbench.likelihood.warp import RotatedWarp

Values = NDArray[np.float64]

_ALL = slice(None)


@dataclasses.dataclass(frozen=True, eq=False)
class StepErrors:
    """The mean squared error of the predicted x_start at each step t = 1..T.

    Attributes:
        mse: (T,) mean over the images, in the model's numbers.
        influence: (T, T) how much of each step's rows goes into the estimate at each step, or
            None where an estimate rests on its own step's rows alone.
        spread: (T,) variance that those rows give it; NaN where that cannot be known.
        doubt: (T,) square of that variance over its degrees of freedom.
    """

    mse: Values
    influence: Values | None
    spread: Values
    doubt: Values

    def variance(self, weights: Values) -> tuple[float, float]:
        """Of the sum of weight times error, on this image set, and the doubt of it.

        Args:
            weights: (T,).

        Returns:
            NaN where they cannot be known.
        """
        of_rows = weights if self.influence is None else weights @ self.influence
        used = of_rows != 0
        squares = np.square(of_rows[used])
        return float(squares @ self.spread[used]), float(np.square(squares) @ self.doubt[used])

    @property
    def is_known(self) -> NDArray[np.bool_]:
        """(T,) whether there is an error at a step whose own error can be known."""
        if self.influence is None:
            return np.isfinite(self.mse)
        unknown = np.isnan(self.spread)
        known: NDArray[np.bool_] = ~(self.influence[:, unknown] != 0).any(1)
        return known & np.isfinite(self.mse)


def errors_of_pairs(design: EveryPair, sums: ColumnSums) -> StepErrors:
    """The errors, or another column, from every pair; what is not known is the noise.

    Args:
        design: the rows that were computed.
        sums: of the column.
    """
    scale = design.draws * design.num_images**2
    if design.draws == 1:
        unknown = np.full_like(sums.mean, np.nan)
        return StepErrors(sums.mean, None, unknown, unknown)
    doubt = sums.fourth / scale**2 / (design.draws - 1)
    return StepErrors(sums.mean, None, sums.squares / scale, doubt)


def errors_of_warp(
    design: RotatedWarp, mse: Values, features: FeatureTable, rotations: slice = _ALL
) -> StepErrors:
    """The errors from the rows of a rotated warp.

    At a step they are the linear denoiser's, which are known for all images, times the ratio of
    the two at the rows of this step, or a line in log t through those of the steps around it
    where they are few (`distortion`). Where there are no rows near, the ratio is that of the
    nearest steps with rows, and what rests on it has no known error.

    Args:
        design: the rows.
        mse: (r, N) the errors of each image in each rotation.
        features: of the same images and rows.
        rotations: which of them count.

    Returns:
        The errors; of the decoder's step, which is measured on every image, nothing.

    Source: Cochran 1977, chapter 6.
    """
    step = design.t[rotations].ravel() - 2
    size = design.num_timesteps - 1
    y = mse[rotations].ravel()
    x = features.rows[rotations].ravel() * features.error_scale[0, step]
    parts = (np.ones_like(x), y, x, y * y, y * x, x * x)
    moments = np.stack([np.bincount(step, part, size).astype(np.float64) for part in parts])
    count, sum_y, _, yy, yx, xx = moments
    known = features.step_means[:, 0] * features.error_scale[0]
    influence = np.zeros((size, size))
    factor = np.full(size, np.nan)
    for index, window in enumerate(step_windows(count)):
        line = RatioLine.of(moments, index, window)
        if line is not None:
            influence[index, window] = line.weights
            rows = count[window].sum()
            factor[index] = rows / line.freedom if line.freedom > 0 else np.nan
    ratio = influence @ sum_y
    there = influence.any(1)
    t = np.log(np.arange(2, size + 2))
    ratio = np.interp(t, t[there], ratio[there]) if there.any() else np.ones(size)
    squares = np.maximum(yy - 2 * ratio * yx + np.square(ratio) * xx, 0.0)
    own = np.where(there, factor, np.nan)
    influence[~there, ~there] = 1.0  # what is not known makes the sum unknown
    influence *= known[:, None]
    whole = np.zeros((size + 1, size + 1))
    whole[1:, 1:] = influence
    spread = np.where(count > 0, squares * own, np.where(there, 0.0, np.nan))
    return StepErrors(
        mse=np.append(np.nan, ratio * known),
        influence=whole,
        spread=np.append(np.nan, spread),
        doubt=np.append(np.nan, np.square(spread) / np.maximum(count, 1)),
    )
