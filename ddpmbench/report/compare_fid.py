"""Differences between runs of `fid`: report, printed table and figure."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ddpmbench.errors import damaged
from ddpmbench.execution.finished_runs import SUMMARY, FinishedRun
from ddpmbench.report.display import Card, Draw
from ddpmbench.report.fid import (
    METRICS,
    Score,
    comparable_only,
    half_width_of,
    label,
    protocol_facts,
    reference_line,
    reference_name,
)
from ddpmbench.report.figures import INK, Drawn, axes_panels, drawing, finish, interval, shortened
from ddpmbench.report.stored import PageReport, Table
from ddpmbench.report.text import aligned, fact_lines, joined, printed

DIFFERENCES_COLUMNS = {
    **dict.fromkeys(("run", "measure", "reference"), "str"),
    **dict.fromkeys(("baseline", "value", "difference"), "float64"),
    **dict.fromkeys(("half_width", "half_width_unpaired"), "float64"),
    "how": "str",
}
"""Columns of `differences.csv`, in the units of `summary.json`; see `difference`."""
_HEAD = ("measure", "first", "this", "difference", "interval", "against")
_INTERVALS = (
    "95 %; paired: sample i of both runs starts from the same noise; independent: no shared noise"
)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FidelityComparison(PageReport):
    """Runs of `fid` by the same protocol, against the first of them.

    Attributes:
        summary: the object of `summary.json`.
        differences: one row per run, metric and reference; see
            `differences_frame`.
        folder: with the tables, the figure and the page; None if nothing was written.
    """

    SCHEMA = "ddpmbench.compare-fid/1"
    TABLES: ClassVar = {"differences": Table("differences.csv", DIFFERENCES_COLUMNS)}
    TEMPLATE = "compare_fid.html.j2"
    FIGURES: ClassVar = {"differences": "Differences from the first run"}

    summary: dict[str, Any]
    differences: pd.DataFrame
    folder: Path | None

    @classmethod
    def _read(cls, run: FinishedRun) -> dict[str, Any]:
        if any(of["differences"][0]["measure"] != "fid" for of in run.summary["runs"]):
            raise damaged(run.path / SUMMARY)
        return super()._read(run)

    def _card(self) -> Card:
        summary, facts = self.summary, {}
        for run in summary["runs"]:
            for difference in run["differences"]:
                name, _, _, text, how, against = _cells(difference, summary["name"])
                facts[f"{run['run']}, {name} {against}".rstrip()] = f"{text} ({how})"
        first = summary["baseline"]["run"]
        return Card(f"{summary['name']} ({summary['protocol']['id']}) against {first}", facts=facts)

    def _figures(self) -> Mapping[str, Draw]:
        figure = differences_figure(self.differences, self.summary["name"])
        return {} if figure is None else {"differences": lambda: figure}

    def _page(self) -> dict[str, Any]:
        summary, runs, name = self.summary, self.summary["runs"], self.summary["name"]
        against = runs[0]["run"] if len(runs) == 1 else f"{len(runs)} runs"
        return {
            "heading": f"{against} against {summary['baseline']['run']}",
            "name": name,
            "protocol": summary["protocol"]["id"],
            "runs": [
                {
                    "run": run["run"],
                    "rows": [
                        {
                            **_scores(difference, name),
                            "how": _how(difference),
                            "word": _word(difference),
                        }
                        for difference in run["differences"]
                    ],
                }
                for run in runs
            ],
            "notes": [comparable_only(summary)],
            "facts": joined(_facts(summary)),
        }


def difference(
    metric: str,
    run: Mapping[str, Any],
    baseline: Mapping[str, Any],
    *,
    paired: float | None,
) -> dict[str, Any]:
    """The difference of a metric between two runs of `fid`, in the units of `summary.json`.

    Args:
        metric: its name in `summary.json`.
        run: the summary of the run, or one of its references.
        baseline: the same of the baseline.
        paired: half width of the difference if the runs share their noise; else None.

    Returns:
        The `measure`, which is the metric; the `reference`, "" for a metric without one; the values
        of `baseline` and run (`value`); `difference`, value minus baseline, its `half_width` and
        that of two independent runs (`half_width_unpaired`), None if one of the values is unknown;
        and `how`, "paired" or "independent", the kind of `half_width`.
    """
    first, value = baseline[metric], run[metric]
    widths = baseline[half_width_of(metric)], run[half_width_of(metric)]
    unpaired = None if None in widths else math.hypot(*widths)
    known = first is not None and value is not None
    return {
        "measure": metric,
        "reference": reference_name(run) if METRICS[metric].has_reference else "",
        "baseline": first,
        "value": value,
        "difference": value - first if known else None,
        "half_width": None if not known else unpaired if paired is None else paired,
        "half_width_unpaired": unpaired if known else None,
        "how": "independent" if paired is None else "paired",
    }


def summary(
    names: Sequence[str],
    summaries: Sequence[Mapping[str, Any]],
    differences: Sequence[Sequence[Mapping[str, Any]]],
) -> dict[str, Any]:
    """The object of a comparison's `summary.json`.

    Args:
        names: names of the runs, the baseline first.
        summaries: of the same runs.
        differences: differences of each run but the first.
    """
    rows: list[dict[str, Any]] = [
        {
            "run": name,
            "checkpoint": (run["checkpoint"] or {}).get("sha256"),
            "samples": run["samples"]["sha256"],
            "fid": run["fid"],
            "fid_half_width": run["fid_half_width"],
        }
        for name, run in zip(names, summaries, strict=True)
    ]
    for row, own in zip(rows[1:], differences, strict=True):
        row["differences"] = list(own)
    first = summaries[0]
    fields = ("source", "split", "sha256", "num_reference")
    return {
        "schema": FidelityComparison.SCHEMA,
        "name": first["name"],
        "baseline": rows[0],
        "runs": rows[1:],
        "num_generated": first["num_generated"],
        "protocol": first["protocol"],
        "references": [
            {name: reference[name] for name in fields} for reference in first["references"]
        ],
    }


def differences_frame(summary: Mapping[str, Any]) -> pd.DataFrame:
    """One row per run, metric and reference: `run`, and the fields of `difference`."""
    rows = [{"run": run["run"], **of} for run in summary["runs"] for of in run["differences"]]
    return pd.DataFrame(rows).astype(DIFFERENCES_COLUMNS)


def printed_fidelity_comparison(summary: dict[str, Any], output_format: str) -> str:
    """The summary of a comparison of runs of `fid` for standard output; see `printed`.

    "csv" has one row per run and metric, "quiet" only the differences of the distance from the
    first reference, one per line.
    """
    runs = summary["runs"]
    first = summary["baseline"]["run"]
    lines = [f"{summary['name']} ({summary['protocol']['id']}), differences from {first}"]
    for run in runs:
        cells = (_cells(difference, summary["name"]) for difference in run["differences"])
        lines += ["", str(run["run"]), *aligned([_HEAD, *cells], gap=2)]
    lines += ["", *fact_lines(_facts(summary))]
    if only := comparable_only(summary):
        lines += ["", only]
    quiet = "\n".join(repr(run["differences"][0]["difference"]) for run in runs)
    return printed(summary, output_format, lines, csv=differences_frame(summary), quiet=quiet)


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("samples", f"{summary['num_generated']:,} of each run"),
        *(("reference", reference_line(reference)) for reference in summary["references"]),
        *protocol_facts(summary["protocol"]),
        ("interval", _INTERVALS),
    ]


def _scores(difference: Mapping[str, Any], name: str) -> dict[str, Score]:
    """The two values and their difference, as shown."""
    metric = difference["measure"]
    return {
        "first": Score.of(metric, name, difference["baseline"]),
        "value": Score.of(metric, name, difference["value"]),
        "difference": Score.of(
            metric,
            name,
            difference["difference"],
            difference["half_width"],
            against=difference["reference"],
        ),
    }


def _cells(difference: Mapping[str, Any], name: str) -> tuple[str, ...]:
    scores = _scores(difference, name)
    shown = scores["difference"]
    sign = "+" if shown.value is not None and not shown.text.startswith("-") else ""
    values = scores["first"].text, scores["value"].text, f"{sign}{shown.text}"
    return (shown.label, *values, _how(difference), shown.against)


def _how(difference: Mapping[str, Any]) -> str:
    """The kind of interval, and the gain from pairing."""
    own, unpaired = difference["half_width"], difference["half_width_unpaired"]
    if difference["how"] != "paired" or not own or not unpaired or unpaired > 1000 * own:
        return str(difference["how"])
    if unpaired < own:
        return "paired, wider than independent"
    return f"paired, {unpaired / own:.1f} times narrower"


def _word(record: Mapping[str, Any]) -> str:
    difference, half_width = record["difference"], record["half_width"]
    if difference is None:
        return "unknown"
    if half_width is None:
        return "interval unknown"
    if abs(difference) <= half_width:
        return "not significant"
    return "better" if (difference > 0) == METRICS[record["measure"]].higher_is_better else "worse"


_COLUMNS = ["measure", "run", "difference", "half_width", "half_width_unpaired", "how"]


@drawing()
def differences_figure(differences: pd.DataFrame, name: str) -> Drawn | None:
    """Differences from the first run against the first reference, a line per run.

    Args:
        differences: see `differences_frame`.
        name: of the distance, "FID" or "FD[...]".

    Returns:
        The figure, and its rows, a measure and run each; None where no difference is known.
    """
    first = differences[differences.measure == "fid"].reference.iloc[0]
    table = differences[(differences.reference == first) & differences.difference.notna()]
    shown = (name for name, metric in METRICS.items() if metric.in_figure)
    known = [name for name in shown if (table.measure == name).any()]
    if not known:
        return None
    runs = list(dict.fromkeys(differences.run))
    figure, several = axes_panels(len(known))
    for axes, measure in zip(several, known, strict=True):
        _draw_differences(axes, table[table.measure == measure], runs)
        better = "higher" if METRICS[measure].higher_is_better else "lower"
        finish(axes, label(measure, name), x=f"difference; {better} is better", y="")
        axes.grid(visible=False)
    numbers = table[table.measure.isin(known)][_COLUMNS]
    return figure, numbers.reset_index(drop=True)


def _draw_differences(axes: Axes, rows: pd.DataFrame, runs: list[str]) -> None:
    axes.axvline(0, color=INK, lw=0.9, ls="--")
    widths = rows[["half_width_unpaired", "half_width"]].to_numpy()
    for run, value, half_widths in zip(rows.run, rows.difference.to_numpy(), widths, strict=True):
        interval(axes, runs.index(run), value, half_widths)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_yticks(range(len(runs)), [shortened(run) for run in runs])
    axes.set_ylim(len(runs) - 0.5, -0.5)
