"""What fewer steps cost: evenly spaced ones, and the best there are."""

from typing import TYPE_CHECKING

import pandas as pd

from ddpmbench.report.figures.style import (
    COLORS,
    DASHES,
    MARKERS,
    axes_panels,
    drawing,
    finish,
    log_axis,
    log_range,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPACINGS = ("evenly spaced", "best")
TALLEST = 3
"""The axes end at so many times the least bound: a few steps can cost thousands of bits."""


@drawing()
def sub_schedules_figure(table: pd.DataFrame) -> tuple["Figure", pd.DataFrame]:
    """Bound against number of steps, a panel a variance, all with the same axes.

    What is far above the least bound is beyond the axes, and said.

    Args:
        table: `variance`, `spacing` (one of `SPACINGS`), `num_timesteps`, `bits_per_dim`,
            `half_width`, which may be empty.

    Returns:
        The figure, and the table without the steps.
    """
    variances = list(dict.fromkeys(table.variance))
    figure, parts = axes_panels(len(variances))
    for variance, axes in zip(variances, parts, strict=True):
        of = table[table.variance == variance]
        for k, spacing in enumerate(SPACINGS):
            line = of[of.spacing == spacing].sort_values("num_timesteps")
            if line.empty:
                continue
            axes.errorbar(
                line.num_timesteps,
                line.bits_per_dim,
                line.half_width,
                label=spacing,
                color=COLORS[1 - k],
                marker=MARKERS[k],
                ls=DASHES[1 - k],
                elinewidth=0.9,
            )
        log_axis(axes, "x")
        axes.legend(loc="upper right")
        finish(axes, f"Variance {variance}", x="number of steps", y="bound, bits/dim")
    low, most = table.bits_per_dim.min(), table.bits_per_dim.max()
    high = min(most + 0.1 * (most - low), TALLEST * low)
    for variance, axes in zip(variances, parts, strict=True):
        log_range(axes, "x", table.num_timesteps.min() / 1.1, table.num_timesteps.max() * 1.1)
        axes.set_ylim(low - 0.05 * (high - low), high)
        beyond = table[(table.variance == variance) & (table.bits_per_dim > high)]
        if len(beyond):
            steps, bits = beyond.num_timesteps.min(), beyond.bits_per_dim.max()
            axes.text(
                0.98,
                0.78,
                f"up to {bits:,.0f} at {steps} steps",
                transform=axes.transAxes,
                ha="right",
                va="top",
                fontsize="small",
            )
    return figure, table.drop(columns="steps", errors="ignore")
