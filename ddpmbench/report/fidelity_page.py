"""The page of a run of `fid`: its scores, and its samples."""

from collections.abc import Mapping
from typing import Any

from ddpmbench.report.card import Draw
from ddpmbench.report.fidelity import FidelityContents, reference_name
from ddpmbench.report.figures.fidelity import against_n_figure
from ddpmbench.report.figures.images import per_image_figure
from ddpmbench.report.figures.pictures import nearest_figure, samples_figure
from ddpmbench.report.html import environment_values, panels, rendered
from ddpmbench.report.metrics import (
    AGAINST_REFERENCE,
    METRICS,
    WITHOUT_REFERENCE,
    Score,
    label,
)
from ddpmbench.report.samples_text import comparable_only, fidelity_facts, headline, splits_line
from ddpmbench.report.schema import sanity_check_warning
from ddpmbench.report.text import joined

FIGURES = {
    "fid_against_n": "Distance over the number of samples, extrapolated to infinitely many",
    "per_image": "Distance to the nearest reference image, and entropy of the predicted classes",
}
"""Captions of the figures, by name."""

STRIPS = {
    "nearest": (
        "Nearest reference images",
        "Nearest in feature space, with the distances there. A sample that equals its neighbor may "
        "be memorized.",
    ),
    "samples": ("First samples", "In order, uncurated."),
}
"""Optional strips of pictures, by name: title and text."""


def fid_figures(contents: FidelityContents) -> dict[str, Draw]:
    """The figures of a run of `fid` by name, without those that lack data."""
    tables = contents.tables
    summary, against_n = tables.summary, tables.against_n
    figures: dict[str, Draw] = {}
    if len(against_n):
        ends = {
            name: (of["fid_infinity"], of["fid_infinity_half_width"])
            for of in summary["references"]
            for name in (of["source"], reference_name(of))
        }
        figures["fid_against_n"] = lambda: against_n_figure(against_n, ends, summary["name"])
    if (histograms := per_image_figure(tables.per_image)) is not None:
        figures["per_image"] = lambda: histograms
    if (nearest := contents.nearest) is not None:
        figures["nearest"] = lambda: nearest_figure(nearest)
    if (samples := contents.samples) is not None:
        figures["samples"] = lambda: samples_figure(samples.pixels, samples.labels)
    return figures


def fid_page(contents: FidelityContents, svgs: Mapping[str, str]) -> str:
    """The page of a finished run of `fid`.

    Args:
        contents: what its folder holds.
        svgs: its figures by name, of `FIGURES` and `STRIPS`; those that are missing are left out.
    """
    summary = contents.tables.summary
    references = summary["references"]
    only = comparable_only(summary)
    return rendered(
        "fid.html.j2",
        summary=summary,
        headline=headline(summary),
        heading=_heading(summary),
        notes=[line for line in (only, sanity_check_warning(summary)) if line]
        + summary["warnings"],
        facts=joined(fidelity_facts(summary)),
        references=[reference_name(of) for of in references],
        rows=_rows(summary),
        explanations=_explanations(summary),
        points=contents.tables.against_n.to_dict("records"),
        figures={
            name: panels(svgs[name], name, text) if name in svgs else None
            for name, text in FIGURES.items()
        },
        captions=FIGURES,
        strips=[
            {"title": title, "text": text, "figure": panels(svgs[name], name, title)}
            for name, (title, text) in STRIPS.items()
            if name in svgs
        ],
        **environment_values(contents.environment),
    )


def _heading(summary: Mapping[str, Any]) -> str:
    made_by = summary["checkpoint"] or summary["samples"]
    return f"{made_by['source']} against {reference_name(summary['references'][0])}"


def _rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One a metric: against each reference, then those without one."""
    name = summary["name"]
    splits = splits_line(summary["protocol"])
    return [
        {
            "label": label(metric, name),
            "own": metric == "fid",
            "scores": [
                Score.read(metric, of, name)
                for of in (summary["references"] if METRICS[metric].has_reference else [summary])
            ],
            "meaning": METRICS[metric].meaning.format(splits=splits),
        }
        for metric in (*AGAINST_REFERENCE, *WITHOUT_REFERENCE)
    ]


def _explanations(summary: Mapping[str, Any]) -> list[str]:
    """Why an interval of precision or recall is missing or a value is 0."""
    values, neighbors = summary["references"], summary["protocol"]["neighbors"]
    texts = []
    if any(of["recall"] is not None and of["recall_half_width"] is None for of in values):
        texts.append(
            "Recall has no interval with so few samples: it is estimated by leaving out groups of "
            f"samples, and each group needs more than {neighbors} neighbors."
        )
    if any(of["precision"] == 0 or of["recall"] == 0 for of in values):
        texts.append(
            "A precision (recall) of 0 means that no sample (reference image) lies within the "
            f"distance to its neighbor number {neighbors} of an image of the other set. With few "
            "images these balls do not cover the set, so that even a good model scores 0."
        )
    return texts
