"""Load the report of a finished run from its folder, and write its page."""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct

from ddpmbench.checksums import DamageError, read_json
from ddpmbench.data.array_files import read_npz
from ddpmbench.data.images import ImageSet, PositionIds
from ddpmbench.errors import InputError, damaged, path_of
from ddpmbench.evaluate import ode
from ddpmbench.evaluate.compare import Comparison, FidelityComparison
from ddpmbench.evaluate.evaluation import finished_run
from ddpmbench.evaluate.fid import FidReport
from ddpmbench.evaluate.likelihoods import TABLE, LikelihoodsReport
from ddpmbench.evaluate.nll_report import PER_TIMESTEP, NllReport, load_nll
from ddpmbench.evaluate.ode import OdeReport
from ddpmbench.evaluate.page import write_page
from ddpmbench.evaluate.sample import SampleReport
from ddpmbench.evaluate.score import ScoreReport
from ddpmbench.evaluate.speed import SpeedReport
from ddpmbench.execution.finished_runs import (
    PER_IMAGE,
    SUMMARY,
    num_steps,
    read_summary,
    refuse_later,
    result_kind,
    texts_of,
)
from ddpmbench.execution.folder import IDENTITY
from ddpmbench.execution.samples import SAMPLES
from ddpmbench.report import (
    compare_fid,
    compare_nll,
    fid,
    likelihoods,
    sample,
    score,
    speed,
    tables,
)
from ddpmbench.report.display import PageReport
from ddpmbench.report.fid import AGAINST_N, reference_name
from ddpmbench.report.folder_contents import check, json_rows, read_table, schema_of
from ddpmbench.report.ode import OdeRun

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

_DIFFERENCES = ("difference", "difference_half_width", "difference_half_width_population")
_RUNS = {
    **dict.fromkeys(("run", "checkpoint"), "str"),
    **dict.fromkeys(("bits_per_dim", "half_width"), "float64"),
    **dict.fromkeys((*_DIFFERENCES, "half_width_unpaired"), "float64"),
    "num_evaluations": "Int64",
    "same_rows": "float64",
}
_WITHOUT_PAGE = {
    "sample": "its samples are drawn in figures/samples.png; fid scores them",
    "speed": "its figures are in figures/",
    "inspect": "its figure is in figures/",
}
"""Commands without a page, and where to find their figures."""
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
    if run_schema is not None:
        raise InputError(
            f"{path}: is {result_kind(run_schema)}, which has no report to load; give "
            "the folder of a run of nll, rd, ode, likelihoods, score, fid, sample or speed, or of "
            "a comparison"
        )
    return load_nll(path)  # which says what is missing


def write_report(run: str | Path, *, progress: bool = True) -> Path:
    """Draw the figures of a finished run into its folder, and write its page.

    The network is not evaluated, and the page loads nothing from elsewhere. For a run of
    `evaluate_nll`, the metadata for the Hugging Face hub is written as well.

    Args:
        run: the folder of a run of `evaluate_nll`, `evaluate_ode`, `evaluate_likelihoods`,
            `score_images` or `evaluate_fid`, or of a comparison.
        progress: whether the number of figures drawn is shown on standard error.

    Returns:
        The page.

    Raises:
        InputError: the folder holds no finished run, is damaged, or cannot be written.
    """
    path = path_of("run", run)
    schema = schema_of(path)
    if schema is None:  # an unfinished run, or a command without a summary
        with contextlib.suppress(DamageError, KeyError):
            schema = str(read_json(path / IDENTITY)["schema"])
    kind, _, command = (schema or "").partition("/")[0].partition(".")
    if kind == "ddpmbench" and command in _WITHOUT_PAGE:
        raise InputError(
            f"{path}: runs of {command} have no page: {_WITHOUT_PAGE[command]}; name a run of nll, "
            "rd, ode, likelihoods, score or fid, or a comparison"
        )
    report = load_report(path)
    assert isinstance(report, PageReport)
    return write_page(report, progress=progress)


def _load_ode(path: Path) -> OdeReport:
    run = finished_run(path, ode.SCHEMA, OdeRun)
    columns = {"image_id": "str", **dict.fromkeys(ode.PER_IMAGE_COLUMNS, "float64")}
    per_image = read_table(path / PER_IMAGE, columns, rows=run.summary["num_ode_images"])
    return OdeReport(run.summary, per_image, path)


def _load_likelihoods(path: Path) -> LikelihoodsReport:
    run = finished_run(path, likelihoods.SCHEMA, likelihoods.LikelihoodsRun)
    frame = read_table(path / TABLE, likelihoods.COLUMNS)
    if likelihoods.rows_of(frame) != run.summary["likelihoods"]:
        raise damaged(path / TABLE)
    return LikelihoodsReport(run.summary, frame, path)


def _load_scores(path: Path) -> ScoreReport:
    run = finished_run(path, score.SCHEMA, score.ScoreRun)
    optional, columns_present = score.OPTIONAL_COLUMNS.items(), texts_of(path / PER_IMAGE)
    columns = score.PER_IMAGE_COLUMNS | {
        name: kind for name, kind in optional if name in columns_present
    }
    rows = sum(image_set["num_images"] for image_set in run.summary["sets"])
    return ScoreReport(run.summary, read_table(path / PER_IMAGE, columns, rows=rows), path)


def _load_fid(path: Path) -> FidReport:
    run = finished_run(path, fid.SCHEMA, fid.Fidelity)
    summary, per_image_path, against_n_path = run.summary, path / PER_IMAGE, path / AGAINST_N
    rows = summary["num_generated"]
    per_image = read_table(per_image_path, fid.PER_IMAGE_COLUMNS, rows=rows, least=1)
    against_n = read_table(against_n_path, fid.AGAINST_N_COLUMNS)
    references = summary["references"]
    names = {name for one in references for name in (reference_name(one), one["source"])}
    is_needed = any(one["fid_infinity"] is not None for one in references)
    is_whole = set(against_n.reference) <= names and (against_n.num_generated > 0).all()
    if not is_whole or (is_needed and against_n.empty) or not np.isfinite(against_n.fid).all():
        raise damaged(against_n_path)
    return FidReport(summary, per_image, against_n, path)


def _load_samples(path: Path) -> SampleReport:
    summary = _summary(path, sample.SampleRun)
    try:
        data = read_npz(path / SAMPLES, None)
    except InputError as error:
        raise damaged(path / SAMPLES) from error
    images = ImageSet(data.pixels, PositionIds(range(len(data.pixels))), SAMPLES, data.labels)
    if images.sha256 != summary["sha256"]:
        raise damaged(path / SAMPLES)
    return SampleReport(summary, images, path)


def _load_speed(path: Path) -> SpeedReport:
    summary = _summary(path, speed.SpeedRun)
    calls, parts, predictions = (
        read_table(path / f"{name}.csv", _columns_of(summary[name]), rows=len(summary[name]))
        for name in ("calls", "parts", "predictions")
    )
    return SpeedReport(summary, calls, parts, predictions, path)


def _load_comparison(path: Path) -> Comparison:
    summary = _summary(path, compare_nll.Comparison)
    runs = read_table(path / "runs.csv", _RUNS)
    if json_rows(runs) != [summary["baseline"], *summary["runs"]]:
        raise damaged(path / "runs.csv")
    columns = {"run": "str", **PER_TIMESTEP, **_RATE}
    rows = len(summary["runs"]) * num_steps(summary)
    return Comparison(
        summary, runs, read_table(path / "per_timestep.csv", columns, rows=rows), path
    )


def _load_fidelity_comparison(path: Path) -> FidelityComparison:
    summary = _summary(path, compare_fid.FidelityComparison)
    return FidelityComparison(summary, compare_fid.differences_frame(summary), path)


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
    tables.SCHEMA: load_nll,
    ode.SCHEMA: _load_ode,
    likelihoods.SCHEMA: _load_likelihoods,
    score.SCHEMA: _load_scores,
    fid.SCHEMA: _load_fid,
    sample.SCHEMA: _load_samples,
    speed.SCHEMA: _load_speed,
    compare_nll.SCHEMA: _load_comparison,
    compare_fid.SCHEMA: _load_fidelity_comparison,
}
