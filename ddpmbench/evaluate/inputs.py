"""The checkpoint and images of a likelihood: what must fit, and what identifies the evaluation."""

import hashlib
from collections.abc import Mapping

from ddpmbench.data.images import ImageSet, refuse_reduced
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.parameterization import Process
from ddpmbench.execution.worker import RunListener
from ddpmbench.version import __version__


def check_images(checkpoint: Checkpoint, images: ImageSet) -> None:
    """Raise InputError if the network cannot take the images, or the levels of their pixels."""
    checkpoint.check_images(images.pixels.shape[1:], images.source)
    refuse_reduced(images, checkpoint.data_range)
    if checkpoint.num_classes:
        images.check_classes(checkpoint.num_classes, null_class=checkpoint.null_class)


def uses_class_folders(checkpoint: Checkpoint, images: ImageSet) -> bool:
    """Whether the network is conditioned on the folders that the images lie in."""
    return bool(checkpoint.num_classes and images.classes)


def note_images(checkpoint: Checkpoint, images: ImageSet, reporter: RunListener) -> None:
    """Pass on the notes and warnings of an image set."""
    of_classes = [images.class_note] if uses_class_folders(checkpoint, images) else []
    for line in (*images.notes, *of_classes):
        reporter.note(line)
    if images.skipped_note is not None:
        reporter.warn(images.skipped_note)


def conventions_of(checkpoint: Checkpoint, images: ImageSet, *, decoder: str) -> dict[str, object]:
    """What two bounds of one network can differ in."""
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
    """What the network is conditioned on, in words."""
    if not checkpoint.num_classes or images.labels is None:
        return None
    first = int(images.labels[0])
    return f"class {first}" if (images.labels == first).all() else "of the images"


def model_identity(
    checkpoint: Checkpoint, conventions: Mapping[str, object], *, seed: int, tables: str
) -> dict[str, object]:
    """What an evaluation of a model's likelihood must be the same in to be continued.

    Args:
        checkpoint: the model.
        conventions: from `conventions_of`.
        seed: of the noise.
        tables: the data type of the tables of coefficients.
    """
    table = checkpoint.schedule.log_alphas_cumprod.numpy().tobytes()
    return {
        "checkpoint": checkpoint.sha256,
        "num_timesteps": checkpoint.schedule.num_timesteps,
        "seed": seed,
        "tables": tables,
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
