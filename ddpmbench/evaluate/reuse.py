"""What a run folder holds already: the page of its report, and the result of a finished run."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpmbench.checksums import CHECKSUMS, DamageError, checksum, is_whole, read_json, write_json
from ddpmbench.errors import InputError
from ddpmbench.execution.finished import ENVIRONMENT, PREDICTIONS, SUMMARY
from ddpmbench.execution.folder import IDENTITY, SHARDS, run_store, source_revision, tag, versions
from ddpmbench.execution.pictures import EXTREMES
from ddpmbench.execution.store import has_faults
from ddpmbench.execution.terms import correction_store
from ddpmbench.files import is_temporary, replacing, writing_to
from ddpmbench.unet.precision import Precision

if TYPE_CHECKING:
    from ddpmbench.evaluate.nll import NllReport
    from ddpmbench.evaluate.report import PageReport


PAGE = "report.html"
RECORD = "report.json"
"""Record of a page: checksums of its inputs, of the page itself and of its figures."""
_SHOWN_KINDS = (".json", ".csv", ".npz")
_FOLDERS = ("figures", "huggingface")


def page_of(report: "PageReport") -> Path:
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
    # Imported here, since matplotlib takes long to import.
    from ddpmbench.evaluate.report import write_page

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


def finished_report(
    folder: Path,
    *,
    identity: Mapping[str, Any],
    summary: Mapping[str, Any],
    sampling: Mapping[str, Any],
    environment: Mapping[str, Any],
    image_ids: Sequence[str],
) -> "NllReport | None":
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
    # Imported here: load_report imports every command, including the one that calls this.
    from ddpmbench.evaluate.load_report import load_report

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
        report: Any = load_report(folder) if is_same else None
    except (DamageError, InputError, OSError, LookupError, TypeError, ValueError):
        return None
    is_named_so = is_same and list(report.per_image.image_id) == list(map(str, image_ids))
    return report if is_named_so else None


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
    sealed = [EXTREMES, *([PREDICTIONS] if summary["estimator"] == "importance" else [])]
    return all(checksum(folder / name) == value for name, value in tables.items()) and all(
        is_whole(folder / name) for name in sealed
    )


def _has_whole_shards(folder: Path, summary: Mapping[str, Any]) -> bool:
    """Whether no shard is missing or damaged.

    Shards of the result's own terms are checked when its report is loaded.
    """
    run = tag(folder)
    num_terms = {"pilot": summary["sampling"].get("pilot_evaluations", 0)}
    if (correction := summary["precision_correction"]) is not None:
        for precision in (Precision.FP32, summary["precision"]):
            num_terms[correction_store(precision)] = correction["num_evaluations"] // 2
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


def wider_note(report: "NllReport", before: float | None) -> str | None:
    """A note where a result replaces a narrower one, whose half width is `before`."""
    reached = report.summary["half_width"]
    if before is None or reached is None or reached <= before * (1 + 1e-9):
        return None
    return (
        f"+- {reached:.4f} replaces the result of +- {before:.4f} in {report.folder}; the terms of "
        "both are kept, so that the earlier command gives its result again without evaluating them"
    )
