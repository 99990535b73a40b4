"""Differences between runs of `fid`: records, the printed table and the page."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from ddpmbench.report.fidelity import reference_name
from ddpmbench.report.fidelity_text import (
    MEASURES,
    Measured,
    aligned,
    comparable_only,
    label,
    protocol_facts,
    reference_line,
)
from ddpmbench.report.html import panels, rendered
from ddpmbench.report.text import joined

SCHEMA = "ddpmbench.compare-fid/1"
PAIRED, INDEPENDENT = "paired", "independent"


@dataclass(frozen=True)
class FidelityDifference:
    """Of a measure of a run from that of the baseline, in the units of `summary.json`.

    Attributes:
        run: its name.
        measure: its name in `summary.json`.
        reference: what it is against; "" for the inception score.
        baseline: the value of the baseline.
        value: that of the run.
        difference: of them; None where one is not known, as is what follows.
        half_width: of its 95 % interval.
        half_width_unpaired: that of two runs that share nothing.
        how: "paired" or "independent", what `half_width` is.
    """

    run: str
    measure: str
    reference: str
    baseline: float | None
    value: float | None
    difference: float | None
    half_width: float | None
    half_width_unpaired: float | None
    how: str


def summary(
    names: Sequence[str],
    summaries: Sequence[Mapping[str, Any]],
    differences: Sequence[FidelityDifference],
) -> dict[str, Any]:
    """The object of a comparison's `summary.json`.

    Args:
        names: of the runs, the baseline first.
        summaries: of the same runs.
        differences: of all runs but the first.
    """
    rows: list[dict[str, Any]] = [
        {
            "run": name,
            "checkpoint": (of["checkpoint"] or {}).get("sha256"),
            "samples": of["samples"]["sha256"],
            "fid": of["fid"],
            "fid_half_width": of["fid_half_width"],
        }
        for name, of in zip(names, summaries, strict=True)
    ]
    for row in rows[1:]:
        own = (asdict(one) for one in differences if one.run == row["run"])
        row["differences"] = [
            {name: value for name, value in of.items() if name != "run"} for of in own
        ]
    first = summaries[0]
    kept = ("source", "split", "sha256", "num_reference")
    return {
        "schema": SCHEMA,
        "name": first["name"],
        "baseline": rows[0],
        "runs": rows[1:],
        "num_generated": first["num_generated"],
        "protocol": first["protocol"],
        "references": [{name: of[name] for name in kept} for of in first["references"]],
    }


def difference(
    measure: str,
    run: tuple[str, Mapping[str, Any]],
    baseline: Mapping[str, Any],
    *,
    paired: float | None,
) -> FidelityDifference:
    """Of a measure of two runs.

    Args:
        measure: its name in `summary.json`.
        run: the run's name; its summary, or one of its references.
        baseline: the same of the baseline.
        paired: the half width of the difference where the two share their noise; else None.
    """
    name, values = run
    first, value = baseline[measure], values[measure]
    widths = baseline[f"{measure}_half_width"], values[f"{measure}_half_width"]
    unpaired = None if None in widths else math.hypot(*widths)
    known = first is not None and value is not None
    return FidelityDifference(
        run=name,
        measure=measure,
        reference="" if measure == "inception_score" else reference_name(dict(values)),
        baseline=first,
        value=value,
        difference=value - first if known else None,
        half_width=None if not known else unpaired if paired is None else paired,
        half_width_unpaired=unpaired if known else None,
        how=INDEPENDENT if paired is None else PAIRED,
    )


FIGURE = ("differences", "Differences from the first run")
"""The name of the figure, and what it shows."""
HIGHER_IS_BETTER = ("precision", "recall", "inception_score")
_HEAD = ("measure", "first", "this", "difference", "interval", "against")
_INTERVALS = (
    "95 %; paired: sample i of both runs starts from the same noise; independent: no shared noise"
)


def printed_fidelity_comparison(summary: dict[str, Any], output_format: str) -> str:
    """The summary of a comparison of runs of `fid` for standard output.

    Args:
        summary: the object of the comparison's `summary.json`.
        output_format: "table", "json", "csv" with one row a run and measure, or "quiet" for the
            differences of the distance from the first reference alone, one a line.
    """
    runs = summary["runs"]
    match output_format:
        case "json":
            return json.dumps(summary, indent=2)
        case "csv":
            rows = [{"run": run["run"], **of} for run in runs for of in run["differences"]]
            return pd.DataFrame(rows).to_csv(index=False).rstrip()
        case "quiet":
            return "\n".join(repr(run["differences"][0]["difference"]) for run in runs)
    first = summary["baseline"]["run"]
    lines = [f"{summary['name']} ({summary['protocol']['id']}), differences from {first}"]
    for run in runs:
        cells = (_cells(of, summary["name"]) for of in run["differences"])
        lines += ["", str(run["run"]), *aligned([_HEAD, *cells])]
    facts = [f"{name:<12}{value}" for name, value in _facts(summary)]
    only = comparable_only(summary)
    return "\n".join([*lines, "", *facts, *(["", only] if only else [])])


def fidelity_comparison_numbers(summary: Mapping[str, Any]) -> dict[str, str]:
    """The differences of each run from the first with their intervals, by run and measure."""
    numbers = {}
    for run in summary["runs"]:
        for of in run["differences"]:
            name, _, _, difference, how, against = _cells(of, summary["name"])
            numbers[f"{run['run']}, {name} {against}".rstrip()] = f"{difference} ({how})"
    return numbers


def fidelity_comparison_page(summary: Mapping[str, Any], svgs: Mapping[str, str]) -> str:
    """The page of a comparison of runs of `fid`.

    Args:
        summary: the object of its `summary.json`.
        svgs: its figures by name; without that of `FIGURE` the page has none.
    """
    first, runs, name = summary["baseline"]["run"], summary["runs"], summary["name"]
    against = runs[0]["run"] if len(runs) == 1 else f"{len(runs)} runs"
    shown = [
        {
            "run": run["run"],
            "rows": [
                {
                    "first": _measured(of, "baseline", None, name),
                    "value": _measured(of, "value", None, name),
                    "difference": _measured(of, "difference", "half_width", name),
                    "how": _how(of),
                    "word": _word(of),
                }
                for of in run["differences"]
            ],
        }
        for run in runs
    ]
    only = comparable_only(summary)
    return rendered(
        "comparison_fid.html.j2",
        heading=f"{against} against {first}",
        name=name,
        protocol=summary["protocol"]["id"],
        runs=shown,
        notes=[only] if only else [],
        facts=joined(_facts(summary)),
        figure=panels(svgs[FIGURE[0]], *FIGURE) if FIGURE[0] in svgs else None,
    )


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("samples", f"{summary['num_generated']:,} of each run"),
        *(("reference", reference_line(of)) for of in summary["references"]),
        *protocol_facts(summary["protocol"]),
        ("interval", _INTERVALS),
    ]


def _cells(of: Mapping[str, Any], name: str) -> tuple[str, ...]:
    shown = _measured(of, "difference", "half_width", name)
    sign = "+" if shown.value is not None and not shown.text.startswith("-") else ""
    return (
        shown.label,
        _measured(of, "baseline", None, name).text,
        _measured(of, "value", None, name).text,
        f"{sign}{shown.text}",
        _how(of),
        of["reference"],
    )


def _measured(of: Mapping[str, Any], value: str, half_width: str | None, name: str) -> Measured:
    _, digits, scale = MEASURES[of["measure"]]
    here, width = of[value], of[half_width] if half_width else None
    return Measured(
        of["measure"],
        label(of["measure"], name),
        None if here is None else scale * here,
        None if width is None else scale * width,
        digits,
        of["reference"],
    )


def _how(of: Mapping[str, Any]) -> str:
    """What the interval is, and what pairing gained."""
    own, unpaired = of["half_width"], of["half_width_unpaired"]
    if of["how"] != PAIRED or not own or not unpaired or unpaired > 1000 * own:
        return str(of["how"])
    if unpaired < own:
        return f"{PAIRED}, wider than independent"
    return f"{PAIRED}, {unpaired / own:.1f} times narrower"


def _word(of: Mapping[str, Any]) -> str:
    difference, half_width = of["difference"], of["half_width"]
    if difference is None:
        return "unknown"
    if half_width is None:
        return "interval unknown"
    if abs(difference) <= half_width:
        return "not significant"
    return "better" if (difference > 0) == (of["measure"] in HIGHER_IS_BETTER) else "worse"
