"""Samples on a contact sheet, and beside the reference images that are nearest to them."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ddpmbench.report.fidelity import NUM_SHOWN, NearestImages
from ddpmbench.report.figures.sheet import GAP, Pixels, Sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    num_samples, found = nearest.distance.shape
    many = min(found, _MOST_NEAREST)
    numbers = pd.DataFrame(
        {
            "sample": np.repeat(nearest.sample, found),
            "rank": np.tile(np.arange(1, found + 1), num_samples),
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
