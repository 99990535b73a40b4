"""Steps in groups: of a sampled run a single step rests on few rows, a group on many."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ddpmbench.likelihood.regression import log_bins
from ddpmbench.report.figures.style import NORMAL


def step_groups(num_timesteps: int) -> NDArray[np.int64]:
    """(T,) the group of each step t = 1..T, 0, 1, ... without gaps.

    They are equally wide in log t where steps are close enough; t = 1 is one of its own.
    """
    if num_timesteps == 1:
        return np.zeros(1, dtype=np.int64)
    return np.append(0, 1 + log_bins(num_timesteps)).astype(np.int64)


def by_group(steps: pd.DataFrame) -> pd.DataFrame:
    """One row a group of neighboring steps; see `step_groups`.

    Args:
        steps: one row a step t = 1..T: the term `bits_per_dim` and its `standard_error`, and what
            a receiver that holds x_t has been sent, `rate_bits_per_dim`, `rate_standard_error`.

    Returns:
        `t_first`, `t_last`, `bits_per_dim` summed over the group and its `half_width`;
        `cumulative` over the group, all later steps and the prior, and its
        `cumulative_half_width`; 95 %.
    """
    variance = np.square(steps.standard_error)
    sums = steps.assign(variance=variance).groupby(step_groups(len(steps)))
    first = sums.t.min().to_numpy()
    # What is sent once x_{t-1} is known are the terms of t and all later steps.
    known = steps.set_index("t").reindex(first - 1)
    cumulative = known.rate_bits_per_dim.to_numpy(copy=True)
    error = known.rate_standard_error.to_numpy(copy=True)
    last = steps.iloc[0]
    cumulative[0] = last.rate_bits_per_dim + last.bits_per_dim
    error[0] = np.hypot(last.rate_standard_error, last.standard_error)
    return pd.DataFrame(
        {
            "t_first": first,
            "t_last": sums.t.max().to_numpy(),
            "bits_per_dim": sums.bits_per_dim.sum().to_numpy(),
            "half_width": NORMAL * np.sqrt(sums.variance.sum(min_count=1).to_numpy()),
            "cumulative": cumulative,
            "cumulative_half_width": NORMAL * error,
        }
    )
