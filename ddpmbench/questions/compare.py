"""Which of several models is better, and is it sure? Paired differences between runs."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ddpmbench.errors import InputError
from ddpmbench.files import named_path
from ddpmbench.likelihood.correction import (
    Correction,
    CorrectionRows,
    differences,
    estimate_correction,
)
from ddpmbench.likelihood.design import Design, EveryPair
from ddpmbench.likelihood.paired import (
    Tables,
    WarpTerms,
    difference_of_pairs,
    difference_of_warps,
    same_steps,
)
from ddpmbench.likelihood.terms import columns_of_bound
from ddpmbench.likelihood.warp import RotatedWarp
from ddpmbench.process.units import NATS_PER_BIT
from ddpmbench.questions.compare_fidelity import FidelityComparison, compare_fidelity
from ddpmbench.questions.report import schema_of, write_report
from ddpmbench.questions.unlike import Facts, refuse_unlike
from ddpmbench.report import comparison, fidelity, tables
from ddpmbench.report.card import Card, Draw, Shown
from ddpmbench.report.checks import STRICT, check_run
from ddpmbench.report.data_ranges import with_data_range
from ddpmbench.runs.correction import store_name
from ddpmbench.runs.finished import SUMMARY, FinishedRun
from ddpmbench.runs.folder import RunFolder
from ddpmbench.runs.losses import refuse_losses
from ddpmbench.runs.rows import checked


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Comparison(Shown):
    """Runs on the same rows, against the first of them.

    Attributes:
        summary: the object of `summary.json`.
        runs: one row a run; see `report.comparison.runs_frame`.
        per_timestep: one row a run and step; see `report.comparison.steps_frame`.
    """

    summary: dict[str, Any]
    runs: pd.DataFrame
    per_timestep: pd.DataFrame

    def _card(self) -> Card:
        from ddpmbench.report.cards import comparison_card

        return comparison_card(self.summary)

    def _figures(self) -> Mapping[str, Draw]:
        from ddpmbench.report.figures.difference import difference_figure

        baseline = str(self.summary["baseline"]["run"])
        return {"difference": lambda: difference_figure(self.per_timestep, baseline)}


def compare(
    runs: Sequence[str | Path], *, out: str | Path | None = None
) -> Comparison | FidelityComparison:
    """The differences between runs, with their intervals.

    The interval of a difference is much narrower than those of the bounds, because the runs were
    made on the same rows with the same noise.

    Args:
        runs: two run folders of `evaluate_nll` or more, or of `fid`; the first is the baseline.
        out: a folder for the tables, the figure and the page; None writes nothing.

    Raises:
        InputError: one is no finished run, or their images, conventions or rows differ, or what
            the samples of runs of `fid` were measured with.
    """
    if len(runs) < 2:
        raise InputError("compare: name two run folders or more")
    names = [str(run) for run in runs]
    if len(set(names[1:])) < len(names[1:]):
        raise InputError("compare: a run is named twice; name each that is compared once")
    if schema_of(Path(runs[0])) == fidelity.SCHEMA:
        return compare_fidelity(runs, out=out)
    opened = [FinishedRun.open(Path(run), option="", schema=tables.SCHEMA) for run in runs]
    for run in opened:
        check_run(run.summary, run.path / SUMMARY)
        refuse_losses(run, option="", reads_rows=True)
    baseline = opened[0]
    for run in opened[1:]:
        refuse_unlike(run, baseline, _facts_beside(run, baseline))
    differences = [_difference(run, baseline) for run in opened[1:]]
    frame = comparison.runs_frame(names, [run.summary for run in opened], differences)
    found = Comparison(
        summary=comparison.summary(frame, baseline.summary),
        runs=frame,
        per_timestep=comparison.steps_frame(names[1:], differences),
    )
    if out is not None:
        _write(named_path(out), found)
    return found


def _write(path: Path, found: Comparison) -> None:
    runs = [found.summary["baseline"], *found.summary["runs"]]
    compared = {name: [run[name] for run in runs] for name in ("run", "checkpoint")}
    folder = RunFolder(path, {"schema": comparison.SCHEMA, **compared})
    folder.write_frame("runs.csv", found.runs)
    folder.write_frame("per_timestep.csv", found.per_timestep)
    folder.write_summary(found.summary)
    write_report(path)


def _difference(run: FinishedRun, baseline: FinishedRun) -> comparison.Difference:
    prior = (run.summary["prior"] - baseline.summary["prior"]) * NATS_PER_BIT
    clip = bool(baseline.summary["conventions"]["clip"])
    design, correction = baseline.design, _correction(run, baseline)
    if isinstance(design, EveryPair):
        of = _tables(run, design), _tables(baseline, design)
        pairs = difference_of_pairs(design, *of, prior=prior, clip=clip)
        return comparison.Difference(pairs, 1.0, correction)
    model, other = _warp_terms(run), _warp_terms(baseline)
    bound = difference_of_warps(model, other, prior=prior, clip=clip)
    return comparison.Difference(bound, same_steps(model.design, other.design), correction)


def _correction(run: FinishedRun, baseline: FinishedRun) -> Correction | None:
    """Of the difference; both runs were corrected by the same rows."""
    if baseline.summary.get("precision", STRICT) == STRICT:
        return None
    of_run, of_baseline = (_correction_terms(one) for one in (run, baseline))
    return estimate_correction(_correction_rows(run), of_run - of_baseline)


def _correction_rows(run: FinishedRun) -> CorrectionRows:
    of = run.summary
    size = (of["num_images"], of["num_timesteps"])
    return CorrectionRows(*size, of["seed"], of["precision_correction"]["num_evaluations"] // 2)


def _correction_terms(run: FinishedRun) -> NDArray[np.float64]:
    design, tables_of = _correction_rows(run), []
    for precision in (STRICT, run.summary["precision"]):
        store = run.shards(store_name(precision))
        if store.missing(len(design)):
            raise InputError(
                f"{run.path}: some shards of its {store_name(precision)} are gone; run its command "
                "again"
            )
        tables_of.append(checked(store.tables(len(design), ("nats",)), design, where=run.path))
    return differences(design, *tables_of)


def _warp_terms(run: FinishedRun) -> WarpTerms:
    design = run.design
    assert isinstance(design, RotatedWarp)
    return WarpTerms(design, _tables(run, design), run.predictions())


def _tables(run: FinishedRun, design: Design) -> Tables:
    store = run.shards("terms")
    if store.missing(len(design)):
        raise InputError(f"{run.path}: some of its shards are gone; run its command again")
    columns = columns_of_bound(clip=bool(run.summary["conventions"]["clip"]))
    return lambda length: checked(store.tables(length, columns), design, where=run.path)


def _rows_of_correction(run: FinishedRun) -> int | None:
    if run.summary.get("precision", STRICT) == STRICT:
        return None
    return int(run.summary["precision_correction"]["num_evaluations"])


_IDENTITY_FACTS = ("schedule_sha256", "labels_sha256", "precision", "tables")


def _facts_beside(one: FinishedRun, other: FinishedRun) -> Facts:
    """What must be the same in two runs; of one schedule not what it is called."""
    schedules = {run.identity.get("schedule_sha256") for run in (one, other)}

    def facts(run: FinishedRun) -> dict[str, object]:
        found = _facts(run)
        if len(schedules) == 1 and None not in schedules:
            found.pop("conventions.schedule", None)
        return found

    return facts


def _facts(run: FinishedRun) -> dict[str, object]:
    """What must be the same, by its name in `summary.json`."""
    of = run.summary
    conventions = with_data_range(of["conventions"])
    return {
        "num_images": of["num_images"],
        "num_timesteps": of["num_timesteps"],
        "data.sha256": of["data"]["sha256"],
        **{f"conventions.{name}": value for name, value in conventions.items()},
        **{name: run.identity.get(name) for name in _IDENTITY_FACTS},
        "precision_correction.num_evaluations": _rows_of_correction(run),
        "estimator": of["estimator"],
        "seed": of["seed"],
        "sampling.draws": of["sampling"].get("draws"),
    }
