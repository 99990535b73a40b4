"""What Python shows of each kind of result, from its summary."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpmbench.report.card import Card
from ddpmbench.report.comparison import comparison_numbers
from ddpmbench.report.fidelity_comparison import fidelity_comparison_numbers
from ddpmbench.report.fidelity_text import fidelity_facts, measures
from ddpmbench.report.fidelity_text import headline as fidelity_headline
from ddpmbench.report.nll_text import (
    PARTS,
    comparable_facts,
    headline,
    images_line,
)
from ddpmbench.report.samples import samples_facts, samples_headline
from ddpmbench.report.text import checkpoint_line, joined, with_interval

Summary = Mapping[str, Any]


def bound_card(summary: Summary, folder: Path | None) -> Card:
    """Of a run of `nll`."""
    record = dict(summary)
    numbers = {
        "for these images": _bound(record, "half_width"),
        "for their population": _bound(record, "half_width_population"),
        **{name: f"{record[name]:,.4f} ({what})" for name, what in PARTS.items()},
    }
    return Card(headline(record), numbers, _in_folder(comparable_facts(record), folder))


def curve_card(summary: Summary, folder: Path | None) -> Card:
    """Of a rate-distortion curve."""
    points = summary["curve"]
    numbers = {
        f"{point['num_decoded_steps']:,} steps": f"{point['rate_bits_per_dim']:.4f} bits/dim, "
        f"RMSE {_known(point['distortion_rmse'], 2)}"
        for point in points
    }
    whole = points[0]
    line = (
        f"{whole['rate_bits_per_dim']:.4f} bits/dim at an RMSE of "
        f"{_known(whole['distortion_rmse'], 2)}"
    )
    facts = {
        "images": images_line(dict(summary)),
        "checkpoint": checkpoint_line(summary["checkpoint"]),
    }
    return Card(line, numbers, _in_folder(facts, folder))


def fidelity_card(summary: Summary, folder: Path | None) -> Card:
    """Of a run of `fid`."""
    numbers = {f"{of.label}, {of.against}": of.text for of in measures(summary)}
    facts = _in_folder(joined(fidelity_facts(summary)), folder)
    return Card(fidelity_headline(summary), numbers, facts)


def samples_card(summary: Summary, folder: Path | None) -> Card:
    """Of samples."""
    facts = _in_folder(samples_facts(dict(summary)), folder)
    return Card(samples_headline(dict(summary)), {}, facts)


def comparison_card(summary: Summary) -> Card:
    """Of a comparison of runs of `nll`."""
    line = f"against {summary['baseline']['run']}, bits/dim; negative is better"
    facts = {
        **comparison_numbers(summary),
        "images": images_line(dict(summary)),
        "estimator": f"{summary['estimator']}, seed {summary['seed']}",
    }
    return Card(line, {}, facts)


def fidelity_comparison_card(summary: Summary) -> Card:
    """Of a comparison of runs of `fid`."""
    line = f"{summary['name']} ({summary['protocol']['id']}) against {summary['baseline']['run']}"
    return Card(line, {}, fidelity_comparison_numbers(summary))


def _bound(summary: dict[str, Any], name: str) -> str:
    half_width = summary[name]
    if half_width is None:
        return "interval unknown"
    return f"{with_interval(summary['bits_per_dim'], half_width)} bits/dim, 95 %"


def _known(value: float | None, digits: int) -> str:
    return "unknown" if value is None else f"{value:.{digits}f}"


def _in_folder(facts: Mapping[str, str], folder: Path | None) -> dict[str, str]:
    """The facts with the folder before the device, which is the last of them."""
    record = dict(facts)
    device = record.pop("device", None)
    if folder is not None:
        record["folder"] = str(folder)
    if device is not None:
        record["device"] = device
    return record
