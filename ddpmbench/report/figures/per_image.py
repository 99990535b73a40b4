"""How far samples are from the reference, and how sure of their class the network is."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ddpmbench.report.figures.style import COLORS, INK, axes_panels, drawing, finish, note

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_BINS = 60
_COLUMNS = {
    "nearest_reference_distance": ("Distance to the nearest reference", "in feature space"),
    "class_entropy": ("Entropy of the class", "nats"),
}


@drawing()
def per_image_figure(per_image: pd.DataFrame) -> tuple["Figure", pd.DataFrame] | None:
    """Histograms over the samples of what is known of each.

    Args:
        per_image: `nearest_reference_distance`, `class_entropy`; empty where not known.

    Returns:
        The figure, and one row a bin: `measure`, `bin_from`, `bin_to`, `num_images`; None where
        nothing is known of single samples.
    """
    known = {name: of for name in _COLUMNS if len(of := per_image[name].dropna())}
    if not known:
        return None
    figure, several = axes_panels(len(known))
    numbers = []
    for axes, (name, values) in zip(several, known.items(), strict=True):
        counts, edges = _histogram(axes, values.to_numpy())
        title, unit = _COLUMNS[name]
        finish(axes, title, x=unit, y="samples")
        numbers.append(
            pd.DataFrame(
                {"measure": name, "bin_from": edges[:-1], "bin_to": edges[1:], "num_images": counts}
            )
        )
    return figure, pd.concat(numbers, ignore_index=True)


def _histogram(
    axes: "Axes", values: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    from matplotlib.ticker import MaxNLocator

    edges = np.histogram_bin_edges(values, "auto")
    if len(edges) > _MOST_BINS + 1:
        edges = np.histogram_bin_edges(values, _MOST_BINS)
    counts, edges = np.histogram(values, edges)
    axes.stairs(counts, edges, fill=True, color=COLORS[0], alpha=0.35)
    axes.stairs(counts, edges, color=COLORS[0], lw=1)
    median = float(np.median(values))
    axes.axvline(median, color=INK, lw=0.9, ls="--")
    axes.set_ylim(0, 1.18 * counts.max())
    note(axes, f"median {median:.3g}", at=(median, 1.11 * counts.max()), offset=(5, 0))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    return counts, edges
