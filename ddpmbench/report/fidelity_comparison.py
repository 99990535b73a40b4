"""Differences between runs of `fid` as records and as the object of their summary."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ddpmbench.report.fidelity import reference_name

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
        own = (asdict(found) for found in differences if found.run == row["run"])
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
