"""The scores of images as tables, and as they are printed."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.data_range import NATS_PER_BIT
from ddpmbench.likelihood.image_scores import ImageScores, auroc, mean_difference
from ddpmbench.report.card import Card, in_folder
from ddpmbench.report.nll_text import bound_line, conventions_line, images_line
from ddpmbench.report.text import (
    aligned,
    checkpoint_line,
    device_line,
    digits_by,
    fact_lines,
    with_interval,
)

SCHEMA = "ddpmbench.score/1"
SETS = ("A", "B")
"""The column `set`: the first image set, and the second."""
PER_IMAGE_COLUMNS = {
    "set": "str",
    "image_id": "str",
    **dict.fromkeys(("bits_per_dim", "standard_error", "code_length"), "float64"),
}
"""Of `per_image.csv`; `label` comes besides where an image set has labels."""
LABEL_COLUMN = {"label": "Int64"}
SIMPLE_IMAGES = (
    "raw bits/dim rank simple images as likely, also those of other data; less the code length "
    "they do so less (Serra et al. 2020)"
)


def per_image_frame(
    sets: Sequence[tuple[ImageSet, ImageScores, NDArray[np.float64]]],
) -> pd.DataFrame:
    """One row an image, in bits per dimension.

    Args:
        sets: images, their scores, and the code length of each in nats per dimension.
    """
    frames = []
    for name, (images, scores, lengths) in zip(SETS, sets, strict=False):
        columns: dict[str, Any] = {
            "set": name,
            "image_id": list(map(str, images.ids)),
            "bits_per_dim": scores.total / NATS_PER_BIT,
            "standard_error": scores.standard_error / NATS_PER_BIT,
            "code_length": lengths / NATS_PER_BIT,
        }
        if any(of.labels is not None for of, _, _ in sets):
            labels = [pd.NA] * len(images) if images.labels is None else images.labels
            columns["label"] = pd.array(labels, dtype="Int64")
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def set_record(
    images: ImageSet, scores: ImageScores, lengths: NDArray[np.float64]
) -> dict[str, Any]:
    """An image set in `summary.json`; see `schema.ScoredSet`."""
    population = scores.half_width_population
    return {
        "bits_per_dim": float(scores.total.mean()) / NATS_PER_BIT,
        "half_width": scores.half_width / NATS_PER_BIT,
        "half_width_population": None if population is None else population / NATS_PER_BIT,
        **{
            name: float(getattr(scores, name).mean()) / NATS_PER_BIT
            for name in ("prior", "kl", "decoder")
        },
        "image_standard_error": math.sqrt(float(scores.variance.mean())) / NATS_PER_BIT,
        "code_length": float(lengths.mean()) / NATS_PER_BIT,
        "num_images": len(images),
        "data": images.record,
    }


def comparison_record(per_image: pd.DataFrame) -> dict[str, Any]:
    """`comparison` of `summary.json`: the second set beside the first."""
    first, second = (per_image[per_image.set == name] for name in SETS)
    raw = [of.bits_per_dim.to_numpy() for of in (first, second)]
    corrected = [(of.bits_per_dim - of.code_length).to_numpy() for of in (first, second)]
    return {
        **dataclasses.asdict(mean_difference(*raw)),
        "auroc": dataclasses.asdict(auroc(*raw)),
        "auroc_corrected": dataclasses.asdict(auroc(*corrected)),
    }


def printed_scores(summary: dict[str, Any], per_image: pd.DataFrame, output_format: str) -> str:
    """The result of `score` for standard output.

    Args:
        summary: the object of `summary.json`.
        per_image: one row an image.
        output_format: "table" for reading, "json" for the object itself, "csv" for a row an image,
            "quiet" for the mean of each set, a line each.
    """
    match output_format:
        case "json":
            return json.dumps(summary, indent=2)
        case "csv":
            return per_image.to_csv(index=False).rstrip()
        case "quiet":
            return "\n".join(repr(of["bits_per_dim"]) for of in summary["sets"])
    rows = [["set", "images", "bits/dim", "population", "an image", "code length"]]
    for name, of in zip(SETS, summary["sets"], strict=False):
        bound = with_interval(of["bits_per_dim"], of["half_width"])
        widths = (of["half_width_population"], of["image_standard_error"])
        rows.append(
            [
                name,
                f"{of['num_images']:,}",
                bound,
                *("unknown" if w is None else f"+- {w:,.{digits_by(w)}f}" for w in widths),
                f"{of['code_length']:.4f}",
            ]
        )
    legend = (
        "+- 95 %: of the mean for these images, and for their population; an image: standard error"
    )
    lines = [_headline(summary), "", *aligned(rows), legend, ""]
    if summary["comparison"] is not None:
        lines += [*fact_lines(_compared(summary["comparison"]).items()), SIMPLE_IMAGES, ""]
    return "\n".join([*lines, *fact_lines(_facts(summary).items())])


def score_card(summary: Mapping[str, Any], folder: Path | None) -> Card:
    """What Python shows of the scores."""
    record = dict(summary)
    numbers = {
        f"set {name}": bound_line(of["bits_per_dim"], of["half_width"])
        for name, of in zip(SETS, record["sets"], strict=False)
    }
    if record["comparison"] is not None:
        numbers |= _compared(record["comparison"])
    return Card(_headline(record), numbers, in_folder(_facts(record), folder))


def _headline(summary: Mapping[str, Any]) -> str:
    first = summary["sets"][0]
    return bound_line(first["bits_per_dim"], first["half_width"])


def _compared(comparison: Mapping[str, Any]) -> dict[str, str]:
    difference = with_interval(comparison["difference"], comparison["half_width"], sign="+")
    p_value = comparison["p_value"]
    p_words = "unknown" if p_value is None else f"{p_value:.2g}"
    return {
        "B - A": f"{difference} bits/dim, 95 %; p = {p_words} (Welch)",
        "AUROC": f"{_area(comparison['auroc'])} of B against A by bits/dim",
        "corrected": f"{_area(comparison['auroc_corrected'])} by bits/dim less the code length",
    }


def _area(area: Mapping[str, float]) -> str:
    return f"{area['value']:.3f} ({area['lower']:.3f} to {area['upper']:.3f})"


def _facts(summary: dict[str, Any]) -> dict[str, str]:
    sets, conventions = summary["sets"], summary["conventions"]
    return {
        **{
            "images" if len(sets) == 1 else f"images {name}": images_line(of)
            for name, of in zip(SETS, sets, strict=False)
        },
        "checkpoint": checkpoint_line(summary["checkpoint"]),
        "process": f"T = {summary['num_timesteps']}, {conventions['schedule']}",
        "conventions": conventions_line(conventions),
        "evaluations": f"{summary['evaluations_per_image']} an image, "
        f"{summary['num_evaluations']:,} in all, seed {summary['seed']}",
        "device": f"{device_line(summary)}, {summary['seconds']:.0f} s",
    }
