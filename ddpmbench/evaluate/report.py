"""Draw the figures of a report into its folder, and write its page."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from ddpmbench.checksums import DamageError, read_json
from ddpmbench.errors import InputError, path_of
from ddpmbench.evaluate.compare import Comparison, FidelityComparison
from ddpmbench.evaluate.fid import FidReport
from ddpmbench.evaluate.likelihoods import LikelihoodsReport
from ddpmbench.evaluate.load_report import load_report
from ddpmbench.evaluate.nll import NllReport
from ddpmbench.evaluate.ode import OdeReport
from ddpmbench.evaluate.reuse import PAGE
from ddpmbench.evaluate.sample import SampleReport
from ddpmbench.evaluate.score import ScoreReport
from ddpmbench.evaluate.speed import SpeedReport
from ddpmbench.execution import progress as running
from ddpmbench.execution.folder import IDENTITY, write_figure
from ddpmbench.files import replacing, writing_to
from ddpmbench.report.card import Draw
from ddpmbench.report.comparison import comparison_page
from ddpmbench.report.contents import RunContents, read_environment, read_svgs, schema_of
from ddpmbench.report.fidelity import FidelityContents
from ddpmbench.report.fidelity_comparison import fidelity_comparison_page
from ddpmbench.report.figures.timesteps import difference_figure
from ddpmbench.report.hugging_face import write_hugging_face
from ddpmbench.report.likelihoods import likelihoods_page
from ddpmbench.report.nll_page import run_figures, run_page
from ddpmbench.report.ode import ode_page
from ddpmbench.report.samples import fid_figures, fid_page
from ddpmbench.report.scores import score_page

PageReport: TypeAlias = (
    NllReport
    | OdeReport
    | LikelihoodsReport
    | ScoreReport
    | FidReport
    | Comparison
    | FidelityComparison
)
"""A report that has a page."""

_WITHOUT_PAGE = {
    "sample": "its samples are drawn in figures/samples.png; fid scores them",
    "speed": "its figures are in figures/",
    "inspect": "its figure is in figures/",
}
"""Commands without a page, and where to find their figures."""


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
    assert not isinstance(report, SampleReport | SpeedReport)
    return write_page(report, progress=progress)


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
    page = _page(report, folder, progress=progress)
    with writing_to(folder, ""), replacing(folder / PAGE) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return folder / PAGE


def _page(report: PageReport, folder: Path, *, progress: bool) -> str:
    match report:
        case NllReport():
            contents = RunContents.of(report, folder)
            write_hugging_face(folder, report.summary)
            return run_page(contents, _drawn(folder, run_figures(contents), progress=progress))
        case OdeReport():
            svgs = _drawn(folder, report._figures(), progress=False)
            return ode_page(report.summary, read_environment(folder), svgs)
        case LikelihoodsReport():
            svgs = _drawn(folder, report._figures(), progress=False)
            return likelihoods_page(report.summary, read_environment(folder), svgs)
        case ScoreReport():
            svgs = _drawn(folder, report._figures(), progress=False)
            return score_page(report.summary, folder, svgs)
        case FidReport():
            scores = FidelityContents.of(report, folder)
            return fid_page(scores, _drawn(folder, fid_figures(scores), progress=progress))
        case FidelityComparison():
            figures = report._figures()
            return fidelity_comparison_page(report.summary, _drawn(folder, figures, progress=False))
        case Comparison():
            baseline = str(report.summary["baseline"]["run"])
            figure, groups = difference_figure(report.per_timestep, baseline)
            svgs = _drawn(folder, {"difference": lambda: (figure, groups)}, progress=False)
            return comparison_page(report.summary, groups, svgs)


def _drawn(folder: Path, figures: Mapping[str, Draw], *, progress: bool) -> dict[str, str]:
    """Draw the figures into the folder; returns the svg of each by name."""
    shown = (
        running.progress("figures", "figures")
        if progress
        else contextlib.nullcontext(lambda done, total, remark: None)
    )
    with shown as update:
        for done, (name, draw) in enumerate(figures.items()):
            update(done, len(figures), name)
            write_figure(folder, name, *draw())
    return read_svgs(folder, list(figures))
