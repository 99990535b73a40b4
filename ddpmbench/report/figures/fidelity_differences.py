"""How runs of `fid` differ from the first of them, measure by measure."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ddpmbench.report.figures.style import (
    COLORS,
    INK,
    MARKERS,
    axes_panels,
    drawing,
    finish,
    shortened,
)
from ddpmbench.report.printed_fidelity import label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SHOWN = ("fid", "precision", "recall")
_COLUMNS = ["measure", "run", "difference", "half_width", "half_width_unpaired", "how"]


@drawing()
def differences_figure(
    differences: pd.DataFrame, name: str
) -> tuple["Figure", pd.DataFrame] | None:
    """Differences from the first run against the first reference, a run a line.

    Args:
        differences: one row a run, measure and reference; the fields of
            `report.comparison_fidelity.FidelityDifference`.
        name: of the distance, "FID" or "FD[...]".

    Returns:
        The figure, and one row a measure and run: `measure`, `run`, `difference`, `half_width`,
        `half_width_unpaired`, `how`; None where no difference is known.
    """
    table = differences.astype({column: "float64" for column in _COLUMNS[2:5]})
    first = table[table.measure == "fid"].reference.iloc[0]
    table = table[(table.reference == first) & table.difference.notna()]
    known = [measure for measure in _SHOWN if (table.measure == measure).any()]
    if not known:
        return None
    runs = list(dict.fromkeys(differences.run))
    figure, several = axes_panels(len(known))
    for axes, measure in zip(several, known, strict=True):
        _draw(axes, table[table.measure == measure], runs)
        better = "less" if measure == "fid" else "more"
        finish(axes, label(measure, name), x=f"difference; {better} is better", y="")
        axes.grid(visible=False)
    numbers = table[table.measure.isin(known)][_COLUMNS]
    return figure, numbers.reset_index(drop=True)


def _draw(axes: "Axes", rows: pd.DataFrame, runs: list[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.axvline(0, color=INK, lw=0.9, ls="--")
    widths = rows[["half_width_unpaired", "half_width"]].to_numpy()
    for run, value, half_widths in zip(rows.run, rows.difference.to_numpy(), widths, strict=True):
        k = runs.index(run)
        color = COLORS[k % 6]
        for width, thick in zip(half_widths, (0.8, 2.4), strict=True):
            if not np.isnan(width):
                ends = (value - width, value + width)
                axes.plot(ends, (k, k), color=color, lw=thick, solid_capstyle="butt")
        axes.plot(value, k, color=color, marker=MARKERS[k % 6], ms=6, ls="none")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_yticks(range(len(runs)), [shortened(run) for run in runs])
    axes.set_ylim(len(runs) - 0.5, -0.5)
