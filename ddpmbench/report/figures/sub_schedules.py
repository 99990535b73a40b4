"""The bound over the number of timesteps, evenly spaced and best subset."""

from typing import TYPE_CHECKING

import pandas as pd

from ddpmbench.report.figures.style import (
    COLORS,
    DASHES,
    MARKERS,
    axes_panels,
    drawing,
    finish,
    legend_below,
    log_axis,
    written_out,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPACINGS = ("evenly spaced", "best")
TALLEST = 3
"""The axes end at so many times the least bound: a few steps can cost thousands of bits."""

_WRITTEN_OUT = 1e6


@drawing()
def sub_schedules_figure(table: pd.DataFrame) -> tuple["Figure", pd.DataFrame]:
    """Bound against number of steps, a panel a variance, all with the same axes.

    What is far above the least bound is written in the panel; a panel all of whose bounds are
    has an axis of its own.

    Args:
        table: `variance`, `spacing` (one of `SPACINGS`), `num_timesteps`, `bits_per_dim`,
            `half_width`, which may be empty.

    Returns:
        The figure, and the table without the steps.
    """
    from matplotlib.ticker import FuncFormatter

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
        legend_below(axes)
        finish(axes, f"Variance {variance}", x="number of timesteps", y="bound, bits/dim")
    common = _range(table.bits_per_dim)
    for variance, axes in zip(variances, parts, strict=True):
        axes.set_xlim(table.num_timesteps.min() / 1.1, table.num_timesteps.max() * 1.1)
        of = table[table.variance == variance]
        low, high = common if of.bits_per_dim.min() < common[1] else _range(of.bits_per_dim)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: written_out(value)))
        axes.set_ylim(low - (0.05 * (high - low) or 0.05), high)
        beyond = of[of.bits_per_dim > high]
        if len(beyond):
            steps, most = beyond.num_timesteps.min(), beyond.bits_per_dim.max()
            bits = f"{most:,.0f}" if most < _WRITTEN_OUT else f"{most:.1e}"
            axes.text(
                0.98,
                0.98,
                f"up to {bits}\nat {steps} timesteps",
                transform=axes.transAxes,
                ha="right",
                va="top",
                fontsize="small",
            )
    return figure, table.drop(columns="steps", errors="ignore")


def _range(bits: "pd.Series[float]") -> tuple[float, float]:
    """The least of bounds, and where an axis that begins there ends."""
    low, most = float(bits.min()), float(bits.max())
    return low, min(most + 0.1 * (most - low), TALLEST * low)
