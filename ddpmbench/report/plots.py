"""Figures. Each comes with the numbers behind it."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ddpmbench.likelihood.regression import log_bins

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito 2008; with the markers and dashes they can be told apart in grey.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_DASHES = ("-", "--", "-.", ":")
_NORMAL = 1.96


def difference_figure(per_timestep: pd.DataFrame, baseline: str) -> tuple["Figure", pd.DataFrame]:
    """Where along the chain runs differ from a baseline: by groups of steps, and summed up.

    Args:
        per_timestep: of a comparison; see `report.comparison.steps_frame`.
        baseline: its name.

    Returns:
        The figure, and one row a run and group of steps: `run`, `t_first`, `t_last`,
        `difference` summed over the group and its `half_width`, `cumulative` over the group, all
        later steps and the prior and its `cumulative_half_width`; bits per dimension, 95 %.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    figure.suptitle(f"Bound minus that of {baseline}: below 0 is better")
    left, right = figure.subplots(1, 2)
    numbers = []
    for k, (run, steps) in enumerate(per_timestep.groupby("run", sort=False)):
        groups = _by_group(steps)
        groups.insert(0, "run", run)
        numbers.append(groups)
        style = {"color": _COLORS[k % 6], "marker": _MARKERS[k % 6], "markersize": 4}
        center = np.sqrt(groups.t_first * groups.t_last)
        left.errorbar(
            center, groups.difference, groups.half_width, label=run, ls="none", capsize=2, **style
        )
        line = {"color": style["color"], "ls": _DASHES[k % 4]}
        right.plot(groups.t_first, groups.cumulative, label=run, **line)
        low, high = (groups.cumulative + s * groups.cumulative_half_width for s in (-1, 1))
        right.fill_between(groups.t_first, low, high, color=style["color"], alpha=0.2, lw=0)
    _finish(left, "in each group of steps", "difference, bits/dim, 95 %")
    _finish(right, "summed from T down to t", "difference so far, bits/dim, 95 %")
    return figure, pd.concat(numbers, ignore_index=True)


def rate_distortion_figure(curve: pd.DataFrame) -> tuple["Figure", pd.DataFrame]:
    """Distortion over rate, and both over the steps that a receiver has taken.

    Args:
        curve: see `report.tables.rate_distortion`.

    Returns:
        The figure, and the curve with the half widths of its 95 % intervals.

    Source: Ho, Jain & Abbeel 2020, figure 5.
    """
    from matplotlib.figure import Figure

    numbers = curve.assign(
        rate_half_width=_NORMAL * curve.rate_standard_error,
        distortion_half_width=_NORMAL * curve.distortion_standard_error,
    )
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    both, distortion, rate = figure.subplots(1, 3)
    steps, color = curve.num_decoded_steps, _COLORS[0]
    both.plot(curve.rate_bits_per_dim, curve.distortion_rmse, color=color)
    both.set(xlabel="rate, bits/dim", ylabel="distortion, RMSE of 255")
    for axes, name, half_width, label in (
        (distortion, "distortion_rmse", "distortion_half_width", "distortion, RMSE of 255"),
        (rate, "rate_bits_per_dim", "rate_half_width", "rate, bits/dim"),
    ):
        axes.plot(steps, numbers[name], color=color)
        low, high = (numbers[name] + sign * numbers[half_width] for sign in (-1, 1))
        axes.fill_between(steps, low, high, color=color, alpha=0.25, lw=0)
        axes.set(xlabel="steps of the receiver", ylabel=label)
    for axes in (both, distortion, rate):
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.9", lw=0.8)
        axes.set_axisbelow(True)
    return figure, numbers


def _by_group(steps: pd.DataFrame) -> pd.DataFrame:
    group = np.append(0, 1 + log_bins(len(steps))) if len(steps) > 1 else np.zeros(1, np.int64)
    sums = steps.assign(variance=np.square(steps.standard_error)).groupby(group)
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
            "difference": sums.bits_per_dim.sum().to_numpy(),
            "half_width": _NORMAL * np.sqrt(sums.variance.sum(min_count=1).to_numpy()),
            "cumulative": cumulative,
            "cumulative_half_width": _NORMAL * error,
        }
    )


def _finish(axes: "Axes", title: str, unit: str) -> None:
    axes.axhline(0, color="0.4", lw=0.8)
    axes.set(xscale="log", xlabel="step t", ylabel=unit, title=title)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.grid(axis="y", color="0.9", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
