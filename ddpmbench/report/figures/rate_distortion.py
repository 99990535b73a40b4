"""Rate-distortion curves."""

from typing import TYPE_CHECKING

import pandas as pd

from ddpmbench.report.figures.style import COLORS, NORMAL, axes_panels, drawing, finish, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@drawing()
def rate_distortion_figure(curve: pd.DataFrame) -> tuple["Figure", pd.DataFrame]:
    """Distortion over rate, and both over the steps that a receiver has taken.

    Args:
        curve: see `report.tables.rate_distortion`.

    Returns:
        The figure, and the curve with the half widths of its 95 % intervals.

    Source: Ho, Jain & Abbeel 2020, figure 5.
    """
    numbers = curve.assign(
        rate_half_width=NORMAL * curve.rate_standard_error,
        distortion_half_width=NORMAL * curve.distortion_standard_error,
    )
    few, color = numbers.iloc[shown(len(numbers))], COLORS[0]
    figure, (both, distortion, rate) = axes_panels(3)
    rmse, bits, steps = "distortion, RMSE (0..255)", "rate, bits/dim", "reverse steps"
    both.plot(few.rate_bits_per_dim, few.distortion_rmse, color=color)
    both.set_xlim(left=0)
    finish(both, "Distortion over rate", x=bits, y=rmse)
    for axes, name, half_width in (
        (distortion, "distortion_rmse", "distortion_half_width"),
        (rate, "rate_bits_per_dim", "rate_half_width"),
    ):
        low, high = (few[name] + sign * few[half_width] for sign in (-1, 1))
        axes.fill_between(few.num_decoded_steps, low, high, color=color, alpha=0.2, lw=0)
        axes.plot(few.num_decoded_steps, few[name], color=color)
    finish(distortion, "Distortion", x=steps, y=rmse)
    finish(rate, "Rate", x=steps, y=bits)
    for axes in (both, distortion, rate):
        axes.set_ylim(bottom=0)
    return figure, numbers
