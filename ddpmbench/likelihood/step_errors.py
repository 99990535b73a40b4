"""How far the predicted x_start is off at each step, and how well any sum of that is known."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from ddpmbench.likelihood.conventions import ColumnSums
from ddpmbench.likelihood.design import EveryPair
from ddpmbench.likelihood.distortion import RatioLine, step_windows
from ddpmbench.likelihood.regression import FeatureTable
from ddpmbench.likelihood.warp import RotatedWarp

Values = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class StepErrors:
    """The mean squared error of the predicted x_start at each step t = 1..T.

    Attributes:
        mse: (T,) mean over the images, on [-1, 1].
        influence: (T, T) how much of each step's rows goes into the estimate at each step, or
            None where an estimate rests on its own step's rows alone.
        spread: (T,) variance that those rows give it; NaN where that cannot be known.
    """

    mse: Values
    influence: Values | None
    spread: Values

    def variance(self, weights: Values) -> float:
        """Of the sum of weight times error, on this image set; NaN where it cannot be known.

        Args:
            weights: (T,).
        """
        of_rows = weights if self.influence is None else weights @ self.influence
        used = of_rows != 0
        return float(np.square(of_rows[used]) @ self.spread[used])


def errors_of_pairs(design: EveryPair, sums: ColumnSums) -> StepErrors:
    """The errors, or another column, from every pair; what is not known is the noise.

    Args:
        design: the rows that were computed.
        sums: of the column.
    """
    spread = sums.squares / design.draws / design.num_images**2
    if design.draws == 1:
        spread = np.full_like(spread, np.nan)
    return StepErrors(sums.mean, None, spread)


def errors_of_warp(design: RotatedWarp, mse: Values, features: FeatureTable) -> StepErrors:
    """The errors from the rows of a rotated warp.

    At a step they are the linear denoiser's, which are known for all images, times the ratio of
    the two at the rows of this step, or a line in log t through those of the steps around it
    where they are few (`distortion`). Where there are no rows near, the ratio is that of the
    nearest steps with rows, and what rests on it has no known error.

    Args:
        design: the rows.
        mse: (r, N) the errors of each image in each rotation.
        features: of the same images and rows.

    Returns:
        The errors; of the decoder's step, which is measured on every image, nothing.

    Source: Cochran 1977, chapter 6.
    """
    step = design.t.ravel() - 2
    size = design.num_timesteps - 1
    y, x = mse.ravel(), features.rows.ravel() * features.error_scale[0, step]
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
    return StepErrors(
        mse=np.append(np.nan, ratio * known),
        influence=whole,
        spread=np.append(np.nan, np.where(count > 0, squares * own, np.where(there, 0.0, np.nan))),
    )
