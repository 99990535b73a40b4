"""The inputs of evaluations: their checks, what identifies them, and finished runs."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from ddpmbench.data.images import ImageSet, refuse_reduced
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.parameterization import Process
from ddpmbench.errors import LARGEST_SEED, instance_of, whole_number
from ddpmbench.execution.finished import SUMMARY, FinishedRun
from ddpmbench.execution.worker import RunListener
from ddpmbench.report.schema import check
from ddpmbench.version import __version__


def check_arguments(
    checkpoint: Checkpoint, listener: RunListener | None, seed: int, batch_size: int | None
) -> tuple[int, int | None]:
    """The seed and the batch size as ints.

    Raises:
        InputError: an argument has another type, or a number is out of range.
    """
    instance_of("checkpoint", checkpoint, Checkpoint, "see load_checkpoint")
    if listener is not None:
        instance_of("listener", listener, RunListener)
    seed = whole_number("seed", seed, 0, LARGEST_SEED)
    return seed, None if batch_size is None else whole_number("batch_size", batch_size, 1)


def check_images(checkpoint: Checkpoint, images: ImageSet) -> None:
    """Raise InputError if the network cannot take the images or the levels of their pixels."""
    checkpoint.check_images(images.pixels.shape[1:], images.source)
    refuse_reduced(images, checkpoint.data_range)
    if checkpoint.num_classes:
        images.check_classes(checkpoint.num_classes, null_class=checkpoint.null_class)


def uses_class_folders(checkpoint: Checkpoint, images: ImageSet) -> bool:
    """Whether the network is conditioned on the class folders of the images."""
    return bool(checkpoint.num_classes and images.classes)


def note_images(checkpoint: Checkpoint, images: ImageSet, reporter: RunListener) -> None:
    """Pass the notes and warnings of an image set to the listener."""
    class_notes = [images.class_note] if uses_class_folders(checkpoint, images) else []
    for line in (*images.notes, *class_notes):
        reporter.note(line)
    if images.skipped_note is not None:
        reporter.warn(images.skipped_note)


def conventions_of(checkpoint: Checkpoint, images: ImageSet, *, decoder: str) -> dict[str, object]:
    """The conventions in which two bounds of one network can differ."""
    process = checkpoint.schedule.process
    return {
        **({} if process is Process.VP else {"process": str(process)}),
        "prediction": str(checkpoint.prediction),
        "variance": str(checkpoint.variance),
        "clip": checkpoint.clip,
        "decoder": decoder,
        "schedule": checkpoint.schedule.name,
        "time_input": str(checkpoint.time_input),
        "labels": _labels(checkpoint, images),
    }


def _labels(checkpoint: Checkpoint, images: ImageSet) -> str | None:
    """Description of the labels that the network is conditioned on."""
    if not checkpoint.num_classes or images.labels is None:
        return None
    first = int(images.labels[0])
    return f"class {first}" if (images.labels == first).all() else "of the images"


def images_identity(checkpoint: Checkpoint, images: ImageSet) -> dict[str, Any]:
    """The fields of an image set that must be equal to resume an evaluation."""
    return {
        "data": images.sha256,
        "labels_sha256": labels_sha256(checkpoint, images),
        "num_images": len(images),
    }


def model_identity(
    checkpoint: Checkpoint, conventions: Mapping[str, object], **run: object
) -> dict[str, Any]:
    """The fields of a model that must be equal to resume its evaluation, and those of the run."""
    table = checkpoint.schedule.log_alphas_cumprod.numpy().tobytes()
    return {
        "checkpoint": checkpoint.sha256,
        "num_timesteps": checkpoint.schedule.num_timesteps,
        **run,
        "ddpmbench": __version__,
        **conventions,
        **checkpoint.data_range.identity,
        "schedule_sha256": hashlib.sha256(table).hexdigest(),
        **checkpoint.identity,
    }


def labels_sha256(checkpoint: Checkpoint, images: ImageSet) -> str | None:
    """SHA-256 of the labels; None where the network is not conditioned on them."""
    if not checkpoint.num_classes or images.labels is None:
        return None
    return hashlib.sha256(images.labels.tobytes()).hexdigest()


def finished_run(path: Path, schema: str, kind: type[Struct]) -> FinishedRun:
    """A finished run whose summary is complete; see `FinishedRun.open`."""
    run = FinishedRun.open(path, option="", schema=schema)
    check(run.summary, kind, path / SUMMARY)
    return run
