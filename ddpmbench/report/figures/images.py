"""How the bits spread over images, with those that cost the fewest and the most."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ddpmbench.report.figures.style import COLORS, INK, drawing, finish, note, panels
from ddpmbench.runs.extremes import Extremes

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

_MOST_BINS = 60
_PIXELS = 96  # of a picture's longer side: as many as a screen has for it


@drawing()
def images_figure(
    bits: NDArray[np.float64], what: str, extremes: Extremes | None
) -> tuple["Figure", pd.DataFrame]:
    """A histogram of the images' bits, and the pictures at its two ends.

    Args:
        bits: (N,) finite, bits per dimension.
        what: they are of, in words.
        extremes: pictures to show; None for the histogram alone.

    Returns:
        The figure, and one row a bin: `bits_from`, `bits_to`, `num_images`.
    """
    from matplotlib.ticker import MaxNLocator

    figure, (histogram, *rest) = panels(1 if extremes is None else 3)
    axes = histogram.subplots()
    edges = np.histogram_bin_edges(bits, "auto")
    if len(edges) > _MOST_BINS + 1:
        edges = np.histogram_bin_edges(bits, _MOST_BINS)
    counts, edges = np.histogram(bits, edges)
    axes.stairs(counts, edges, fill=True, color=COLORS[0], alpha=0.35)
    axes.stairs(counts, edges, color=COLORS[0], lw=1)
    mean = float(bits.mean())
    axes.axvline(mean, color=INK, lw=0.9, ls="--")
    axes.set_ylim(0, 1.18 * counts.max())
    note(axes, f"mean {mean:.3f}", at=(mean, 1.11 * counts.max()), offset=(5, 0))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    finish(axes, f"{what}, over images", x="bits/dim", y="images")
    if extremes is not None:
        for part, end, index, pixels in (
            (rest[0], "fewest", extremes.best_index, extremes.best_pixels),
            (rest[1], "most", extremes.worst_index, extremes.worst_pixels),
        ):
            _pictures(part, f"Those that cost the {end}", pixels, bits[index])
    return figure, pd.DataFrame(
        {"bits_from": edges[:-1], "bits_to": edges[1:], "num_images": counts}
    )


def _pictures(
    part: "SubFigure", title: str, pixels: NDArray[np.uint8], bits: NDArray[np.float64]
) -> None:
    part.suptitle(title, x=0.02, ha="left", fontsize="medium", fontweight="bold")
    columns = min(4, max(1, (len(pixels) + 1) // 2))
    grid = part.subplots(2, columns, squeeze=False)
    for k, axes in enumerate(grid.flat):
        axes.set_axis_off()
        if k < len(pixels):
            axes.imshow(_thumbnail(pixels[k]), cmap="gray", vmin=0, vmax=255, interpolation="none")
            axes.set_title(f"{bits[k]:.2f}", loc="center", fontsize="small", weight="normal", pad=3)


def _thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, C) or (H, W), at most `_PIXELS` high and wide."""
    from PIL import Image

    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    image.thumbnail((_PIXELS, _PIXELS))
    return np.asarray(image)
