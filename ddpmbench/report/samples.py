"""Samples and their scores as printed, and the page of a run of `fid`.

A summary is the object of `summary.json`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ddpmbench.report.card import Card, Draw, in_folder
from ddpmbench.report.fidelity import FidelityContents, reference_name
from ddpmbench.report.figures.fidelity import against_n_figure
from ddpmbench.report.figures.images import per_image_figure
from ddpmbench.report.figures.pictures import nearest_figure, samples_figure
from ddpmbench.report.html import drawn, rendered
from ddpmbench.report.metrics import AGAINST_REFERENCE, METRICS, WITHOUT_REFERENCE, Score, label
from ddpmbench.report.schema import sanity_check_warning
from ddpmbench.report.text import (
    aligned,
    checkpoint_line,
    counted,
    data_range_words,
    device_line,
    fact_lines,
    joined,
    printed,
    timesteps_of,
)


def printed_samples(summary: dict[str, Any], path: Path, output_format: str) -> str:
    """The summary of `sample` for standard output; "quiet" is the path of the samples."""
    facts = fact_lines(samples_facts(summary).items())
    lines = [f"{samples_headline(summary)}: {path}", "", *facts]
    return printed(summary, output_format, lines, quiet=str(path))


def samples_card(summary: dict[str, Any], folder: Path | None) -> Card:
    """The card of samples."""
    return Card(samples_headline(summary), facts=in_folder(samples_facts(summary), folder))


def samples_headline(summary: dict[str, Any]) -> str:
    """The number of samples and their size."""
    channels, height, width = summary["shape"]
    color = "gray" if channels == 1 else "RGB"
    return f"{summary['num_samples']:,} samples, {width}x{height} {color}"


def samples_facts(summary: dict[str, Any]) -> dict[str, str]:
    """The settings of samples, by name."""
    speed = summary["images_per_second"]
    pace = f", {speed:.3g} images/s" if speed else ""
    return {
        "checkpoint": checkpoint_line(summary["checkpoint"]),
        "sampler": sampler_line(summary["sampler"]),
        "pixels": f"{summary['eight_bit']} to 8 bits, sha256 {summary['sha256'][:12]}",
        "seed": f"{summary['seed']}, {summary['num_evaluations']:,} network evaluations",
        "device": f"{device_line(summary)}, {summary['seconds']:,.0f} s{pace}",
    }


_SETTINGS = {
    "eta": "eta {:g}",
    "langevin_steps": "Langevin steps {}",
    "step_size": "step size {:g}",
    "snr": "r = {:g}",
    "solver": "{}",
    "solver_steps": "solver steps {}",
}


def sampler_line(sampler: Mapping[str, Any]) -> str:
    """The sampler and its settings in words."""
    steps, total = sampler["num_timesteps"], sampler["num_original_timesteps"]
    parts = [sampler["method"], f"T = {timesteps_of(steps, total)}"]
    if sampler["variance"] is not None:
        parts.append(sampler["variance"])
    noise = {"every-step": "noise at every step", "none": "no added noise"}
    if sampler["added_noise"] in noise:
        parts.append(noise[sampler["added_noise"]])
    parts += [
        words.format(sampler[name])
        for name, words in _SETTINGS.items()
        if sampler.get(name) is not None
    ]
    parts.append("clip" if sampler["clip"] else "no clip")
    parts += data_range_words(sampler)
    if sampler["labels"] is not None:
        parts.append(f"classes: {sampler['labels']}")
    evaluations = sampler.get("num_evaluations") or steps
    if evaluations != steps:
        parts.append(f"{evaluations:,} network evaluations a sample")
    return ", ".join(parts)


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


def printed_fidelity(summary: dict[str, Any], output_format: str) -> str:
    """The summary of `fid` for standard output; "csv" has one row per reference."""
    rows = [(score.label, score.text, score.against) for score in scores(summary)]
    table = aligned([("measure", "value", "against"), *rows], gap=2)
    only = comparable_only(summary)
    lines = [headline(summary), "", *table, "", *fact_lines(fidelity_facts(summary))]
    lines += ["", only] if only else []
    return printed(summary, output_format, lines, csv=_csv(summary), quiet=repr(summary["fid"]))


def fidelity_card(summary: Mapping[str, Any], folder: Path | None) -> Card:
    """The card of a run of `fid`."""
    numbers = {f"{score.label}, {score.against}": score.text for score in scores(summary)}
    return Card(headline(summary), numbers, in_folder(joined(fidelity_facts(summary)), folder))


def fidelity_facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The settings that comparable scores share, and the run's other settings."""
    samples, checkpoint, sampler = summary["samples"], summary["checkpoint"], summary["sampler"]
    skipped = f"; {samples['skipped']:,} skipped" if samples["skipped"] else ""
    facts = [
        (
            "samples",
            f"{summary['num_generated']:,} of {samples['source']} "
            f"({samples['sha256'][:12]}){skipped}",
        )
    ]
    facts += [("reference", reference_line(reference)) for reference in summary["references"]]
    if checkpoint is not None:
        facts.append(("checkpoint", checkpoint_line(checkpoint)))
    if sampler is not None:
        evaluations, seed = summary["num_evaluations"], summary["seed"]
        line = sampler_line(sampler)
        line += "" if evaluations is None else f", {evaluations:,} network evaluations"
        facts.append(("sampler", line + ("" if seed is None else f", seed {seed}")))
    facts += protocol_facts(summary["protocol"])
    device = f"{device_line(summary)}, {summary['seconds']:,.0f} s"
    return [*facts, ("device", device)]


def protocol_facts(protocol: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The settings of a protocol and its feature network."""
    network, splits = protocol["feature_network"], protocol["inception_splits"]
    order = f" ({protocol['inception_order']} order)" if splits != 1 else ""
    classes = "" if splits is None else f"classes in {splits_line(protocol)}{order}, "
    return [
        (
            "protocol",
            f"{protocol['id']}: resize {protocol['resize']}, {protocol['eight_bit']} to 8 bits, "
            f"{protocol['channels']}",
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


# ---- the page of a run of fid

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
            name: (reference["fid_infinity"], reference["fid_infinity_half_width"])
            for reference in summary["references"]
            for name in (reference["source"], reference_name(reference))
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
        contents: the contents of its folder.
        svgs: its figures by name, of `FIGURES` and `STRIPS`; missing ones are left out.
    """
    summary = contents.tables.summary
    made_by = summary["checkpoint"] or summary["samples"]
    references = [reference_name(reference) for reference in summary["references"]]
    return rendered(
        "fid.html.j2",
        summary=summary,
        headline=headline(summary),
        heading=f"{made_by['source']} against {references[0]}",
        notes=[comparable_only(summary), sanity_check_warning(summary), *summary["warnings"]],
        facts=joined(fidelity_facts(summary)),
        references=references,
        rows=_rows(summary),
        explanations=_explanations(summary),
        points=contents.tables.against_n.to_dict("records"),
        environment=contents.environment,
        **drawn(svgs, FIGURES, STRIPS),
    )


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
            f"distance to its neighbor number {neighbors} of an image of the other set. With few "
            "images these balls do not cover the set, so that even a good model scores 0."
        )
    return texts
