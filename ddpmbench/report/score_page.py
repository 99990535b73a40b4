"""The page of the scores of images, and its figures."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from ddpmbench.execution.stored_images import Extremes
from ddpmbench.report.display import Draw
from ddpmbench.report.figures import (
    COLORS,
    MOST_BINS,
    Drawn,
    axes_panels,
    draw_pictures,
    drawing,
    finish,
    legend_below,
    panels,
)
from ddpmbench.report.folder_contents import read_environment, read_extremes, sanity_check_warning
from ddpmbench.report.html import drawn, rendered
from ddpmbench.report.score_text import (
    EXTREMES,
    NEAREST,
    SETS,
    SIMPLE_IMAGES,
    p_words,
    score_facts,
    score_warnings,
    verdict,
)
from ddpmbench.report.text import images_name

FIGURES = {
    "scores": "Distribution of the bits per image, raw and less the code length",
    "extremes": "Images with the fewest and the most bits",
}
"""Captions of the figures, by name."""


def score_figures(
    per_image: pd.DataFrame, summary: Mapping[str, Any], folder: Path | None
) -> dict[str, Draw]:
    """The figures of a run of `score` by name; a run in memory has no pictures.

    Raises:
        InputError: the pictures are damaged.
    """
    figures: dict[str, Draw] = {"scores": partial(scores_figure, per_image)}
    if folder is None:
        return figures
    extremes = {
        name: read_extremes(folder / file, scored["num_images"])
        for name, file, scored in zip(SETS, EXTREMES, summary["sets"], strict=False)
    }
    if shown := {name: pictures for name, pictures in extremes.items() if pictures is not None}:
        figures["extremes"] = partial(extremes_figure, per_image, shown)
    return figures


def score_page(summary: Mapping[str, Any], folder: Path, svgs: Mapping[str, str]) -> str:
    """The page of a finished run of `score`."""
    comparison, sets = summary["comparison"], summary["sets"]
    names = [images_name(scored) for scored in sets]
    return rendered(
        "score.html.j2",
        summary=summary,
        sets=list(zip(SETS, sets, names, strict=False)),
        comparison=comparison,
        notes=[sanity_check_warning(summary), *score_warnings(summary)],
        heading=f"{summary['checkpoint']['source']} on {' and '.join(names)}",
        verdict=None if comparison is None else verdict(comparison),
        p_words=p_words,
        rows=[] if comparison is None else _rows(comparison),
        nearest=NEAREST,
        simple_images=SIMPLE_IMAGES,
        facts=score_facts(summary),
        environment=read_environment(folder),
        **drawn(svgs, FIGURES),
    )


def _rows(comparison: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any] | None, Any]]:
    """One row per score: name, difference of the means, and area under the ROC curve."""
    nearest = "distance to the nearest other image of A, without the model"
    corrected = comparison["corrected"]
    return [
        ("bits/dim", comparison, comparison["auroc"]),
        ("bits/dim less the code length", corrected, comparison["auroc_corrected"]),
        (nearest, None, comparison["auroc_nearest"]),
    ]


@drawing()
def scores_figure(per_image: pd.DataFrame) -> Drawn:
    """Histograms of the scores of each image set, raw and less the code length.

    Returns:
        The figure, and one row per set and bin: `score`, `set`, `bits_from`, `bits_to`,
        `num_images`.
    """
    of_each = {
        "bits_per_dim": ("Bound of each image", per_image.bits_per_dim),
        "corrected": ("Less the code length", per_image.bits_per_dim - per_image.code_length),
    }
    figure, several = axes_panels(len(of_each))
    numbers = []
    for axes, (score, (title, values)) in zip(several, of_each.items(), strict=True):
        edges = np.histogram_bin_edges(values, min(MOST_BINS, max(5, len(values) // 10)))
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
        The figure, and one row per picture: `set`, `end`, `image_id`, `bits_per_dim`.
    """
    figure, parts = panels(2 * len(extremes))
    ends = [(name, *end) for name, shown in extremes.items() for end in shown.ends]
    numbers = []
    for part, (name, end, index, pixels) in zip(parts, ends, strict=True):
        rows = per_image[per_image.set == name].iloc[index]
        draw_pictures(part, f"Set {name}, {end} bits", pixels, rows.bits_per_dim.to_numpy())
        numbers.append(rows[["set", "image_id", "bits_per_dim"]].assign(end=end))
    columns = ["set", "end", "image_id", "bits_per_dim"]
    return figure, pd.concat(numbers, ignore_index=True)[columns]
