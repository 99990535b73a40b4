"""What evaluations of likelihoods share: their inputs, what identifies them, and their files."""

import dataclasses
import hashlib
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from typing import Any

from ddpmbench.data.images import ImageSet, refuse_reduced
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.parameterization import Process
from ddpmbench.errors import LARGEST_SEED, instance_of, whole_number
from ddpmbench.execution.engine import Engine
from ddpmbench.execution.engine_choice import NetworkUse, settled_engine
from ddpmbench.execution.finished_runs import ENVIRONMENT
from ddpmbench.execution.folder import RunFolder
from ddpmbench.execution.session import Session
from ddpmbench.execution.store import Store
from ddpmbench.execution.worker import RunListener, Worker
from ddpmbench.likelihood.continuous import terms_pass_of
from ddpmbench.likelihood.terms import TermsPass
from ddpmbench.report.stored import StoredReport
from ddpmbench.sanity_check.run import CheckRecord, PreliminaryCheck
from ddpmbench.unet.timed_unet import Precision
from ddpmbench.version import __version__


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """A model on images in a session, and what follows from them for any likelihood.

    Attributes:
        checkpoint: the model, on the device, after the network check.
        images: the image set; the first, if there are several.
        session: the processes, the device and the run folder.
        reporter: receives progress, warnings and notes.
        seed: seed of all random numbers.
        batch_size: as given by the user.
        decoder: of the bound.
    """

    checkpoint: Checkpoint
    images: ImageSet
    session: Session
    reporter: RunListener
    seed: int
    batch_size: int | None
    decoder: str = "exact"

    def checked(self) -> "Evaluation":
        """The same once its network is checked; see `Session.checked`."""
        checkpoint = self.session.checked(self.checkpoint, self.shape)
        return dataclasses.replace(self, checkpoint=checkpoint)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of an image."""
        return self.images.pixels.shape[1:]

    @cached_property
    def conventions(self) -> dict[str, object]:
        """The conventions in which two bounds of one network can differ, but the data range."""
        return conventions_of(self.checkpoint, self.images, decoder=self.decoder)

    @property
    def model_identity(self) -> dict[str, Any]:
        """The fields of the model and the session that must be equal to resume."""
        tables = self.session.dtype_of_tables(self.checkpoint)
        return model_identity(self.checkpoint, self.conventions, seed=self.seed, tables=tables)

    def identity(self, schema: str, own: Mapping[str, Any]) -> dict[str, Any]:
        """The object of `run.json`: all that determines the numbers.

        Args:
            schema: of the `summary.json`.
            own: the fields that only this kind of evaluation has.
        """
        return {
            "schema": schema,
            "data": self.images.sha256,
            "labels_sha256": labels_sha256(self.checkpoint, self.images),
            "num_images": len(self.images),
            **own,
            **self.model_identity,
        }

    @property
    def record(self) -> dict[str, Any]:
        """The fields of `summary.json` that name the model, its conventions and the images."""
        return {
            "conventions": {**self.conventions, **self.checkpoint.data_range.record},
            "checkpoint": self.checkpoint.record,
            "data": self.images.record,
            "seed": self.seed,
        }

    def folder(self, identity: Mapping[str, Any], **settings: object) -> RunFolder | None:
        """The run folder, once all processes agree; see `Session.agree` and `Session.folder`."""
        self.session.agree(identity, **settings)
        return self.session.folder(identity, self.reporter.warn)

    def sanity_check(
        self, requested: bool | None, num_evaluations: int, folder: RunFolder | None
    ) -> CheckRecord | None:
        """The record of the sanity check before a run of so many evaluations; None without one."""
        settings = (self.seed, self.batch_size, self.reporter)
        preliminary = PreliminaryCheck(requested, num_evaluations, *settings)
        return preliminary.run(self.checkpoint.as_trained, self.images, self.session, folder)

    def terms_pass(self, images: ImageSet) -> TermsPass:
        """Evaluates terms of the model on an image set."""
        how: dict[str, Any] = {"seed": self.seed, "decoder": self.decoder}
        return terms_pass_of(self.checkpoint, images, device=self.session.device, **how)

    def use(self, num_evaluations: int) -> NetworkUse:
        """How each process uses the network in a run of so many evaluations."""
        share = num_evaluations // self.session.ranks.count
        return NetworkUse(self.shape, share, self.batch_size)

    def engine(self, use: NetworkUse, precision: Precision) -> Engine:
        """The engine of the run; see `settled_engine`."""
        note = self.reporter.note
        return settled_engine(self.checkpoint, use, self.session, precision=precision, note=note)

    def worker(self, shape: tuple[int, ...] | None = None) -> Worker:
        """A worker whose batches suit images of this shape, None for that of the images."""
        return self.session.worker(
            shape or self.shape, batch_size=self.batch_size, listener=self.reporter
        )

    def write(
        self,
        folder: RunFolder | None,
        report: StoredReport,
        resolved: Mapping[str, object],
        *,
        engine: Engine | None = None,
        more: Callable[[RunFolder], None] = lambda folder: None,
    ) -> None:
        """Write the result into the run folder, if there is one, and wait for all processes.

        Args:
            folder: the run folder.
            report: its tables, and the summary, which is written last.
            resolved: the settings of the run, for `environment.json`.
            engine: the engine of the network, where it is part of the record.
            more: writes other files.
        """
        if folder is not None and self.session.ranks.reports:
            report.write_tables(folder)
            more(folder)
            size = self.batch_size
            environment = self.session.environment(resolved, batch_size=size, engine=engine)
            folder.write_json(ENVIRONMENT, environment)
            folder.write_summary(report.summary)
        self.session.ranks.wait()


def computed_in(
    stored: Collection[tuple[Store, int]], engine: Engine | None = None
) -> dict[str, Any]:
    """The fields of `summary.json` on the computation of stored entries in strict float32.

    Args:
        stored: stores, and how many entries of each.
        engine: the engine, where it is part of the record.
    """
    devices = sorted(set().union(*(store.devices(length) for store, length in stored)))
    return {
        "device": " + ".join(devices),
        "precision": str(Precision.FP32),
        **({} if engine is None else {"engine": str(engine.choice)}),
        "seconds": round(sum(store.seconds(length) for store, length in stored), 3),
    }


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
