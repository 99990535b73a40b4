"""The result that a run folder holds already."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddpmbench.checksums import CHECKSUMS, DamageError, checksum, is_whole, read_json
from ddpmbench.errors import InputError
from ddpmbench.evaluate.nll_report import NllReport, load_nll
from ddpmbench.execution.estimators import kind_of
from ddpmbench.execution.finished_runs import ENVIRONMENT, SUMMARY
from ddpmbench.execution.folder import IDENTITY, SHARDS, run_store, tag
from ddpmbench.execution.store import has_faults
from ddpmbench.execution.stored_images import EXTREMES
from ddpmbench.execution.terms import paired_terms


def finished_report(
    folder: Path,
    *,
    identity: Mapping[str, Any],
    summary: Mapping[str, Any],
    sampling: Mapping[str, Any],
    environment: Mapping[str, Any],
    image_ids: Sequence[str],
) -> NllReport | None:
    """The report in a folder, if a run of `nll` with this identity would give the same result.

    The folder must hold the same run with the same target interval, made by the same versions on
    the same device, and be complete: shards, tables and all. Nothing in it is changed.

    Args:
        folder: the run folder.
        identity: the object of `run.json`.
        summary: the fields of `summary.json` that are known before the run.
        sampling: the fields of its `sampling` that are known before the run.
        environment: the object of `environment.json`; the command and the engine do not count.
        image_ids: names of the images, in order.

    Returns:
        The report as it was computed; None where anything differs, is missing, damaged or unknown,
        such as the result of a source with uncommitted changes.
    """
    if not (folder / SUMMARY).exists() or str(environment["git_revision"]).endswith("+"):
        return None
    try:
        known = read_json(folder / SUMMARY)
        run_record = read_json(folder / IDENTITY)
        run_record.pop(CHECKSUMS)
        is_same = (
            run_record == _as_read(identity)
            and _holds(known, summary)
            and _holds(known["sampling"], sampling)
            and _comparable(read_json(folder / ENVIRONMENT)) == _comparable(environment)
            and _has_whole_files(folder, known)
            and _has_whole_shards(folder, known)
        )
        if not is_same:
            return None
        report = load_nll(folder)
    except (DamageError, InputError, OSError, LookupError, TypeError, ValueError):
        return None
    return report if list(report.per_image.image_id) == list(map(str, image_ids)) else None


def _holds(record: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    return all(record[name] == value for name, value in _as_read(fields).items())


def _as_read(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as it comes back from a JSON file."""
    return dict(json.loads(json.dumps(record)))


def _comparable(environment: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a record of the environment on which a result can depend."""
    record = _as_read(environment)
    record.pop(CHECKSUMS, None)
    resolved = record.pop("arguments")["resolved"]
    resolved.pop("engine", None)
    return {**record, "resolved": resolved}


def _has_whole_files(folder: Path, summary: Mapping[str, Any]) -> bool:
    tables = {name: value for name, value in summary[CHECKSUMS].items() if name != "this"}
    sealed = [EXTREMES, *kind_of(summary).sealed]
    return all(checksum(folder / name) == value for name, value in tables.items()) and all(
        is_whole(folder / name) for name in sealed
    )


def _has_whole_shards(folder: Path, summary: Mapping[str, Any]) -> bool:
    """Whether no shard is missing or damaged.

    Shards of the result's own terms are checked when its report is loaded.
    """
    run = tag(folder)
    num_terms = {**kind_of(summary).other_terms(summary), **paired_terms(summary)}
    return (
        run is not None
        and not has_faults(folder / SHARDS, run)
        and not any(run_store(folder, name).missing(size) for name, size in num_terms.items())
    )


def recorded_half_width(folder: Path) -> float | None:
    """The half width of the finished run in a folder, bits per dimension; None without a run."""
    try:
        half_width = read_json(folder / SUMMARY)["half_width"]
    except (DamageError, OSError, KeyError):
        return None
    return half_width if isinstance(half_width, float) else None


def wider_note(folder: Path | None, reached: float | None, before: float | None) -> str | None:
    """A note where a result replaces a narrower one, whose half width is `before`."""
    if before is None or reached is None or reached <= before * (1 + 1e-9):
        return None
    return (
        f"+- {reached:.4f} replaces the result of +- {before:.4f} in {folder}; the terms of "
        "both are kept, so that the earlier command gives its result again without evaluating them"
    )
