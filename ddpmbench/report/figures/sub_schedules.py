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

MOST = 8
"""A panel ends at so many times the least bound: a step or two can cost thousands of bits."""
SPACINGS = ("evenly spaced", "best")


@drawing()
def sub_schedules_figure(table: pd.DataFrame) -> tuple["Figure", pd.DataFrame]:
    """Bound against number of steps, a panel a variance, each with a range of its own.

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
        log_axis(axes, "x", "y")
        axes.legend()
        finish(axes, f"Variance {variance}", x="number of steps", y="bound, bits/dim")
        steps, bits = of.num_timesteps, of.bits_per_dim
        log_range(axes, "x", steps.min() / 1.1, steps.max() * 1.1)
        log_range(axes, "y", bits.min() / 1.1, min(1.1 * bits.max(), MOST * bits.min()))
    return figure, table.drop(columns="steps", errors="ignore")
