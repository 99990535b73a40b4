"""A quality run: samples, their features, and those of the references, each kept as it comes."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ddpmbench.inputs.image_files import PositionIds
from ddpmbench.inputs.images import ImageSet
from ddpmbench.inputs.statistics_files import ReferenceStatistics
from ddpmbench.quality.features import FeatureNetwork
from ddpmbench.runs.batch_size import BatchSize
from ddpmbench.runs.cost import Cost, seconds_per_call, seconds_per_image
from ddpmbench.runs.devices import strict_float32
from ddpmbench.runs.distributed import Ranks
from ddpmbench.runs.engine import Engine
from ddpmbench.runs.features import BATCH_SHAPE, FeaturesRun, reference_store
from ddpmbench.runs.generation import Generation
from ddpmbench.runs.parts import FolderParts, MemoryParts, PartStore, gathered, made_again
from ddpmbench.runs.parts_run import PartsRun
from ddpmbench.runs.rows import RunListener
from ddpmbench.runs.samples import SAMPLES, SamplesRun

PARTS, FEATURES = "samples", "features"
"""Folders of a run folder that hold parts."""
# Calls of either network from which on it is measured what a run takes.
_WORTH_MEASURING = {"samples": 20_000, "features": 1000}

Reference = ImageSet | ReferenceStatistics
Stage = Callable[[str, str, int], AbstractContextManager[RunListener]]


@contextlib.contextmanager
def _silent(name: str, unit: str, calls: int) -> Iterator[RunListener]:
    yield RunListener()


@dataclasses.dataclass(frozen=True)
class QualityListener:
    """Who is told how a run goes.

    Attributes:
        stage: called with the name of a stage, what it counts, and how many calls make one of
            that; gives who is told how the stage goes.
        cost: called with what the run takes, before it begins, unless it is short.
        warn: called with a line when something is worth saying.
        note: called with a line that is no warning.
    """

    stage: Stage = _silent
    cost: Callable[[Cost], None] = lambda cost: None
    warn: Callable[[str], None] = lambda line: None
    note: Callable[[str], None] = lambda line: None


@dataclasses.dataclass(frozen=True, eq=False)
class QualityStores:
    """Where the parts of a run are kept.

    Attributes:
        samples: `pixels` of each sample that is made.
        features: `features`, and `logits` where there are classes, of each sample.
        references: the same of each reference; None where it is moments only.
    """

    samples: PartStore
    features: PartStore
    references: tuple[PartStore | None, ...]

    @classmethod
    def of(
        cls, references: tuple[Reference, ...], network: FeatureNetwork, folder: Path | None
    ) -> "QualityStores":
        """In memory, or in a folder; references' in the cache, where later runs find them."""

        def store(name: str) -> PartStore:
            return MemoryParts() if folder is None else FolderParts(folder / name)

        of_references = [
            reference_store(reference, network) if isinstance(reference, ImageSet) else None
            for reference in references
        ]
        return cls(store(PARTS), store(FEATURES), tuple(of_references))

    def drop_damaged(self) -> list[str]:
        """Remove the parts that cannot be used, so that they are made again; their names."""
        stores = (self.samples, self.features, *self.references)
        return [
            name
            for store in stores
            if isinstance(store, FolderParts)
            for name in store.drop_damaged()
        ]


@dataclasses.dataclass(frozen=True, eq=False)
class QualityRun:
    """What makes samples and features.

    Attributes:
        source: a checkpoint's samples, or samples that there are.
        num_generated: of a checkpoint.
        references: what they are held against.
        network: of features.
        device: where the networks run.
        ranks: the processes among which the work is divided.
        batch_size: samples made together; None for what suits the device.
    """

    source: Generation | ImageSet
    num_generated: int
    references: tuple[Reference, ...]
    network: FeatureNetwork
    device: torch.device
    ranks: Ranks
    batch_size: int | None = None

    def engine(self, folder: Path | None) -> Engine | None:
        """What calls the network of a checkpoint, that of the run's folder if there is one."""
        if isinstance(self.source, ImageSet):
            return None
        return self.source.engine(
            self.num_generated,
            self.device,
            batch_size=self.batch_size,
            folder=folder,
            ranks=self.ranks,
        )

    def compute(
        self, engine: Engine | None, stores: QualityStores, told: QualityListener
    ) -> ImageSet:
        """Make what is missing, and wait until every process has.

        Args:
            engine: what `engine` gives.
            stores: hold what an earlier sitting made, and receive the rest.
            told: how it goes.

        Returns:
            The samples.

        Raises:
            InputError: a sample or a feature is not finite; or see `PartsRun.compute`.
            ProcessLostError: another process has stopped.
        """
        if dropped := self.ranks.once(stores.drop_damaged):
            told.warn(made_again(dropped))
        if self.ranks.reports:
            self._tell_cost(engine, stores, told)
        images = self._samples(engine, stores.samples, told)
        with strict_float32():
            with told.stage("features of the samples", "images", 1) as listener:
                self._features_run(listener).compute(images, stores.features)
            for reference, store in zip(self.references, stores.references, strict=True):
                if isinstance(reference, ImageSet) and store is not None:
                    name = f"features of {reference.name}"
                    with told.stage(name, "images", 1) as listener:
                        made = self._features_run(listener)
                        made.compute(reference, store)
                        # Another machine may have a cache of its own; what scores needs all of it.
                        self.ranks.once(partial(made.alone.compute, reference, store))
        return images

    def _samples(self, engine: Engine | None, store: PartStore, told: QualityListener) -> ImageSet:
        source, count = self.source, self.num_generated
        if isinstance(source, ImageSet) or engine is None:
            assert isinstance(source, ImageSet)
            return source
        calls = source.checkpoint.schedule.num_timesteps
        with told.stage("samples", "images", calls) as listener:
            self._samples_run(source, engine, listener).compute(count, store)
        labels = source.labels(np.arange(count)) if source.checkpoint.num_classes else None
        pixels = gathered(store, "pixels", count)
        return ImageSet(pixels, PositionIds(range(count)), SAMPLES, labels)

    def _samples_run(self, source: Generation, engine: Engine, listener: RunListener) -> SamplesRun:
        return source.run(engine, batch_size=self.batch_size, ranks=self.ranks, listener=listener)

    def _features_run(self, listener: RunListener) -> FeaturesRun:
        batch = BatchSize(None, device=self.device, image_shape=BATCH_SHAPE, warn=listener.warn)
        return FeaturesRun(self.network, PartsRun(self.device, batch, self.ranks, listener))

    def _tell_cost(
        self, engine: Engine | None, stores: QualityStores, told: QualityListener
    ) -> None:
        """Measure what the run takes, where it may be long."""
        source, samples, per_call, num_timesteps = self.source, 0, 0.0, 0
        if isinstance(source, ImageSet):
            num_images, shape = _missing(stores.features, len(source)), source.part(0, 1)[0].shape
        else:
            samples, shape = _missing(stores.samples, self.num_generated), source.shape
            num_images = _missing(stores.features, self.num_generated)
        for reference, store in zip(self.references, stores.references, strict=True):
            if isinstance(reference, ImageSet) and store is not None:
                num_images += _missing(store, len(reference))
        if not isinstance(source, ImageSet):
            num_timesteps = source.checkpoint.schedule.num_timesteps
        if (
            samples * num_timesteps < _WORTH_MEASURING["samples"]
            and num_images < _WORTH_MEASURING["features"]
        ):
            return
        with strict_float32():
            if samples and engine is not None and not isinstance(source, ImageSet):
                run = self._samples_run(source, engine, RunListener())
                per_call = run.parts.batch.attempt(lambda rows: seconds_per_call(run, rows))
            batch = self._features_run(RunListener()).parts.batch
            per_image = batch.attempt(lambda rows: seconds_per_image(self.network, shape, rows))
        told.cost(Cost(per_call, per_image, samples, num_timesteps, num_images))


def _missing(store: PartStore, length: int) -> int:
    return sum(stop - start for start, stop in store.missing(length))
