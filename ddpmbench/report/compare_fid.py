"""Differences between runs of `fid`: records, the printed table, the page and its figure."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from msgspec import Meta, Struct, structs

from ddpmbench.report.display import Card
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
from ddpmbench.report.html import drawn, rendered
from ddpmbench.report.text import aligned, fact_lines, joined, printed

SCHEMA = "ddpmbench.compare-fid/1"
FIGURES = {"differences": "Differences from the first run"}
"""Captions of the figures, by name."""
_HEAD = ("measure", "first", "this", "difference", "interval", "against")
_INTERVALS = (
    "95 %; paired: sample i of both runs starts from the same noise; independent: no shared noise"
)


class FidelityDifference(Struct):
    """The difference of a metric between two runs of `fid`, in the units of `summary.json`.

    Attributes:
        measure: the name of the metric.
        reference: the reference; "" for a metric without one.
        baseline: the value of the baseline.
        value: the value of the run.
        difference: value minus baseline; None if one is unknown, as are the fields below.
        half_width: of its 95 % interval.
        half_width_unpaired: that of two independent runs.
        how: the kind of `half_width`.
    """

    measure: str
    reference: str
    baseline: float | None
    value: float | None
    difference: float | None
    half_width: float | None
    half_width_unpaired: float | None
    how: Literal["paired", "independent"]

    def __post_init__(self) -> None:
        if self.measure not in METRICS:
            raise ValueError(f"measure: {self.measure} is no metric")


class FidelityBaseline(Struct):
    """The first run."""

    run: str


class FidelityRun(FidelityBaseline):
    """A run of `fid` in a comparison; the Frechet distance comes first."""

    differences: list[FidelityDifference]

    def __post_init__(self) -> None:
        if not self.differences or self.differences[0].measure != "fid":
            raise ValueError("differences: the first must be of fid")


class FidelityComparison(Struct):
    """`summary.json` of a comparison of runs of `fid`."""

    baseline: FidelityBaseline
    runs: Annotated[list[FidelityRun], Meta(min_length=1)]
    name: str
    num_generated: int
    protocol: dict[str, Any]
    references: Annotated[list[dict[str, Any]], Meta(min_length=1)]


def difference(
    metric: str,
    run: Mapping[str, Any],
    baseline: Mapping[str, Any],
    *,
    paired: float | None,
) -> FidelityDifference:
    """The difference of a metric between two runs.

    Args:
        metric: its name in `summary.json`.
        run: the summary of the run, or one of its references.
        baseline: the same of the baseline.
        paired: half width of the difference if the runs share their noise; else None.
    """
    first, value = baseline[metric], run[metric]
    widths = baseline[half_width_of(metric)], run[half_width_of(metric)]
    unpaired = None if None in widths else math.hypot(*widths)
    known = first is not None and value is not None
    return FidelityDifference(
        measure=metric,
        reference=reference_name(run) if METRICS[metric].has_reference else "",
        baseline=first,
        value=value,
        difference=value - first if known else None,
        half_width=None if not known else unpaired if paired is None else paired,
        half_width_unpaired=unpaired if known else None,
        how="independent" if paired is None else "paired",
    )


def summary(
    names: Sequence[str],
    summaries: Sequence[Mapping[str, Any]],
    differences: Sequence[Sequence[FidelityDifference]],
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
        row["differences"] = [structs.asdict(one) for one in own]
    first = summaries[0]
    fields = ("source", "split", "sha256", "num_reference")
    return {
        "schema": SCHEMA,
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
    """One row per run, metric and reference: `run`, and the fields of `FidelityDifference`."""
    runs = summary["runs"]
    return pd.DataFrame(
        [{"run": run["run"], **difference} for run in runs for difference in run["differences"]]
    )


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


def fidelity_comparison_card(summary: Mapping[str, Any]) -> Card:
    """The card of a comparison of runs of `fid`."""
    facts = {}
    for run in summary["runs"]:
        for difference in run["differences"]:
            name, _, _, text, how, against = _cells(difference, summary["name"])
            facts[f"{run['run']}, {name} {against}".rstrip()] = f"{text} ({how})"
    first = summary["baseline"]["run"]
    return Card(f"{summary['name']} ({summary['protocol']['id']}) against {first}", facts=facts)


def fidelity_comparison_page(summary: Mapping[str, Any], svgs: Mapping[str, str]) -> str:
    """The page of a comparison of runs of `fid`, without a figure if no difference is known."""
    first, runs, name = summary["baseline"]["run"], summary["runs"], summary["name"]
    against = runs[0]["run"] if len(runs) == 1 else f"{len(runs)} runs"
    return rendered(
        "compare_fid.html.j2",
        heading=f"{against} against {first}",
        name=name,
        protocol=summary["protocol"]["id"],
        runs=[
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
        notes=[comparable_only(summary)],
        facts=joined(_facts(summary)),
        **drawn(svgs, FIGURES),
    )


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
    table = differences.astype({column: "float64" for column in _COLUMNS[2:5]})
    first = table[table.measure == "fid"].reference.iloc[0]
    table = table[(table.reference == first) & table.difference.notna()]
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
