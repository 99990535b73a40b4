"""Where along the chain the bits are."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ddpmbench.report.figures.groups import by_group
from ddpmbench.report.figures.style import (
    COLORS,
    axes_panels,
    drawing,
    finish,
    log_axis,
    note,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    finish(step, "Bits in one step", x="step t", y="bits/dim")

    low, high = (numbers.cumulative + s * numbers.cumulative_half_width for s in (-1, 1))
    total.fill_between(numbers.t_first, low, high, color=color, alpha=0.2, lw=0)
    total.plot(numbers.t_first, numbers.cumulative, color=color)
    whole = numbers.cumulative.iloc[0]
    total.plot([1], [whole], color=of_decoder, marker="s", markersize=5, ls="none")
    note(total, f"all of it: {whole:.4f}", at=(1, whole), offset=(8, 0))
    total.set_ylim(bottom=min(0, low.min()))
    log_axis(total, "x")
    finish(total, "Bits from T down to t", x="step t", y="bits/dim")
    return figure, numbers
