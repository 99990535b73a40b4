"""What did a run of `fid`, or a comparison of such runs, find? Figures and page of its folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ddpmbench.questions.figures import write_figures
from ddpmbench.report.card import Draw
from ddpmbench.report.comparison_fidelity import check_comparison
from ddpmbench.report.comparison_fidelity_shown import FIGURE, fidelity_comparison_page
from ddpmbench.report.contents import read_svgs
from ddpmbench.report.fidelity import FidelityContents, reference_name
from ddpmbench.report.fidelity_page import fid_page
from ddpmbench.report.figures.fid_against_n import against_n_figure
from ddpmbench.report.figures.fidelity_differences import differences_figure
from ddpmbench.report.figures.per_image import per_image_figure
from ddpmbench.report.figures.samples import nearest_figure, samples_figure
from ddpmbench.runs.finished import SUMMARY, read_summary
from ddpmbench.runs.folder import write_figure


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
    names = write_figures(path, _figures(contents), progress=progress)
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
    check_comparison(summary, path / SUMMARY)
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


def _figures(contents: FidelityContents) -> dict[str, Draw]:
    """What draws those that the run has the tables and pictures for, by name."""
    found = figures_of_scores(contents.summary, contents.per_image, contents.against_n)
    if (nearest := contents.nearest) is not None:
        found["nearest"] = lambda: nearest_figure(nearest)
    if (samples := contents.samples) is not None:
        found["samples"] = lambda: samples_figure(samples.pixels, samples.labels)
    return found
