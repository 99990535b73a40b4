"""The printed scores of `fid`, each with its name and protocol."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ddpmbench.report.fidelity import reference_name
from ddpmbench.report.samples import sampler_line
from ddpmbench.report.text import checkpoint_line, device_line

MEASURES = {
    "fid": ("{name}", 2, 1.0),
    "fid_infinity": ("{name}-infinity", 2, 1.0),
    "kid": ("KID{of} x 1000", 3, 1000.0),
    "precision": ("precision{of}", 3, 1.0),
    "recall": ("recall{of}", 3, 1.0),
    "inception_score": ("{score}", 2, 1.0),
}
"""What is measured, by its name in `summary.json`: the printed name, its digits, what one is."""


@dataclass(frozen=True)
class Measured:
    """A measure as it is shown.

    Attributes:
        key: its name in `summary.json`.
        label: its name in words.
        value: in the unit of the label; None where it is not known.
        half_width: of its 95 % interval; None where it is not known.
        digits: after the point.
        against: the reference, or what it is of.
    """

    key: str
    label: str
    value: float | None
    half_width: float | None
    digits: int
    against: str

    @property
    def text(self) -> str:
        """The value and its interval."""
        if self.value is None:
            return "unknown"
        interval = "" if self.half_width is None else f" +- {self.half_width:.{self.digits}f}"
        return f"{self.value:.{self.digits}f}{interval}"


def label(key: str, name: str) -> str:
    """The printed name of a measure; of a network that is no Inception it says whose.

    Args:
        key: its name in `summary.json`.
        name: that of the Frechet distance, "FID" or "FD[...]".
    """
    is_inception = name == "FID"
    of = "" if is_inception else f" {name.removeprefix('FD')}"
    score = "inception score" if is_inception else f"class score{of}"
    return MEASURES[key][0].format(name=name, of=of, score=score)


def measured(key: str, values: Mapping[str, Any], name: str, against: str) -> Measured:
    """A measure of a summary or of one of its references.

    Args:
        key: its name there.
        values: the summary, or the reference.
        name: that of the Frechet distance, "FID" or "FD[...]".
        against: what it is of, in words.
    """
    _, digits, scale = MEASURES[key]
    value, half_width = (
        None if (of := values[each]) is None else scale * of for each in (key, f"{key}_half_width")
    )
    return Measured(key, label(key, name), value, half_width, digits, against)


def measures(summary: Mapping[str, Any]) -> list[Measured]:
    """All measures of a run but its headline; with several references the headline's too."""
    references, name = summary["references"], summary["name"]
    facts = [
        measured(key, reference, name, reference_name(reference))
        for reference in references
        for key in MEASURES
        if key != "inception_score" and (key != "fid" or len(references) > 1)
    ]
    splits = summary["protocol"]["inception_splits"]
    against = f"no reference; {splits} split{'s' * (splits > 1)}"
    return [*facts, measured("inception_score", summary, name, against)]


def headline(summary: Mapping[str, Any]) -> str:
    """The distance, its interval and its protocol, in one line."""
    name, references = summary["name"], summary["references"]
    against = f" against {reference_name(references[0])}" if len(references) > 1 else ""
    text = measured("fid", summary, name, "").text
    return f"{name} {text} ({summary['protocol']['id']}){against}"


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
    rows = [(of.label, of.text, of.against) for of in measures(summary)]
    table = aligned([("measure", "value", "against"), *rows])
    facts = [f"{name:<12}{value}" for name, value in fidelity_facts(summary)]
    only = comparable_only(summary)
    return "\n".join([headline(summary), "", *table, "", *facts, *(["", only] if only else [])])


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines of cells, two spaces apart and one below another."""
    widths = [max(map(len, column)) + 2 for column in zip(*rows, strict=True)]
    return [
        "".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


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
        calls, seed = summary["num_evaluations"], summary["seed"]
        line = sampler_line(dict(sampler))
        line += "" if calls is None else f", {calls:,} network evaluations"
        facts.append(("sampler", line + ("" if seed is None else f", seed {seed}")))
    facts += protocol_facts(summary["protocol"])
    device = f"{device_line(summary)}, {summary['seconds']:,.0f} s"
    return [*facts, ("device", device)]


def protocol_facts(protocol: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The settings of a protocol and its feature network."""
    network = protocol["feature_network"]
    return [
        (
            "protocol",
            f"{protocol['id']}: resize {protocol['resize']}, {protocol['eight_bit']} to 8 bits, "
            f"{protocol['channels']}",
        ),
        (
            "scores",
            f"{_splits(protocol)}, KID of {protocol['kid_subsets']} x "
            f"{protocol['kid_subset_size']:,}, {protocol['neighbors']} neighbors; "
            f"{protocol['dtype']}",
        ),
        (
            "network",
            f"{network['name']} ({network['sha256'][:12]}), {network['num_features']:,} features",
        ),
    ]


def _splits(protocol: Mapping[str, Any]) -> str:
    """How the inception score was taken."""
    number, order = protocol["inception_splits"], protocol["inception_order"]
    if number == 1:
        return "classes in one split"
    return f"classes in {number} splits ({order} order)"


def reference_line(reference: Mapping[str, Any]) -> str:
    """How many images of which reference."""
    number = reference["num_reference"]
    many = "" if number is None else f"{number:,} of "
    return f"{many}{reference_name(dict(reference))} ({reference['sha256'][:12]})"


def _rows(summary: dict[str, Any]) -> pd.DataFrame:
    whole = {name: value for name, value in summary.items() if name != "references"}
    rows = [{**whole, **of, "reference": reference_name(of)} for of in summary["references"]]
    return pd.json_normalize(rows).drop(columns=["source", "split", "sha256", "warnings"])
