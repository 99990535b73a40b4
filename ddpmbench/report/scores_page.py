"""The page of a run of `score`: how the scores of images are distributed, and two sets compared."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from ddpmbench.report.card import Draw
from ddpmbench.report.contents import read_environment, read_extremes
from ddpmbench.report.figures.images import extremes_figure, scores_figure
from ddpmbench.report.html import environment_values, panels, rendered
from ddpmbench.report.nll_text import images_name
from ddpmbench.report.schema import sanity_check_warning
from ddpmbench.report.scores import (
    EXTREMES,
    NEAREST,
    SETS,
    SIMPLE_IMAGES,
    p_words,
    score_facts,
    score_warnings,
    verdict,
)

FIGURES = {
    "scores": "Distribution of the bits per image, raw and less the code length",
    "extremes": "Images with the fewest and the most bits",
}
"""Captions of the figures, by name."""


def score_figures(
    per_image: pd.DataFrame, summary: Mapping[str, Any], folder: Path | None
) -> dict[str, Draw]:
    """The figures of a run of `score` by name.

    Args:
        per_image: see `evaluate.score.ScoreReport`.
        summary: the object of `summary.json`.
        folder: with the pictures; None for a run kept in memory.

    Raises:
        InputError: the pictures are damaged.
    """
    figures: dict[str, Draw] = {"scores": partial(scores_figure, per_image)}
    if folder is None:
        return figures
    extremes = {
        name: read_extremes(folder / file, of["num_images"])
        for name, file, of in zip(SETS, EXTREMES, summary["sets"], strict=False)
    }
    if shown := {name: of for name, of in extremes.items() if of is not None}:
        figures["extremes"] = partial(extremes_figure, per_image, shown)
    return figures


def score_page(summary: Mapping[str, Any], folder: Path, svgs: Mapping[str, str]) -> str:
    """The page of a finished run of `score`.

    Args:
        summary: the object of `summary.json`.
        folder: the run folder.
        svgs: its figures by name.
    """
    comparison, sets = summary["comparison"], summary["sets"]
    names = [images_name(of) for of in sets]
    return rendered(
        "score.html.j2",
        summary=summary,
        sets=list(zip(SETS, sets, names, strict=False)),
        comparison=comparison,
        notes=[*filter(None, [sanity_check_warning(summary)]), *score_warnings(summary)],
        heading=f"{summary['checkpoint']['source']} on {' and '.join(names)}",
        verdict=None if comparison is None else verdict(comparison),
        p_words=p_words,
        rows=[] if comparison is None else _rows(comparison),
        nearest=NEAREST,
        simple_images=SIMPLE_IMAGES,
        facts=score_facts(dict(summary)),
        captions=FIGURES,
        figures={
            name: panels(svgs[name], name, label) if name in svgs else None
            for name, label in FIGURES.items()
        },
        **environment_values(read_environment(folder)),
    )


def _rows(comparison: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any] | None, Any]]:
    """One a score: what it is, the difference of the means, and the area under the ROC curve."""
    nearest = "distance to the nearest other image of A, without the model"
    corrected = comparison["corrected"]
    return [
        ("bits/dim", comparison, comparison["auroc"]),
        ("bits/dim less the code length", corrected, comparison["auroc_corrected"]),
        (nearest, None, comparison["auroc_nearest"]),
    ]
