"""The likelihoods of one checkpoint, and their differences."""

import pandas as pd
from matplotlib.ticker import MaxNLocator

from ddpmbench.report.figures.style import INK, Drawn, axes_panels, drawing, finish, interval


@drawing()
def likelihoods_figure(frame: pd.DataFrame) -> Drawn:
    """The likelihoods that there are, and their paired differences from the first.

    A thick bar is the 95 % interval for these images, a thin one that for their population.

    Args:
        frame: see `report.likelihoods.likelihoods_frame`.

    Returns:
        The figure, and one row a likelihood.
    """
    table = frame[frame.bits_per_dim.notna()].drop(columns=["published", "absent"])
    figure, (left, right) = axes_panels(2)
    widths = table[["half_width_population", "half_width"]].to_numpy()
    of_pairs = table[["difference_half_width"] * 2].to_numpy()
    for k, (value, difference) in enumerate(table[["bits_per_dim", "difference"]].to_numpy()):
        interval(left, k, value, widths[k])
        if k:
            interval(right, k, difference, of_pairs[k])
    right.axvline(0, color=INK, lw=0.9, ls="--")
    finish(left, "Likelihoods", x="bits/dim", y="")
    finish(right, "Paired difference", x=f"bits/dim, from the {table.likelihood[0]}", y="")
    for axes, first in ((left, 0), (right, 1)):
        axes.grid(visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_yticks(range(first, len(table)), table.likelihood[first:])
        axes.set_ylim(len(table) - 0.5, first - 0.5)
    return figure, table.reset_index(drop=True)
