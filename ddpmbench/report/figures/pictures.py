"""Sheets of pictures in rows with words beside and under them, sharp in svg and png."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ddpmbench.report.fidelity import NUM_SHOWN, NearestImages
from ddpmbench.report.figures.style import INK, Drawn, NotebookFigure
from ddpmbench.samples.progressive import Interpolation, ProgressiveDecoding, ProgressiveGeneration

Pixels = NDArray[np.uint8]

MAX_PIXELS = 48
"""Pictures with more to a side are drawn smaller, so that a page of them can be sent."""

# Dots of 1/100 inch; all grow with the pictures where those are wider than a tile.
_TILE = 80
GAP, _LINE, _PAD, _MARGIN = 5, 17, 8, 92
"""Between pictures; of a tile."""
_POINTS = 7.5  # of text
_COLUMNS, _MOST_NEAREST = 12, 4


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


def samples_figure(pixels: Pixels, labels: NDArray[np.int64] | None = None) -> Drawn:
    """A contact sheet of the first `NUM_SHOWN` samples, with their classes if they have any.

    Args:
        pixels: (N, C, H, W) uint8, C 1 or 3.
        labels: (N,) the classes.

    Returns:
        The figure, and one row a picture: `sample`, its `row` and `column`, and its `label`.
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


def nearest_figure(nearest: NearestImages) -> Drawn:
    """Samples, each beside the reference images nearest to it, with their distances; two a row.

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
            "",
            [row for k in these for row in (nearest.samples[k], *nearest.references[k, :many])],
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


def decoding_figure(decoding: ProgressiveDecoding, curve: pd.DataFrame) -> Drawn:
    """What a receiver holds and shows after some of T reverse steps, an image in two rows.

    Args:
        decoding: the pictures.
        curve: see `report.tables.rate_distortion`.

    Returns:
        The figure, and one row a picture: `image_id`, `t`, `num_decoded_steps`,
        `rate_bits_per_dim` of all images and `rmse` of this one, on 0..255.

    Source: Ho, Jain & Abbeel 2020, section 4.3.
    """
    num_images, num_steps = decoding.rmse.shape
    rates = curve.rate_bits_per_dim.to_numpy()[decoding.t - 1]
    numbers = pd.DataFrame(
        {
            "image_id": np.repeat(decoding.image_id, num_steps),
            "t": np.tile(decoding.t, num_images),
            "num_decoded_steps": np.tile(_num_decoded_steps(decoding), num_images),
            "rate_bits_per_dim": np.tile(rates, num_images),
            "rmse": decoding.rmse.flatten(),
        }
    )
    sheet = Sheet(decoding.x_start.shape[2:], columns=num_steps + 1, apart={num_steps})
    sheet.text("steps", [*_steps(decoding), "image"])
    sheet.text("rate, bits/dim", [f"{rate:.5f}" for rate in rates])
    for n in range(num_images):
        sheet.space(GAP)
        sheet.pictures("x_t", list(decoding.x_t[n]))
        sheet.space(GAP // 2)
        sheet.pictures("x_0 predicted", [*decoding.pred_x_start[n], decoding.x_start[n]])
        sheet.text("RMSE", [f"{value:.1f}" for value in decoding.rmse[n]])
    return sheet.figure(), numbers


def generation_figure(
    generation: ProgressiveGeneration,
) -> Drawn:
    """What the network makes of samples after some of T reverse steps, a sample a row.

    Returns:
        The figure, and one row a picture but the samples: `sample`, `t`, `num_decoded_steps`, and
        `rmse_to_sample` of the two pictures, on 0..255.

    Source: Ho, Jain & Abbeel 2020, figure 6.
    """
    num_samples, num_steps = generation.pred_x_start.shape[:2]
    numbers = pd.DataFrame(
        {
            "sample": np.repeat(np.arange(num_samples), num_steps),
            "t": np.tile(generation.t, num_samples),
            "num_decoded_steps": np.tile(_num_decoded_steps(generation), num_samples),
            "rmse_to_sample": _rmse(generation.pred_x_start, generation.samples[:, None]).flatten(),
        }
    )
    sheet = Sheet(generation.samples.shape[2:], columns=num_steps + 1, apart={num_steps})
    sheet.text("steps", [*_steps(generation), "sample"])
    for n in range(num_samples):
        sheet.pictures(f"sample {n}", [*generation.pred_x_start[n], generation.samples[n]])
        sheet.space(GAP)
    return sheet.figure(), numbers


def interpolation_figure(mixed: Interpolation) -> Drawn:
    """What lies between two images, a pair a row, with the images at its ends.

    Returns:
        The figure, and one row a picture between: `first_image_id`, `second_image_id`, `t` at
        which they were mixed, `weight` of the second, and `rmse_to_first` and `rmse_to_second`,
        on 0..255.

    Source: Ho, Jain & Abbeel 2020, figure 8.
    """
    num_pairs, num_weights = mixed.decoded.shape[:2]
    numbers = pd.DataFrame(
        {
            "first_image_id": np.repeat(mixed.image_id[:, 0], num_weights),
            "second_image_id": np.repeat(mixed.image_id[:, 1], num_weights),
            "t": mixed.depth,
            "weight": np.tile(mixed.weight, num_pairs),
            "rmse_to_first": _rmse(mixed.decoded, mixed.x_start[:, :1]).flatten(),
            "rmse_to_second": _rmse(mixed.decoded, mixed.x_start[:, 1:]).flatten(),
        }
    )
    columns = num_weights + 2
    sheet = Sheet(mixed.x_start.shape[3:], columns=columns, apart={1, columns - 1})
    title = f"mixed at t = {mixed.depth} of {mixed.num_timesteps}, weight of the second image"
    sheet.text("", [""] * (columns // 2) + [title])
    sheet.text("", ["image", *(f"{weight:.1f}" for weight in mixed.weight), "image"])
    for pair, ends, between in zip(mixed.pair, mixed.x_start, mixed.decoded, strict=True):
        sheet.pictures(f"images {pair[0]}, {pair[1]}", [ends[0], *between, ends[1]])
        sheet.space(GAP)
    return sheet.figure(), numbers


def _num_decoded_steps(pictures: ProgressiveDecoding | ProgressiveGeneration) -> NDArray[np.int64]:
    return pictures.num_timesteps + 1 - pictures.t


def _steps(pictures: ProgressiveDecoding | ProgressiveGeneration) -> list[str]:
    return [f"{k} of {pictures.num_timesteps}" for k in _num_decoded_steps(pictures)]


def _rmse(pictures: Pixels, others: Pixels) -> NDArray[np.float64]:
    """Root mean squared difference of (..., C, H, W) pictures, on 0..255."""
    squares = np.square(pictures.astype(np.float64) - others)
    rmse: NDArray[np.float64] = np.sqrt(squares.mean(axis=(-3, -2, -1)))
    return rmse
