"""How figures look: panels that can be set side by side or one below another, and few inks.

Texts and frames have the color `INK`, grids `GRID`, data the colors of `COLORS`, and nothing has a
background, so that a page can give each a color of its own.
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
_POINTS = 240
_LONGEST_NAME, _LONGEST_OF_TWO = 28, 18
_BELOW = 38  # points that the numbers and the name of an axis take


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """What is made within has this style."""
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
