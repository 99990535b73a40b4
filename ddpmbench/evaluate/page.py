"""Reports in their run folders: they are loaded, and their figures and pages drawn."""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ddpmbench.checksums import (
    CHECKSUMS,
    DamageError,
    checksum,
    is_whole,
    read_json,
    reading,
    write_json,
)
from ddpmbench.errors import InputError, path_of
from ddpmbench.execution import progress as running
from ddpmbench.execution.finished_runs import (
    SUMMARY,
    read_environment,
    refuse_later,
    result_kind,
    schema_of,
)
from ddpmbench.execution.folder import source_revision, versions, write_figure
from ddpmbench.files import is_temporary, replacing, writing_to
from ddpmbench.report.compare_fid import FidelityComparison
from ddpmbench.report.compare_nll import Comparison
from ddpmbench.report.display import Draw
from ddpmbench.report.fid import FidReport
from ddpmbench.report.likelihoods import LikelihoodsReport
from ddpmbench.report.nll import NllReport
from ddpmbench.report.nll_text import write_hugging_face
from ddpmbench.report.ode import OdeReport
from ddpmbench.report.sample import SampleReport
from ddpmbench.report.score import ScoreReport
from ddpmbench.report.speed import SpeedReport
from ddpmbench.report.stored import PageReport, StoredReport

PAGE = "report.html"
RECORD = "report.json"
"""Record of a page: checksums of its inputs, of the page itself and of its figures."""
_SHOWN_KINDS = (".json", ".csv", ".npz")
_FOLDERS = ("figures", "huggingface")
REPORTS: tuple[type[StoredReport], ...] = (
    NllReport,
    OdeReport,
    LikelihoodsReport,
    ScoreReport,
    FidReport,
    SampleReport,
    SpeedReport,
    Comparison,
    FidelityComparison,
)
"""The results that come back from their folders."""
_OTHERS = "a run of nll, rd, ode, likelihoods, score or fid, or a comparison"


def load_report(folder: str | Path) -> StoredReport:
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
    for kind in REPORTS:
        refuse_later(run_schema, kind.SCHEMA, named=str(path))
        if run_schema == kind.SCHEMA:
            return kind.load(path)
    if run_schema is not None and is_whole(path / SUMMARY):
        raise InputError(
            f"{path}: is {result_kind(run_schema)}, which has no report to load; name {_OTHERS}, "
            "or one of sample or speed"
        )
    return NllReport.load(path)  # which says what is missing or damaged


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
    report = load_report(path)
    if not isinstance(report, PageReport):
        runs = result_kind(report.SCHEMA).replace("a run", "runs")
        raise InputError(
            f"{path}: {runs} have no page: all they draw is in figures/; name {_OTHERS}"
        )
    return _write_page(report, lambda: reading(path / SUMMARY), progress=progress)


def page_of(report: PageReport) -> Path:
    """The page of a report with its figures, drawn unless an intact one exists.

    Args:
        report: the report of a run with a folder.

    Raises:
        InputError: see `write_page`.
    """
    folder = report.folder
    record = None if folder is None else _page_inputs(folder)
    if folder is not None and record is not None and _is_drawn(folder, record):
        return folder / PAGE
    page = write_page(report)
    if record is not None:
        with (
            contextlib.suppress(DamageError),  # an unreadable file; drawn again each time
            writing_to(page.parent, ""),
            replacing(page.parent / RECORD) as temporary,
        ):
            write_json(temporary, record, _drawn(page.parent))
    return page


def _page_inputs(folder: Path) -> dict[str, Any] | None:
    """Everything that a page depends on; None where that is unknown."""
    revision = source_revision()
    if revision is not None and revision.endswith("+"):
        return None
    try:
        files = {
            path.name: checksum(path)
            for path in sorted(folder.iterdir())
            if path.suffix in _SHOWN_KINDS and path.name != RECORD
        }
    except (DamageError, OSError):
        return None
    return {"versions": versions(), "git_revision": revision, "files": files}


def _is_drawn(folder: Path, record: dict[str, Any]) -> bool:
    try:
        page_record = read_json(folder / RECORD)
        known = page_record.pop(CHECKSUMS)
        known.pop("this")
        return bool(page_record == record and known == _drawn(folder))
    except (DamageError, OSError, KeyError):
        return False


def _drawn(folder: Path) -> dict[str, str]:
    """The checksums of a page and its figures.

    Raises:
        DamageError: a file does not exist.
    """
    paths = [folder / PAGE]
    for name in _FOLDERS:
        paths += [path for path in sorted((folder / name).rglob("*")) if path.is_file()]
    return {str(p.relative_to(folder)): checksum(p) for p in paths if not is_temporary(p)}


def write_page(report: PageReport, *, progress: bool = True) -> Path:
    """Draw the figures of a report into its folder, and write its page.

    The tables are taken from the report; pictures and the record of the environment are read from
    the folder.

    Args:
        report: the report of a run or of a comparison, with a folder.
        progress: whether the number of figures drawn is shown on standard error.

    Returns:
        The page.

    Raises:
        InputError: the report has no folder, or the folder is damaged or cannot be written.
    """
    return _write_page(report, contextlib.nullcontext, progress=progress)


def _write_page(
    report: PageReport,
    taking: Callable[[], contextlib.AbstractContextManager[None]],
    *,
    progress: bool,
) -> Path:
    """See `write_page`; fields of the summary are taken in this context, and figures drawn outside.

    What fails in drawing is not a damaged summary.
    """
    folder = report.folder
    if folder is None:
        raise InputError("write_page: the report has no folder; evaluate with `out`")
    with taking():
        if isinstance(report, NllReport):
            write_hugging_face(folder, report.summary)
        figures = report._figures()
    svgs = _drawn_figures(figures, folder, progress=progress)
    with taking():
        page = report.page(svgs, read_environment(folder))
    with writing_to(folder, ""), replacing(folder / PAGE) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return folder / PAGE


def _drawn_figures(figures: Mapping[str, Draw], folder: Path, *, progress: bool) -> dict[str, str]:
    """Draw the figures into the folder; returns the svg of each by name."""
    svgs = {}
    shown = (
        running.progress("figures", "figures")
        if progress
        else contextlib.nullcontext(lambda done, total, remark: None)
    )
    with shown as update:
        for done, (name, draw) in enumerate(figures.items()):
            update(done, len(figures), name)
            svgs[name] = write_figure(folder, name, *draw())
    return svgs
