"""A finished run that is asked for once more: its folder holds the answer already."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpmbench.checksums import CHECKSUMS, DamageError, checksum, is_whole, read_json
from ddpmbench.errors import InputError
from ddpmbench.network.precision import Precision
from ddpmbench.runs.correction import store_name
from ddpmbench.runs.extremes import EXTREMES
from ddpmbench.runs.finished import (
    DENSITY,
    ENVIRONMENT,
    PER_IMAGE,
    PREDICTIONS,
    RATE_DISTORTION,
    SUMMARY,
)
from ddpmbench.runs.folder import IDENTITY, tag
from ddpmbench.runs.shards import Shards, faults_in

if TYPE_CHECKING:
    from ddpmbench.questions.nll import NllReport

_SEALED = (IDENTITY, SUMMARY, ENVIRONMENT, EXTREMES)
_TABLES = (
    "per_timestep.csv",
    RATE_DISTORTION,
    "conventions.csv",
    "sub_schedules.csv",
    PER_IMAGE,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Asked:
    """All that the result of a run of `nll` depends on.

    Attributes:
        identity: the object of its `run.json`.
        summary: the fields of its `summary.json` that are known before it.
        sampling: those of `sampling` there.
        environment: the object of its `environment.json`; the command and the engine do not count.
        image_ids: of the images, in order.
    """

    identity: Mapping[str, Any]
    summary: Mapping[str, Any]
    sampling: Mapping[str, Any]
    environment: Mapping[str, Any]
    image_ids: Sequence[str]


def answer_in(folder: Path, asked: Asked) -> "NllReport | None":
    """The report of a folder, where a run would arrive at just this one.

    The folder must hold the same run with the same goal, made by the same versions on the same
    device, and be whole: shards, tables and all. Nothing in it is changed.

    Args:
        folder: that the run would have.
        asked: what it would be.

    Returns:
        The report as it was computed; None where anything is another, missing, damaged, or not
        known, such as what a source with uncommitted changes would compute.
    """
    # It reads the reports of every question, also of the one that asks here.
    from ddpmbench.questions.load_report import load_report

    if not (folder / SUMMARY).exists() or _is_changed(asked.environment):
        return None
    try:
        if not _is_answer(folder, asked):
            return None
        report: Any = load_report(folder)
    except (DamageError, InputError, OSError, LookupError, TypeError, ValueError):
        return None
    return report if list(report.per_image.image_id) == list(map(str, asked.image_ids)) else None


def _is_changed(environment: Mapping[str, Any]) -> bool:
    return str(environment["git_revision"]).endswith("+")


def _is_answer(folder: Path, asked: Asked) -> bool:
    summary = read_json(folder / SUMMARY)
    identity = read_json(folder / IDENTITY)
    identity.pop(CHECKSUMS)
    return (
        identity == _as_read(asked.identity)
        and _holds(summary, asked.summary)
        and _holds(summary["sampling"], asked.sampling)
        and _comparable(read_json(folder / ENVIRONMENT)) == _comparable(asked.environment)
        and _has_whole_files(folder, summary)
        and _has_whole_shards(folder, summary)
    )


def _holds(record: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    return all(record[name] == value for name, value in _as_read(fields).items())


def _as_read(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as it comes back from a JSON file."""
    found: dict[str, Any] = json.loads(json.dumps(record))
    return found


def _comparable(environment: Mapping[str, Any]) -> dict[str, Any]:
    """What a result can depend on of where and how it was made."""
    found = _as_read(environment)
    found.pop(CHECKSUMS, None)
    resolved = found.pop("arguments")["resolved"]
    resolved.pop("engine", None)
    return {**found, "resolved": resolved}


def _has_whole_files(folder: Path, summary: Mapping[str, Any]) -> bool:
    sealed, tables = list(_SEALED), list(_TABLES)
    if summary["estimator"] == "rotated-warp":
        sealed.append(PREDICTIONS)
        tables.append(DENSITY)
    known = {name: value for name, value in summary[CHECKSUMS].items() if name != "this"}
    return (
        set(tables) <= set(known)
        and all(checksum(folder / name) == value for name, value in known.items())
        and all(is_whole(folder / name) for name in sealed)
    )


def _has_whole_shards(folder: Path, summary: Mapping[str, Any]) -> bool:
    """Whether all that are there are whole, and none is missing.

    Those of the rows of the result itself are looked for where its report is read.
    """
    shards, run = folder / "shards", tag(folder)
    rows = {"pilot": summary["sampling"].get("pilot_evaluations", 0)}
    if (correction := summary["precision_correction"]) is not None:
        for precision in (Precision.FP32, summary["precision"]):
            rows[store_name(precision)] = correction["num_evaluations"] // 2
    return (
        run is not None
        and not any(faults_in(shards, run))
        and not any(Shards(shards, name, run=run).missing(size) for name, size in rows.items())
    )
