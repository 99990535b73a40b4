"""Where along the chain the estimator called the network."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ddpmbench.report.figures.groups import step_groups
from ddpmbench.report.figures.style import (
    COLORS,
    INK,
    axes_panels,
    drawing,
    finish,
    log_axis,
    note,
    shown,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@drawing()
def calls_figure(
    per_timestep: pd.DataFrame, density: pd.DataFrame, *, num_images: int, rotations: int
) -> tuple["Figure", pd.DataFrame]:
    """The network calls at each step, those that the density meant, and those of every pair.

    Args:
        per_timestep: see `report.tables.per_timestep`.
        density: `t`, `density` of the rotated warp, t = 2..T.
        num_images: N, the calls that every pair makes at each step.
        rotations: how often each image had a step of the density.

    Returns:
        The figure, and one row a step: `t`, `num_evaluations`, `expected` by the density (empty
        at t = 1, where every image is), `every_pair`.
    """
    expected = density.assign(expected=rotations * num_images * density.density)
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
    note(axes, "as the density meant", at=(middle.t, middle.expected), offset=(9, 6))
    note(axes, "called", at=(1, mean[0]), offset=(7, -11))
    finish(axes, "Network calls at a step", x="step t", y="calls at one step")
    return figure, numbers
