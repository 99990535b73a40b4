"""Pictures in rows with words beside and under them, sharp in svg and png."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ddpmbench.report.figures.style import INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
        from ddpmbench.report.figures.notebook import NotebookFigure

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
