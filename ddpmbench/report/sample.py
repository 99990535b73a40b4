"""Samples: report, printed result and contact sheet."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ddpmbench.data.images import ImageSet, PositionIds
from ddpmbench.errors import damaged
from ddpmbench.execution.finished_runs import FinishedRun
from ddpmbench.execution.samples import SAMPLES, read_samples
from ddpmbench.report.display import Card, Draw, in_folder
from ddpmbench.report.figures import GAP, Drawn, Pixels, Sheet
from ddpmbench.report.stored import StoredReport
from ddpmbench.report.text import (
    checkpoint_line,
    counted,
    data_range_words,
    device_line,
    fact_lines,
    printed,
    shape_words,
    timesteps_of,
)

NUM_SHOWN = 96
"""Samples on a contact sheet."""
_COLUMNS = 12


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SampleReport(StoredReport):
    """Samples of a checkpoint.

    Attributes:
        summary: the object of `summary.json`.
        images: the samples, with their classes where they have any.
        folder: the run folder; None if the run was kept in memory.
    """

    SCHEMA = "ddpmbench.sample/1"

    summary: dict[str, Any]
    images: ImageSet
    folder: Path | None

    @classmethod
    def _read(cls, run: FinishedRun) -> dict[str, Any]:
        data = read_samples(run.path / SAMPLES)
        images = ImageSet(data.pixels, PositionIds(range(len(data.pixels))), SAMPLES, data.labels)
        if images.sha256 != run.summary["sha256"]:
            raise damaged(run.path / SAMPLES)
        return {"images": images}

    def _card(self) -> Card:
        return Card(_headline(self.summary), facts=in_folder(_facts(self.summary), self.folder))

    def _figures(self) -> Mapping[str, Draw]:
        return {"samples": lambda: samples_figure(self.images.pixels, self.images.labels)}


def printed_samples(summary: dict[str, Any], path: Path, output_format: str) -> str:
    """The summary of `sample` for standard output; "quiet" is the path of the samples."""
    facts = fact_lines(_facts(summary).items())
    lines = [f"{_headline(summary)}: {path}", "", *facts]
    return printed(summary, output_format, lines, quiet=str(path))


def _headline(summary: dict[str, Any]) -> str:
    """The number of samples and their size."""
    return f"{counted(summary['num_samples'], 'sample')}, {shape_words(summary['shape'])}"


def _facts(summary: dict[str, Any]) -> dict[str, str]:
    """The settings of samples, by name."""
    speed = summary["images_per_second"]
    pace = f", {speed:.3g} images/s" if speed else ""
    return {
        "checkpoint": checkpoint_line(summary["checkpoint"]),
        "sampler": sampler_line(summary["sampler"]),
        "pixels": f"{summary['eight_bit']} to 8 bits, sha256 {summary['sha256'][:12]}",
        "seed": f"{summary['seed']}, {counted(summary['num_evaluations'], 'network evaluation')}",
        "device": f"{device_line(summary)}{pace}",
    }


_SETTINGS = {
    "eta": "eta {:g}",
    "langevin_steps": "Langevin steps {}",
    "step_size": "step size {:g}",
    "snr": "r = {:g}",
    "solver": "{}",
    "solver_steps": "solver steps {}",
}


def sampler_line(sampler: Mapping[str, Any]) -> str:
    """The sampler and its settings in words."""
    steps, total = sampler["num_timesteps"], sampler["num_original_timesteps"]
    parts = [sampler["method"], f"T = {timesteps_of(steps, total)}"]
    if sampler["variance"] is not None:
        parts.append(sampler["variance"])
    noise = {"every-step": "noise at every step", "none": "no added noise"}
    if sampler["added_noise"] in noise:
        parts.append(noise[sampler["added_noise"]])
    parts += [
        words.format(sampler[name])
        for name, words in _SETTINGS.items()
        if sampler.get(name) is not None
    ]
    parts.append("clip" if sampler["clip"] else "no clip")
    parts += data_range_words(sampler)
    if sampler["labels"] is not None:
        parts.append(f"classes: {sampler['labels']}")
    evaluations = sampler.get("num_evaluations") or steps
    if evaluations != steps:
        parts.append(f"{counted(evaluations, 'network evaluation')} per sample")
    return ", ".join(parts)


def samples_figure(pixels: Pixels, labels: NDArray[np.int64] | None = None) -> Drawn:
    """A contact sheet of the first `NUM_SHOWN` samples, with their classes if they have any.

    Args:
        pixels: (N, C, H, W) uint8, C 1 or 3.
        labels: (N,) the classes.

    Returns:
        The figure, and one row per picture: `sample`, its `row` and `column`, and its `label`.
    """
    shown = pixels[:NUM_SHOWN]
    index = np.arange(len(shown))
    numbers = pd.DataFrame({"sample": index, "row": index // _COLUMNS, "column": index % _COLUMNS})
    if labels is not None:
        numbers["label"] = labels[:NUM_SHOWN]
    sheet = Sheet(shown.shape[2:], columns=min(_COLUMNS, len(shown)), apart=set())
    for start in range(0, len(shown), _COLUMNS):
        row = shown[start : start + _COLUMNS]
        sheet.pictures(f"{start}\u2013{start + len(row) - 1}", list(row))
        if labels is None:
            sheet.space(GAP)
        else:
            sheet.text("class", [str(label) for label in labels[start : start + len(row)]])
    return sheet.figure(), numbers
