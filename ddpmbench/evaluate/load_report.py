"""Load the report of a finished run from its folder."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from msgspec import Struct

from ddpmbench.data.array_files import read_npz
from ddpmbench.data.arrays import PositionIds
from ddpmbench.data.images import ImageSet
from ddpmbench.errors import InputError, damaged
from ddpmbench.evaluate import ode, sample, speed
from ddpmbench.evaluate.compare import Comparison, FidelityComparison
from ddpmbench.evaluate.fid import FidReport
from ddpmbench.evaluate.inputs import finished_run
from ddpmbench.evaluate.likelihoods import TABLE, LikelihoodsReport
from ddpmbench.evaluate.nll import NllReport
from ddpmbench.evaluate.ode import OdeReport
from ddpmbench.evaluate.sample import SampleReport
from ddpmbench.evaluate.score import ScoreReport
from ddpmbench.evaluate.speed import SpeedReport
from ddpmbench.execution.finished import (
    CONTINUOUS_TABLE,
    PER_IMAGE,
    RATE_DISTORTION,
    SUMMARY,
    FinishedRun,
    num_steps,
    read_summary,
    refuse_later,
    refuse_missing_shards,
    texts_of,
)
from ddpmbench.execution.samples import SAMPLES
from ddpmbench.report import (
    comparison,
    fidelity,
    fidelity_comparison,
    likelihoods,
    scores,
    tables,
)
from ddpmbench.report import schema as records
from ddpmbench.report.contents import read_table, schema_of
from ddpmbench.report.conventions import CONVENTION_COLUMNS, SUB_SCHEDULE_COLUMNS
from ddpmbench.report.schema import check
from ddpmbench.report.tables import PLACE_COLUMNS, RATE_DISTORTION_COLUMNS

Report = (
    NllReport
    | OdeReport
    | LikelihoodsReport
    | ScoreReport
    | FidReport
    | SampleReport
    | SpeedReport
    | Comparison
    | FidelityComparison
)

_PER_TIMESTEP = {
    "t": "int64",
    "part": "str",
    **dict.fromkeys(("bits_per_dim", "standard_error", "x_start_mse", "eps_mse"), "float64"),
    "num_evaluations": "int64",
}
_PER_IMAGE = {
    "image_id": "str",
    **dict.fromkeys(("prior", "kl", "decoder", "bits_per_dim"), "float64"),
}
_DIFFERENCES = ("difference", "difference_half_width", "difference_half_width_population")
_RUNS = {
    **dict.fromkeys(("run", "checkpoint"), "str"),
    **dict.fromkeys(("bits_per_dim", "half_width"), "float64"),
    **dict.fromkeys((*_DIFFERENCES, "half_width_unpaired"), "float64"),
    "num_evaluations": "Int64",
    "same_rows": "float64",
}
_KINDS: dict[type, str] = {str: "str", bool: "bool", int: "int64", float: "float64"}
_RATE = {
    "num_decoded_steps": "int64",
    "rate_bits_per_dim": "float64",
    "rate_standard_error": "float64",
}


def load_report(folder: str | Path) -> Report:
    """Load the report of a finished run, as returned by the function that ran it.

    No network is evaluated. For a run of `rd` this is the report of the bound;
    `rate_distortion(folder)` returns the curve.

    Args:
        folder: the folder of a run of `nll`, `rd`, `ode`, `likelihoods`, `score`, `fid`, `sample`
            or `speed`, or of a comparison.

    Raises:
        InputError: the folder holds no finished run, or a file is missing or damaged; the message
            names it.
    """
    if not isinstance(folder, str | Path) or not str(folder).strip():
        raise InputError(f"load_report({folder!r}): give the folder of a run")
    path = Path(folder)
    run_schema = schema_of(path)
    for schema, read in _READERS.items():
        refuse_later(run_schema, schema, named=str(path))
        if run_schema == schema:
            return read(path)
    # Opening any other folder as a run of nll raises the right error.
    return _load_bound(path)


def _load_bound(path: Path) -> NllReport:
    run = finished_run(path, tables.SCHEMA, records.Run)
    refuse_missing_shards(run, option="")
    return NllReport(
        summary=run.summary,
        per_timestep=_steps(run),
        rate_distortion=run.table(RATE_DISTORTION, RATE_DISTORTION_COLUMNS),
        conventions=_conventions(path / "conventions.csv"),
        sub_schedules=_table(path / "sub_schedules.csv", SUB_SCHEDULE_COLUMNS),
        per_image=_table(path / PER_IMAGE, _PER_IMAGE, rows=run.summary["num_images"]),
        folder=path,
        continuous=_continuous(run),
    )


def _conventions(path: Path) -> pd.DataFrame:
    """The table; results of earlier versions have no intervals of differences."""
    left_out = {"difference_half_width"} - {*texts_of(path)}
    columns = {name: kind for name, kind in CONVENTION_COLUMNS.items() if name not in left_out}
    return _table(path, columns, least=1).reindex(columns=list(CONVENTION_COLUMNS))


def _continuous(run: FinishedRun) -> pd.DataFrame | None:
    count = run.summary.get("continuous_num_evaluations", 0) // 2
    if not count:
        return None
    return _table(run.path / CONTINUOUS_TABLE, tables.CONTINUOUS_COLUMNS, rows=count)


def _steps(run: FinishedRun) -> pd.DataFrame:
    """The table with one row per timestep."""
    columns, path = dict(_PER_TIMESTEP), run.path / "per_timestep.csv"
    if run.summary.get("num_parts") is not None:
        places = dict.fromkeys(PLACE_COLUMNS, "float64")
        columns = {"t": columns.pop("t"), **places, **columns}
    table = read_table(path, columns)
    if not np.array_equal(table.t, np.arange(1, num_steps(run.summary) + 1)):
        raise damaged(path)
    return table


def _table(
    path: Path, columns: Mapping[str, str], *, rows: int | None = None, least: int = 0
) -> pd.DataFrame:
    table = read_table(path, columns)
    if len(table) < least or rows not in (None, len(table)):
        raise damaged(path)
    return table


def _load_ode(path: Path) -> OdeReport:
    run = finished_run(path, ode.SCHEMA, records.OdeRun)
    columns = {"image_id": "str", **dict.fromkeys(ode.PER_IMAGE_COLUMNS, "float64")}
    per_image = _table(path / PER_IMAGE, columns, rows=run.summary["num_ode_images"])
    return OdeReport(run.summary, per_image, path)


def _load_likelihoods(path: Path) -> LikelihoodsReport:
    run = finished_run(path, likelihoods.SCHEMA, records.LikelihoodsRun)
    frame = _table(path / TABLE, likelihoods.COLUMNS)
    if likelihoods.rows_of(frame) != run.summary["likelihoods"]:
        raise damaged(path / TABLE)
    return LikelihoodsReport(run.summary, frame, path)


def _load_scores(path: Path) -> ScoreReport:
    run = finished_run(path, scores.SCHEMA, records.ScoreRun)
    optional, columns_present = scores.OPTIONAL_COLUMNS.items(), texts_of(path / PER_IMAGE)
    columns = scores.PER_IMAGE_COLUMNS | {
        name: kind for name, kind in optional if name in columns_present
    }
    rows = sum(image_set["num_images"] for image_set in run.summary["sets"])
    return ScoreReport(run.summary, _table(path / PER_IMAGE, columns, rows=rows), path)


def _load_fidelity(path: Path) -> FidReport:
    run = FinishedRun.open(path, option="", schema=fidelity.SCHEMA)
    per_image, against_n = fidelity.read_fidelity_tables(run)
    return FidReport(run.summary, per_image, against_n, path)


def _load_samples(path: Path) -> SampleReport:
    summary = _summary(path, records.SampleRun)
    try:
        data = read_npz(path / SAMPLES, None)
    except InputError as error:
        raise damaged(path / SAMPLES) from error
    images = ImageSet(data.pixels, PositionIds(range(len(data.pixels))), SAMPLES, data.labels)
    if images.sha256 != summary["sha256"]:
        raise damaged(path / SAMPLES)
    return SampleReport(summary, images, path)


def _load_speed(path: Path) -> SpeedReport:
    summary = _summary(path, records.SpeedRun)
    calls, parts, predictions = (
        _table(path / f"{name}.csv", _columns_of(summary[name]), rows=len(summary[name]))
        for name in ("calls", "parts", "predictions")
    )
    return SpeedReport(summary, calls, parts, predictions, path)


def _load_comparison(path: Path) -> Comparison:
    summary = _summary(path, records.Comparison)
    runs = read_table(path / "runs.csv", _RUNS)
    if comparison.rows_of(runs) != [summary["baseline"], *summary["runs"]]:
        raise damaged(path / "runs.csv")
    columns = {"run": "str", **_PER_TIMESTEP, **_RATE}
    rows = len(summary["runs"]) * num_steps(summary)
    return Comparison(summary, runs, _table(path / "per_timestep.csv", columns, rows=rows), path)


def _load_fidelity_comparison(path: Path) -> FidelityComparison:
    summary = _summary(path, records.FidelityComparison)
    return FidelityComparison(summary, fidelity_comparison.differences_frame(summary), path)


def _summary(path: Path, kind: type[Struct]) -> dict[str, Any]:
    summary = read_summary(path)
    check(summary, kind, path / SUMMARY)
    return summary


def _columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Names and types of the columns of a table, from its rows in a summary."""
    known = {
        name: next((row[name] for row in rows if row[name] is not None), math.nan)
        for name in rows[0]
    }
    return {name: _KINDS[type(value)] for name, value in known.items()}


_READERS: dict[str, Callable[[Path], Report]] = {
    tables.SCHEMA: _load_bound,
    ode.SCHEMA: _load_ode,
    likelihoods.SCHEMA: _load_likelihoods,
    scores.SCHEMA: _load_scores,
    fidelity.SCHEMA: _load_fidelity,
    sample.SCHEMA: _load_samples,
    speed.SCHEMA: _load_speed,
    comparison.SCHEMA: _load_comparison,
    fidelity_comparison.SCHEMA: _load_fidelity_comparison,
}
