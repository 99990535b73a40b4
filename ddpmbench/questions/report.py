"""What did a run find? All of it on one page that people can look at."""

import contextlib
from functools import partial as partial_of
from pathlib import Path
from typing import Any

from ddpmbench.checksums import DamageError, read_json
from ddpmbench.errors import InputError
from ddpmbench.files import replacing, writing_to
from ddpmbench.questions.fidelity_report import report_of_fidelity, report_of_fidelity_comparison
from ddpmbench.questions.figures import write_figures
from ddpmbench.questions.page_of import PAGE
from ddpmbench.questions.partial import SCHEMA as PARTIAL_SCHEMA
from ddpmbench.questions.partial import reduce_what_is_left
from ddpmbench.report import checks, comparison, comparison_fidelity, fidelity, tables
from ddpmbench.report.card import Draw
from ddpmbench.report.checks import check
from ddpmbench.report.contents import RunContents, read_svgs, read_table
from ddpmbench.report.figures.bound import bound_figure
from ddpmbench.report.figures.calls import calls_figure
from ddpmbench.report.figures.difference import difference_figure
from ddpmbench.report.figures.images import images_figure
from ddpmbench.report.figures.rate_distortion import rate_distortion_figure
from ddpmbench.report.figures.sub_schedules import sub_schedules_figure
from ddpmbench.report.hugging_face import write_hugging_face
from ddpmbench.report.page import comparison_page, run_page
from ddpmbench.report.pictures import decoding_figure, generation_figure, interpolation_figure
from ddpmbench.runs.finished import SUMMARY, FinishedRun, read_summary, refuse_later
from ddpmbench.runs.folder import IDENTITY, write_figure
from ddpmbench.runs.losses import refuse_losses

_WITHOUT_PAGE = {
    "sample": "its samples are drawn in figures/samples.png, and fid --samples scores them",
    "speed": "its figures are in figures/",
    "inspect": "its figure is in figures/",
}
"""Commands whose folders are no run's, to where what they hold is shown."""
_STEPS = {
    "run": "str",
    "t": "int64",
    "bits_per_dim": "float64",
    "standard_error": "float64",
    "rate_bits_per_dim": "float64",
    "rate_standard_error": "float64",
}


def write_report(run: str | Path, *, partial: bool = False, progress: bool = True) -> Path:
    """Draw the figures of a finished run into its folder, and write its page.

    No network is called, and nothing is loaded from elsewhere; nor does the page when it is read.
    Beside that of `evaluate_nll` the result for the Hugging Face hub is written.

    Args:
        run: the folder of a run of `evaluate_nll` or of `fid`, or of a comparison.
        partial: where shards of the folder are gone or damaged, the page of the images all of
            whose rows are left, in `partial/` of the folder.
        progress: whether it shows on standard error how many figures are drawn.

    Returns:
        The page.

    Raises:
        InputError: the folder holds no finished run, is damaged, or cannot be written.
    """
    path = Path(run)
    schema = schema_of(path)
    _refuse_without_page(path, schema)
    if partial and schema == tables.SCHEMA and (left := reduce_what_is_left(path, option="")):
        path, schema = left.folder, PARTIAL_SCHEMA
    for own in (comparison.SCHEMA, PARTIAL_SCHEMA, fidelity.SCHEMA, comparison_fidelity.SCHEMA):
        refuse_later(schema, own, named=str(path))
    if schema == comparison.SCHEMA:
        page = _of_comparison(path)
    elif schema == fidelity.SCHEMA:
        page = report_of_fidelity(path, progress=progress)
    elif schema == comparison_fidelity.SCHEMA:
        page = report_of_fidelity_comparison(path)
    elif schema == PARTIAL_SCHEMA:
        page = _of_run(FinishedRun.open(path, option="", schema=schema), progress=progress)
    else:
        finished = FinishedRun.open(path, option="", schema=tables.SCHEMA)
        refuse_losses(finished, option="")
        page = _of_run(finished, progress=progress)
        write_hugging_face(path, finished.summary)
    with writing_to(path), replacing(path / PAGE) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path / PAGE


def _refuse_without_page(path: Path, schema: str | None) -> None:
    if schema is None:  # unfinished, or of a command that leaves no summary
        with contextlib.suppress(DamageError, KeyError):
            schema = str(read_json(path / IDENTITY)["schema"])
    kind, _, command = (schema or "").partition("/")[0].partition(".")
    if kind == "ddpmbench" and command in _WITHOUT_PAGE:
        raise InputError(
            f"{path}: is a folder of {command}, which has no page: {_WITHOUT_PAGE[command]}; a "
            "page is made of a run of nll, rd or fid, and of a comparison"
        )


def _of_run(run: FinishedRun, *, progress: bool) -> str:
    contents = RunContents.of(run)
    names = write_figures(run.path, _figures(contents), progress=progress)
    return run_page(contents, read_svgs(run.path, names))


def _of_comparison(path: Path) -> str:
    summary = summary_of_comparison(path)
    steps = read_table(path / "per_timestep.csv", _STEPS)
    figure, numbers = difference_figure(steps, str(summary["baseline"]["run"]))
    write_figure(path, "difference", figure, numbers)
    return comparison_page(summary, numbers, read_svgs(path, ["difference"]))


def _figures(contents: RunContents) -> dict[str, Draw]:
    """What draws those that the run has the tables for, by name."""
    summary, per_timestep, curve = (
        contents.summary,
        contents.per_timestep,
        contents.rate_distortion,
    )
    found: dict[str, Draw] = {
        "bound": partial_of(bound_figure, per_timestep, curve),
        "rate_distortion": partial_of(rate_distortion_figure, curve),
    }
    if contents.per_image is not None:
        found["images"] = partial_of(images_figure, *contents.bits_of_images, contents.extremes)
    if contents.sub_schedules is not None:
        found["sub_schedules"] = partial_of(sub_schedules_figure, contents.sub_schedules)
    if contents.density is not None:
        found["calls"] = partial_of(
            calls_figure,
            per_timestep,
            contents.density,
            num_images=summary["num_images"],
            rotations=summary["sampling"]["rotations"],
        )
    pictures = contents.pictures
    if pictures.decoding is not None:
        found["decoding"] = partial_of(decoding_figure, pictures.decoding, curve)
    if pictures.generation is not None:
        found["generation"] = partial_of(generation_figure, pictures.generation)
    if pictures.interpolation is not None:
        found["interpolation"] = partial_of(interpolation_figure, pictures.interpolation)
    return found


def schema_of(path: Path) -> str | None:
    """What a folder holds; None where whoever opens a run will say what is wrong with it."""
    try:
        return str(read_json(path / SUMMARY)["schema"])
    except (DamageError, KeyError):
        return None


def summary_of_comparison(path: Path) -> dict[str, Any]:
    """The object of `summary.json` of a comparison of runs of `nll`.

    Raises:
        InputError: it is damaged.
    """
    found = read_summary(path)
    check(found, {**checks.COMPARISON, "runs": (list,)}, path / SUMMARY)
    for run in found["runs"]:
        check(run, checks.COMPARED, path / SUMMARY)
    if not found["runs"]:
        raise InputError(f"{path / SUMMARY}: missing or damaged: it compares no run")
    return found
