"""The scores of images: report, records, printed result and figures."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.data_range import NATS_PER_BIT
from ddpmbench.execution.finished_runs import PER_IMAGE
from ddpmbench.execution.stored_images import Extremes, read_extremes
from ddpmbench.likelihood.image_scores import (
    Auroc,
    ImageScores,
    MeanDifference,
    auroc,
    mean_difference,
)
from ddpmbench.report.display import Card, Draw, in_folder
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
from ddpmbench.report.stored import PageReport, Table
from ddpmbench.report.text import (
    aligned,
    bound_line,
    counted,
    device_line,
    fact_lines,
    images_line,
    images_name,
    model_facts,
    plus_minus,
    printed,
    raw_pixels_warning,
    sanity_check_warning,
    with_interval,
)

SETS = ("A", "B")
"""The column `set`: the first image set, and the second."""
EXTREMES = ("extremes.npz", "extremes_of_second.npz")
"""The images with the fewest and the most bits of each set."""
PER_IMAGE_COLUMNS = {
    "set": "str",
    "image_id": "str",
    **dict.fromkeys(("bits_per_dim", "standard_error", "code_length"), "float64"),
    "nearest_distance": "float64",
    "label": "Int64",
}
"""Columns of `per_image.csv`; the last but one if there are two image sets, the last if one has
labels."""
_LEAST_P = 1e-99  # smaller p-values are shown as below it
NEAREST = "mean RMSE of the pixels, on 0..255, to the nearest other image of A"
GAP, DIFFERENCE = "generalization gap", "difference"
"""Names of the difference of the means: the first if the first set is the training set."""
SIMPLE_IMAGES = (
    "raw bits/dim rank simple images as likely, even those of other data (Nalisnick et al. 2019); "
    "subtracting the code length reduces that (Serra et al. 2020)"
)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ScoreReport(PageReport):
    """A bound for every image.

    Attributes:
        summary: the object of `summary.json`.
        per_image: one row per image: `set` (A, or B for the second set), `image_id`,
            `bits_per_dim`, its `standard_error`, `code_length` in bits per dimension; for two sets
            `nearest_distance`, RMSE of the pixels on 0..255 to the nearest other image of A; and
            `label` where there are labels.
        folder: the run folder; None if the run was kept in memory.
    """

    SCHEMA = "ddpmbench.score/1"
    TABLES: ClassVar = {
        "per_image": Table(PER_IMAGE, PER_IMAGE_COLUMNS, optional=("nearest_distance", "label"))
    }
    TEMPLATE = "score.html.j2"
    FIGURES: ClassVar = {
        "scores": "Distribution of the bits per image, raw and less the code length",
        "extremes": "Images with the fewest and the most bits",
    }

    summary: dict[str, Any]
    per_image: pd.DataFrame
    folder: Path | None

    def _card(self) -> Card:
        summary = self.summary
        numbers = {
            f"set {name}": bound_line(scored["bits_per_dim"], scored["half_width"])
            for name, scored in zip(SETS, summary["sets"], strict=False)
        }
        if summary["comparison"] is not None:
            numbers |= compared(summary["comparison"])
        return Card(headline(summary), numbers, in_folder(score_facts(summary), self.folder))

    def _figures(self) -> Mapping[str, Draw]:
        figures: dict[str, Draw] = {"scores": partial(scores_figure, self.per_image)}
        if self.folder is None:
            return figures
        extremes = {
            name: read_extremes(self.folder / file)
            for name, file, _ in zip(SETS, EXTREMES, self.summary["sets"], strict=False)
        }
        shown = {name: pictures for name, pictures in extremes.items() if pictures is not None}
        if shown:
            figures["extremes"] = partial(extremes_figure, self.per_image, shown)
        return figures

    def _page(self) -> dict[str, Any]:
        summary, comparison, sets = self.summary, self.summary["comparison"], self.summary["sets"]
        names = [images_name(scored) for scored in sets]
        return {
            "summary": summary,
            "sets": list(zip(SETS, sets, names, strict=False)),
            "comparison": comparison,
            "notes": [sanity_check_warning(summary), *score_warnings(summary)],
            "heading": f"{summary['checkpoint']['source']} on {' and '.join(names)}",
            "verdict": None if comparison is None else verdict(comparison),
            "p_words": p_words,
            "rows": [] if comparison is None else _rows(comparison),
            "nearest": NEAREST,
            "simple_images": SIMPLE_IMAGES,
            "facts": score_facts(summary),
        }


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
    """An image set with the scores of each image.

    Attributes:
        images: the set.
        scores: the bound of each image.
        code_length: (N,) of each, nats per dimension.
        nearest_distance: (N,) to the nearest other image of the first set, NaN without one; None in
            a run of one set.
    """

    images: ImageSet
    scores: ImageScores
    code_length: NDArray[np.float64]
    nearest_distance: NDArray[np.float64] | None


def per_image_frame(sets: Sequence[Scored]) -> pd.DataFrame:
    """One row per image, in bits per dimension."""
    frames = []
    for name, scored in zip(SETS, sets, strict=False):
        images = scored.images
        columns: dict[str, Any] = {
            "set": name,
            "image_id": list(map(str, images.ids)),
            "bits_per_dim": scored.scores.total / NATS_PER_BIT,
            "standard_error": scored.scores.standard_error / NATS_PER_BIT,
            "code_length": scored.code_length / NATS_PER_BIT,
        }
        if scored.nearest_distance is not None:
            columns["nearest_distance"] = scored.nearest_distance
        if any(one.images.labels is not None for one in sets):
            labels = [pd.NA] * len(images) if images.labels is None else images.labels
            columns["label"] = pd.array(labels, dtype="Int64")
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def set_record(scored: Scored) -> dict[str, Any]:
    """An image set in `summary.json`: means over its images.

    `nearest_distance` is None in a run of one set, and where the first set has one image.
    """
    scores, nearest = scored.scores, scored.nearest_distance
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
        "code_length": float(scored.code_length.mean()) / NATS_PER_BIT,
        "nearest_distance": None if nearest is None else _known(float(nearest.mean())),
        "num_images": len(scored.images),
        "data": scored.images.record,
    }


def comparison_record(per_image: pd.DataFrame, *, is_gap: bool, copies: int) -> dict[str, Any]:
    """`comparison` in `summary.json`: the scores of the second set (B) compared to the first (A).

    `difference`, `half_width` and `p_value` are of the bits per dimension, as in `corrected`, where
    the code length is subtracted. The areas under the ROC curve are those of B against A;
    `auroc_nearest`, by the distance to the nearest other image of A, is None if A has one image.

    Args:
        per_image: one row per image.
        is_gap: whether the model was trained on the first set, and the second is of the same kind.
        copies: images of B that are also in A.
    """

    def compare(
        statistic: Callable[..., MeanDifference | Auroc], scores: "pd.Series[float]"
    ) -> dict[str, Any]:
        sets = (scores[per_image.set == name].to_numpy() for name in SETS)
        return dataclasses.asdict(statistic(*sets))

    raw, nearest = per_image.bits_per_dim, per_image.nearest_distance
    corrected = raw - per_image.code_length
    is_alone = nearest[per_image.set == SETS[0]].isna().any()
    return {
        "name": GAP if is_gap else DIFFERENCE,
        **compare(mean_difference, raw),
        "corrected": compare(mean_difference, corrected),
        "auroc": compare(auroc, raw),
        "auroc_corrected": compare(auroc, corrected),
        "auroc_nearest": None if is_alone else compare(auroc, nearest),
        "copies": copies,
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def printed_scores(summary: dict[str, Any], per_image: pd.DataFrame, output_format: str) -> str:
    """The result of `score` for standard output; see `printed`.

    "csv" has one row per image, "quiet" the mean of each set, a line each.
    """
    comparison = summary["comparison"]
    rows = [["set", "images", "bits/dim", "population", "per image", "code length"]]
    rows += [
        [
            name,
            f"{scored['num_images']:,}",
            with_interval(scored["bits_per_dim"], scored["half_width"]),
            plus_minus(scored["half_width_population"]),
            plus_minus(scored["image_standard_error"]),
            f"{scored['code_length']:.4f}",
        ]
        for name, scored in zip(SETS, summary["sets"], strict=False)
    ]
    legend = [
        "+- 95 %: of the mean for these images, and for their population; per image: standard error"
    ]
    if comparison is not None:
        distances = (scored["nearest_distance"] for scored in summary["sets"])
        nearest = ["nearest", *("" if one is None else f"{one:.2f}" for one in distances)]
        rows = [[*row, cell] for row, cell in zip(rows, nearest, strict=True)]
        legend += [f"nearest: {NEAREST}", "", *fact_lines(compared(comparison).items())]
        legend += ["", verdict(comparison), SIMPLE_IMAGES]
    facts = fact_lines(score_facts(summary).items())
    lines = [headline(summary), "", *aligned(rows), *legend, "", *facts]
    quiet = "\n".join(repr(scored["bits_per_dim"]) for scored in summary["sets"])
    return printed(summary, output_format, lines, csv=per_image, quiet=quiet)


def headline(summary: Mapping[str, Any]) -> str:
    """The mean bound of the first set."""
    first = summary["sets"][0]
    return bound_line(first["bits_per_dim"], first["half_width"])


def compared(comparison: Mapping[str, Any]) -> dict[str, str]:
    """`comparison` of a summary in words, by name."""
    named = f": {GAP}" if comparison["name"] == GAP else ""
    nearest = comparison["auroc_nearest"]
    return {
        "B - A": f"{_difference(comparison)} (Welch){named}",
        "corrected": f"{_difference(comparison['corrected'])}: bits/dim less the code length",
        "AUROC": f"{_area(comparison['auroc'])} of B against A by bits/dim; "
        f"{_area(comparison['auroc_corrected'])} corrected",
        "nearest": f"AUROC {_area(nearest)} by the distance to the nearest other image of A",
    }


def verdict(comparison: Mapping[str, Any]) -> str:
    """The conclusion from the difference of the means, in a sentence.

    A generalization gap is judged after subtracting the code length: if one set is simpler by
    chance, the raw difference includes that, and its interval is wider.
    """
    is_gap = comparison["name"] == GAP
    judged = comparison["corrected"] if is_gap else comparison
    if judged["half_width"] is None:
        return "with one image in a set, the interval of the difference is unknown"
    if not _is_beyond_chance(judged):
        if is_gap and _is_beyond_chance(comparison):
            return (
                f"undecided: the {GAP} is beyond chance, but less the code length its interval "
                "contains 0; one set may have simpler images than the other: score more images"
            )
        less = " less the code length" if is_gap else ""
        return f"no {comparison['name']} beyond chance: its interval{less} contains 0"
    side = "more" if judged["difference"] > 0 else "fewer"
    if not is_gap:
        return f"B costs {side} bits than A, beyond chance"
    if side == "fewer":
        return "the training images cost more bits than the others, beyond chance: the sets differ"
    return (
        "less the code length, the training images cost fewer bits than the others, beyond chance: "
        "the model has memorized them in part, unless the sets differ (nearest)"
    )


def _is_beyond_chance(means: Mapping[str, Any]) -> bool:
    return bool(abs(means["difference"]) > means["half_width"])


def score_warnings(summary: Mapping[str, Any]) -> list[str]:
    """Warnings about the images or the model, in sentences."""
    first, comparison = summary["sets"][0], summary["comparison"]
    raw = raw_pixels_warning({**first, "conventions": summary["conventions"]})
    lines = [] if raw is None else [f"{images_name(first)}: {raw}"]
    if comparison is not None and comparison["copies"]:
        lines.append(f"{counted(comparison['copies'], 'image')} of B also in A")
    return lines


def p_words(p_value: float | None) -> str:
    """A p-value as it is printed."""
    if p_value is None:
        return "p unknown"
    return f"p = {p_value:.2g}" if p_value >= _LEAST_P else f"p < {_LEAST_P:g}"


def _difference(means: Mapping[str, Any]) -> str:
    difference = with_interval(means["difference"], means["half_width"], sign="+")
    level = "" if means["half_width"] is None else ", 95 %"
    return f"{difference} bits/dim{level}; {p_words(means['p_value'])}"


def _area(area: Mapping[str, float] | None) -> str:
    if area is None:
        return "unknown"
    return f"{area['value']:.3f} ({area['lower']:.3f} to {area['upper']:.3f})"


def score_facts(summary: Mapping[str, Any]) -> dict[str, str]:
    """The settings that comparable scores share, by name."""
    sets = summary["sets"]
    images = {
        "images" if len(sets) == 1 else f"images {name}": images_line(scored)
        for name, scored in zip(SETS, sets, strict=False)
    }
    return {
        **images,
        **model_facts(summary),
        "evaluations": f"{summary['evaluations_per_image']} per image, "
        f"{summary['num_evaluations']:,} in all, seed {summary['seed']}",
        "device": device_line(summary),
    }


# ---- page


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
