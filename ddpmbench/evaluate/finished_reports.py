"""Load the report of a finished run from its folder, and write its page."""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddpmbench.checksums import DamageError, is_whole, read_json, reading
from ddpmbench.data.images import ImageSet, PositionIds
from ddpmbench.errors import InputError, damaged, path_of
from ddpmbench.evaluate import ode
from ddpmbench.evaluate.compare import Comparison, FidelityComparison
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
    FinishedRun,
    refuse_later,
    result_kind,
    schema_of,
)
from ddpmbench.execution.folder import IDENTITY
from ddpmbench.execution.samples import SAMPLES, read_samples
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
from ddpmbench.report.fid import AGAINST_N

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
            with reading(path / SUMMARY):
                report = read(path)
                report._card()  # all of it that the summary lacks is missed here
            return report
    if run_schema is not None and is_whole(path / SUMMARY):
        raise InputError(
            f"{path}: is {result_kind(run_schema)}, which has no report to load; give "
            "the folder of a run of nll, rd, ode, likelihoods, score, fid, sample or speed, or of "
            "a comparison"
        )
    return load_nll(path)  # which says what is missing or damaged


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
    with reading(path / SUMMARY):
        return write_page(report, progress=progress)


def _load_ode(path: Path) -> OdeReport:
    run = FinishedRun.open(path, schema=ode.SCHEMA)
    columns = {"image_id": "str", **dict.fromkeys(ode.PER_IMAGE_COLUMNS, "float64")}
    return OdeReport(run.summary, run.table(PER_IMAGE, columns), path)


def _load_likelihoods(path: Path) -> LikelihoodsReport:
    run = FinishedRun.open(path, schema=likelihoods.SCHEMA)
    return LikelihoodsReport(run.summary, run.table(TABLE, likelihoods.COLUMNS), path)


def _load_scores(path: Path) -> ScoreReport:
    run = FinishedRun.open(path, schema=score.SCHEMA)
    optional = score.OPTIONAL_COLUMNS
    columns = score.PER_IMAGE_COLUMNS | optional
    return ScoreReport(run.summary, run.table(PER_IMAGE, columns, optional=optional), path)


def _load_fid(path: Path) -> FidReport:
    run = FinishedRun.open(path, schema=fid.SCHEMA)
    per_image = run.table(PER_IMAGE, fid.PER_IMAGE_COLUMNS)
    return FidReport(run.summary, per_image, run.table(AGAINST_N, fid.AGAINST_N_COLUMNS), path)


def _load_samples(path: Path) -> SampleReport:
    run = FinishedRun.open(path, schema=sample.SCHEMA)
    data = read_samples(path / SAMPLES)
    images = ImageSet(data.pixels, PositionIds(range(len(data.pixels))), SAMPLES, data.labels)
    if images.sha256 != run.summary["sha256"]:
        raise damaged(path / SAMPLES)
    return SampleReport(run.summary, images, path)


def _load_speed(path: Path) -> SpeedReport:
    run = FinishedRun.open(path, schema=speed.SCHEMA)
    calls, parts, predictions = (
        run.table(f"{name}.csv", _columns_of(run.summary[name]))
        for name in ("calls", "parts", "predictions")
    )
    return SpeedReport(run.summary, calls, parts, predictions, path)


def _load_comparison(path: Path) -> Comparison:
    run = FinishedRun.open(path, schema=compare_nll.SCHEMA)
    per_timestep = run.table("per_timestep.csv", {"run": "str", **PER_TIMESTEP, **_RATE})
    return Comparison(run.summary, run.table("runs.csv", _RUNS), per_timestep, path)


def _load_fidelity_comparison(path: Path) -> FidelityComparison:
    summary = FinishedRun.open(path, schema=compare_fid.SCHEMA).summary
    if any(run["differences"][0]["measure"] != "fid" for run in summary["runs"]):
        raise damaged(path / SUMMARY)
    return FidelityComparison(summary, compare_fid.differences_frame(summary), path)


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
