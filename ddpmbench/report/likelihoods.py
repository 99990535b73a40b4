"""The likelihoods of one checkpoint side by side: report, table, text and figure."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from matplotlib.ticker import MaxNLocator

from ddpmbench.diffusion.parameterization import Process
from ddpmbench.report.conventions import ALL_STEPS, BEST_CONSTANT, CONTINUOUS_TIME
from ddpmbench.report.display import Card, Draw, in_folder
from ddpmbench.report.figures import INK, Drawn, axes_panels, drawing, finish, interval
from ddpmbench.report.ode import cost_line, solver_line, trained_at
from ddpmbench.report.stored import PageReport, Table
from ddpmbench.report.text import (
    aligned,
    bound_line,
    counted,
    device_line,
    digits_by,
    fact_lines,
    heading,
    images_line,
    printed,
    sanity_check_warning,
    with_interval,
)

_VALUES = ("bits_per_dim", "half_width", "half_width_population")
_DIFFERENCE = ("difference", "difference_half_width")
COLUMNS = {
    "likelihood": "str",
    **dict.fromkeys((*_VALUES, *_DIFFERENCE), "float64"),
    **dict.fromkeys(("num_evaluations", "num_vjps"), "int64"),
    **dict.fromkeys(("convention", "published", "absent"), "str"),
}
"""Columns of `likelihoods.csv`."""
BOUND, CONSTANT, ODE = "variational bound", "best constant variance", "probability-flow ODE"
_PUBLISHED = {"google/ddpm-cifar10-32": "<= 3.75 (Ho et al. 2020, table 1, L_simple)"}
"""Published bounds on all of CIFAR-10's test images at T = 1000, by hub id."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LikelihoodsReport(PageReport):
    """The likelihoods of a checkpoint on images, side by side.

    Attributes:
        summary: the object of `summary.json`.
        likelihoods: one row per likelihood; see `likelihoods_frame`.
        folder: the run folder; None if the run was kept in memory.
    """

    SCHEMA = "ddpmbench.likelihoods/1"
    TABLES: ClassVar = {"likelihoods": Table("likelihoods.csv", COLUMNS)}
    TEMPLATE = "likelihoods.html.j2"
    FIGURES: ClassVar = {
        "likelihoods": "95 % intervals for these images (thick) and for their population (thin)"
    }

    summary: dict[str, Any]
    likelihoods: pd.DataFrame
    folder: Path | None

    def _card(self) -> Card:
        first, *others = self.summary["likelihoods"]
        known = {row["likelihood"]: _value(row) for row in others if row["absent"] is None}
        headline = bound_line(first["bits_per_dim"], first["half_width"])
        return Card(headline, {}, in_folder({**known, **_facts(self.summary)}, self.folder))

    def _figures(self) -> Mapping[str, Draw]:
        return {"likelihoods": partial(likelihoods_figure, self.likelihoods)}

    def _page(self) -> dict[str, Any]:
        summary = self.summary
        first = summary["likelihoods"][0]
        return {
            "summary": summary,
            "first": first,
            "notes": [sanity_check_warning(summary)],
            "heading": heading(summary),
            "digits": digits_by(first["half_width"]),
            "intervals": _intervals(summary),
            "order": _order(summary),
            "published": any(row["published"] for row in summary["likelihoods"]),
            "facts": _facts(summary),
        }


def published_bound(hub_id: str, bound: Mapping[str, Any]) -> str:
    """The published bound of a checkpoint of the hub; "" if unknown for these images.

    Args:
        hub_id: of the checkpoint.
        bound: the object of `summary.json` of its run of `nll`.
    """
    data = bound["data"]
    if bound["conventions"].get("process", Process.VP) != Process.VP:
        return ""
    key = (data["source"], data["split"], bound["num_images"], bound["num_timesteps"])
    return _PUBLISHED.get(hub_id, "") if key == ("cifar10", "test", 10_000, 1000) else ""


def likelihoods_frame(
    bound: Mapping[str, Any],
    conventions: pd.DataFrame,
    ode: Mapping[str, Any] | None,
    *,
    absent: Mapping[str, str | None],
    published: str,
) -> pd.DataFrame:
    """One row per likelihood, in bits per dimension; `COLUMNS`, empty if unknown.

    `difference` is from the first row, paired by the same terms or images. Evaluations and
    vector-Jacobian products (`num_vjps`) are those of a row alone; the second and the third row
    also use the terms of the first. `absent` says why the checkpoint lacks a row.

    Args:
        bound: the object of `summary.json` of `nll`.
        conventions: the table of the same run.
        ode: the object of `summary.json` of `ode`; None if there is none.
        absent: why there is no continuous time and no ODE, by row.
        published: from `published_bound`.
    """
    is_constant = (conventions.variance == BEST_CONSTANT) & (conventions.spacing == ALL_STEPS)
    is_limit = conventions.convention == CONTINUOUS_TIME
    extra = bound["continuous_num_evaluations"]
    rows: list[dict[str, Any]] = [
        {
            "likelihood": BOUND,
            **{name: bound[name] for name in (*_VALUES, "num_evaluations")},
            "convention": _of_variance(bound["conventions"]["variance"]),
            "published": published,
        },
        {
            "likelihood": CONSTANT,
            **(_of_terms(conventions[is_constant], 0) or {"absent": _why_no_constant(bound)}),
            "convention": "Bao et al. 2022, theorem 1; there from training images",
        },
        {
            "likelihood": CONTINUOUS_TIME,
            **(_of_terms(conventions[is_limit], extra) or {"absent": absent[CONTINUOUS_TIME]}),
            "convention": "Kingma et al. 2021, eq. 18; there trained in continuous time",
        },
        {
            "likelihood": ODE,
            **({"absent": absent[ODE]} if ode is None else _of_ode(ode)),
            "convention": "Song et al. 2021, section 4.3; there uniform dequantization",
        },
    ]
    empty = {"num_evaluations": 0, "num_vjps": 0, "published": "", "absent": ""}
    return pd.DataFrame([empty | row for row in rows], columns=list(COLUMNS)).astype(COLUMNS)


def _of_variance(variance: str) -> str:
    if variance.startswith("fixed"):
        return f"Ho et al. 2020, eq. 5, {variance}"
    return f"Nichol & Dhariwal 2021, {variance}"


def _of_terms(rows: pd.DataFrame, num_evaluations: int) -> dict[str, Any]:
    """The fields from a row of `conventions.csv`; empty without such a row."""
    if rows.empty:
        return {}
    known = {name: rows[name].iloc[0] for name in (*_VALUES[:2], *_DIFFERENCE)}
    return {**known, "num_evaluations": num_evaluations}


def _of_ode(ode: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{name: ode[name] for name in (*_VALUES, "num_evaluations", "num_vjps")},
        "difference": ode["difference_from_bound"],
        "difference_half_width": ode["difference_half_width"],
    }


def _why_no_constant(bound: Mapping[str, Any]) -> str:
    if bound["conventions"]["prediction"] == "previous_mean":
        return "the network predicts the mean, and its terms have no error of x_start"
    return "the schedule is too long, or begins too unevenly to interpolate the decoder"


def rows_of(frame: pd.DataFrame) -> list[dict[Any, Any]]:
    """The rows of `likelihoods_frame` in `summary.json`: null if unknown."""
    known = frame.notna() & (frame != "")
    return frame.astype(object).where(known, None).to_dict("records")


def printed_likelihoods(summary: dict[str, Any], frame: pd.DataFrame, output_format: str) -> str:
    """The likelihoods for standard output; see `printed`.

    "csv" is `likelihoods_frame`, "quiet" only its numbers, one per line, nan if absent.
    """
    cells = [("likelihood", "bits/dim", "difference", "evaluations", "gradients", "convention")]
    absent = []
    for row in summary["likelihoods"]:
        if row["absent"] is not None:
            absent.append(("absent", f"{row['likelihood']}: {row['absent']}"))
            continue
        counts = f"{row['num_evaluations']:,}", f"{row['num_vjps']:,}"
        difference = "" if row["difference"] is None else _difference(row)
        cells.append((row["likelihood"], _value(row), difference, *counts, row["convention"]))
    facts = [("interval", _intervals(summary)), ("order", _order(summary))]
    lines = [*aligned(cells), "", *fact_lines([*absent, *facts, *_facts(summary).items()])]
    quiet = "\n".join(repr(float(value)) for value in frame.bits_per_dim)
    return printed(summary, output_format, lines, csv=frame, quiet=quiet)


@drawing()
def likelihoods_figure(frame: pd.DataFrame) -> Drawn:
    """The available likelihoods, and their paired differences from the first.

    A thick bar is the 95 % interval for these images, a thin one that for their population.

    Args:
        frame: see `likelihoods_frame`.

    Returns:
        The figure, and one row per likelihood.
    """
    table = frame[frame.bits_per_dim.notna()].drop(columns=["published", "absent"])
    figure, (left, right) = axes_panels(2)
    widths = table[["half_width_population", "half_width"]].to_numpy()
    of_pairs = table[["difference_half_width"] * 2].to_numpy()
    for k, (value, difference) in enumerate(table[["bits_per_dim", "difference"]].to_numpy()):
        interval(left, k, value, widths[k])
        if k:
            interval(right, k, difference, of_pairs[k])
    right.axvline(0, color=INK, lw=0.9, ls="--")
    finish(left, "Likelihoods", x="bits/dim", y="")
    finish(right, "Paired difference", x=f"bits/dim, from the {table.likelihood[0]}", y="")
    for axes, first in ((left, 0), (right, 1)):
        axes.grid(visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_yticks(range(first, len(table)), table.likelihood[first:])
        axes.set_ylim(len(table) - 0.5, first - 0.5)
    return figure, table.reset_index(drop=True)


def _value(row: Mapping[str, Any]) -> str:
    own, population = row["half_width"], row["half_width_population"]
    if own is None and population is not None:
        return f"{with_interval(row['bits_per_dim'], population)} (population)"
    return with_interval(row["bits_per_dim"], own)


def _difference(row: Mapping[str, Any]) -> str:
    return with_interval(row["difference"], row["difference_half_width"], sign="+")


def _intervals(summary: Mapping[str, Any]) -> str:
    count = summary["num_ode_images"]
    of_ode = "" if count is None else f", and for the ODE on {counted(count, 'image')}"
    line = f"95 %, for these images; differences are paired: on the same terms{of_ode}"
    unknown = [
        row["likelihood"]
        for row in summary["likelihoods"]
        if row["absent"] is None and row["half_width"] is row["half_width_population"] is None
    ]
    if unknown:
        line += f"; unknown for {' and '.join(unknown)}: make more evaluations"
    return line


def _order(summary: Mapping[str, Any]) -> str:
    """The order of the rows that theory guarantees, in words."""
    variance = summary["conventions"]["variance"]
    if not variance.startswith("fixed"):
        return "none is known for a trained network"
    return f"{CONSTANT} <= {BOUND} ({variance}); no other is known for a trained network"


def _facts(summary: Mapping[str, Any]) -> dict[str, str]:
    """The settings that comparable numbers share, by name."""
    facts = {"images": images_line(summary), **trained_at(summary)}
    if (ode := summary["ode"]) is not None:
        line = f"{solver_line(ode, ode['solver_error'])}; {ode['dequantization']} dequantization"
        is_clipped = summary["conventions"]["clip"]
        facts["ode"] = line + ("; x_start not clipped" if is_clipped else "")
    return {**facts, "evaluations": cost_line(summary), "device": device_line(summary)}
