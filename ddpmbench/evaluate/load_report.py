"""What did a finished run find? Its report again, from its folder."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ddpmbench.data.image_files import PositionIds, read_npz
from ddpmbench.data.images import ImageSet
from ddpmbench.errors import InputError
from ddpmbench.evaluate import sample, speed
from ddpmbench.evaluate.compare import Comparison, FidelityComparison
from ddpmbench.evaluate.fid import FidReport
from ddpmbench.evaluate.nll import NllReport
from ddpmbench.evaluate.report import schema_of, summary_of_comparison
from ddpmbench.evaluate.sample import SampleReport
from ddpmbench.evaluate.speed import SpeedReport
from ddpmbench.execution.finished import (
    PER_IMAGE,
    RATE_DISTORTION,
    SUMMARY,
    FinishedRun,
    read_summary,
    refuse_later,
    refuse_losses,
)
from ddpmbench.execution.samples import SAMPLES
from ddpmbench.report import comparison, fidelity, fidelity_comparison, tables
from ddpmbench.report import schema as records
from ddpmbench.report.contents import PER_TIMESTEP, lost, read_table
from ddpmbench.report.schema import check
from ddpmbench.report.tables import (
    CONVENTION_COLUMNS,
    RATE_DISTORTION_COLUMNS,
    SUB_SCHEDULE_COLUMNS,
)

Report = NllReport | FidReport | SampleReport | SpeedReport | Comparison | FidelityComparison

_PER_IMAGE = {
    "image_id": "str",
    **dict.fromkeys(("prior", "kl", "decoder", "bits_per_dim"), "float64"),
}
_RUNS = {
    "run": "str",
    "checkpoint": "str",
    "bits_per_dim": "float64",
    "half_width": "float64",
    "difference": "float64",
    "difference_half_width": "float64",
    "difference_half_width_population": "float64",
    "half_width_unpaired": "float64",
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
    """The report of a finished run, as the function that made the run returned it.

    No network is called. Of a run of `rd` it is that of the bound; `rate_distortion(folder)` gives
    its curve.

    Args:
        folder: of a run of `nll`, `rd`, `fid`, `sample` or `speed`, or of a comparison.

    Raises:
        InputError: the folder holds no finished run, or a file of it is missing or damaged; one
            line names it.
    """
    if not isinstance(folder, str | Path) or not str(folder).strip():
        raise InputError(f"load_report({folder!r}): names no folder; name the `out` of a run")
    path = Path(folder)
    found = schema_of(path)
    for schema, read in _READERS.items():
        refuse_later(found, schema, named=str(path))
        if found == schema:
            return read(path)
    # What is wrong with any other folder is said where a run is opened.
    return _of_bound(path)


def _of_bound(path: Path) -> NllReport:
    run = FinishedRun.open(path, option="", schema=tables.SCHEMA)
    refuse_losses(run, option="")
    check(run.summary, records.Run, path / SUMMARY)
    per_image = _read(path / PER_IMAGE, _PER_IMAGE)
    if len(per_image) != run.summary["num_images"]:
        raise lost(path / PER_IMAGE)
    return NllReport(
        summary=run.summary,
        per_timestep=_steps(run, "per_timestep.csv", PER_TIMESTEP),
        rate_distortion=_steps(run, RATE_DISTORTION, RATE_DISTORTION_COLUMNS),
        conventions=_read(path / "conventions.csv", CONVENTION_COLUMNS),
        sub_schedules=_read(path / "sub_schedules.csv", SUB_SCHEDULE_COLUMNS),
        per_image=per_image,
        folder=path,
    )


def _steps(run: FinishedRun, name: str, columns: Mapping[str, str]) -> pd.DataFrame:
    """A table with one row a step."""
    table = _read(run.path / name, columns)
    if not np.array_equal(table.t, np.arange(1, run.summary["num_timesteps"] + 1)):
        raise lost(run.path / name)
    return table


def _of_fidelity(path: Path) -> FidReport:
    run = FinishedRun.open(path, option="", schema=fidelity.SCHEMA)
    check(run.summary, records.Fidelity, path / SUMMARY)
    per_image = _read(path / fidelity.PER_IMAGE, fidelity.PER_IMAGE_COLUMNS)
    if len(per_image) != run.summary["num_generated"]:
        raise lost(path / fidelity.PER_IMAGE)
    against_n = _read(path / fidelity.AGAINST_N, fidelity.AGAINST_N_COLUMNS)
    return FidReport(run.summary, per_image, against_n, path)


def _of_samples(path: Path) -> SampleReport:
    summary = read_summary(path)
    check(summary, records.SampleRun, path / SUMMARY)
    try:
        data = read_npz(path / SAMPLES, None)
    except InputError as error:
        raise lost(path / SAMPLES) from error
    images = ImageSet(data.pixels, PositionIds(range(len(data.pixels))), SAMPLES, data.labels)
    if images.sha256 != summary["sha256"]:
        raise lost(path / SAMPLES)
    return SampleReport(summary, images, path)


def _of_speed(path: Path) -> SpeedReport:
    names = ("calls", "parts", "predictions")
    summary = _summary(path, names)
    frames = []
    for name in names:
        place, rows = path / f"{name}.csv", summary[name]
        frames.append(_read(place, _columns_of(rows)))
        if len(frames[-1]) != len(rows):
            raise lost(place)
    calls, parts, predictions = frames
    return SpeedReport(summary, calls, parts, predictions, path)


def _of_comparison(path: Path) -> Comparison:
    summary = summary_of_comparison(path)
    runs = _read(path / "runs.csv", _RUNS)
    steps = _read(path / "per_timestep.csv", {"run": "str", **PER_TIMESTEP, **_RATE})
    if comparison.rows_of(runs) != [summary["baseline"], *summary["runs"]]:
        raise lost(path / "runs.csv")
    if len(steps) != len(summary["runs"]) * summary["num_timesteps"]:
        raise lost(path / "per_timestep.csv")
    return Comparison(summary, runs, steps)


def _of_fidelity_comparison(path: Path) -> FidelityComparison:
    summary = read_summary(path)
    check(summary, records.FidelityComparison, path / SUMMARY)
    rows = [{"run": run["run"], **of} for run in summary["runs"] for of in run["differences"]]
    return FidelityComparison(summary, pd.DataFrame(rows))


def _summary(path: Path, needed: tuple[str, ...]) -> dict[str, Any]:
    found = read_summary(path)
    if not set(needed) <= set(found):
        raise lost(path / SUMMARY)
    return found


def _columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The columns of a table and their types, by its rows in a summary."""
    known = {
        name: next((row[name] for row in rows if row[name] is not None), math.nan)
        for name in rows[0]
    }
    return {name: _KINDS[type(value)] for name, value in known.items()}


def _read(path: Path, columns: Mapping[str, str]) -> pd.DataFrame:
    """A table with its texts of the type that pandas gives them."""
    texts = [name for name, kind in columns.items() if kind == "str"]
    return read_table(path, columns).astype(dict.fromkeys(texts, "str"))


_READERS: dict[str, Callable[[Path], Report]] = {
    tables.SCHEMA: _of_bound,
    fidelity.SCHEMA: _of_fidelity,
    sample.SCHEMA: _of_samples,
    speed.SCHEMA: _of_speed,
    comparison.SCHEMA: _of_comparison,
    fidelity_comparison.SCHEMA: _of_fidelity_comparison,
}
