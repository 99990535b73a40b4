"""Bits, network evaluations and differences over the timesteps."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ddpmbench.likelihood.regression import log_bins
from ddpmbench.report.figures.style import (
    COLORS,
    DASHES,
    INK,
    MARKERS,
    NORMAL,
    axes_panels,
    drawing,
    finish,
    legend_below,
    log_axis,
    note,
    shortened,
    shown,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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


@drawing()
def bound_figure(per_timestep: pd.DataFrame, curve: pd.DataFrame) -> tuple["Figure", pd.DataFrame]:
    """The bits of one step, and those sent so far, over t; 95 % intervals.

    Args:
        per_timestep: see `report.tables.per_timestep`.
        curve: see `report.tables.rate_distortion`.

    Returns:
        The figure, and one row a group of steps: `t_first`, `t_last`, `bits_per_step` on average
        over the group and its `half_width`, `cumulative` over the group, all later steps and the
        prior and its `cumulative_half_width`; bits per dimension.
    """
    rate = curve[["t", "rate_bits_per_dim", "rate_standard_error"]]
    numbers = by_group(per_timestep.merge(rate, on="t"))
    size = numbers.t_last - numbers.t_first + 1
    numbers["bits_per_dim"] /= size
    numbers["half_width"] /= size
    numbers = numbers.rename(columns={"bits_per_dim": "bits_per_step"})

    figure, (step, total) = axes_panels(2)
    center = np.sqrt(numbers.t_first * numbers.t_last)
    color, of_decoder = COLORS[:2]
    pixels, steps = numbers.iloc[:1], numbers.iloc[1:]
    step.errorbar(
        center[1:], steps.bits_per_step, steps.half_width, color=color, marker="o", ls="none",
        elinewidth=0.9,
    )  # fmt: skip
    step.errorbar(
        center[:1], pixels.bits_per_step, pixels.half_width, color=of_decoder, marker="s",
        markersize=5,
    )  # fmt: skip
    log_axis(step, "x", "y")
    # Errors that reach 0 would stretch the axis without end.
    positive = numbers.bits_per_step[numbers.bits_per_step > 0]
    if len(positive):
        step.set_ylim(positive.min() / 2.5, positive.max() * 2.5)
        note(step, "decoder, t = 1", at=(1, pixels.bits_per_step.iloc[0]), offset=(8, 0))
    finish(step, "Bits per timestep", x="timestep t", y="bits/dim")

    low, high = (numbers.cumulative + s * numbers.cumulative_half_width for s in (-1, 1))
    total.fill_between(numbers.t_first, low, high, color=color, alpha=0.2, lw=0)
    total.plot(numbers.t_first, numbers.cumulative, color=color)
    whole = numbers.cumulative.iloc[0]
    total.plot([1], [whole], color=of_decoder, marker="s", markersize=5, ls="none")
    note(total, f"total: {whole:.4f}", at=(1, whole), offset=(8, 0))
    total.set_ylim(bottom=min(0, low.min()))
    log_axis(total, "x")
    finish(total, "Cumulative bits from T", x="timestep t", y="bits/dim")
    return figure, numbers


@drawing()
def calls_figure(
    per_timestep: pd.DataFrame, density: pd.DataFrame, *, num_images: int, num_replicates: int
) -> tuple["Figure", pd.DataFrame]:
    """Network evaluations per timestep: actual, expected, and of every pair.

    Args:
        per_timestep: see `report.tables.per_timestep`.
        density: `t`, `density` of the importance estimator, t = 2..T.
        num_images: N, the calls that every pair makes at each step.
        num_replicates: how often each image had a step of the density.

    Returns:
        The figure, and one row a step: `t`, `num_evaluations`, `expected` by the density (empty
        at t = 1, where every image is), `every_pair`.
    """
    expected = density.assign(expected=num_replicates * num_images * density.density)
    numbers = (
        per_timestep[["t", "num_evaluations"]]
        .merge(expected[["t", "expected"]], on="t", how="left")
        .assign(every_pair=num_images)
    )
    groups = numbers.groupby(step_groups(len(numbers)))
    first, last = groups.t.min().to_numpy(), groups.t.max().to_numpy()
    mean = groups.num_evaluations.mean().to_numpy()
    figure, (axes,) = axes_panels(1)
    few = numbers.iloc[1:].iloc[shown(len(numbers) - 1)]
    axes.axhline(num_images, color=INK, lw=0.9, ls="--")
    axes.plot(few.t, few.expected, color=COLORS[0], lw=1.2)
    axes.plot(np.sqrt(first * last), mean, color=COLORS[1], marker="o", ls="none")
    log_axis(axes, "x", "y")
    called = mean[mean > 0]
    low, high = min(called.min(), few.expected.min()), max(num_images, called.max())
    axes.set_ylim(low / 2, high * 3)
    note(axes, "every pair", at=(first[-1], 1.4 * num_images), offset=(-1, 2))
    middle = few.iloc[np.abs(np.log(few.t) - np.log(last[-1]) / 2).argmin()]
    note(axes, "expected", at=(middle.t, middle.expected), offset=(9, 6))
    note(axes, "evaluated", at=(1, mean[0]), offset=(7, -11))
    finish(axes, "Network evaluations per timestep", x="timestep t", y="evaluations")
    return figure, numbers


@drawing()
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
    figure, (left, right) = axes_panels(2)
    numbers = []
    for k, (run, steps) in enumerate(per_timestep.groupby("run", sort=False)):
        groups = by_group(steps).rename(columns={"bits_per_dim": "difference"})
        groups.insert(0, "run", run)
        numbers.append(groups)
        color, line, label = COLORS[k % 6], DASHES[k % 4], shortened(str(run))
        center = np.sqrt(groups.t_first * groups.t_last)
        left.errorbar(
            center,
            groups.difference,
            groups.half_width,
            label=label,
            color=color,
            marker=MARKERS[k % 6],
            ls="none",
            elinewidth=0.9,
        )
        right.plot(groups.t_first, groups.cumulative, label=label, color=color, ls=line)
        low, high = (groups.cumulative + s * groups.cumulative_half_width for s in (-1, 1))
        right.fill_between(groups.t_first, low, high, color=color, alpha=0.2, lw=0)
    for axes in (left, right):
        axes.axhline(0, color=INK, lw=0.6)
        log_axis(axes, "x")
        legend_below(axes)
    minus = f"minus {shortened(baseline)}, bits/dim"
    finish(left, "Difference per group of timesteps", x="timestep t", y=minus)
    finish(right, "Cumulative difference from T", x="timestep t", y=minus)
    return figure, pd.concat(numbers, ignore_index=True)
