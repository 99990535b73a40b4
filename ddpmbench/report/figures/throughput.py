"""How fast a device is, against the batch size and part by part."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ddpmbench.report.figures.style import (
    COLORS,
    DASHES,
    GRID,
    MARKERS,
    Drawn,
    axes_panels,
    drawing,
    finish,
    legend_below,
    log_axis,
)

PARTS = ("network", "noise", "rest")
BAR = 0.4
"""Height of a bar, of the distance between two."""


@drawing()
def batch_figure(speeds: pd.DataFrame, *, unit: str) -> Drawn:
    """Speed against the batch size: a line an engine, a panel a kind of work.

    Returns:
        The figure, and `panel`, `engine`, `batch_size`, `per_second` (in the unit), sorted.
    """
    columns = ["panel", "engine", "batch_size", "per_second"]
    numbers = speeds[columns].sort_values(columns[:3], kind="stable").reset_index(drop=True)
    engines = list(dict.fromkeys(speeds.engine))
    names = list(dict.fromkeys(speeds.panel))
    figure, all_axes = axes_panels(len(names))
    for axes, name in zip(all_axes, names, strict=True):
        of_panel = numbers[numbers.panel == name]
        for engine, line in of_panel.groupby("engine", sort=False):
            k = engines.index(str(engine))
            axes.plot(
                line.batch_size,
                line.per_second,
                color=COLORS[k % len(COLORS)],
                marker=MARKERS[k % len(MARKERS)],
                ls=DASHES[k // len(COLORS) % len(DASHES)],
                label=engine,
            )
        log_axis(axes, "x", "y")
        sizes = sorted(of_panel.batch_size.unique())
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.set_ylim(of_panel.per_second.min() / 1.5, of_panel.per_second.max() * 1.5)
        legend_below(axes)
        finish(axes, name, x="images in a batch", y=unit)
    return figure, numbers


@drawing()
def parts_figure(parts: pd.DataFrame) -> Drawn:
    """Shares of the time of network, noise and rest, a bar a kind of work.

    Returns:
        The figure, and `row`, `precision`, and the milliseconds `network`, `noise` and `rest`.
    """
    numbers = parts[["row", "precision", *PARTS]].reset_index(drop=True)
    whole = numbers[[*PARTS]].sum(axis=1)
    figure, (axes,) = axes_panels(1)
    names = [
        f"{row}, {kind}: {ms:.3g} ms"
        for row, kind, ms in zip(numbers.row, numbers.precision, whole, strict=True)
    ]
    place, left = np.arange(len(names)), np.zeros(len(names))
    for part, color in zip(PARTS, COLORS, strict=False):
        share = 100 * (numbers[part] / whole).to_numpy()
        axes.barh(place, share, left=left, color=color, height=BAR, label=part)
        left += share
    axes.set_xlim(0, 100)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=len(PARTS))
    finish(axes, "Share of the time", x="% of its time", y="")
    name_bars(figure, axes, names)
    return figure, numbers


def name_bars(figure: Figure, axes: Axes, names: list[str]) -> None:
    """Write a name above each of the bars, `BAR` high at 0, 1, ..., and make room for all."""
    width, _ = figure.get_size_inches()
    figure.set_size_inches(width, max(figure.get_size_inches()[1], 1.3 + 0.45 * len(names)))
    axes.set_yticks([])
    for place, name in enumerate(names):
        axes.annotate(name, (0, place - BAR / 2), (2, 2), textcoords="offset points", va="bottom")
    axes.set_ylim(len(names) - 0.5, -0.9)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=GRID, lw=0.7)
