"""A bound as printed, with the settings that comparable numbers share.

A summary is the object of `summary.json`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpmbench.report.card import Card, in_folder
from ddpmbench.report.tables import correction_line, uncorrected_note
from ddpmbench.report.text import (
    bound_line,
    counted,
    device_line,
    digits_by,
    fact_lines,
    images_line,
    model_facts,
    plus_minus,
    printed,
    unpadded,
    with_interval,
)

PARTS = {
    "prior": "L_T, the end of the chain",
    "kl": "L_1..L_{T-1}, the timesteps",
    "decoder": "L_0, the pixels",
}
LARGE_PRIOR = 0.1
"""Least L_T, in bits per dimension, that is worth a line."""


def printed_nll(summary: dict[str, Any], output_format: str) -> str:
    """The bound for standard output; see `printed`."""
    lines = [headline(summary), "", *_parts(summary), "", *comparability(summary)]
    return printed(summary, output_format, lines)


def bound_card(summary: Mapping[str, Any], folder: Path | None) -> Card:
    """The card of a run of `nll`."""
    numbers = {
        "for these images": _bound(summary, "half_width"),
        "for their population": _bound(summary, "half_width_population"),
        **{name: f"{summary[name]:,.4f} ({what})" for name, what in PARTS.items()},
    }
    return Card(headline(summary), numbers, in_folder(comparable_facts(summary), folder))


def _bound(summary: Mapping[str, Any], name: str) -> str:
    half_width = summary[name]
    if half_width is None:
        return "interval unknown"
    return f"{with_interval(summary['bits_per_dim'], half_width)} bits/dim, 95 %"


def headline(summary: Mapping[str, Any]) -> str:
    """The bound and its interval in one line."""
    return bound_line(summary["bits_per_dim"], summary["half_width"])


def _parts(summary: Mapping[str, Any]) -> list[str]:
    digits = digits_by(summary["half_width"])
    lines = [f"{name:<12}{summary[name]:>10,.{digits}f}  {what}" for name, what in PARTS.items()]
    return [f"{'part':<12}{'bits/dim':>10}", *lines]


def comparability(summary: Mapping[str, Any]) -> list[str]:
    """The settings that comparable numbers of `nll` share, a line each."""
    fields = {"interval": _interval(summary)}
    if summary.get("continuous_bits_per_dim") is not None:
        value = with_interval(summary["continuous_bits_per_dim"], summary["continuous_half_width"])
        fields["continuous"] = (
            f"{value} bits/dim in continuous time, from the difference for some terms"
        )
    fields |= comparable_facts(summary)
    if summary["prior"] >= LARGE_PRIOR:
        fields["prior"] = (
            f"{summary['prior']:.4f} bits/dim: q(x_T) is far from the normal prior of sampling"
        )
    if note := uncorrected_note(summary):
        fields["tables"] = note
    return fact_lines(fields.items())


def comparable_facts(summary: Mapping[str, Any]) -> dict[str, str]:
    """The settings that comparable numbers of `nll` share, by name."""
    correction = correction_line(summary)
    return {
        "images": images_line(summary),
        **_padding_line(summary),
        **model_facts(summary),
        "estimator": f"{summary['estimator']}, {_amount(summary)}, "
        f"{counted(summary['num_evaluations'], 'network evaluation')}, seed {summary['seed']}",
        **({"precision": correction} if correction else {}),
        "device": device_line(summary),
    }


def _padding_line(summary: Mapping[str, Any]) -> dict[str, str]:
    of_images = unpadded(summary)
    if of_images is None:
        return {}
    padding = summary["data"]["padding"]
    before, after = (f"{width}x{height}" for height, width in (padding["from"], padding["to"]))
    value = with_interval(of_images["bits_per_dim"] or 0.0, of_images["half_width"])
    return {"padding": f"{before} to {after} with black; <= {value} bits per dimension of {before}"}


def num_sampled_images(summary: Mapping[str, Any]) -> int:
    """The number of images that the importance estimator evaluated."""
    return int(summary["sampling"].get("num_sampled_images", summary["num_images"]))


def _amount(summary: Mapping[str, Any]) -> str:
    sampling = summary["sampling"]
    if "num_replicates" not in sampling:
        return counted(sampling["draws"], "draw")
    replicates = counted(sampling["num_replicates"], "replicate")
    count = num_sampled_images(summary)
    is_all = count == summary["num_images"]
    return replicates if is_all else f"{replicates} of {counted(count, 'image')}"


def _interval(summary: Mapping[str, Any]) -> str:
    if summary["half_width"] is None:
        noise = "unknown for these images (one draw; two give an interval)"
    else:
        noise = f"{plus_minus(summary['half_width'])} for these images"
    population = summary["half_width_population"]
    if population is None:
        return f"95 %: {noise}; unknown for the population (one image)"
    return f"95 %: {noise}; {plus_minus(population)} for the population of images"
