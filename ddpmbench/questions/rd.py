"""What does a picture cost, and how good is it by then? Rate and distortion of lossy decoding."""

import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd

from ddpmbench.questions.nll import NllReport
from ddpmbench.report import rate_distortion as report
from ddpmbench.report.figures.rate_distortion import rate_distortion_figure
from ddpmbench.report.tables import RATE_DISTORTION_COLUMNS, SCHEMA
from ddpmbench.runs.finished import RATE_DISTORTION, FinishedRun
from ddpmbench.runs.folder import write_figure


@dataclasses.dataclass(frozen=True, eq=False)
class RateDistortion:
    """The rate-distortion curve of a checkpoint on images.

    Attributes:
        summary: what makes it comparable, and the curve at ten steps.
        curve: one row a step; see `report.tables.rate_distortion`.
        folder: the run folder; None if the run was kept in memory.
    """

    summary: dict[str, Any]
    curve: pd.DataFrame
    folder: Path | None


def rate_distortion(run: NllReport | str | Path) -> RateDistortion:
    """The rate-distortion curve of progressive lossy decoding, without a network call.

    Where the run has a folder, the figure and the numbers behind it are written there.

    Args:
        run: what `evaluate_nll` returned, or the folder of a finished run.

    Raises:
        InputError: the folder holds no finished run, or is damaged.

    Source: Ho, Jain & Abbeel 2020, section 4.3.
    """
    if isinstance(run, NllReport):
        summary, curve, folder = run.summary, run.rate_distortion, run.folder
    else:
        finished = FinishedRun.open(Path(run), option="--run", schema=SCHEMA)
        summary, folder = finished.summary, finished.path
        curve = finished.table(RATE_DISTORTION, RATE_DISTORTION_COLUMNS)
    found = RateDistortion(report.summary(curve, summary), curve, folder)
    if folder is not None:
        figure, numbers = rate_distortion_figure(curve)
        write_figure(folder, "rate_distortion", figure, numbers)
    return found
