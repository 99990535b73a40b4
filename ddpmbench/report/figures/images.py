"""Histograms over images, and the pictures at their ends."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ddpmbench.execution.pictures import Extremes
from ddpmbench.report.figures.style import (
    COLORS,
    INK,
    Drawn,
    axes_panels,
    drawing,
    finish,
    legend_below,
    note,
    panels,
)

_MOST_BINS = 60
_PIXELS = 96  # of a picture's longer side: as many as a screen has for it
_PER_IMAGE = {
    "nearest_reference_distance": ("Distance to the nearest reference", "in feature space"),
    "class_entropy": ("Entropy of the class", "nats"),
}


@drawing()
def images_figure(bits: NDArray[np.float64], what: str, extremes: Extremes | None) -> Drawn:
    """A histogram of the images' bits, and the pictures at its two ends, if there are any.

    Args:
        bits: (N,) bits per dimension, NaN where they are unknown.
        what: they are of, in words.
        extremes: the pictures.

    Returns:
        The figure, and one row a bin: `bits_from`, `bits_to`, `num_images`.
    """
    figure, (first, *rest) = panels(1 if extremes is None else 3)
    axes = first.subplots()
    known = bits[np.isfinite(bits)]
    mean = float(known.mean())
    counts, edges = _histogram(axes, known, mean, f"mean {mean:.3f}")
    finish(axes, f"{what} per image", x="bits/dim", y="images")
    if extremes is not None:
        for part, end, index, pixels in (
            (rest[0], "Fewest", extremes.best_index, extremes.best_pixels),
            (rest[1], "Most", extremes.worst_index, extremes.worst_pixels),
        ):
            _pictures(part, f"{end} bits", pixels, bits[index])
    return figure, pd.DataFrame(
        {"bits_from": edges[:-1], "bits_to": edges[1:], "num_images": counts}
    )


@drawing()
def pairs_figure(per_image: pd.DataFrame) -> Drawn:
    """The ODE's bits of each image over those of its variational bound, and the differences.

    Returns:
        The figure, and one row an image: `image_id`, `variational_bound`, `bits_per_dim` and
        `difference`.
    """
    figure, (both, spread) = axes_panels(2)
    difference = (per_image.bits_per_dim - per_image.variational_bound).to_numpy()
    both.axline((per_image.variational_bound.mean(),) * 2, slope=1, color=INK, lw=0.6)
    both.plot(
        per_image.variational_bound, per_image.bits_per_dim, "o", color=COLORS[0], ms=3, alpha=0.6
    )
    finish(both, "Per image", x="variational bound, bits/dim", y="ODE, bits/dim")
    mean = float(difference.mean())
    _histogram(spread, difference, mean, f"mean {mean:+.3f}")
    finish(spread, "ODE minus variational bound", x="bits/dim", y="images")
    numbers = per_image[["image_id", "variational_bound", "bits_per_dim"]]
    return figure, numbers.assign(difference=difference)


def _pictures(
    part: SubFigure, title: str, pixels: NDArray[np.uint8], bits: NDArray[np.float64]
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


@drawing()
def per_image_figure(per_image: pd.DataFrame) -> Drawn | None:
    """Histograms over the samples of what is known of each; see `PER_IMAGE_COLUMNS` of `fid`.

    Returns:
        The figure, and one row a bin: `measure`, `bin_from`, `bin_to`, `num_images`; None where
        nothing is known of single samples.
    """
    known = {name: values for name in _PER_IMAGE if len(values := per_image[name].dropna())}
    if not known:
        return None
    figure, several = axes_panels(len(known))
    numbers = []
    for axes, (name, values) in zip(several, known.items(), strict=True):
        median = float(values.median())
        counts, edges = _histogram(axes, values.to_numpy(), median, f"median {median:.3g}")
        title, unit = _PER_IMAGE[name]
        finish(axes, title, x=unit, y="samples")
        numbers.append(
            pd.DataFrame(
                {"measure": name, "bin_from": edges[:-1], "bin_to": edges[1:], "num_images": counts}
            )
        )
    return figure, pd.concat(numbers, ignore_index=True)


@drawing()
def scores_figure(per_image: pd.DataFrame) -> Drawn:
    """Histograms of the scores of each image set, raw and less the code length.

    Returns:
        The figure, and one row a set and bin: `score`, `set`, `bits_from`, `bits_to`, `num_images`.
    """
    of_each = {
        "bits_per_dim": ("Bound of each image", per_image.bits_per_dim),
        "corrected": ("Less the code length", per_image.bits_per_dim - per_image.code_length),
    }
    figure, several = axes_panels(len(of_each))
    numbers = []
    for axes, (score, (title, values)) in zip(several, of_each.items(), strict=True):
        edges = np.histogram_bin_edges(values, min(_MOST_BINS, max(5, len(values) // 10)))
        for color, (name, of_set) in zip(COLORS, values.groupby(per_image.set), strict=False):
            counts, _ = np.histogram(of_set, edges)
            axes.stairs(counts, edges, fill=True, color=color, alpha=0.35)
            axes.stairs(counts, edges, color=color, lw=1, label=f"set {name}")
            bins = {"bits_from": edges[:-1], "bits_to": edges[1:], "num_images": counts}
            numbers.append(pd.DataFrame({"score": score, "set": name, **bins}))
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        finish(axes, title, x="bits/dim", y="images")
        legend_below(axes)
    return figure, pd.concat(numbers, ignore_index=True)


@drawing()
def extremes_figure(per_image: pd.DataFrame, extremes: Mapping[str, Extremes]) -> Drawn:
    """The images with the fewest and the most bits of each image set.

    Returns:
        The figure, and one row a picture: `set`, `end`, `image_id`, `bits_per_dim`.
    """
    figure, parts = panels(2 * len(extremes))
    numbers = []
    for k, (name, ends) in enumerate(extremes.items()):
        rows = per_image[per_image.set == name]
        for part, end, index, pixels in (
            (parts[2 * k], "fewest", ends.best_index, ends.best_pixels),
            (parts[2 * k + 1], "most", ends.worst_index, ends.worst_pixels),
        ):
            shown = rows.iloc[index]
            _pictures(part, f"Set {name}, {end} bits", pixels, shown.bits_per_dim.to_numpy())
            numbers.append(shown[["set", "image_id", "bits_per_dim"]].assign(end=end))
    columns = ["set", "end", "image_id", "bits_per_dim"]
    return figure, pd.concat(numbers, ignore_index=True)[columns]


def _histogram(
    axes: Axes, values: NDArray[np.float64], middle: float, name: str
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Draw a histogram with a named line at the middle, and return the counts and the edges."""
    edges = np.histogram_bin_edges(values, "auto")
    if len(edges) > _MOST_BINS + 1:
        edges = np.histogram_bin_edges(values, _MOST_BINS)
    counts, edges = np.histogram(values, edges)
    axes.stairs(counts, edges, fill=True, color=COLORS[0], alpha=0.35)
    axes.stairs(counts, edges, color=COLORS[0], lw=1)
    axes.axvline(middle, color=INK, lw=0.9, ls="--")
    axes.set_ylim(0, 1.18 * counts.max())
    note(axes, name, at=(middle, 1.11 * counts.max()), offset=(5, 0))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    return counts, edges
