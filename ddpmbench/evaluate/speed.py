"""How fast a model is on a device, and how long other commands would take."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ddpmbench.data.images import refuse_reduced
from ddpmbench.data.load import ImageSource, load_images
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.errors import positive_number, whole_number
from ddpmbench.execution.devices import device_name, resolve_device
from ddpmbench.execution.finished_runs import ENVIRONMENT
from ddpmbench.execution.folder import RunFolder, environment, write_figure
from ddpmbench.execution.network_check import check_network
from ddpmbench.execution.progress import tell as to_standard_error
from ddpmbench.execution.samples import Generation, SampleSettings
from ddpmbench.execution.speed import (
    fastest_engines,
    fitting_probe,
    flop_of,
    measure_calls,
    measure_parts,
    measured_peak,
    predict,
    workloads,
)
from ddpmbench.execution.timing import Probe, gray_images
from ddpmbench.files import named_path
from ddpmbench.report.speed import SpeedReport
from ddpmbench.report.text import json_rows
from ddpmbench.unet.timed_unet import Precision
from ddpmbench.version import __version__


@dataclasses.dataclass(frozen=True)
class SpeedSettings:
    """What to measure, and for which commands to predict the time.

    Attributes:
        precisions: precisions of the network; None for those that suit the device.
        compiled: whether to try compiling, which takes longer than everything else.
        half_width: half width of the predicted bound's interval, bits per dimension.
        num_images: size of the image set for the bound, where no images are given.
        num_samples: number of samples to predict the time for.
        image_size: height and width, where neither checkpoint nor images say.

    Raises:
        InputError: a value is out of range.
    """

    precisions: tuple[Precision, ...] | None = None
    compiled: bool = False
    half_width: float = 0.005
    num_images: int = 10_000
    num_samples: int = 50_000
    image_size: int | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        positive_number("half_width", self.half_width)
        for name in ("num_images", "num_samples"):
            whole_number(name, getattr(self, name), 1)


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
    """Time the network of a checkpoint and the work around it; predict the time of other commands.

    Args:
        checkpoint: what `load_checkpoint` returns.
        images: the images for the predicted bound; None for `num_images` gray ones.
        settings: what to measure.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        batch_size: the largest batch size; None for what suits the device and the network.
        out: a folder to write to; an earlier measurement of the same kind there is replaced.
        command: the command line, for the record.
        tell: called with a line for each engine that is measured or left out; None for standard
            error.
        progress: False for no output where `tell` is None.

    Raises:
        InputError: the device does not support a setting, or an argument is invalid.
    """
    since = time.perf_counter()
    tell = tell or (to_standard_error if progress else lambda line: None)
    settings = settings or SpeedSettings()
    if batch_size is not None:
        batch_size = whole_number("batch_size", batch_size, 1)
    target = resolve_device(device)
    images = None if images is None else load_images(images)
    if images is None:
        shape = Generation(checkpoint, SampleSettings(image_size=settings.image_size)).shape
        num_images = settings.num_images
        images = gray_images(shape, 256, checkpoint.num_classes)
    else:
        shape = tuple(images.pixels.shape[1:])
        checkpoint.check_images(shape, images.source)
        refuse_reduced(images, checkpoint.data_range)
        num_images = len(images)
    checkpoint = check_network(checkpoint, shape, device=target)
    identity = _identity(checkpoint, target, settings, batch_size)
    folder = None if out is None else RunFolder(named_path(out), identity)
    probe = fitting_probe(checkpoint, images, target, batch_size=batch_size, tell=tell)
    works = workloads(
        num_images,
        checkpoint.schedule.num_timesteps,
        half_width=settings.half_width,
        num_samples=settings.num_samples,
    )
    summary, calls, parts = _measured(probe, settings, tell)
    predictions = predict(works, parts)
    summary |= {
        "calls": json_rows(calls),
        "parts": json_rows(parts),
        "predictions": json_rows(predictions),
        "seconds": round(time.perf_counter() - since, 3),
    }
    path = None if folder is None else folder.path
    report = SpeedReport(summary, calls, parts, predictions, path)
    if folder is not None:
        measured_with = {"num_images": num_images, "batch_size": len(probe.rows)}
        resolved = {**identity, **dataclasses.asdict(settings), **measured_with}
        _write(folder, report, environment(target, given=command, resolved=resolved))
    return report


def _identity(
    checkpoint: Checkpoint, device: torch.device, settings: SpeedSettings, batch_size: int | None
) -> dict[str, Any]:
    """The fields that must be equal for a measurement to replace that in a folder."""
    precisions = settings.precisions and [str(precision) for precision in settings.precisions]
    return {
        "schema": SpeedReport.SCHEMA,
        "checkpoint": checkpoint.sha256,
        **checkpoint.identity,
        "device": device_name(device),
        "precisions": precisions,
        "compiled": settings.compiled,
        "batch_size": batch_size,
        **checkpoint.data_range.identity,
        "ddpmbench": __version__,
    }


def _measured(
    probe: Probe, settings: SpeedSettings, tell: Callable[[str], None]
) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]:
    """What does not depend on commands: the summary, `SpeedReport.calls` and `.parts`."""
    checkpoint, device, flop = probe.checkpoint, probe.device, flop_of(probe)
    calls = measure_calls(probe, settings.precisions, compiled=settings.compiled, tell=tell)
    parts, peaks = [], {}
    for choice in fastest_engines(calls):
        tell(f"Terms, samples and the matrix product: {choice}")
        parts.append(measure_parts(probe, choice))
        # The measured product is strict, which tf32 is not.
        if choice.precision is not Precision.TF32:
            peaks[str(choice.precision)] = measured_peak(device, choice.precision)
    flops, place = flop * calls.evaluations_per_second, list(calls).index("eps_error")
    calls.insert(place, "tflops", flops / 1e12)
    calls.insert(place + 1, "share_of_peak", flops / calls.precision.map(peaks))
    summary = {
        "schema": SpeedReport.SCHEMA,
        "checkpoint": checkpoint.record,
        "shape": list(probe.images.pixels.shape[1:]),
        "num_timesteps": checkpoint.schedule.num_timesteps,
        "parameters": sum(p.numel() for p in checkpoint.network.parameters()),
        "flop_per_call": flop,
        "device": device_name(device),
        "matmul_tflops": {name: peak / 1e12 for name, peak in peaks.items()},
    }
    return summary, calls, pd.concat(parts, ignore_index=True)


def _write(folder: RunFolder, report: SpeedReport, record: dict[str, object]) -> None:
    report.write_tables(folder)
    for name, draw in report._figures().items():
        write_figure(folder.path, name, *draw())
    folder.write_json(ENVIRONMENT, record)
    folder.write_summary(report.summary)
