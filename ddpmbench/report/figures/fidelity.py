"""Figures of scores: over the number of samples, and their differences."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ddpmbench.report.figures.style import (
    COLORS,
    DASHES,
    INK,
    NORMAL,
    Drawn,
    axes_panels,
    drawing,
    finish,
    interval,
    legend_below,
    points,
    shortened,
)
from ddpmbench.report.metrics import METRICS, label

Ends = Mapping[str, tuple[float | None, float | None]]


@drawing()
def against_n_figure(distances: pd.DataFrame, ends: Ends, name: str) -> Drawn:
    """The distance against 1/N with the line to its end at 1/N = 0, a reference a color.

    Args:
        distances: `reference`, `num_generated`, `fid`, `standard_error` (empty where not known).
        ends: by reference, the distance at infinitely many samples and its half width, or None.
        name: of the distance, "FID" or "FD[...]".

    Returns:
        The figure, and one row a point: the first three columns, `half_width`, the `line` there,
        and the line's end, `fid_infinity` and `fid_infinity_half_width`.

    Source: Chong & Forsyth 2020.
    """
    figure, (axes,) = axes_panels(1)
    numbers = []
    for k, (reference, own) in enumerate(distances.groupby("reference", sort=False)):
        own = own.sort_values("num_generated")
        end, end_half_width = ends.get(str(reference), (None, None))
        inverse = 1 / own.num_generated.to_numpy()
        table = own[["reference", "num_generated", "fid"]].assign(
            half_width=NORMAL * own.standard_error,
            line=np.nan
            if end is None
            else end + _slope(inverse, own.fid.to_numpy(), end) * inverse,
            fid_infinity=np.nan if end is None else end,
            fid_infinity_half_width=np.nan if end_half_width is None else end_half_width,
        )
        _draw(axes, table, k)
        numbers.append(table)
    whole = pd.concat(numbers, ignore_index=True)
    _inverse_axis(axes, whole.num_generated.to_numpy())
    if len(numbers) > 1:
        legend_below(axes)
    finish(axes, f"{name} over the number of samples", x="samples N (1/N scale)", y=name)
    return figure, whole


def _slope(
    inverse: NDArray[np.float64],
    fid: NDArray[np.float64],
    end: float,
) -> float:
    """Of the line of least squares through its known end: that of the fit that had this end."""
    return float(inverse @ (fid - end) / (inverse @ inverse))


def _draw(axes: Axes, table: pd.DataFrame, k: int) -> None:
    first, inverse = table.iloc[0], 1 / table.num_generated
    error = table.half_width.to_numpy() if table.half_width.notna().any() else None
    points(axes, inverse, table.fid, error, k, label=shortened(str(first.reference)))
    end, half_width = first.fid_infinity, first.fid_infinity_half_width
    if np.isnan(end):
        return
    axes.plot([0, inverse.iloc[0]], [end, first.line], color=COLORS[k % 6], ls=DASHES[k % 4], lw=1)
    # Hollow: it is no measurement.
    hollow = {"mfc": "none", "ms": 6, "capsize": 3, "clip_on": False}
    points(axes, 0, end, None if np.isnan(half_width) else half_width, k, **hollow)


def _inverse_axis(axes: Axes, num_generated: NDArray[np.int64]) -> None:
    """Numbers of samples where their inverses are, as far apart as they can be read."""
    least = 1 / num_generated.min()
    apart = 0.16 * least
    ticks = [0.0]
    for number in sorted(set(num_generated), reverse=True):
        last = number == num_generated.min()
        if 1 / number - ticks[-1] >= apart and (last or least - 1 / number >= apart):
            ticks.append(1 / number)
    labels = ["\u221e", *(f"{round(1 / tick):,}" for tick in ticks[1:])]
    axes.set_xticks(ticks, labels)
    axes.set_xlim(-0.04 * least, 1.06 * least)


_COLUMNS = ["measure", "run", "difference", "half_width", "half_width_unpaired", "how"]


@drawing()
def differences_figure(differences: pd.DataFrame, name: str) -> Drawn | None:
    """Differences from the first run against the first reference, a run a line.

    Args:
        differences: see `report.fidelity_comparison.differences_frame`.
        name: of the distance, "FID" or "FD[...]".

    Returns:
        The figure, and its rows, a measure and run each; None where no difference is known.
    """
    table = differences.astype({column: "float64" for column in _COLUMNS[2:5]})
    first = table[table.measure == "fid"].reference.iloc[0]
    table = table[(table.reference == first) & table.difference.notna()]
    shown = (name for name, metric in METRICS.items() if metric.in_figure)
    known = [name for name in shown if (table.measure == name).any()]
    if not known:
        return None
    runs = list(dict.fromkeys(differences.run))
    figure, several = axes_panels(len(known))
    for axes, measure in zip(several, known, strict=True):
        _draw_differences(axes, table[table.measure == measure], runs)
        better = "higher" if METRICS[measure].higher_is_better else "lower"
        finish(axes, label(measure, name), x=f"difference; {better} is better", y="")
        axes.grid(visible=False)
    numbers = table[table.measure.isin(known)][_COLUMNS]
    return figure, numbers.reset_index(drop=True)


def _draw_differences(axes: Axes, rows: pd.DataFrame, runs: list[str]) -> None:
    axes.axvline(0, color=INK, lw=0.9, ls="--")
    widths = rows[["half_width_unpaired", "half_width"]].to_numpy()
    for run, value, half_widths in zip(rows.run, rows.difference.to_numpy(), widths, strict=True):
        interval(axes, runs.index(run), value, half_widths)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_yticks(range(len(runs)), [shortened(run) for run in runs])
    axes.set_ylim(len(runs) - 0.5, -0.5)
