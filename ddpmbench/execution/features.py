"""Samples, their features, and the features of references: computed, and stored for scores."""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterator
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray

from ddpmbench.data.datasets import CACHE_VARIABLE, cache_folder
from ddpmbench.data.images import ImageSet
from ddpmbench.data.pixel_store import release
from ddpmbench.errors import InputError
from ddpmbench.execution.devices import strict_float32
from ddpmbench.execution.engine import Engine
from ddpmbench.execution.samples import SAMPLES_STORE, Generation, SamplesRun
from ddpmbench.execution.session import Session
from ddpmbench.execution.store import Arrays, FolderStore, Store, num_missing
from ddpmbench.execution.timing import seconds_per_call
from ddpmbench.execution.worker import RunListener, Worker
from ddpmbench.metrics.feature_networks import FeatureNetwork
from ddpmbench.metrics.statistics import ReferenceStatistics

WORTH_SAYING = 60.0
"""Seconds that a run must take for its cost to be reported."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds of a run, and what other settings would take.

    Attributes:
        per_evaluation: seconds per network evaluation.
        per_image: seconds per image of features.
        num_samples: number of missing samples.
        num_timesteps: timesteps per sample; 0 where the sampler's grid is not made of timesteps.
        num_evaluations: network evaluations per sample.
        num_images: number of images, samples and references, whose features are missing.
    """

    per_evaluation: float
    per_image: float
    num_samples: int
    num_timesteps: int
    num_evaluations: int
    num_images: int

    @property
    def seconds(self) -> float:
        """Seconds of the run."""
        return self.sampling + self.per_image * self.num_images

    @property
    def sampling(self) -> float:
        """Seconds of the samples alone."""
        return self.per_evaluation * self.num_samples * self.num_evaluations

    def with_timesteps(self, num_timesteps: int) -> "Cost":
        """The approximate cost with this number of timesteps."""
        evaluations = round(self.num_evaluations * num_timesteps / self.num_timesteps)
        return dataclasses.replace(self, num_timesteps=num_timesteps, num_evaluations=evaluations)

    def with_samples(self, num_samples: int) -> "Cost":
        """The cost of this number of samples."""
        fewer = self.num_samples - num_samples
        return dataclasses.replace(
            self, num_samples=num_samples, num_images=self.num_images - fewer
        )


BATCH_SHAPE = (3, 64, 64)
"""The image shape that determines the batch size: a feature network resizes every image, and soon
downsamples it."""
FORMAT = 3
"""Version of the features in the cache; another one computes them again."""


def compute_features(
    network: FeatureNetwork, images: ImageSet, store: Store, worker: Worker
) -> None:
    """Compute the `features` and, if there are classes, the `logits` that a store lacks.

    Raises:
        InputError: features are not finite; or see `Worker.map_chunks`.
        ProcessLostError: another process has stopped.
    """

    def features(index: NDArray[np.int64], report: Callable[[int], None]) -> Arrays:
        output = network(images.part(int(index[0]), int(index[-1]) + 1))
        release(images.pixels)
        bad = np.flatnonzero(~np.isfinite(output.features).all(axis=1))
        if len(bad):
            raise InputError(
                f"`feature_network={network.name}`: features of image "
                f"{images.ids[int(index[bad[0]])]} are not finite"
            )
        arrays: Arrays = {"features": output.features}
        return arrays if output.logits is None else {**arrays, "logits": output.logits}

    if missing := num_missing(store, len(images)):
        worker.listener.start(missing)
    worker.map_chunks(features, store, len(images))


def reference_store(images: ImageSet, network: FeatureNetwork) -> FolderStore:
    """The store of a reference's features: in the user's cache, for later runs of any model."""
    text = repr((images.sha256, network.sha256, network.name, network.resize, FORMAT))
    key = hashlib.sha256(text.encode()).hexdigest()[:32]
    return FolderStore(cache_folder() / "features" / key, FEATURES, run=key, option=CACHE_VARIABLE)


FEATURES = "features"
"""The name of the shards."""
_WORTH_MEASURING = {"samples": 20_000, "features": 1000}
"""Evaluations of either network from which on the cost of a run is measured."""

Reference = ImageSet | ReferenceStatistics


@dataclasses.dataclass(frozen=True, eq=False)
class FidelityRun:
    """Computes samples and features, and keeps them in stores.

    Attributes:
        source: the samples of a checkpoint, or given images.
        num_generated: number of samples of a checkpoint.
        references: real images, or the moments of their features.
        network: the feature network.
        session: the session of the run; its folder must exist before a store is used.
        batch_size: samples computed together; None for a number that suits the device.
    """

    source: Generation | ImageSet
    num_generated: int
    references: tuple[Reference, ...]
    network: FeatureNetwork
    session: Session
    batch_size: int | None = None

    @cached_property
    def samples(self) -> Store:
        """`pixels` of each sample of a checkpoint."""
        return self.session.store(SAMPLES_STORE)

    @cached_property
    def features(self) -> Store:
        """`features`, and `logits` where the feature network has classes, of each sample."""
        return self.session.store(FEATURES)

    @cached_property
    def reference_stores(self) -> tuple[FolderStore | None, ...]:
        """The stores of the references; None for a reference that is moments only."""
        return tuple(
            reference_store(reference, self.network) if isinstance(reference, ImageSet) else None
            for reference in self.references
        )

    @property
    def _reference_images(self) -> Iterator[tuple[ImageSet, FolderStore]]:
        for reference, store in zip(self.references, self.reference_stores, strict=True):
            if isinstance(reference, ImageSet) and store is not None:
                yield reference, store

    def engine(self, *, note: Callable[[str], None]) -> Engine | None:
        """The engine of a checkpoint's network: that in the run folder if there is one."""
        if isinstance(self.source, ImageSet):
            return None
        return self.source.engine(
            self.num_generated, self.session, batch_size=self.batch_size, note=note
        )

    def compute(self, engine: Engine | None, listener: RunListener) -> ImageSet:
        """Compute the missing samples and features; return when all processes are done.

        Args:
            engine: the result of `engine`.
            listener: receives the progress.

        Returns:
            The samples.

        Raises:
            InputError: a sample or a feature is not finite; or see `Worker.map_chunks`.
            ProcessLostError: another process has stopped.
        """
        images = self._samples(engine, listener)
        with strict_float32():
            with listener.stage("features of the samples", "images", 1) as stage:
                compute_features(self.network, images, self.features, self._worker(stage))
            for reference, store in self._reference_images:
                with listener.stage(f"features of {reference.name}", "images", 1) as stage:
                    compute = partial(compute_features, self.network, reference, store)
                    worker = self._worker(stage)
                    compute(worker)
                    # Another machine may have its own cache; rank 0 needs all features.
                    self.session.ranks.once(partial(compute, worker.alone))
        return images

    def drop_damaged_references(self) -> list[str]:
        """Drop damaged features of references, and return the names of their files."""
        return [name for _, store in self._reference_images for name in store.drop_damaged()]

    def cost(self, engine: Engine | None) -> Cost | None:
        """The measured cost of what is missing; None where that is little."""
        source = self.source
        if isinstance(source, ImageSet):
            count, shape = len(source), source.part(0, 1)[0].shape
            samples = timesteps = evaluations = 0
        else:
            count, shape, evaluations = self.num_generated, source.shape, source.num_evaluations
            is_fractional = source.settings.sampler.is_fractional
            timesteps = 0 if is_fractional else source.checkpoint.schedule.num_timesteps
            samples = num_missing(self.samples, count)
        num_images = num_missing(self.features, count) + sum(
            num_missing(store, len(reference)) for reference, store in self._reference_images
        )
        if (
            samples * evaluations < _WORTH_MEASURING["samples"]
            and num_images < _WORTH_MEASURING["features"]
        ):
            return None
        per_evaluation = 0.0
        with strict_float32():
            if samples and engine is not None and not isinstance(source, ImageSet):
                run = self._samples_run(source, engine, RunListener())
                per_evaluation = run.worker.batch.attempt(partial(_seconds_per_evaluation, run))
            per_image = self._worker(RunListener()).batch.attempt(
                partial(_seconds_per_image, self.network, shape)
            )
        return Cost(per_evaluation, per_image, samples, timesteps, evaluations, num_images)

    def _samples(self, engine: Engine | None, listener: RunListener) -> ImageSet:
        if isinstance(self.source, ImageSet) or engine is None:
            assert isinstance(self.source, ImageSet)
            return self.source
        with listener.stage("samples", "images", self.source.num_evaluations) as stage:
            self._samples_run(self.source, engine, stage).compute(self.num_generated, self.samples)
        return self.source.images(self.num_generated, self.samples)

    def _samples_run(self, source: Generation, engine: Engine, listener: RunListener) -> SamplesRun:
        worker = self.session.worker(source.shape, batch_size=self.batch_size, listener=listener)
        return SamplesRun(source, engine, worker)

    def _worker(self, listener: RunListener) -> Worker:
        return self.session.worker(BATCH_SHAPE, batch_size=None, listener=listener)


def _seconds_per_evaluation(run: SamplesRun, rows: int) -> float:
    """Seconds per network evaluation, in batches of `rows` samples."""
    steps = itertools.chain.from_iterable(run.steps(np.arange(rows)) for _ in itertools.count())
    with run.engine.running():
        evaluations = rows * next(steps).num_evaluations
        return seconds_per_call(lambda: next(steps), run.worker.device) / evaluations


def _seconds_per_image(network: FeatureNetwork, shape: tuple[int, ...], rows: int) -> float:
    """Seconds per image of features, (C, H, W), in batches of `rows` images."""
    pixels = np.zeros((rows, *shape), np.uint8)
    return seconds_per_call(lambda: network(pixels), torch.device("cpu")) / rows
