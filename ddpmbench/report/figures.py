"""The look and the parts of figures: panels, axes, histograms, sheets of pictures.

Panels can be set side by side or one below another. Texts and frames have the color `INK`, grids
`GRID`, data the colors of `COLORS`, and nothing has a background, so that a page can give each a
color of its own.
"""

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation
from numpy.typing import ArrayLike, NDArray

Drawn: TypeAlias = tuple[Figure, pd.DataFrame]
"""A figure, and the numbers behind it."""


class LogTicks(LogLocator):
    """Powers of ten on a long axis, their 1, 2 and 5 on a short one, even steps on a very short."""

    def tick_values(self, vmin: float, vmax: float) -> Any:  # noqa: ANN401, D102
        low, high = sorted((vmin, vmax))
        if not low > 0 or high >= 300 * low:
            return LogLocator().tick_values(vmin, vmax)
        if high >= 5 * low:
            return LogLocator(subs=(1.0, 2.0, 5.0)).tick_values(vmin, vmax)
        return MaxNLocator(6).tick_values(vmin, vmax)


class NotebookFigure(Figure):
    """A figure as IPython asks for it."""

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        kept: Any = {"dpi": 110, "facecolor": "white"}
        self.savefig(png, format="png", **kept)
        return png.getvalue()


INK, GRID = "#222222", "#e5e5e5"
# Okabe & Ito 2008; with the markers and dashes they differ in grey.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", "-.", ":")
NORMAL = 1.96
"""Standard errors to the half width of a 95 % interval."""

# A panel is as wide as a phone's screen, in points, so that there too its texts can be read.
_PANEL = (4.4, 3.2)
_FONT_SIZE = 9.5
_POINTS = 240  # about as many of a curve as a screen can tell apart
_LONGEST_NAME, _LONGEST_OF_TWO = 28, 18
_BELOW = 38  # points that the numbers and the name of an axis take
MOST_BINS = 60
_THUMBNAIL = 96  # pixels of the longer side of a picture: as many as a screen has for it

Pixels: TypeAlias = NDArray[np.uint8]
MAX_PIXELS = 48
"""Pictures with more to a side are drawn smaller on a sheet, so that a page of them can be sent."""

# Dots of 1/100 inch; all grow with the pictures where those are wider than a tile.
_TILE = 80
GAP, _LINE, _PAD, _MARGIN = 5, 17, 8, 92
"""Between pictures of a sheet; of a tile."""
_SHEET_TEXT = 7.5  # points


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Within, figures have the style of a page."""
    look: Any = {
        "font.size": _FONT_SIZE,
        "axes.titlesize": _FONT_SIZE + 0.5,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "axes.titlepad": 9,
        "axes.edgecolor": INK,
        "axes.linewidth": 0.6,
        "axes.labelcolor": INK,
        "axes.facecolor": "none",
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.facecolor": "none",
        "text.color": INK,
        "legend.frameon": False,
        "legend.fontsize": _FONT_SIZE - 0.5,
        "lines.linewidth": 1.5,
        "lines.markersize": 3.6,
        "image.composite_image": False,
    }
    with matplotlib.rc_context(look):
        yield


def panels(count: int) -> tuple[Figure, list[SubFigure]]:
    """A figure of equal panels side by side, each whole in itself."""
    width, height = _PANEL
    figure = NotebookFigure(figsize=(count * width, height), layout="constrained")
    return figure, list(figure.subfigures(1, count, squeeze=False)[0])


def axes_panels(count: int) -> tuple[Figure, list[Axes]]:
    """`panels` with one pair of axes in each."""
    figure, parts = panels(count)
    return figure, [part.subplots() for part in parts]


def finish(axes: Axes, title: str, *, x: str, y: str) -> None:
    """Title, units, and as little ink as they can be read with."""
    axes.set_title(title)
    axes.set(xlabel=x, ylabel=y)
    axes.tick_params(which="both", color=INK, labelcolor=INK, labelsize=_FONT_SIZE - 0.5)
    axes.tick_params(which="major", length=3, width=0.6)
    axes.tick_params(which="minor", length=1.5, width=0.4)
    axes.grid(axis="y", color=GRID, lw=0.7)


def points(
    axes: Axes,
    x: ArrayLike,
    y: ArrayLike,
    half_width: ArrayLike | None,
    k: int,
    **look: Any,  # noqa: ANN401
) -> None:
    """Points with 95 % intervals, in color and marker number k."""
    own: dict[str, Any] = {"color": COLORS[k % 6], "marker": MARKERS[k % 6], "ls": "none"}
    axes.errorbar(x, y, half_width, elinewidth=0.9, **own | look)


def interval(axes: Axes, k: int, value: float, half_widths: NDArray[np.float64]) -> None:
    """A point on line k, in its color and marker, with two 95 % intervals.

    `half_widths` are (2,) of a thin interval and of a thick one; NaN draws none.
    """
    color = COLORS[k % 6]
    for width, thick in zip(half_widths, (0.8, 2.4), strict=True):
        if not np.isnan(width):
            ends = (value - width, value + width)
            axes.plot(ends, (k, k), color=color, lw=thick, solid_capstyle="butt")
    axes.plot(value, k, color=color, marker=MARKERS[k % 6], ms=6, ls="none")


def curve(
    axes: Axes,
    x: ArrayLike,
    y: "pd.Series[float]",
    half_width: "pd.Series[float]",
    k: int,
    **look: Any,  # noqa: ANN401
) -> None:
    """A curve with its 95 % intervals as a band, in color number k."""
    color = COLORS[k % 6]
    axes.fill_between(x, y - half_width, y + half_width, color=color, alpha=0.2, lw=0)
    axes.plot(x, y, color=color, **look)


def log_axis(axes: Axes, *names: str) -> None:
    """Make axes logarithmic, with several numbers on each, written out."""
    for name in names:
        axes.set(**{f"{name}scale": "log"})
        axis = axes.xaxis if name == "x" else axes.yaxis
        axis.set_major_locator(LogTicks())
        axis.set_major_formatter(FuncFormatter(lambda value, _: written_out(value)))
        axis.set_minor_formatter(NullFormatter())


def legend_below(axes: Axes) -> None:
    """A legend under the name of the x axis, where nothing in it can be taken for data."""
    _, labels = axes.get_legend_handles_labels()
    below = ScaledTranslation(0, -_BELOW / 72, axes.figure.dpi_scale_trans)
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        bbox_transform=axes.transAxes + below,
        ncols=2 if max(map(len, labels), default=0) <= _LONGEST_OF_TWO else 1,
        borderaxespad=0,
    )


def shortened(name: str) -> str:
    """The end of a long name, which is where names of runs differ."""
    return name if len(name) <= _LONGEST_NAME else f"\u2026{name[1 - _LONGEST_NAME :]}"


def written_out(value: float) -> str:
    """A number as people write it: 10,000 and 0.0001."""
    return f"{value:,.10f}".rstrip("0").rstrip(".")


def note(axes: Axes, text: str, *, at: tuple[float, float], offset: tuple[float, float]) -> None:
    """A label beside the point `at`, in data; `offset` is in points, to the left from its end."""
    axes.annotate(
        text,
        at,
        offset,
        textcoords="offset points",
        fontsize=_FONT_SIZE - 0.5,
        ha="right" if offset[0] < 0 else "left",
        va="center",
    )


def shown(length: int) -> NDArray[np.int64]:
    """Indices of the points of a curve that a screen can tell apart, dense at both ends.

    The first is index 0; neighbors are no farther apart than a line of a figure is wide.
    """
    if length <= _POINTS:
        return np.arange(length)
    near = np.geomspace(1, length, _POINTS // 2)
    chosen: Sequence[NDArray[np.float64]] = (near, length + 1 - near, np.linspace(1, length, 80))
    return np.unique(np.concatenate(chosen).round().astype(np.int64)) - 1


def histogram(
    axes: Axes, values: NDArray[np.float64], middle: float, name: str
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Draw a histogram with a named line at the middle, and return the counts and the edges."""
    edges = np.histogram_bin_edges(values, "auto")
    if len(edges) > MOST_BINS + 1:
        edges = np.histogram_bin_edges(values, MOST_BINS)
    counts, edges = np.histogram(values, edges)
    axes.stairs(counts, edges, fill=True, color=COLORS[0], alpha=0.35)
    axes.stairs(counts, edges, color=COLORS[0], lw=1)
    axes.axvline(middle, color=INK, lw=0.9, ls="--")
    axes.set_ylim(0, 1.18 * counts.max())
    note(axes, name, at=(middle, 1.11 * counts.max()), offset=(5, 0))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    return counts, edges


def draw_pictures(
    part: SubFigure, title: str, pixels: NDArray[np.uint8], bits: NDArray[np.float64]
) -> None:
    """Pictures in two rows, each below its number of bits."""
    part.suptitle(title, x=0.02, ha="left", fontsize="medium", fontweight="bold")
    columns = min(4, max(1, (len(pixels) + 1) // 2))
    grid = part.subplots(2, columns, squeeze=False)
    for k, axes in enumerate(grid.flat):
        axes.set_axis_off()
        if k < len(pixels):
            axes.imshow(_thumbnail(pixels[k]), cmap="gray", vmin=0, vmax=255, interpolation="none")
            axes.set_title(f"{bits[k]:.2f}", loc="center", fontsize="small", weight="normal", pad=3)


def _thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, C) or (H, W), at most `_THUMBNAIL` high and wide."""
    from PIL import Image

    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return np.asarray(image)


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

    def figure(self) -> Figure:
        """The sheet as a figure."""
        width, height = int(self._left[-1]) + self._width, self._top
        figure = NotebookFigure(figsize=(width / 100, height / 100), dpi=100)
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        for left, top, picture in self._pictures:
            extent = (left, left + self._width, top + self._height, top)
            axes.imshow(picture, extent=extent, interpolation="none", aspect="auto")
        for x, y, text, align in self._texts:
            axes.text(
                x, y, text, ha=align, va="center", color=INK, fontsize=_SHEET_TEXT * self._unit
            )
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
