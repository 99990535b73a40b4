"""Paired differences between runs of `nll` and between runs of `fid`."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpmbench.checksums import DamageError, read_npz, reading
from ddpmbench.diffusion.data_range import NATS_PER_BIT
from ddpmbench.diffusion.parameterization import Process
from ddpmbench.errors import InputError, damaged, path_of, shown_value
from ddpmbench.evaluate.page import write_page
from ddpmbench.execution.estimators import kind_of
from ddpmbench.execution.finished_runs import SUMMARY, FinishedRun, num_steps, schema_of
from ddpmbench.execution.folder import RunFolder
from ddpmbench.execution.terms import checked, correction_store, read_terms
from ddpmbench.files import named_path
from ddpmbench.likelihood.precision import (
    Correction,
    CorrectionDesign,
    differences,
    estimate_correction,
)
from ddpmbench.report import compare_fid, compare_nll, fid
from ddpmbench.report.compare_fid import FidelityComparison
from ddpmbench.report.compare_nll import Comparison
from ddpmbench.report.fid import (
    AGAINST_REFERENCE,
    INFLUENCE,
    METRICS,
    WITHOUT_REFERENCE,
    FidReport,
)
from ddpmbench.report.figures import NORMAL
from ddpmbench.report.nll import NllReport
from ddpmbench.report.stored import PageReport
from ddpmbench.report.tables import STRICT
from ddpmbench.report.text import with_data_range


def _check_comparable(
    run: FinishedRun,
    baseline: FinishedRun,
    facts: Callable[[FinishedRun], dict[str, object]],
    *,
    without: Collection[str] = (),
) -> None:
    """Raise InputError if a fact of the run, unless in `without`, differs from the baseline's."""
    known = []
    for one in (run, baseline):
        with reading(one.path / SUMMARY):
            known.append(facts(one))
    ours, theirs = known
    for name in {**ours, **theirs}:
        if name not in without and ours.get(name) != theirs.get(name):
            raise InputError(
                f"{run.path}: {name} is {shown_value(ours.get(name))}, but "
                f"{shown_value(theirs.get(name))} in {baseline.path}; runs are comparable only if "
                "these agree"
            )


Influence = Mapping[str, NDArray[np.float64]]


def _compare_fidelity(runs: Sequence[str | Path], out: str | Path | None) -> FidelityComparison:
    opened = [FidReport.finished(Path(run)) for run in runs]
    for run in opened:
        with reading(run.path / SUMMARY):  # all that a comparison takes from it
            fid.headline(run.summary), fid.scores(run.summary), fid.fid_facts(run.summary)
    baseline, *others = opened
    for run in others:
        _check_comparable(run, baseline, _fidelity_facts)
    summary = compare_fid.summary(
        [str(run) for run in runs],
        [run.summary for run in opened],
        [_differences(run, baseline) for run in others],
    )
    folder = None if out is None else named_path(out)
    compared = FidelityComparison(summary, compare_fid.differences_frame(summary), folder)
    _write(compared, identity="samples")
    return compared


def _write(compared: Comparison | FidelityComparison, *, identity: str) -> None:
    """Write tables, summary and page, if there is a folder.

    Args:
        compared: the comparison.
        identity: the summary field that distinguishes the runs.
    """
    if compared.folder is None:
        return
    summary = compared.summary
    runs = [summary["baseline"], *summary["runs"]]
    names = {name: [run[name] for run in runs] for name in ("run", identity)}
    folder = RunFolder(compared.folder, {"schema": summary["schema"], **names})
    compared.write_tables(folder)
    folder.write_summary(summary)
    write_page(compared, progress=False)


def _differences(run: FinishedRun, baseline: FinishedRun) -> list[dict[str, Any]]:
    """The differences of each metric: those against each reference, then those without one."""
    paired = _paired_half_widths(run, baseline)
    references = run.summary["references"], baseline.summary["references"]
    return [
        *(
            # Influences are on the metrics against the first reference.
            compare_fid.difference(
                metric, own, first, paired=paired.get(metric) if k == 0 else None
            )
            for k, (own, first) in enumerate(zip(*references, strict=True))
            for metric in AGAINST_REFERENCE
        ),
        *(
            compare_fid.difference(metric, run.summary, baseline.summary, paired=paired.get(metric))
            for metric in WITHOUT_REFERENCE
        ),
    ]


def _paired_half_widths(run: FinishedRun, baseline: FinishedRun) -> dict[str, float]:
    """Half width of each paired difference by metric; empty unless the runs share their noise."""
    if not _share_noise(run.summary, baseline.summary):
        return {}
    ours, theirs = _influence(run), _influence(baseline)
    return {
        name: NORMAL * float((ours[name] - theirs[name]).std(ddof=1)) / len(ours[name]) ** 0.5
        for name in ours
        if name in theirs
    }


def _share_noise(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    sampled = one["sampler"] is not None and other["sampler"] is not None
    return sampled and one["seed"] is not None and bool(one["seed"] == other["seed"])


def _influence(run: FinishedRun) -> Influence:
    """The influence of each sample by metric; empty if not stored, or for a single sample."""
    path = run.path / INFLUENCE
    number = run.summary["num_generated"]
    if not path.exists() or number < 2:
        return {}
    try:
        arrays = read_npz(path)
        influence = {name: arrays[name].astype(np.float64) for name in METRICS if name in arrays}
    except (DamageError, ValueError) as error:
        raise damaged(path) from error
    if any(
        array.shape != (number,) or not np.isfinite(array).all() for array in influence.values()
    ):
        raise damaged(path)
    return influence


def _fidelity_facts(run: FinishedRun) -> dict[str, object]:
    """What must be equal, by its name in `summary.json`."""
    summary = run.summary
    return {
        "name": summary["name"],
        **_flat("protocol", summary["protocol"]),
        "num_generated": summary["num_generated"],
        "compute_precision": summary["compute_precision"],
        "number of references": len(summary["references"]),
        **{
            f"references[{k}].{name}": reference[name]
            for k, reference in enumerate(summary["references"])
            for name in ("sha256", "num_reference")
        },
    }


def _flat(name: str, value: object) -> dict[str, object]:
    """The leaves of a nested record by their full names."""
    if not isinstance(value, dict):
        return {name: value}
    return {
        full_name: field
        for key, inner in value.items()
        for full_name, field in _flat(f"{name}.{key}", inner).items()
    }


def compare(
    runs: Sequence[str | Path | PageReport], *, out: str | Path | None = None
) -> Comparison | FidelityComparison:
    """The differences between runs, with their intervals.

    The interval of a difference is much narrower than those of the bounds, because the runs share
    timesteps and noise. For runs of `fid`, it is narrower if both sampled with the same seed, so
    that sample i of both starts from the same noise.

    Args:
        runs: two or more run folders of `evaluate_nll`, or of `fid`, or their reports; the first is
            the baseline.
        out: a folder for the tables, the figure and the page; None writes nothing.

    Raises:
        InputError: a folder holds no finished run; or the runs differ in images, conventions or
            terms, or runs of `fid` in their protocol.
    """
    if not isinstance(runs, Sequence) or isinstance(runs, str) or len(runs) < 2:
        raise InputError("compare: name two run folders or more")
    folders = [_folder_of(run) for run in runs]
    names = [str(folder) for folder in folders]
    if len(set(names[1:])) < len(names[1:]):
        raise InputError("compare: a run is named twice; name each that is compared once")
    if schema_of(folders[0]) == FidReport.SCHEMA:
        return _compare_fidelity(folders, out)
    opened = [NllReport.finished(folder, reads_terms=True) for folder in folders]
    baseline, *others = opened
    for run in others:
        _check_comparable(run, baseline, _facts, without=_not_compared(run, baseline))
    differences = [_difference(run, baseline) for run in others]
    frame = compare_nll.runs_frame(names, [run.summary for run in opened], differences)
    compared = Comparison(
        compare_nll.summary(frame, baseline.summary),
        frame,
        compare_nll.steps_frame(names[1:], differences),
        None if out is None else named_path(out),
    )
    _write(compared, identity="checkpoint")
    return compared


def _folder_of(run: str | Path | PageReport) -> Path:
    """The folder of a run, which may be given by its report."""
    if not isinstance(run, PageReport):
        return path_of("runs", run)
    if run.folder is None:
        raise InputError("compare: a report has no folder; evaluate with `out`")
    return run.folder


def _difference(run: FinishedRun, baseline: FinishedRun) -> compare_nll.Difference:
    prior = (run.summary["prior"] - baseline.summary["prior"]) * NATS_PER_BIT
    clip = bool(baseline.summary["conventions"]["clip"])
    estimator, correction = kind_of(baseline.summary), _correction(run, baseline)
    bound, share = estimator.difference(run, baseline, prior=prior, clip=clip)
    return compare_nll.Difference(bound, share, correction)


def _correction(run: FinishedRun, baseline: FinishedRun) -> Correction | None:
    """The correction of the difference; both runs were corrected with the same terms."""
    if baseline.summary.get("precision", STRICT) == STRICT:
        return None
    of_run, of_baseline = (_correction_terms(one) for one in (run, baseline))
    return estimate_correction(_correction_design(run), of_run - of_baseline)


def _correction_design(run: FinishedRun) -> CorrectionDesign:
    summary = run.summary
    size = (summary["num_images"], num_steps(summary))
    return CorrectionDesign(
        *size, summary["seed"], summary["precision_correction"]["num_evaluations"] // 2
    )


def _correction_terms(run: FinishedRun) -> NDArray[np.float64]:
    design, tables_of = _correction_design(run), []
    for precision in (STRICT, run.summary["precision"]):
        store = run.shards(correction_store(precision))
        if store.missing(len(design)):
            raise InputError(
                f"{run.path}: some shards of its {correction_store(precision)} are gone; run its "
                "command again"
            )
        tables_of.append(checked(read_terms(store, len(design), ("nats",)), design, where=run.path))
    return differences(design, *tables_of)


_IDENTITY_FACTS = ("schedule_sha256", "labels_sha256", "precision", "tables")


def _not_compared(one: FinishedRun, other: FinishedRun) -> list[str]:
    """A schedule's name where the schedules are equal, and the variance in continuous time."""
    schedules = {run.identity.get("schedule_sha256") for run in (one, other)}
    are_continuous = all(run.summary.get("num_parts") is not None for run in (one, other))
    has_one_schedule = len(schedules) == 1 and None not in schedules
    names = {"conventions.schedule": has_one_schedule, "conventions.variance": are_continuous}
    return [name for name, is_left_out in names.items() if is_left_out]


def _facts(run: FinishedRun) -> dict[str, object]:
    """What must be equal, by its name in `summary.json`."""
    summary = run.summary
    conventions = with_data_range(summary["conventions"])
    correction = summary.get("precision_correction") or {"num_evaluations": None}
    return {
        "num_images": summary["num_images"],
        "num_timesteps": summary["num_timesteps"],
        "data.sha256": summary["data"]["sha256"],
        **{f"conventions.{name}": value for name, value in conventions.items()},
        "conventions.process": conventions.get("process", Process.VP),
        "the number of parts of continuous time": summary.get("num_parts"),
        **{name: run.identity.get(name) for name in _IDENTITY_FACTS},
        "precision_correction.num_evaluations": correction["num_evaluations"],
        "estimator": summary["estimator"],
        "seed": summary["seed"],
        **{
            f"sampling.{name}": summary["sampling"].get(name) for name in kind_of(summary).paired_by
        },
    }
