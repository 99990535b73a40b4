"""The likelihood of an ODE: report, printed result and figure."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from ddpmbench.diffusion.parameterization import Process, TimeInput
from ddpmbench.execution.finished_runs import PER_IMAGE
from ddpmbench.report.display import Card, Draw, in_folder
from ddpmbench.report.figures import (
    COLORS,
    INK,
    Drawn,
    axes_panels,
    drawing,
    finish,
    histogram,
)
from ddpmbench.report.stored import PageReport, Table
from ddpmbench.report.text import (
    counted,
    device_line,
    digits_by,
    fact_lines,
    heading,
    images_line,
    model_facts,
    plus_minus,
    printed,
    sanity_check_warning,
    with_interval,
)

PER_IMAGE_COLUMNS = {
    "image_id": "str",
    **dict.fromkeys(("bits_per_dim", "decoder", "log_q", "log_p"), "float64"),
    **dict.fromkeys(("solver_error", "probe_error", "variational_bound"), "float64"),
}
"""Columns of `per_image.csv`, in bits per dimension."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class OdeReport(PageReport):
    """The likelihood of a checkpoint's ODE on images.

    Attributes:
        summary: the object of `summary.json`.
        per_image: one row per image whose ODE was solved, in bits per dimension: `image_id`,
            `bits_per_dim` = `decoder` + `log_q` - `log_p`, its `solver_error` and `probe_error`,
            and `variational_bound`, an unbiased estimate.
        folder: the run folder; None if the run was kept in memory.
    """

    SCHEMA = "ddpmbench.ode/1"
    TABLES: ClassVar = {"per_image": Table(PER_IMAGE, PER_IMAGE_COLUMNS)}
    TEMPLATE = "ode.html.j2"
    FIGURES: ClassVar = {
        "pairs": "Bits per image of the ODE over those of the variational bound, and their "
        "differences"
    }

    summary: dict[str, Any]
    per_image: pd.DataFrame
    folder: Path | None

    def _card(self) -> Card:
        return Card(_headline(self.summary), {}, in_folder(_facts(self.summary), self.folder))

    def _figures(self) -> Mapping[str, Draw]:
        return {"pairs": partial(pairs_figure, self.per_image)}

    def _page(self) -> dict[str, Any]:
        half_width = _half_width(self.summary)
        return {
            "summary": self.summary,
            "notes": [sanity_check_warning(self.summary)],
            "heading": heading(self.summary),
            "half_width": half_width,
            "digits": digits_by(half_width),
            "facts": _facts(self.summary),
        }


def printed_ode(summary: dict[str, Any], output_format: str) -> str:
    """The summary of `ode` for standard output; see `printed`."""
    lines = [_headline(summary), "", *fact_lines(_facts(summary).items())]
    return printed(summary, output_format, lines)


@drawing()
def pairs_figure(per_image: pd.DataFrame) -> Drawn:
    """The ODE's bits of each image over those of its variational bound, and the differences.

    Returns:
        The figure, and one row per image: `image_id`, `variational_bound`, `bits_per_dim` and
        `difference`.
    """
    figure, (both, spread) = axes_panels(2)
    difference = (per_image.bits_per_dim - per_image.variational_bound).to_numpy()
    both.axline((per_image.variational_bound.mean(),) * 2, slope=1, color=INK, lw=0.6)
    both.plot(
        per_image.variational_bound, per_image.bits_per_dim, "o", color=COLORS[0], ms=3, alpha=0.6
    )
    finish(both, "Per image", x="variational bound, bits/dim", y="ODE, bits/dim")
    mean = float(difference.mean())
    histogram(spread, difference, mean, f"mean {mean:+.3f}")
    finish(spread, "ODE minus variational bound", x="bits/dim", y="images")
    numbers = per_image[["image_id", "variational_bound", "bits_per_dim"]]
    return figure, numbers.assign(difference=difference)


def solver_line(settings: Mapping[str, Any], solver_error: float) -> str:
    """The solver of an ODE in one line; the settings are those of `OdeSettings.record`."""
    is_exact = settings["trace"] == "exact"
    probes = "" if is_exact else f", {counted(settings['probes'], 'probe')} per image"
    return (
        f"{settings['solver']}, {counted(settings['solver_steps'], 'step')}, error "
        f"{solver_error:+.1e}; {settings['trace']} trace{probes}"
    )


def trained_at(summary: Mapping[str, Any]) -> dict[str, str]:
    """`model_facts`, with a note if the network is evaluated between the timesteps of its training.

    Where the network takes the noise instead of a timestep, its training is not known.
    """
    facts = model_facts(summary)
    time_input = TimeInput(summary["conventions"].get("time_input", TimeInput.INDEX))
    if not time_input.is_of_noise:
        facts["process"] += "; the network was trained at whole timesteps only"
    return facts


def cost_line(summary: Mapping[str, Any]) -> str:
    """The network evaluations, the gradients and the seed of a run."""
    return (
        f"{summary['num_evaluations']:,} of the network, {summary['num_vjps']:,} "
        f"vector-Jacobian products, seed {summary['seed']}"
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
    difference = with_interval(
        summary["difference_from_bound"], summary["difference_half_width"], sign="+"
    )
    prior = "N(0, s_T^2 I)" if summary["conventions"].get("process") == Process.VE else "N(0, I)"
    return {
        "interval": f"95 %: {plus_minus(summary['half_width'])} for these images; "
        f"{plus_minus(summary['half_width_population'])} for the population of images",
        "bound": f"{difference} from the variational bound, 95 %",
        "solver": solver_line(summary["ode"], summary["solver_error"]),
        "pixels": f"{summary['ode']['dequantization']} dequantization; x_T is {prior}, as in "
        "the bound",
        "images": f"{images_line(summary)}; the ODE on {summary['num_ode_images']:,} of them",
        **trained_at(summary),
        "evaluations": cost_line(summary),
        "device": device_line(summary),
    }
