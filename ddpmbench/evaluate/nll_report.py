"""The report of the variational bound, and its reading from a run folder."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ddpmbench.checksums import CHECKSUMS, DamageError, checksum, is_whole, read_json, reading
from ddpmbench.errors import InputError
from ddpmbench.execution.estimators import ESTIMATORS, kind_of, refuse_missing_shards
from ddpmbench.execution.finished_runs import (
    CONTINUOUS_TABLE,
    ENVIRONMENT,
    PER_IMAGE,
    RATE_DISTORTION,
    SUMMARY,
    FinishedRun,
    read_environment,
)
from ddpmbench.execution.folder import run_store
from ddpmbench.execution.stored_images import EXTREMES
from ddpmbench.execution.terms import paired_terms
from ddpmbench.report import tables
from ddpmbench.report.conventions import CONVENTION_COLUMNS, SUB_SCHEDULE_COLUMNS
from ddpmbench.report.display import Card, Draw, PageReport
from ddpmbench.report.nll_text import bound_card
from ddpmbench.report.tables import PLACE_COLUMNS, RATE_DISTORTION_COLUMNS

PER_TIMESTEP = {
    "t": "int64",
    "part": "str",
    **dict.fromkeys(("bits_per_dim", "standard_error", "x_start_mse", "eps_mse"), "float64"),
    "num_evaluations": "int64",
}
_PER_IMAGE = {
    "image_id": "str",
    **dict.fromkeys(("prior", "kl", "decoder", "bits_per_dim"), "float64"),
}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class NllReport(PageReport):
    """The variational bound of a checkpoint on images.

    Attributes:
        summary: the object of `summary.json`.
        per_timestep: one row per timestep; see `report.tables.per_timestep`.
        rate_distortion: one row per timestep; see `report.tables.rate_distortion`.
        conventions: one row per published convention; see `report.conventions`.
        sub_schedules: one row per model on a subset of the timesteps; see `report.conventions`.
        per_image: one row per image; see `report.tables.per_image`.
        folder: the run folder; None if the run was kept in memory.
        continuous: one row per term that was evaluated in continuous time as well; see
            `report.tables.continuous_frame`. None without an estimate in continuous time.
    """

    summary: dict[str, Any]
    per_timestep: pd.DataFrame
    rate_distortion: pd.DataFrame
    conventions: pd.DataFrame
    sub_schedules: pd.DataFrame
    per_image: pd.DataFrame
    folder: Path | None
    continuous: pd.DataFrame | None = None

    def _card(self) -> Card:
        return bound_card(self.summary, self.folder)

    def _figures(self) -> Mapping[str, Draw]:
        from ddpmbench.report.nll_page import run_figures

        return run_figures(self, self.folder)

    def _page(self, folder: Path, svgs: Mapping[str, str]) -> str:
        from ddpmbench.report.nll_page import run_page

        return run_page(self, read_environment(folder), svgs)


def finished_nll(path: Path, *, option: str = "", reads_terms: bool = False) -> FinishedRun:
    """A finished run of `nll` or `rd` whose shards are whole.

    Args:
        path: the folder.
        option: how the user named the folder, for messages.
        reads_terms: see `refuse_missing_shards`.

    Raises:
        InputError: it holds none; its estimator is unknown, or its correction is not one of its
            precision; or shards are missing or damaged.
    """
    run = FinishedRun.open(path, option=option, schema=tables.SCHEMA)
    summary, named = run.summary, f"{option} {path}".strip()
    with reading(path / SUMMARY):
        if summary["estimator"] not in ESTIMATORS:
            raise InputError(
                f"{named}: estimator: {summary['estimator']} is unknown; upgrade ddpmbench"
            )
        is_corrected = summary.get("precision_correction") is not None
        if is_corrected == (summary["precision"] == tables.STRICT):
            raise InputError(
                f"{named}: precision_correction: does not belong to {summary['precision']}; run "
                "its command again"
            )
        bound_card(summary, path)  # whatever it shows that the summary lacks is missed here
        refuse_missing_shards(run, option=option, reads_terms=reads_terms)
    return run


def load_nll(path: Path) -> NllReport:
    """The report in the folder of a finished run of `nll` or `rd`.

    Raises:
        InputError: it holds none, or a file is missing or damaged; the message names it.
    """
    run = finished_nll(path)
    return NllReport(
        summary=run.summary,
        per_timestep=_steps(run),
        rate_distortion=run.table(RATE_DISTORTION, RATE_DISTORTION_COLUMNS),
        conventions=_conventions(run),
        sub_schedules=run.table("sub_schedules.csv", SUB_SCHEDULE_COLUMNS),
        per_image=run.table(PER_IMAGE, _PER_IMAGE),
        folder=path,
        continuous=_continuous(run),
    )


def finished_report(
    folder: Path,
    *,
    known: Mapping[str, Any],
    environment: Mapping[str, Any],
    image_ids: Sequence[str],
) -> NllReport | None:
    """The report in the folder of a run of `nll`, if its command would give the same result.

    The result must have been computed with the same settings by the same versions on the same
    device, and be complete: shards, tables and all. Nothing in the folder is changed.

    Args:
        folder: holds this run, without damaged shards; see `Session.folder`.
        known: the fields of `summary.json` that are known before the run.
        environment: the object of `environment.json`; the command and the engine do not count.
        image_ids: names of the images, in order.

    Returns:
        The report as it was computed; None where anything differs, is missing, damaged or unknown,
        such as the result of a source with uncommitted changes.
    """
    if not (folder / SUMMARY).exists() or str(environment["git_revision"]).endswith("+"):
        return None
    try:
        summary = read_json(folder / SUMMARY)
        estimator, checksums = kind_of(summary), dict(summary[CHECKSUMS])
        checksums.pop("this")
        num_terms = {**estimator.other_terms(summary), **paired_terms(summary)}
        is_same = (
            _comparable(read_json(folder / ENVIRONMENT)) == _comparable(environment)
            and {**summary, **_as_read(known)} == summary
            and all(
                checksum(folder / name) == checksums[name] for name in checksums.keys() - {"this"}
            )
            and all(is_whole(folder / name) for name in (EXTREMES, *estimator.sealed))
            and not any(run_store(folder, name).missing(size) for name, size in num_terms.items())
        )
        report = load_nll(folder) if is_same else None
    except (DamageError, InputError, OSError, LookupError, TypeError, ValueError):
        return None
    is_named_so = report is not None and [*report.per_image.image_id] == [*map(str, image_ids)]
    return report if is_named_so else None


def _comparable(environment: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a record of the environment on which a result can depend."""
    record = _as_read(environment)
    record.pop(CHECKSUMS, None)
    resolved = record.pop("arguments")["resolved"]
    resolved.pop("engine", None)
    return {**record, "resolved": resolved}


def _as_read(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as it comes back from a JSON file."""
    return dict(json.loads(json.dumps(record)))


def _conventions(run: FinishedRun) -> pd.DataFrame:
    """The table; results of earlier versions have no intervals of differences."""
    optional = ("difference_half_width",)
    table = run.table("conventions.csv", CONVENTION_COLUMNS, optional=optional)
    return table.reindex(columns=list(CONVENTION_COLUMNS))


def _continuous(run: FinishedRun) -> pd.DataFrame | None:
    if not run.summary.get("continuous_num_evaluations"):
        return None
    return run.table(CONTINUOUS_TABLE, tables.CONTINUOUS_COLUMNS)


def _steps(run: FinishedRun) -> pd.DataFrame:
    """The table with one row per timestep."""
    columns = dict(PER_TIMESTEP)
    if run.summary.get("num_parts") is not None:
        places = dict.fromkeys(PLACE_COLUMNS, "float64")
        columns = {"t": columns.pop("t"), **places, **columns}
    return run.table("per_timestep.csv", columns)
