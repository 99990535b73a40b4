"""How fast is a model here, and how long would the other questions take?"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ddpmbench.data.images import ImageSet, ImageSource, load_images, refuse_reduced
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.errors import InputError
from ddpmbench.execution.devices import device_name, resolve_device
from ddpmbench.execution.finished import ENVIRONMENT
from ddpmbench.execution.folder import RunFolder, environment, write_figure
from ddpmbench.execution.network_check import check_first_call
from ddpmbench.execution.progress import tell as to_standard_error
from ddpmbench.execution.samples import Generation, SampleSettings
from ddpmbench.execution.speed import (
    MeasuredSpeed,
    SpeedPlan,
    Workload,
    fitting_probe,
    measured,
    workloads,
)
from ddpmbench.execution.timing import Probe, gray_images
from ddpmbench.files import named_path
from ddpmbench.report import speed as report
from ddpmbench.report.card import Card, Draw, Shown
from ddpmbench.report.figures.throughput import batch_figure, parts_figure
from ddpmbench.version import __version__


@dataclasses.dataclass(frozen=True)
class SpeedSettings:
    """What is measured, and for which questions.

    Attributes:
        plan: of the measurement.
        half_width: of the bound whose time is predicted, bits per dimension.
        num_images: of the set whose bound it is, where no images are given.
        num_samples: whose time is predicted.
        image_size: height and width where neither checkpoint nor images say.

    Raises:
        InputError: one of them has no sense.
    """

    plan: SpeedPlan = dataclasses.field(default_factory=SpeedPlan)
    half_width: float = 0.005
    num_images: int = 10_000
    num_samples: int = 50_000
    image_size: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be asked."""
        if not 0 < self.half_width < math.inf:
            raise InputError(
                f"--half-width {self.half_width}: choose a number above 0, such as 0.005"
            )
        for option in ("num_images", "num_samples"):
            if (value := getattr(self, option)) < 1:
                raise InputError(f"--{option.replace('_', '-')} {value}: choose at least one")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SpeedReport(Shown):
    """How fast a model is on a device.

    Attributes:
        summary: the object of `summary.json`.
        calls: one row a way to call the network; see `report.speed.calls_frame`.
        parts: one row a kind of row; see `report.speed.parts_frame`.
        predictions: one row a question; see `report.speed.predictions_frame`.
        folder: where it was written; None if nowhere.
    """

    summary: dict[str, Any]
    calls: pd.DataFrame
    parts: pd.DataFrame
    predictions: pd.DataFrame
    folder: Path | None

    def _card(self) -> Card:
        from ddpmbench.report.cards import speed_card

        return speed_card(self.summary, self.folder)

    def _figures(self) -> Mapping[str, Draw]:
        named = self.calls.assign(
            panel="Network calls", per_second=self.calls.evaluations_per_second
        )
        return {
            "calls": lambda: batch_figure(named, unit="calls/s"),
            "parts": lambda: parts_figure(self.parts),
        }


def measure_speed(
    checkpoint: Checkpoint,
    images: "ImageSource | None" = None,
    *,
    settings: SpeedSettings | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    out: str | Path | None = None,
    command: list[str] | None = None,
    tell: Callable[[str], None] | None = None,
    progress: bool = True,
) -> SpeedReport:
    """Time the network of a checkpoint, what surrounds it, and predict what questions take here.

    Args:
        checkpoint: what `load_checkpoint` returns.
        images: what the bound would be of; None for as many gray ones as the settings say.
        settings: what is measured.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        batch_size: of the largest batch; None for what suits the device and the network.
        out: a folder to write to; an earlier measurement of the same kind there is replaced.
        command: the command line, for the record.
        tell: told what is being measured, and what had to be left out; None for standard error.
        progress: False for silence where `tell` is None.

    Raises:
        InputError: the device cannot do what is asked, or an argument does not fit.
    """
    since = time.perf_counter()
    tell = tell or (to_standard_error if progress else _nobody)
    settings = settings or SpeedSettings()
    if batch_size is not None and batch_size < 1:
        raise InputError(f"--batch-size {batch_size}: needs at least one row, or auto")
    target = resolve_device(device)
    images = None if images is None else load_images(images)
    shape, num_images = _shape(checkpoint, images, settings), settings.num_images
    if images is None:
        images = gray_images(shape, 256, checkpoint.num_classes)
    else:
        checkpoint.check_images(shape, images.source)
        refuse_reduced(images, checkpoint.data_range)
        num_images = len(images)
    check_first_call(checkpoint, shape, device=target)
    identity = _identity(checkpoint, target, settings, batch_size)
    folder = None if out is None else RunFolder(named_path(out), identity)
    probe = fitting_probe(checkpoint, images, target, batch_size=batch_size, tell=tell)
    found = measured(probe, settings.plan, tell=tell)
    works = workloads(
        num_images,
        checkpoint.schedule.num_timesteps,
        half_width=settings.half_width,
        num_samples=settings.num_samples,
    )
    made = _report(found, works, probe, folder, time.perf_counter() - since)
    if folder is not None:
        _write(
            folder,
            made,
            environment(
                target,
                given=command,
                resolved={
                    **identity,
                    **dataclasses.asdict(settings),
                    "num_images": num_images,
                    "batch_size": len(probe.rows),
                },
            ),
        )
    return made


def _nobody(line: str) -> None:
    pass


def _shape(
    checkpoint: Checkpoint, images: ImageSet | None, settings: SpeedSettings
) -> tuple[int, ...]:
    if images is not None:
        return tuple(images.pixels.shape[1:])
    return Generation(checkpoint, SampleSettings(image_size=settings.image_size)).shape


def _identity(
    checkpoint: Checkpoint, device: torch.device, settings: SpeedSettings, batch_size: int | None
) -> dict[str, Any]:
    """What another measurement must have in common with that of a folder to take its place."""
    plan = settings.plan
    precisions = plan.precisions and [str(precision) for precision in plan.precisions]
    return {
        "schema": report.SCHEMA,
        "checkpoint": checkpoint.sha256,
        "network": checkpoint.fingerprint,
        "device": device_name(device),
        "precisions": precisions,
        "compiled": plan.compiled,
        "batch_size": batch_size,
        **checkpoint.data_range.identity,
        "ddpmbench": __version__,
    }


def _report(
    found: MeasuredSpeed,
    works: list[Workload],
    probe: Probe,
    folder: RunFolder | None,
    seconds: float,
) -> SpeedReport:
    checkpoint = probe.checkpoint
    calls, parts = report.calls_frame(found), report.parts_frame(found)
    predictions = report.predictions_frame(found, works)
    summary = {
        "schema": report.SCHEMA,
        "checkpoint": checkpoint.record,
        "shape": list(probe.images.pixels.shape[1:]),
        "num_timesteps": checkpoint.schedule.num_timesteps,
        "parameters": sum(p.numel() for p in checkpoint.network.parameters()),
        "flop_per_call": found.flop_per_call,
        "device": device_name(probe.device),
        "matmul_tflops": {str(kind): peak / 1e12 for kind, peak in found.peaks.items()},
        "calls": _records(calls),
        "parts": _records(parts),
        "predictions": _records(predictions),
        "seconds": round(seconds, 3),
    }
    return SpeedReport(summary, calls, parts, predictions, None if folder is None else folder.path)


def _records(frame: pd.DataFrame) -> list[dict[Any, Any]]:
    """As JSON can hold them: what is not known is null."""
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def _write(folder: RunFolder, made: SpeedReport, record: dict[str, object]) -> None:
    folder.write_frame("calls.csv", made.calls)
    folder.write_frame("parts.csv", made.parts)
    folder.write_frame("predictions.csv", made.predictions)
    for name, draw in made._figures().items():
        write_figure(folder.path, name, *draw())
    folder.write_json(ENVIRONMENT, record)
    folder.write_summary(made.summary)
