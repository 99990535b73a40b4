"""The page of a finished run, drawn once: as long as nothing that it shows changes."""

import contextlib
from pathlib import Path
from typing import Any

from ddpmbench.checksums import CHECKSUMS, DamageError, checksum, read_json, write_json
from ddpmbench.files import is_temporary, replacing, writing_to
from ddpmbench.runs.provenance import source_revision, versions

PAGE = "report.html"
RECORD = "report.json"
"""Beside the page: what it and its figures were drawn of, by checksums, and theirs."""
_KINDS = (".json", ".csv", ".npz")
_FOLDERS = ("figures", "huggingface")


def page_of(folder: Path) -> Path:
    """The page of a finished run with its figures, drawn where they are not there and whole.

    Args:
        folder: of a run of `nll`, `rd` or `fid`.

    Raises:
        InputError: see `write_report`.
    """
    of = _drawn_of(folder)
    if of is None or not _is_drawn(folder, of):
        # Only here: what draws takes long to import.
        from ddpmbench.questions.report import write_report

        write_report(folder)
        if of is not None:
            with (
                contextlib.suppress(DamageError),  # a file that is no page's, then drawn each time
                writing_to(folder),
                replacing(folder / RECORD) as temporary,
            ):
                write_json(temporary, of, _drawn(folder))
    return folder / PAGE


def _drawn_of(folder: Path) -> dict[str, Any] | None:
    """All that a page depends on; None where that cannot be known."""
    revision = source_revision()
    if revision is not None and revision.endswith("+"):
        return None
    try:
        files = {
            path.name: checksum(path)
            for path in sorted(folder.iterdir())
            if path.suffix in _KINDS and path.name != RECORD
        }
    except (DamageError, OSError):
        return None
    return {"versions": versions(), "git_revision": revision, "files": files}


def _is_drawn(folder: Path, of: dict[str, Any]) -> bool:
    try:
        record = read_json(folder / RECORD)
        known = record.pop(CHECKSUMS)
        known.pop("this")
        return bool(record == of and known == _drawn(folder))
    except (DamageError, OSError, KeyError):
        return False


def _drawn(folder: Path) -> dict[str, str]:
    """The checksums of a page and its figures.

    Raises:
        DamageError: a file is not there.
    """
    paths = [folder / PAGE]
    for name in _FOLDERS:
        paths += [path for path in sorted((folder / name).rglob("*")) if path.is_file()]
    return {str(p.relative_to(folder)): checksum(p) for p in paths if not is_temporary(p)}
