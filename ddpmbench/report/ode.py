"""The likelihood of an ODE as printed and on its page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpmbench.diffusion.parameterization import Process
from ddpmbench.report.card import Card
from ddpmbench.report.html import drawn, rendered
from ddpmbench.report.schema import sanity_check_warning
from ddpmbench.report.text import (
    checkpoint_line,
    conventions_line,
    device_line,
    digits_by,
    fact_lines,
    heading,
    images_line,
    printed,
    with_interval,
)

FIGURES = {
    "pairs": "Bits per image of the ODE over those of the variational bound, and their differences"
}
"""Captions of the figures, by name."""


def printed_ode(summary: dict[str, Any], output_format: str) -> str:
    """The summary of `ode` for standard output; see `printed`."""
    lines = [_headline(summary), "", *fact_lines(_facts(summary).items())]
    return printed(summary, output_format, lines)


def ode_card(summary: Mapping[str, Any], folder: Path | None) -> Card:
    """The card of a run of `ode`."""
    facts = _facts(summary)
    if folder is not None:
        facts["folder"] = str(folder)
    return Card(_headline(summary), {}, facts)


def ode_page(
    summary: Mapping[str, Any], environment: Mapping[str, Any] | None, svgs: Mapping[str, str]
) -> str:
    """The page of a finished run of `ode`."""
    half_width = _half_width(summary)
    return rendered(
        "ode.html.j2",
        summary=summary,
        notes=[sanity_check_warning(summary)],
        heading=heading(summary),
        half_width=half_width,
        digits=digits_by(half_width),
        facts=_facts(summary),
        environment=environment,
        **drawn(svgs, FIGURES),
    )


def solver_line(settings: Mapping[str, Any], solver_error: float) -> str:
    """The solver of an ODE in one line; the settings are those of `OdeSettings.record`."""
    count, probes = settings["probes"], ""
    if settings["trace"] != "exact":
        probes = f", {count} probe{'s' if count > 1 else ''} an image"
    return (
        f"{settings['solver']}, {settings['solver_steps']} steps, error {solver_error:+.1e}; "
        f"{settings['trace']} trace{probes}"
    )


def _headline(summary: Mapping[str, Any]) -> str:
    value = with_interval(summary["bits_per_dim"], _half_width(summary))
    return f"NLL of the ODE <= {value} bits/dim"


def _half_width(summary: Mapping[str, Any]) -> float | None:
    """Half width for these images; for a sample of them, that for their population."""
    own: float | None = summary["half_width"]
    return summary["half_width_population"] if own is None else own


def _facts(summary: Mapping[str, Any]) -> dict[str, str]:
    """The settings that comparable numbers share, by name."""
    difference = summary["difference_from_bound"]
    prior = "N(0, s_T^2 I)" if summary["conventions"].get("process") == Process.VE else "N(0, I)"
    return {
        "interval": _interval(summary),
        "bound": f"{with_interval(difference, summary['difference_half_width'], sign='+')} from "
        "the variational bound, 95 %",
        "solver": solver_line(summary["ode"], summary["solver_error"]),
        "pixels": f"{summary['ode']['dequantization']} dequantization; x_T is {prior}, as in "
        "the bound",
        "images": images_line(summary) + f"; the ODE of {summary['num_ode_images']:,}",
        "checkpoint": checkpoint_line(summary["checkpoint"]),
        "process": f"T = {summary['num_timesteps']}, {summary['conventions']['schedule']}; the "
        "network was trained at whole timesteps only",
        "conventions": conventions_line(summary["conventions"]),
        "evaluations": f"{summary['num_evaluations']:,} of the network, "
        f"{summary['num_vjps']:,} vector-Jacobian products, seed {summary['seed']}",
        "device": f"{device_line(summary)}, {summary['seconds']:,.0f} s",
    }


def _interval(summary: Mapping[str, Any]) -> str:
    known = {
        "these images": summary["half_width"],
        "the population of images": summary["half_width_population"],
    }
    parts = [
        f"{'unknown' if width is None else f'+- {width:.4f}'} for {name}"
        for name, width in known.items()
    ]
    return f"95 %: {'; '.join(parts)}"
