"""Where along the chain runs differ from a baseline."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ddpmbench.report.figures.groups import by_group
from ddpmbench.report.figures.style import (
    COLORS,
    DASHES,
    INK,
    MARKERS,
    axes_panels,
    drawing,
    finish,
    legend_below,
    log_axis,
    shortened,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    finish(left, "Difference in each group of steps", x="step t", y=minus)
    finish(right, "Difference summed from T down to t", x="step t", y=minus)
    return figure, pd.concat(numbers, ignore_index=True)
