"""What did a run find? All of it on one page that people can look at."""

import contextlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from ddpmbench.checksums import DamageError, read_json
from ddpmbench.errors import InputError
from ddpmbench.evaluate.answered import PAGE
from ddpmbench.execution import progress as running
from ddpmbench.execution.finished import (
    SUMMARY,
    FinishedRun,
    read_summary,
    refuse_later,
    refuse_losses,
)
from ddpmbench.execution.folder import IDENTITY, write_figure
from ddpmbench.files import replacing, writing_to
from ddpmbench.report import comparison, fidelity, fidelity_comparison, tables
from ddpmbench.report.card import Draw
from ddpmbench.report.contents import RunContents, read_svgs, read_table
from ddpmbench.report.fidelity import FidelityContents, reference_name
from ddpmbench.report.fidelity_comparison_page import FIGURE, fidelity_comparison_page
from ddpmbench.report.fidelity_page import fid_page
from ddpmbench.report.figures.fidelity import against_n_figure, differences_figure, per_image_figure
from ddpmbench.report.figures.images import images_figure, nearest_figure, samples_figure
from ddpmbench.report.figures.rate_distortion import rate_distortion_figure
from ddpmbench.report.figures.sub_schedules import sub_schedules_figure
from ddpmbench.report.figures.timesteps import bound_figure, calls_figure, difference_figure
from ddpmbench.report.hugging_face import write_hugging_face
from ddpmbench.report.page import comparison_page, run_page
from ddpmbench.report.pictures import decoding_figure, generation_figure, interpolation_figure
from ddpmbench.report.schema import Comparison, FidelityComparison, check


def write_figures(folder: Path, figures: Mapping[str, Draw], *, progress: bool) -> list[str]:
    """Draw figures into a folder; see `runs.folder.write_figure`.

    Args:
        folder: of the run.
        figures: what draws them, by name.
        progress: whether it shows on standard error how many are drawn.

    Returns:
        Their names.

    Raises:
        InputError: the folder cannot be written.
    """
    with _shown(progress) as update:
        for done, (name, draw) in enumerate(figures.items()):
            update(done, len(figures), name)
            write_figure(folder, name, *draw())
    return list(figures)


def _shown(shown: bool) -> contextlib.AbstractContextManager[running.Update]:
    if shown:
        return running.progress("figures", "figures")
    return contextlib.nullcontext(lambda done, total, remark: None)


def report_of_fidelity(path: Path, *, progress: bool) -> str:
    """Draw the figures of a finished run of `fid` into its folder.

    Args:
        path: the folder.
        progress: whether it shows how many figures are drawn.

    Returns:
        Its page.

    Raises:
        InputError: the folder holds no finished run of `fid`, is damaged, or cannot be written.
    """
    contents = FidelityContents.read(path)
    names = write_figures(path, _figures_of_fidelity(contents), progress=progress)
    return fid_page(contents, read_svgs(path, names))


def report_of_fidelity_comparison(path: Path) -> str:
    """Draw the figure of a comparison of runs of `fid` into its folder.

    Args:
        path: the folder.

    Returns:
        Its page.

    Raises:
        InputError: its summary is damaged, or the folder cannot be written.
    """
    summary = read_summary(path)
    check(summary, FidelityComparison, path / SUMMARY)
    rows = [{"run": run["run"], **of} for run in summary["runs"] for of in run["differences"]]
    drawn = differences_figure(pd.DataFrame(rows), summary["name"])
    if drawn is not None:
        write_figure(path, FIGURE[0], *drawn)
    return fidelity_comparison_page(summary, read_svgs(path, [FIGURE[0]] if drawn else []))


def figures_of_scores(
    summary: Mapping[str, Any], per_image: pd.DataFrame, against_n: pd.DataFrame | None
) -> dict[str, Draw]:
    """What draws the figures of the tables that there are, by name.

    Args:
        summary: the object of `summary.json` of a run of `fid`.
        per_image: one row a sample; see `report.fidelity.PER_IMAGE_COLUMNS`.
        against_n: one row a reference and number of samples; None or empty where there are none.
    """
    found: dict[str, Draw] = {}
    if against_n is not None and len(against_n):
        ends = {
            name: (of["fid_infinity"], of["fid_infinity_half_width"])
            for of in summary["references"]
            for name in (of["source"], reference_name(of))
        }
        found["fid_against_n"] = lambda: against_n_figure(against_n, ends, summary["name"])
    if (histograms := per_image_figure(per_image)) is not None:
        found["per_image"] = lambda: histograms
    return found


def _figures_of_fidelity(contents: FidelityContents) -> dict[str, Draw]:
    """What draws those that the run has the tables and pictures for, by name."""
    found = figures_of_scores(contents.summary, contents.per_image, contents.against_n)
    if (nearest := contents.nearest) is not None:
        found["nearest"] = lambda: nearest_figure(nearest)
    if (samples := contents.samples) is not None:
        found["samples"] = lambda: samples_figure(samples.pixels, samples.labels)
    return found


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


def write_report(run: str | Path, *, progress: bool = True) -> Path:
    """Draw the figures of a finished run into its folder, and write its page.

    No network is called, and nothing is loaded from elsewhere; nor does the page when it is read.
    Beside that of `evaluate_nll` the result for the Hugging Face hub is written.

    Args:
        run: the folder of a run of `evaluate_nll` or of `fid`, or of a comparison.
        progress: whether it shows on standard error how many figures are drawn.

    Returns:
        The page.

    Raises:
        InputError: the folder holds no finished run, is damaged, or cannot be written.
    """
    path = Path(run)
    schema = schema_of(path)
    _refuse_without_page(path, schema)
    for own in (comparison.SCHEMA, fidelity.SCHEMA, fidelity_comparison.SCHEMA):
        refuse_later(schema, own, named=str(path))
    if schema == comparison.SCHEMA:
        page = _of_comparison(path)
    elif schema == fidelity.SCHEMA:
        page = report_of_fidelity(path, progress=progress)
    elif schema == fidelity_comparison.SCHEMA:
        page = report_of_fidelity_comparison(path)
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
        "bound": partial(bound_figure, per_timestep, curve),
        "rate_distortion": partial(rate_distortion_figure, curve),
    }
    if contents.per_image is not None:
        found["images"] = partial(images_figure, *contents.bits_of_images, contents.extremes)
    if contents.sub_schedules is not None:
        found["sub_schedules"] = partial(sub_schedules_figure, contents.sub_schedules)
    if contents.density is not None:
        found["calls"] = partial(
            calls_figure,
            per_timestep,
            contents.density,
            num_images=summary["num_images"],
            num_replicates=summary["sampling"]["num_replicates"],
        )
    pictures = contents.pictures
    if pictures.decoding is not None:
        found["decoding"] = partial(decoding_figure, pictures.decoding, curve)
    if pictures.generation is not None:
        found["generation"] = partial(generation_figure, pictures.generation)
    if pictures.interpolation is not None:
        found["interpolation"] = partial(interpolation_figure, pictures.interpolation)
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
    check(found, Comparison, path / SUMMARY)
    return found
