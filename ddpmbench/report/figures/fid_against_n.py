"""The Frechet distance against the number of samples, and where it ends."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ddpmbench.report.figures.style import (
    COLORS,
    DASHES,
    MARKERS,
    NORMAL,
    axes_panels,
    drawing,
    finish,
    legend_below,
    shortened,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Ends = Mapping[str, tuple[float | None, float | None]]


@drawing()
def against_n_figure(points: pd.DataFrame, ends: Ends, name: str) -> tuple["Figure", pd.DataFrame]:
    """The distance against 1/N with the line to its end at 1/N = 0, a reference a color.

    Args:
        points: `reference`, `num_generated`, `fid`, `standard_error` (empty where not known).
        ends: references to the distance at infinitely many samples and the half width of its
            interval; None where they are not known.
        name: of the distance, "FID" or "FD[...]".

    Returns:
        The figure, and one row a point: `reference`, `num_generated`, `fid`, `half_width`, the
        `line` there, and the line's end, `fid_infinity` and `fid_infinity_half_width`.

    Source: Chong & Forsyth 2020.
    """
    figure, (axes,) = axes_panels(1)
    numbers = []
    for k, (reference, own) in enumerate(points.groupby("reference", sort=False)):
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
    finish(axes, "Against the number of samples", x="samples N, on a scale of 1/N", y=name)
    return figure, whole


def _slope(
    inverse: np.ndarray[tuple[int], np.dtype[np.float64]],
    fid: np.ndarray[tuple[int], np.dtype[np.float64]],
    end: float,
) -> float:
    """Of the line of least squares through its known end: that of the fit that had this end."""
    return float(inverse @ (fid - end) / (inverse @ inverse))


def _draw(axes: "Axes", table: pd.DataFrame, k: int) -> None:
    color, inverse = COLORS[k % 6], 1 / table.num_generated
    error = table.half_width.to_numpy() if table.half_width.notna().any() else None
    axes.errorbar(
        inverse,
        table.fid,
        error,
        color=color,
        marker=MARKERS[k % 6],
        ls="none",
        elinewidth=0.9,
        label=shortened(str(table.reference.iloc[0])),
    )
    end, half_width = table.fid_infinity.iloc[0], table.fid_infinity_half_width.iloc[0]
    if np.isnan(end):
        return
    first = table.iloc[0]
    axes.plot([0, 1 / first.num_generated], [end, first.line], color=color, ls=DASHES[k % 4], lw=1)
    # Hollow: it is no measurement.
    bar = None if np.isnan(half_width) else half_width
    axes.errorbar(
        0, end, bar, color=color, marker=MARKERS[k % 6], mfc="none", ms=6, capsize=3, clip_on=False
    )


def _inverse_axis(
    axes: "Axes", num_generated: "np.ndarray[tuple[int], np.dtype[np.int64]]"
) -> None:
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
