"""What does a picture cost, and how good is it by then? Rate and distortion of lossy decoding."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ddpmbench.evaluate.nll import NllReport
from ddpmbench.execution.finished import (
    RATE_DISTORTION,
    SUMMARY,
    FinishedRun,
    refuse_missing_shards,
)
from ddpmbench.report.card import Card, Draw, Shown
from ddpmbench.report.nll_text import curve_summary
from ddpmbench.report.schema import Run, check
from ddpmbench.report.tables import RATE_DISTORTION_COLUMNS, SCHEMA


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class RateDistortion(Shown):
    """The rate-distortion curve of a checkpoint on images.

    Attributes:
        summary: what makes it comparable, and the curve at ten steps.
        curve: one row a step; see `report.tables.rate_distortion`.
        folder: the run folder; None if the run was kept in memory.
    """

    summary: dict[str, Any]
    curve: pd.DataFrame
    folder: Path | None

    def _card(self) -> Card:
        from ddpmbench.report.nll_text import curve_card

        return curve_card(self.summary, self.folder)

    def _figures(self) -> Mapping[str, Draw]:
        from ddpmbench.report.figures.timesteps import rate_distortion_figure

        return {"rate_distortion": lambda: rate_distortion_figure(self.curve)}


def rate_distortion(run: NllReport | str | Path) -> RateDistortion:
    """The rate-distortion curve of progressive lossy decoding, without a network call.

    Args:
        run: what `evaluate_nll` returned, or the folder of a finished run.

    Raises:
        InputError: the folder holds no finished run, or is damaged.

    Source: Ho, Jain & Abbeel 2020, section 4.3.
    """
    if isinstance(run, NllReport):
        summary, curve, folder = run.summary, run.rate_distortion, run.folder
    else:
        finished = FinishedRun.open(Path(run), option="`run`", schema=SCHEMA)
        refuse_missing_shards(finished, option="`run`")
        check(finished.summary, Run, finished.path / SUMMARY)
        summary, folder = finished.summary, finished.path
        curve = finished.table(RATE_DISTORTION, RATE_DISTORTION_COLUMNS)
    return RateDistortion(curve_summary(curve, summary), curve, folder)
