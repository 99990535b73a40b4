"""Samples and their scores as they are printed, with what makes them comparable."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ddpmbench.report.card import Card, in_folder
from ddpmbench.report.fidelity import reference_name
from ddpmbench.report.metrics import AGAINST_REFERENCE, WITHOUT_REFERENCE, Score
from ddpmbench.report.text import (
    aligned,
    checkpoint_line,
    counted,
    data_range_words,
    device_line,
    fact_lines,
    joined,
    timesteps_of,
)


def printed_samples(summary: dict[str, Any], path: Path, output_format: str) -> str:
    """The summary of `sample` for standard output.

    Args:
        summary: the object of `summary.json`.
        path: of the samples.
        output_format: "table" for reading, "json" for the object itself, "quiet" for the path
            alone.
    """
    match output_format:
        case "json":
            return json.dumps(summary, indent=2)
        case "quiet":
            return str(path)
    lines = fact_lines(samples_facts(summary).items())
    return "\n".join([f"{samples_headline(summary)}: {path}", "", *lines])


def samples_card(summary: dict[str, Any], folder: Path | None) -> Card:
    """What Python shows of samples."""
    return Card(samples_headline(summary), facts=in_folder(samples_facts(summary), folder))


def samples_headline(summary: dict[str, Any]) -> str:
    """How many samples of which size."""
    channels, height, width = summary["shape"]
    color = "gray" if channels == 1 else "RGB"
    return f"{summary['num_samples']:,} samples, {width}x{height} {color}"


def samples_facts(summary: dict[str, Any]) -> dict[str, str]:
    """What makes samples comparable, and how they were made, by name."""
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


def sampler_line(sampler: dict[str, Any]) -> str:
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
    """All scores of a run but its headline; with several references the headline's too."""
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
    """The distance, its interval and its protocol, in one line."""
    name, references = summary["name"], summary["references"]
    against = f" against {reference_name(references[0])}" if len(references) > 1 else ""
    return f"{name} {Score.read('fid', summary, name).text} ({summary['protocol']['id']}){against}"


def comparable_only(summary: Mapping[str, Any]) -> str | None:
    """That a score of another network is no FID; None where it is one."""
    if summary["name"] == "FID":
        return None
    network = summary["protocol"]["feature_network"]
    return (
        f"{summary['name']} is not FID: its features come from {network['name']}, not Inception; "
        "compare only with scores of the same network"
    )


def printed_fidelity(summary: dict[str, Any], output_format: str) -> str:
    """The summary of `fid` for standard output.

    Args:
        summary: the object of `summary.json`.
        output_format: "table" for reading, "json" for the object itself, "csv" for one row a
            reference with nested names joined by dots, "quiet" for the distance alone.
    """
    match output_format:
        case "json":
            return json.dumps(summary, indent=2)
        case "csv":
            return _rows(summary).to_csv(index=False).rstrip()
        case "quiet":
            return repr(summary["fid"])
    rows = [(of.label, of.text, of.against) for of in scores(summary)]
    table = aligned([("measure", "value", "against"), *rows], gap=2)
    facts = fact_lines(fidelity_facts(summary))
    only = comparable_only(summary)
    return "\n".join([headline(summary), "", *table, "", *facts, *(["", only] if only else [])])


def fidelity_card(summary: Mapping[str, Any], folder: Path | None) -> Card:
    """What Python shows of a run of `fid`."""
    numbers = {f"{of.label}, {of.against}": of.text for of in scores(summary)}
    return Card(headline(summary), numbers, in_folder(joined(fidelity_facts(summary)), folder))


def fidelity_facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a score must be the same in to compare with another, and how it was made."""
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
        line = sampler_line(dict(sampler))
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
    """In how many splits the classes were scored."""
    number = protocol["inception_splits"]
    return "no splits" if number is None else counted(number, "split")


def reference_line(reference: Mapping[str, Any]) -> str:
    """How many images of which reference."""
    number = reference["num_reference"]
    many = "" if number is None else f"{number:,} of "
    return f"{many}{reference_name(dict(reference))} ({reference['sha256'][:12]})"


def _rows(summary: dict[str, Any]) -> pd.DataFrame:
    whole = {name: value for name, value in summary.items() if name != "references"}
    rows = [{**whole, **of, "reference": reference_name(of)} for of in summary["references"]]
    return pd.json_normalize(rows).drop(columns=["source", "split", "sha256", "warnings"])
