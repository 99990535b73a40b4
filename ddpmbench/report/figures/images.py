"""Pictures in rows with words beside and under them, sharp in svg and png."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ddpmbench.execution.terms import Extremes
from ddpmbench.report.fidelity import NUM_SHOWN, NearestImages
from ddpmbench.report.figures.style import COLORS, INK, drawing, finish, note, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure


Pixels = NDArray[np.uint8]

MAX_PIXELS = 48
"""Pictures with more to a side are drawn smaller, so that a page of them can be sent."""

# Dots of 1/100 inch; all grow with the pictures where those are wider than a tile.
_TILE = 80
GAP, _LINE, _PAD, _MARGIN = 5, 17, 8, 92
"""Between pictures; of a tile."""
_POINTS = 7.5  # of text


class Sheet:
    """Rows of pictures and lines of text, from the top down, in dots of 1/100 inch.

    A pixel of a picture is a whole number of dots, so that pictures are sharp in a png too.
    """

    def __init__(self, size: tuple[int, ...], *, columns: int, apart: set[int]) -> None:
        """Begin an empty sheet.

        Args:
            size: height and width of a picture, pixels.
            columns: pictures in a row.
            apart: the columns that have more room to their left.
        """
        height, width = _drawn_size(size)
        dots = -(-_TILE // width)
        self._width, self._height = dots * width, dots * height
        self._unit = self._width / _TILE
        gaps = [GAP + 2 * GAP * (k in apart) for k in range(1, columns)]
        steps = [self._dots(_MARGIN), *(self._width + self._dots(gap) for gap in gaps)]
        self._left = np.cumsum(steps)
        self._top = 0
        self._pictures: list[tuple[int, int, Pixels]] = []
        self._texts: list[tuple[float, float, str, str]] = []

    def text(self, name: str, texts: list[str]) -> None:
        """A line of text, centered on the columns."""
        height = self._dots(_LINE)
        middle = self._top + height / 2
        self._name(name, middle)
        for left, text in zip(self._left, texts, strict=False):
            self._texts.append((left + self._width / 2, middle, text, "center"))
        self._top += height

    def pictures(self, name: str, pictures: list[Pixels]) -> None:
        """A row of pictures, (C, H, W) uint8 each."""
        self._name(name, self._top + self._height / 2)
        for left, picture in zip(self._left, pictures, strict=False):
            self._pictures.append((left, self._top, _drawable(picture)))
        self._top += self._height

    def space(self, dots: int) -> None:
        """Leave room."""
        self._top += self._dots(dots)

    def figure(self) -> "Figure":
        """The sheet as a figure."""
        from ddpmbench.report.figures.style import NotebookFigure

        width, height = int(self._left[-1]) + self._width, self._top
        figure = NotebookFigure(figsize=(width / 100, height / 100), dpi=100)
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        for left, top, picture in self._pictures:
            extent = (left, left + self._width, top + self._height, top)
            axes.imshow(picture, extent=extent, interpolation="none", aspect="auto")
        for x, y, text, align in self._texts:
            axes.text(x, y, text, ha=align, va="center", color=INK, fontsize=_POINTS * self._unit)
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.axis("off")
        return figure

    def _name(self, name: str, middle: float) -> None:
        self._texts.append((self._left[0] - self._dots(_PAD), middle, name, "right"))

    def _dots(self, of_a_tile: float) -> int:
        return round(of_a_tile * self._unit)


def _drawn_size(size: tuple[int, ...]) -> tuple[int, int]:
    height, width = size
    shrink = min(1.0, MAX_PIXELS / max(height, width))
    return max(1, round(height * shrink)), max(1, round(width * shrink))


def _drawable(picture: Pixels) -> Pixels:
    """(H, W, 3), no larger than it is drawn."""
    from PIL import Image

    height, width = _drawn_size(picture.shape[1:])
    channels = np.broadcast_to(picture, (3, *picture.shape[1:])).transpose(1, 2, 0)
    if (height, width) == picture.shape[1:]:
        return channels
    whole = Image.fromarray(np.ascontiguousarray(channels))
    return np.asarray(whole.resize((width, height), Image.Resampling.BOX))


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


_COLUMNS = 12
_MOST_NEAREST = 4


def samples_figure(
    pixels: Pixels, labels: NDArray[np.int64] | None = None
) -> tuple["Figure", pd.DataFrame]:
    """A contact sheet of the first samples.

    Args:
        pixels: (N, C, H, W) uint8, C 1 or 3; the first `NUM_SHOWN` are shown.
        labels: (N,) their classes, shown under them; None where they have none.

    Returns:
        The figure, and one row a picture: `sample`, its `row` and `column` on the sheet, and its
        `label` where there are labels.
    """
    shown = pixels[:NUM_SHOWN]
    index = np.arange(len(shown))
    numbers = pd.DataFrame({"sample": index, "row": index // _COLUMNS, "column": index % _COLUMNS})
    if labels is not None:
        numbers["label"] = labels[:NUM_SHOWN]
    sheet = Sheet(shown.shape[2:], columns=min(_COLUMNS, len(shown)), apart=set())
    for start in range(0, len(shown), _COLUMNS):
        row = shown[start : start + _COLUMNS]
        sheet.pictures(f"{start}\u2013{start + len(row) - 1}", list(row))
        if labels is None:
            sheet.space(GAP)
        else:
            sheet.text("class", [str(label) for label in labels[start : start + len(row)]])
    return sheet.figure(), numbers


def nearest_figure(nearest: NearestImages) -> tuple["Figure", pd.DataFrame]:
    """Samples, each beside the reference images nearest to it, with their distances.

    Two samples stand in a row.

    Args:
        nearest: what to show.

    Returns:
        The figure, and one row a reference image: `sample`, `rank` from 1, `reference_id`,
        `distance` in feature space.
    """
    num_samples, num_nearest = nearest.distance.shape
    many = min(num_nearest, _MOST_NEAREST)
    numbers = pd.DataFrame(
        {
            "sample": np.repeat(nearest.sample, num_nearest),
            "rank": np.tile(np.arange(1, num_nearest + 1), num_samples),
            "reference_id": nearest.reference_id.flatten(),
            "distance": nearest.distance.flatten(),
        }
    )
    a_row = min(2, num_samples)
    sheet = Sheet(
        nearest.samples.shape[2:],
        columns=a_row * (many + 1),
        apart={1, many + 1, many + 2},
    )
    ranks = ["nearest", *(f"{rank}." for rank in range(2, many + 1))]
    sheet.text("", ["sample", *ranks] * a_row)
    for start in range(0, num_samples, a_row):
        these = range(start, min(start + a_row, num_samples))
        sheet.pictures(
            "", [of for k in these for of in (nearest.samples[k], *nearest.references[k, :many])]
        )
        sheet.text(
            "distance",
            [
                text
                for k in these
                for text in (
                    f"no. {nearest.sample[k]}",
                    *(f"{distance:#.4g}" for distance in nearest.distance[k, :many]),
                )
            ],
        )
    return sheet.figure(), numbers
