"""The figures of a run of `fid`."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from ddpmbench.data.images import ImageSet
from ddpmbench.execution.samples import SAMPLES, read_samples
from ddpmbench.execution.stored_images import NEAREST, NearestImages
from ddpmbench.report.figures import (
    COLORS,
    DASHES,
    NORMAL,
    Drawn,
    Sheet,
    axes_panels,
    drawing,
    finish,
    histogram,
    legend_below,
    points,
    shortened,
)
from ddpmbench.report.sample import NUM_SHOWN

Ends = Mapping[str, tuple[float | None, float | None]]
_MOST_NEAREST = 4
PER_SAMPLE = {
    "nearest_reference_distance": ("Distance to the nearest reference", "in feature space"),
    "class_entropy": ("Entropy of the class", "nats"),
}


def pictures_of(
    folder: Path | None, num_samples: int
) -> tuple[NearestImages | None, ImageSet | None]:
    """The nearest images and the first samples in a folder; None where there are none to draw.

    Raises:
        InputError: a file is damaged.
    """
    nearest, samples = None, None
    if folder is not None and (folder / NEAREST).exists():
        nearest = NearestImages.read(folder / NEAREST)
    if folder is not None and (folder / SAMPLES).exists():
        samples = read_samples(folder / SAMPLES, min(NUM_SHOWN, num_samples))
    # Images with other channels cannot be drawn.
    return (
        nearest if nearest is not None and nearest.samples.shape[1] in (1, 3) else None,
        samples if samples is not None and samples.pixels.shape[1] in (1, 3) else None,
    )


@drawing()
def against_n_figure(distances: pd.DataFrame, ends: Ends, name: str) -> Drawn:
    """The distance against 1/N with the line to its end at 1/N = 0, a color per reference.

    Args:
        distances: `reference`, `num_generated`, `fid`, `standard_error` (empty where not known).
        ends: by reference, the distance at infinitely many samples and its half width, or None.
        name: of the distance, "FID" or "FD[...]".

    Returns:
        The figure, and one row per point: the first three columns, `half_width`, the `line` there,
        and the line's end, `fid_infinity` and `fid_infinity_half_width`.

    Source: Chong & Forsyth 2020.
    """
    figure, (axes,) = axes_panels(1)
    numbers = []
    for k, (reference, own) in enumerate(distances.groupby("reference", sort=False)):
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
    finish(axes, f"{name} over the number of samples", x="samples N (1/N scale)", y=name)
    return figure, whole


def _slope(
    inverse: NDArray[np.float64],
    fid: NDArray[np.float64],
    end: float,
) -> float:
    """Of the line of least squares through its known end: that of the fit that had this end."""
    return float(inverse @ (fid - end) / (inverse @ inverse))


def _draw(axes: Axes, table: pd.DataFrame, k: int) -> None:
    first, inverse = table.iloc[0], 1 / table.num_generated
    error = table.half_width.to_numpy() if table.half_width.notna().any() else None
    points(axes, inverse, table.fid, error, k, label=shortened(str(first.reference)))
    end, half_width = first.fid_infinity, first.fid_infinity_half_width
    if np.isnan(end):
        return
    axes.plot([0, inverse.iloc[0]], [end, first.line], color=COLORS[k % 6], ls=DASHES[k % 4], lw=1)
    # Hollow: it is no measurement.
    hollow = {"mfc": "none", "ms": 6, "capsize": 3, "clip_on": False}
    points(axes, 0, end, None if np.isnan(half_width) else half_width, k, **hollow)


def _inverse_axis(axes: Axes, num_generated: NDArray[np.int64]) -> None:
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


@drawing()
def per_image_figure(per_image: pd.DataFrame) -> Drawn:
    """Histograms over the samples of what is known of each; see `report.fid.PER_IMAGE_COLUMNS`.

    Returns:
        The figure, and one row per bin: `measure`, `bin_from`, `bin_to`, `num_images`.
    """
    known = {name: values for name in PER_SAMPLE if len(values := per_image[name].dropna())}
    figure, several = axes_panels(len(known))
    numbers = []
    for axes, (name, values) in zip(several, known.items(), strict=True):
        median = float(values.median())
        counts, edges = histogram(axes, values.to_numpy(), median, f"median {median:.3g}")
        title, unit = PER_SAMPLE[name]
        finish(axes, title, x=unit, y="samples")
        numbers.append(
            pd.DataFrame(
                {"measure": name, "bin_from": edges[:-1], "bin_to": edges[1:], "num_images": counts}
            )
        )
    return figure, pd.concat(numbers, ignore_index=True)


def nearest_figure(nearest: NearestImages) -> Drawn:
    """Samples, each beside the reference images nearest to it, with their distances; two per row.

    Returns:
        The figure, and one row per reference image: `sample`, `rank` from 1, `reference_id`,
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
    ranks = ["nearest", "2nd", "3rd", "4th"][:many]
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
