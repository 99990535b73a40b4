"""The page of a report in its run folder, with its figures; drawn unless an intact one exists."""

import contextlib
from pathlib import Path
from typing import Any

from ddpmbench.checksums import CHECKSUMS, DamageError, checksum, read_json, write_json
from ddpmbench.errors import InputError
from ddpmbench.execution import progress as running
from ddpmbench.execution.folder import source_revision, versions, write_figure
from ddpmbench.files import is_temporary, replacing, writing_to
from ddpmbench.report import tables
from ddpmbench.report.display import PageReport
from ddpmbench.report.nll_text import write_hugging_face

PAGE = "report.html"
RECORD = "report.json"
"""Record of a page: checksums of its inputs, of the page itself and of its figures."""
_SHOWN_KINDS = (".json", ".csv", ".npz")
_FOLDERS = ("figures", "huggingface")


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
    folder = report.folder
    if folder is None:
        raise InputError("write_page: the report has no folder; evaluate with `out`")
    if report.summary["schema"] == tables.SCHEMA:
        write_hugging_face(folder, report.summary)
    page = report._page(folder, _drawn_figures(report, folder, progress=progress))
    with writing_to(folder, ""), replacing(folder / PAGE) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return folder / PAGE


def _drawn_figures(report: PageReport, folder: Path, *, progress: bool) -> dict[str, str]:
    """Draw the figures into the folder; returns the svg of each by name."""
    figures, svgs = report._figures(), {}
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
