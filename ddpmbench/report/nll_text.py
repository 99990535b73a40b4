"""The result as it is printed: one headline, the parts, what makes it comparable."""

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from ddpmbench.report.tables import correction_line, uncorrected_note
from ddpmbench.report.text import (
    checkpoint_line,
    data_range_words,
    device_line,
    digits_by,
    unpadded,
    with_interval,
)

PARTS = {
    "prior": "L_T, the end of the chain",
    "kl": "L_1..L_{T-1}, the steps",
    "decoder": "L_0, the pixels",
}
LARGE_PRIOR = 0.1
"""Bits per dimension of L_T that are worth a line."""


def printed_nll(summary: dict[str, Any], output_format: str) -> str:
    """The summary of `nll` for standard output.

    Args:
        summary: the object of `summary.json`.
        output_format: "table" for reading, "json" for the object itself, "csv" for one row with
            nested names joined by dots, "quiet" for the number alone.
    """
    match output_format:
        case "json":
            return json.dumps(summary, indent=2)
        case "csv":
            return pd.json_normalize(summary).to_csv(index=False).rstrip()
        case "quiet":
            return repr(summary["bits_per_dim"])
    return "\n".join([headline(summary), "", *_parts(summary), "", *comparability(summary)])


def headline(summary: dict[str, Any]) -> str:
    """The bound and its interval in one line."""
    return bound_line(summary["bits_per_dim"], summary["half_width"])


def bound_line(value: float, half_width: float | None) -> str:
    """A bound and its interval, bits per dimension."""
    return f"NLL <= {with_interval(value, half_width)} bits/dim"


def _parts(summary: dict[str, Any]) -> list[str]:
    digits = digits_by(summary["half_width"])
    lines = [f"{name:<12}{summary[name]:>10,.{digits}f}  {what}" for name, what in PARTS.items()]
    return [f"{'part':<12}{'bits/dim':>10}", *lines]


def comparability(summary: dict[str, Any]) -> list[str]:
    """What a number of `nll` must be the same in to compare with another, a line each."""
    fields = {"interval": _interval(summary), **comparable_facts(summary)}
    if summary["prior"] >= LARGE_PRIOR:
        fields["prior"] = (
            f"{summary['prior']:.4f} bits/dim: q(x_T) is far from the normal prior of sampling"
        )
    if note := uncorrected_note(summary):
        fields["tables"] = note
    return [f"{name:<12}{value}" for name, value in fields.items()]


def comparable_facts(summary: dict[str, Any]) -> dict[str, str]:
    """What a number of `nll` must be the same in to compare with another, by its name."""
    conventions = summary["conventions"]
    correction = correction_line(summary)
    return {
        "images": images_line(summary),
        **_padding_line(summary),
        "checkpoint": checkpoint_line(summary["checkpoint"]),
        "process": f"T = {summary['num_timesteps']}, {conventions['schedule']}",
        "conventions": conventions_line(conventions),
        "estimator": f"{summary['estimator']}, {_amount(summary['sampling'])}, "
        f"{summary['num_evaluations']:,} network evaluations, seed {summary['seed']}",
        **({"precision": correction} if correction else {}),
        "device": f"{device_line(summary)}, {summary['seconds']:.0f} s",
    }


def _padding_line(summary: dict[str, Any]) -> dict[str, str]:
    of_images = unpadded(summary)
    if of_images is None:
        return {}
    padding = summary["data"]["padding"]
    before, after = (f"{width}x{height}" for height, width in (padding["from"], padding["to"]))
    value = with_interval(of_images["bits_per_dim"] or 0.0, of_images["half_width"])
    return {"padding": f"{before} to {after} with black; <= {value} bits per dimension of {before}"}


def conventions_line(conventions: Mapping[str, Any]) -> str:
    """What two bounds of one network can differ in, in words.

    Args:
        conventions: of the `summary.json` of a run or a comparison.
    """
    parts = [
        conventions["prediction"],
        conventions["variance"],
        "clip" if conventions["clip"] else "no clip",
        f"{conventions['decoder']} decoder",
        *data_range_words(conventions),
    ]
    return ", ".join(parts)


def images_name(summary: dict[str, Any]) -> str:
    """The image set, as `--data` names it."""
    data = summary["data"]
    return f"{data['source']}:{data['split']}" if data["split"] else str(data["source"])


def images_line(summary: dict[str, Any]) -> str:
    """How many images of which set."""
    sha256 = summary["data"]["sha256"][:12]
    return f"{summary['num_images']:,} of {images_name(summary)} ({sha256})"


def _amount(sampling: dict[str, Any]) -> str:
    if "num_replicates" in sampling:
        return f"{sampling['num_replicates']} replicates"
    return f"{sampling['draws']} draws"


def _interval(summary: dict[str, Any]) -> str:
    if summary["half_width"] is None:
        noise = "unknown for these images (one draw; two give an interval)"
    else:
        noise = f"{_half_width(summary['half_width'])} for these images"
    population = summary["half_width_population"]
    if population is None:
        return f"95 %: {noise}; unknown for the population (one image)"
    return f"95 %: {noise}; {_half_width(population)} for the population of images"


def _half_width(value: float) -> str:
    return f"+- {value:,.{digits_by(value)}f}"
