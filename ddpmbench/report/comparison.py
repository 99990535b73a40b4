"""Differences between runs as tables, in bits per dimension."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from ddpmbench.diffusion.data_range import NATS_PER_BIT
from ddpmbench.likelihood.bound import BoundEstimate
from ddpmbench.likelihood.estimator import SampledBound
from ddpmbench.likelihood.precision import Correction
from ddpmbench.report.schema import STRICT
from ddpmbench.report.tables import CorrectionInBits, per_timestep, rate, widened

SCHEMA = "ddpmbench.comparison/1"


@dataclasses.dataclass(frozen=True, eq=False)
class Difference:
    """Of a run from the baseline.

    Attributes:
        bound: differences where a bound has its values, nats per dimension.
        same_rows: which share of the rows is the same; the others are at nearby steps.
        correction: of the difference; None where both runs are in strict float32.
    """

    bound: BoundEstimate | SampledBound
    same_rows: float
    correction: Correction | None = None


def runs_frame(
    names: Sequence[str], summaries: Sequence[dict[str, Any]], differences: Sequence[Difference]
) -> pd.DataFrame:
    """One row a run, in bits per dimension; the first is the baseline.

    Columns: `run`, `bits_per_dim`, `half_width`; `difference` from the baseline, its `half_width`
    for these images and for their population, `half_width_unpaired` that two runs on other rows
    would have, the `num_evaluations` of each that count, and which share of the rows is the same
    for both (`same_rows`). Where the runs are corrected, the difference is.
    """
    rows: list[dict[str, object]] = []
    first = summaries[0]["half_width"]
    for name, summary, found in zip(names, summaries, [None, *differences], strict=True):
        row: dict[str, object] = {
            "run": name,
            "checkpoint": summary["checkpoint"]["sha256"],
            "bits_per_dim": summary["bits_per_dim"],
            "half_width": summary["half_width"],
        }
        if found is not None:
            bound, own = found.bound, summary["half_width"]
            correction = CorrectionInBits()
            if found.correction is not None:
                correction = CorrectionInBits.of(found.correction, uncorrected=bound.nats)
            unpaired = None if None in (own, first) else math.hypot(own, first)
            row |= {
                "difference": bound.nats / NATS_PER_BIT + correction.bits_per_dim,
                "difference_half_width": widened(_bits(bound.half_width), correction),
                "difference_half_width_population": widened(
                    _bits(bound.half_width_population), correction
                ),
                "half_width_unpaired": unpaired,
                "num_evaluations": int(bound.num_evaluations.sum()) + correction.num_evaluations,
                "same_rows": found.same_rows,
            }
        rows.append(row)
    # The baseline has none: without the type they would be floating point.
    return pd.DataFrame(rows).astype({"num_evaluations": "Int64"})


def steps_frame(names: Sequence[str], differences: Sequence[Difference]) -> pd.DataFrame:
    """One row a run and step: the difference of the term and of the rate from the baseline's.

    Of runs in low precision they are as the rows have them, uncorrected.

    Columns: `run`; those of `per_timestep` and `rate`, as differences.
    """
    frames = []
    for name, found in zip(names, differences, strict=True):
        frame = per_timestep(found.bound).merge(rate(found.bound), on="t")
        frame.insert(0, "run", name)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def rows_of(frame: pd.DataFrame) -> list[dict[Any, Any]]:
    """The rows of `runs_frame` as JSON can hold them."""
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def summary(frame: pd.DataFrame, baseline: dict[str, Any]) -> dict[str, Any]:
    """The object of a comparison's `summary.json`."""
    rows = rows_of(frame)
    return {
        "schema": SCHEMA,
        "baseline": rows[0],
        "runs": rows[1:],
        **{
            name: baseline[name]
            for name in ("num_images", "num_timesteps", "estimator", "conventions", "data", "seed")
        },
        "precision": baseline.get("precision", STRICT),
    }


def _bits(nats: float | None) -> float | None:
    return None if nats is None else nats / NATS_PER_BIT
