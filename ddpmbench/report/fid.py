"""Scores of samples: the metrics, the printed result and the report of a run of `fid`."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from ddpmbench.execution.finished_runs import PER_IMAGE
from ddpmbench.report.display import Card, Draw, in_folder
from ddpmbench.report.fid_figures import (
    PER_SAMPLE,
    Ends,
    against_n_figure,
    nearest_figure,
    per_image_figure,
    pictures_of,
)
from ddpmbench.report.sample import sampler_line, samples_figure
from ddpmbench.report.stored import PageReport, Table
from ddpmbench.report.text import (
    aligned,
    checkpoint_line,
    counted,
    device_line,
    fact_lines,
    joined,
    printed,
    sanity_check_warning,
)

INFLUENCE = "influence.npz"
"""The influence of each sample on each score."""
PER_IMAGE_COLUMNS = {
    "image_id": "str",
    "nearest_reference_id": "str",
    "nearest_reference_distance": "float64",
    "class_entropy": "float64",
}
"""Columns of `per_image.csv`: distances in feature space, entropies in nats; empty if unknown."""
AGAINST_N_COLUMNS = {
    "reference": "str",
    "num_generated": "int64",
    "fid": "float64",
    "standard_error": "float64",
}
"""Columns of `fid_against_n.csv`: the points `fid_infinity` is extrapolated from."""


# ---- metrics


@dataclasses.dataclass(frozen=True)
class Metric:
    """The display of a metric.

    Attributes:
        label: its printed name. `{name}` is that of the Frechet distance, "FID" or "FD[...]"; for a
            network other than Inception `{network}` is " [...]" and `{kind}` "class".
        decimals: after the point.
        meaning: one line for the page; `{splits}` is the number of splits.
        times: factor from the value in `summary.json` to the printed one.
        higher_is_better: whether higher is better.
        has_reference: whether there is one value per reference; else a single value.
        in_figure: whether the figure of a comparison shows it.
    """

    label: str
    decimals: int
    meaning: str
    times: float = 1.0
    higher_is_better: bool = False
    has_reference: bool = True
    in_figure: bool = False


METRICS = {
    "fid": Metric("{name}", 2, "Fr\u00e9chet distance of the features", in_figure=True),
    "fid_infinity": Metric(
        "{name}-infinity", 2, "the same, extrapolated to infinitely many samples"
    ),
    "inception_score": Metric(
        "{kind} score{network}",
        2,
        "certainty and diversity of the predicted classes; without a reference, {splits}",
        higher_is_better=True,
        has_reference=False,
    ),
    "kid": Metric(
        "KID{network} x 1000",
        3,
        "squared kernel distance (cubic kernel); unbiased in N",
        times=1000.0,
    ),
    "precision": Metric(
        "precision{network}",
        3,
        "share of samples within the manifold of the reference",
        higher_is_better=True,
        in_figure=True,
    ),
    "recall": Metric(
        "recall{network}",
        3,
        "share of reference images within the manifold of the samples",
        higher_is_better=True,
        in_figure=True,
    ),
}
"""Metrics by their names in `summary.json`, in its order; computed by `metrics.scores`."""
AGAINST_REFERENCE = tuple(name for name, metric in METRICS.items() if metric.has_reference)
WITHOUT_REFERENCE = tuple(name for name in METRICS if name not in AGAINST_REFERENCE)


def half_width_of(name: str) -> str:
    """The field of the half width of a metric's 95 % interval."""
    return f"{name}_half_width"


@dataclasses.dataclass(frozen=True)
class Score:
    """A value of a metric, as shown.

    Attributes:
        label: the metric's name in words.
        value: in the unit of the label; None if unknown.
        half_width: of its 95 % interval; None where it is not known.
        decimals: after the point.
        against: the reference, or other text in its place.
    """

    label: str
    value: float | None
    half_width: float | None
    decimals: int
    against: str = ""

    @classmethod
    def of(
        cls,
        metric: str,
        name: str,
        value: float | None,
        half_width: float | None = None,
        *,
        against: str = "",
    ) -> "Score":
        """A value and its half width in the unit of `summary.json`; None if unknown.

        Args:
            metric: one of `METRICS`.
            name: that of the Frechet distance.
            value: in the unit of `summary.json`, as is `half_width`.
            half_width: of its 95 % interval.
            against: see the attribute.
        """
        shown = METRICS[metric]
        value, half_width = (
            None if each is None else shown.times * each for each in (value, half_width)
        )
        return cls(label(metric, name), value, half_width, shown.decimals, against)

    @classmethod
    def read(cls, metric: str, values: Mapping[str, Any], name: str, against: str = "") -> "Score":
        """The score in a summary, or in one of its references; see `of`."""
        return cls.of(metric, name, values[metric], values[half_width_of(metric)], against=against)

    @property
    def text(self) -> str:
        """The value and its interval."""
        if self.value is None:
            return "unknown"
        interval = "" if self.half_width is None else f" +- {self.half_width:.{self.decimals}f}"
        return f"{self.value:.{self.decimals}f}{interval}"


def label(metric: str, name: str) -> str:
    """The printed name of one of `METRICS`, with the network if it is not Inception.

    Args:
        metric: its name in `summary.json`.
        name: that of the Frechet distance, "FID" or "FD[...]".
    """
    is_fid = name == "FID"
    network, kind = ("", "inception") if is_fid else (f" {name.removeprefix('FD')}", "class")
    return METRICS[metric].label.format(name=name, network=network, kind=kind)


# ---- text


def scores(summary: Mapping[str, Any]) -> list[Score]:
    """All scores of a run but its headline's; with several references, all scores."""
    references, name = summary["references"], summary["name"]
    return [
        *(
            Score.read(metric, reference, name, reference_name(reference))
            for reference in references
            for metric in AGAINST_REFERENCE
            if metric != "fid" or len(references) > 1
        ),
        *(
            Score.read(metric, summary, name, f"no reference; {splits_line(summary['protocol'])}")
            for metric in WITHOUT_REFERENCE
        ),
    ]


def headline(summary: Mapping[str, Any]) -> str:
    """The distance, its interval and protocol, in one line."""
    name, references = summary["name"], summary["references"]
    against = f" against {reference_name(references[0])}" if len(references) > 1 else ""
    return f"{name} {Score.read('fid', summary, name).text} ({summary['protocol']['id']}){against}"


def comparable_only(summary: Mapping[str, Any]) -> str | None:
    """A note that a score of another network is not an FID; None if it is."""
    if summary["name"] == "FID":
        return None
    network = summary["protocol"]["feature_network"]
    return (
        f"{summary['name']} is not FID: its features come from {network['name']}, not Inception; "
        "compare only with scores of the same network"
    )


def printed_fid(summary: dict[str, Any], output_format: str) -> str:
    """The summary of `fid` for standard output; "csv" has one row per reference."""
    rows = [(score.label, score.text, score.against) for score in scores(summary)]
    table = aligned([("measure", "value", "against"), *rows], gap=2)
    only = comparable_only(summary)
    lines = [headline(summary), "", *table, "", *fact_lines(fid_facts(summary))]
    lines += ["", only] if only else []
    return printed(summary, output_format, lines, csv=_csv(summary), quiet=repr(summary["fid"]))


def fid_facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The settings that comparable scores share, and the run's other settings."""
    samples, checkpoint, sampler = summary["samples"], summary["checkpoint"], summary["sampler"]
    skipped = f"; {samples['skipped']:,} skipped" if samples["skipped"] else ""
    count = f"{summary['num_generated']:,} of {samples['source']}"
    facts = [("samples", f"{count} ({samples['sha256'][:12]}){skipped}")]
    facts += [("reference", reference_line(reference)) for reference in summary["references"]]
    if checkpoint is not None:
        facts.append(("checkpoint", checkpoint_line(checkpoint)))
    if sampler is not None:
        evaluations, seed = summary["num_evaluations"], summary["seed"]
        line = sampler_line(sampler)
        if evaluations is not None:
            line += f", {counted(evaluations, 'network evaluation')}"
        facts.append(("sampler", line + ("" if seed is None else f", seed {seed}")))
    return [*facts, *protocol_facts(summary["protocol"]), ("device", device_line(summary))]


def protocol_facts(protocol: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The settings of a protocol and its feature network."""
    network, splits = protocol["feature_network"], protocol["inception_splits"]
    order = f" ({protocol['inception_order']} order)" if splits != 1 else ""
    pixels = protocol["eight_bit"]
    pixels = f"pixels {pixels}" if pixels == "as given" else f"{pixels} to 8 bits"
    classes = "" if splits is None else f"classes in {splits_line(protocol)}{order}, "
    return [
        (
            "protocol",
            f"{protocol['id']}: resize {protocol['resize']}, {pixels}, {protocol['channels']}",
        ),
        (
            "scores",
            f"{classes}KID of {protocol['kid_subsets']} x "
            f"{protocol['kid_subset_size']:,}, {protocol['neighbors']} neighbors; "
            f"{protocol['dtype']}",
        ),
        (
            "network",
            f"{network['name']} ({network['sha256'][:12]}), {network['num_features']:,} features",
        ),
    ]


def splits_line(protocol: Mapping[str, Any]) -> str:
    """The splits of the Inception score, in one line."""
    number = protocol["inception_splits"]
    return "no splits" if number is None else counted(number, "split")


def reference_line(reference: Mapping[str, Any]) -> str:
    """The reference and its number of images."""
    number = reference["num_reference"]
    many = "" if number is None else f"{number:,} of "
    return f"{many}{reference_name(reference)} ({reference['sha256'][:12]})"


def _csv(summary: dict[str, Any]) -> pd.DataFrame:
    whole = {name: value for name, value in summary.items() if name != "references"}
    rows = [
        {**whole, **reference, "reference": reference_name(reference)}
        for reference in summary["references"]
    ]
    return pd.json_normalize(rows).drop(columns=["source", "split", "sha256", "warnings"])


def reference_name(reference: Mapping[str, Any]) -> str:
    """A reference under the name that the user gave."""
    source, split = reference["source"], reference["split"]
    ending = f":{split}" if split else ""
    return str(source) if source.endswith(ending) else f"{source}{ending}"


# ---- report


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FidReport(PageReport):
    """Scores of samples against references.

    Attributes:
        summary: the object of `summary.json`.
        per_image: one row per sample; see `PER_IMAGE_COLUMNS`.
        against_n: the distance at several numbers of samples; see `AGAINST_N_COLUMNS`.
        folder: the run folder; None if the run was kept in memory.
    """

    SCHEMA = "ddpmbench.fid/1"
    TABLES: ClassVar = {
        "per_image": Table(PER_IMAGE, PER_IMAGE_COLUMNS),
        "against_n": Table("fid_against_n.csv", AGAINST_N_COLUMNS),
    }
    TEMPLATE = "fid.html.j2"
    FIGURES: ClassVar = {
        "fid_against_n": "Distance over the number of samples, extrapolated to infinitely many",
        "per_image": "Distance to the nearest reference image, and entropy of the predicted "
        "classes",
    }
    STRIPS: ClassVar = {
        "nearest": (
            "Nearest reference images",
            "Nearest in feature space, with the distances there. A sample that equals its neighbor "
            "may be memorized.",
        ),
        "samples": ("First samples", "In order, uncurated."),
    }

    summary: dict[str, Any]
    per_image: pd.DataFrame
    against_n: pd.DataFrame
    folder: Path | None

    def _card(self) -> Card:
        summary = self.summary
        numbers = {f"{score.label}, {score.against}": score.text for score in scores(summary)}
        return Card(headline(summary), numbers, in_folder(joined(fid_facts(summary)), self.folder))

    def _figures(self) -> Mapping[str, Draw]:
        figures: dict[str, Draw] = {}
        if len(self.against_n):
            figures["fid_against_n"] = partial(
                against_n_figure,
                self.against_n,
                _ends(self.summary["references"]),
                self.summary["name"],
            )
        if self.per_image[list(PER_SAMPLE)].notna().to_numpy().any():
            figures["per_image"] = partial(per_image_figure, self.per_image)
        nearest, samples = pictures_of(self.folder, self.summary["num_generated"])
        if nearest is not None:
            figures["nearest"] = partial(nearest_figure, nearest)
        if samples is not None:
            figures["samples"] = partial(samples_figure, samples.pixels, samples.labels)
        return figures

    def _page(self) -> dict[str, Any]:
        summary = self.summary
        made_by = summary["checkpoint"] or summary["samples"]
        references = [reference_name(reference) for reference in summary["references"]]
        return {
            "summary": summary,
            "headline": headline(summary),
            "heading": f"{made_by['source']} against {references[0]}",
            "notes": [
                comparable_only(summary),
                sanity_check_warning(summary),
                *summary["warnings"],
            ],
            "facts": joined(fid_facts(summary)),
            "references": references,
            "rows": _rows(summary),
            "explanations": _explanations(summary),
            "points": self.against_n.to_dict("records"),
        }


def _ends(references: Sequence[Mapping[str, Any]]) -> Ends:
    """By reference, its distance at infinitely many samples and the half width.

    Older runs name a reference by its source, which two splits share: then their points are
    mixed, and have no end.
    """
    of_source = Counter(reference["source"] for reference in references)
    return {
        name: (reference["fid_infinity"], reference["fid_infinity_half_width"])
        for reference in references
        for name in (reference["source"], reference_name(reference))
        if name != reference["source"] or of_source[name] == 1
    }


def _rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per metric: against each reference, then those without one."""
    name = summary["name"]
    splits = splits_line(summary["protocol"])
    return [
        {
            "label": label(metric, name),
            "own": metric == "fid",
            "scores": [
                Score.read(metric, values, name)
                for values in (
                    summary["references"] if METRICS[metric].has_reference else [summary]
                )
            ],
            "meaning": METRICS[metric].meaning.format(splits=splits),
        }
        for metric in (*AGAINST_REFERENCE, *WITHOUT_REFERENCE)
    ]


def _explanations(summary: Mapping[str, Any]) -> list[str]:
    """Why an interval of precision or recall is missing or a value is 0."""
    references, neighbors = summary["references"], summary["protocol"]["neighbors"]
    texts = []
    if any(one["recall"] is not None and one["recall_half_width"] is None for one in references):
        texts.append(
            "Recall has no interval with so few samples: it is estimated by leaving out groups of "
            f"samples, and each group needs more than {neighbors} neighbors."
        )
    if any(one["precision"] == 0 or one["recall"] == 0 for one in references):
        texts.append(
            "A precision (recall) of 0 means that no sample (reference image) lies within the "
            "neighborhood of an image of the other set, which reaches to that image's "
            f"{neighbors} nearest neighbors. With few images these neighborhoods do not cover the "
            "set, so that even a good model scores 0."
        )
    return texts
