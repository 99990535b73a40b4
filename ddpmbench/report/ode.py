"""The likelihood of an ODE as it is printed and on its page, with what makes it comparable."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from ddpmbench.diffusion.parameterization import Process
from ddpmbench.report.card import Card, Draw
from ddpmbench.report.figures.images import pairs_figure
from ddpmbench.report.html import environment_values, panels, rendered
from ddpmbench.report.nll_text import conventions_line, images_line, images_name, in_format
from ddpmbench.report.schema import sanity_check_warning
from ddpmbench.report.text import (
    checkpoint_line,
    device_line,
    digits_by,
    fact_lines,
    with_interval,
)

_CAPTION = "Bits per image of the ODE over those of the variational bound, and their differences"


def printed_ode(summary: dict[str, Any], output_format: str) -> str:
    """The summary of `ode` for standard output.

    Args:
        summary: the object of `summary.json`.
        output_format: "table" for reading, "json" for the object itself, "csv" for one row with
            nested names joined by dots, "quiet" for the number alone.
    """
    return in_format(
        summary,
        output_format,
        lambda: [_headline(summary), "", *fact_lines(_facts(summary).items())],
    )


def ode_card(summary: Mapping[str, Any], folder: Path | None) -> Card:
    """What Python shows of a run of `ode`."""
    facts = _facts(summary)
    if folder is not None:
        facts["folder"] = str(folder)
    return Card(_headline(summary), {}, facts)


def ode_figures(per_image: pd.DataFrame) -> dict[str, Draw]:
    """The figures of a run of `ode` by name.

    Args:
        per_image: see `evaluate.ode.OdeReport`.
    """
    return {"pairs": partial(pairs_figure, per_image)}


def ode_page(
    summary: Mapping[str, Any], environment: Mapping[str, Any] | None, svgs: Mapping[str, str]
) -> str:
    """The page of a finished run of `ode`.

    Args:
        summary: the object of `summary.json`.
        environment: that of `environment.json`.
        svgs: its figures by name.
    """
    own = summary["half_width"]
    half_width = summary["half_width_population"] if own is None else own
    return rendered(
        "ode.html.j2",
        summary=summary,
        misread=sanity_check_warning(summary),
        heading=f"{summary['checkpoint']['source']} on {images_name(dict(summary))}",
        half_width=half_width,
        digits=digits_by(half_width),
        facts=_facts(summary),
        figure=panels(svgs["pairs"], "pairs", _CAPTION) if "pairs" in svgs else None,
        caption=_CAPTION,
        **environment_values(environment),
    )


def solver_line(settings: Mapping[str, Any], solver_error: float) -> str:
    """How an ODE was solved, in one line; the settings are those of `OdeSettings.record`."""
    count, probes = settings["probes"], ""
    if settings["trace"] != "exact":
        probes = f", {count} probe{'s' if count > 1 else ''} an image"
    return (
        f"{settings['solver']}, {settings['solver_steps']} steps, error {solver_error:+.1e}; "
        f"{settings['trace']} trace{probes}"
    )


def _headline(summary: Mapping[str, Any]) -> str:
    half_width = summary["half_width"]
    if half_width is None:
        half_width = summary["half_width_population"]
    return f"NLL of the ODE <= {with_interval(summary['bits_per_dim'], half_width)} bits/dim"


def _facts(summary: Mapping[str, Any]) -> dict[str, str]:
    """What makes the number comparable, by name."""
    difference = summary["difference_from_bound"]
    prior = "N(0, s_T^2 I)" if summary["conventions"].get("process") == Process.VE else "N(0, I)"
    return {
        "interval": _interval(summary),
        "bound": f"{with_interval(difference, summary['difference_half_width'], sign='+')} from "
        "the variational bound, 95 %",
        "solver": solver_line(summary["ode"], summary["solver_error"]),
        "pixels": f"{summary['ode']['dequantization']} dequantization; x_T is {prior}, as in "
        "the bound",
        "images": images_line(dict(summary)) + f"; the ODE of {summary['num_ode_images']:,}",
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
