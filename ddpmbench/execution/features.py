"""Samples, their features and those of the references: computed and kept for their scores."""

import contextlib
import dataclasses
import hashlib
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ddpmbench.data.arrays import PositionIds
from ddpmbench.data.datasets import CACHE_VARIABLE, cache_folder
from ddpmbench.data.images import ImageSet
from ddpmbench.data.pixel_store import release
from ddpmbench.errors import InputError
from ddpmbench.execution.devices import available_memory, strict_float32
from ddpmbench.execution.distributed import Ranks
from ddpmbench.execution.engine import Engine
from ddpmbench.execution.folder import SHARDS, RunFolder
from ddpmbench.execution.samples import SAMPLES, Generation, SamplesRun
from ddpmbench.execution.store import (
    MAX_LENGTH,
    Arrays,
    FolderStore,
    MemoryStore,
    Store,
    gathered,
    num_missing,
    recomputed,
)
from ddpmbench.execution.timing import timer
from ddpmbench.execution.worker import RunListener, Worker
from ddpmbench.samples.feature_networks import FeatureNetwork
from ddpmbench.samples.statistics import ReferenceStatistics

WORTH_SAYING = 60.0
"""Seconds from which on the cost of a run is reported."""
_MEASURED = 0.3  # seconds, at least


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds of a run, with these and with other settings.

    Attributes:
        per_evaluation: seconds per sample and timestep.
        per_image: seconds per image of features.
        num_samples: samples that are missing.
        num_timesteps: of each sample.
        num_images: images whose features are missing, samples and references.
    """

    per_evaluation: float
    per_image: float
    num_samples: int
    num_timesteps: int
    num_images: int

    @property
    def seconds(self) -> float:
        """Seconds of the run."""
        return self.sampling + self.per_image * self.num_images

    @property
    def sampling(self) -> float:
        """Seconds of the samples alone."""
        return self.per_evaluation * self.num_samples * self.num_timesteps

    def with_timesteps(self, num_timesteps: int) -> "Cost":
        """The cost with a sampler of so many timesteps."""
        return dataclasses.replace(self, num_timesteps=num_timesteps)

    def with_samples(self, num_samples: int) -> "Cost":
        """The cost of so many samples."""
        fewer = self.num_samples - num_samples
        return dataclasses.replace(
            self, num_samples=num_samples, num_images=self.num_images - fewer
        )


def seconds_per_evaluation(run: SamplesRun, rows: int) -> float:
    """Seconds per sample and timestep, in batches of so many samples."""
    steps = run.steps(np.arange(rows))
    with run.engine.running():
        return _measured(lambda: next(steps, None) is not None, run.worker.device) / rows


def seconds_per_image(network: FeatureNetwork, shape: tuple[int, ...], rows: int) -> float:
    """Seconds per image of features, (C, H, W), in batches of so many images."""
    pixels = np.zeros((rows, *shape), np.uint8)
    return _measured(lambda: network(pixels) is not None, torch.device("cpu")) / len(pixels)


def _measured(call: Callable[[], bool], device: torch.device) -> float:
    """Seconds per call, without the first, which warms up."""
    call()
    clock = timer(device)
    since, count = clock(), 0
    while clock() - since < _MEASURED and call():
        count += 1
    return (clock() - since) / max(count, 1)


BATCH_SHAPE = (3, 64, 64)
"""The image shape by which a batch size is chosen: a feature network resizes every image, and soon
reduces it again."""
FORMAT = 3
"""Of the features in the cache; another number computes them again."""


def compute_features(
    network: FeatureNetwork, images: ImageSet, store: Store, worker: Worker
) -> None:
    """Compute the `features` and, with classes, the `logits` of images that a store lacks.

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

    worker.listener.start(num_missing(store, len(images)))
    worker.map_chunks(features, store, len(images))


def reference_store(images: ImageSet, network: FeatureNetwork) -> FolderStore:
    """The features of a reference: in the user's cache, where later runs of any model find them."""
    text = repr((images.sha256, network.sha256, network.name, network.resize, FORMAT))
    key = hashlib.sha256(text.encode()).hexdigest()[:32]
    return FolderStore(cache_folder() / "features" / key, FEATURES, run=key, option=CACHE_VARIABLE)


SAMPLES_STORE, FEATURES = "samples", "features"
"""Names of the shards."""
# Evaluations of either network from which on the cost of a run is measured.
_WORTH_MEASURING = {"samples": 20_000, "features": 1000}

Reference = ImageSet | ReferenceStatistics
Stage = Callable[[str, str, int], AbstractContextManager[RunListener]]


@contextlib.contextmanager
def _silent(name: str, unit: str, calls: int) -> Iterator[RunListener]:
    yield RunListener()


@dataclasses.dataclass(frozen=True)
class FidelityListener:
    """Callbacks of a run.

    Attributes:
        stage: called with the name of a stage, its unit, and the network evaluations per unit;
            returns the callbacks of the stage.
        cost: called with the cost of the run before it begins, unless it is short.
        warn: called with a warning, one line.
        note: called with a note, one line.
    """

    stage: Stage = _silent
    cost: Callable[[Cost], None] = lambda cost: None
    warn: Callable[[str], None] = lambda line: None
    note: Callable[[str], None] = lambda line: None


@dataclasses.dataclass(frozen=True, eq=False)
class FidelityStores:
    """The stores of a run.

    Attributes:
        samples: `pixels` of each sample.
        features: `features`, and `logits` where there are classes, of each sample.
        references: the same of each reference; None where it is moments only.
    """

    samples: Store
    features: Store
    references: tuple[Store | None, ...]

    @classmethod
    def of(
        cls, references: tuple[Reference, ...], network: FeatureNetwork, folder: RunFolder | None
    ) -> "FidelityStores":
        """In memory, or in the run folder; those of references in the cache."""
        samples, features = (
            MemoryStore() if folder is None else folder.shards(name)
            for name in (SAMPLES_STORE, FEATURES)
        )
        of_references = [
            reference_store(reference, network) if isinstance(reference, ImageSet) else None
            for reference in references
        ]
        return cls(samples, features, tuple(of_references))

    def drop_damaged(self) -> list[str]:
        """Remove the damaged shards of references, to compute them again; their names."""
        return [
            name
            for store in self.references
            if isinstance(store, FolderStore)
            for name in store.drop_damaged()
        ]


@dataclasses.dataclass(frozen=True, eq=False)
class FidelityRun:
    """Computes samples and features.

    Attributes:
        source: the samples of a checkpoint, or given images.
        num_generated: number of samples of a checkpoint.
        references: real images, or the moments of their features.
        network: the feature network.
        device: where the networks run.
        ranks: the processes among which the work is divided.
        batch_size: samples computed together; None for a number that suits the device.
    """

    source: Generation | ImageSet
    num_generated: int
    references: tuple[Reference, ...]
    network: FeatureNetwork
    device: torch.device
    ranks: Ranks
    batch_size: int | None = None

    def engine(
        self, folder: Path | None, *, note: Callable[[str], None] = lambda line: None
    ) -> Engine | None:
        """The engine of a checkpoint's network, the one of the run folder if there is one."""
        if isinstance(self.source, ImageSet):
            return None
        return self.source.engine(
            self.num_generated,
            self.device,
            batch_size=self.batch_size,
            folder=folder,
            ranks=self.ranks,
            note=note,
        )

    def compute(
        self, engine: Engine | None, stores: FidelityStores, listener: FidelityListener
    ) -> ImageSet:
        """Compute what is missing; return when all processes have.

        Args:
            engine: the result of `engine`.
            stores: hold the results of earlier sessions, and receive the others.
            listener: receives the progress.

        Returns:
            The samples.

        Raises:
            InputError: a sample or a feature is not finite; or see `Worker.map_chunks`.
            ProcessLostError: another process has stopped.
        """
        if dropped := self.ranks.once(stores.drop_damaged):
            listener.warn(recomputed(dropped))
        if self.ranks.reports:
            self._report_cost(engine, stores, listener)
        images = self._samples(engine, stores.samples, listener)
        with strict_float32():
            with listener.stage("features of the samples", "images", 1) as of_stage:
                compute_features(self.network, images, stores.features, self._worker(of_stage))
            for reference, store in zip(self.references, stores.references, strict=True):
                if isinstance(reference, ImageSet) and store is not None:
                    name = f"features of {reference.name}"
                    with listener.stage(name, "images", 1) as of_stage:
                        worker, of = self._worker(of_stage), (self.network, reference, store)
                        compute_features(*of, worker)
                        # Another machine may have a cache of its own; rank 0 needs all of it.
                        self.ranks.once(partial(compute_features, *of, worker.alone))
        return images

    def _samples(self, engine: Engine | None, store: Store, listener: FidelityListener) -> ImageSet:
        source, count = self.source, self.num_generated
        if isinstance(source, ImageSet) or engine is None:
            assert isinstance(source, ImageSet)
            return source
        with listener.stage("samples", "images", source.num_timesteps) as of_stage:
            self._samples_run(source, engine, of_stage).compute(count, store)
        labels = source.labels(np.arange(count)) if source.checkpoint.num_classes else None
        pixels = gathered(store, "pixels", count)
        return ImageSet(pixels, PositionIds(range(count)), SAMPLES, labels)

    def _samples_run(self, source: Generation, engine: Engine, listener: RunListener) -> SamplesRun:
        return SamplesRun(source, engine, self._worker(listener, source.shape, self.batch_size))

    def _worker(
        self,
        listener: RunListener,
        shape: tuple[int, ...] = BATCH_SHAPE,
        batch_size: int | None = None,
    ) -> Worker:
        ranks = self.ranks
        return Worker.of(self.device, shape, batch_size=batch_size, ranks=ranks, listener=listener)

    def _report_cost(
        self, engine: Engine | None, stores: FidelityStores, listener: FidelityListener
    ) -> None:
        """Measure the cost of the run, where it may be long."""
        source, samples, per_evaluation, num_timesteps = self.source, 0, 0.0, 0
        if isinstance(source, ImageSet):
            num_images = num_missing(stores.features, len(source))
            shape = source.part(0, 1)[0].shape
        else:
            samples, shape = num_missing(stores.samples, self.num_generated), source.shape
            num_images = num_missing(stores.features, self.num_generated)
            num_timesteps = source.num_timesteps
        for reference, store in zip(self.references, stores.references, strict=True):
            if isinstance(reference, ImageSet) and store is not None:
                num_images += num_missing(store, len(reference))
        if (
            samples * num_timesteps < _WORTH_MEASURING["samples"]
            and num_images < _WORTH_MEASURING["features"]
        ):
            return
        with strict_float32():
            if samples and engine is not None and not isinstance(source, ImageSet):
                run = self._samples_run(source, engine, RunListener())
                per_evaluation = run.worker.batch.attempt(partial(seconds_per_evaluation, run))
            per_image = self._worker(RunListener()).batch.attempt(
                partial(seconds_per_image, self.network, shape)
            )
        listener.cost(Cost(per_evaluation, per_image, samples, num_timesteps, num_images))


_SPARE = 2
"""What is advised leaves as much free as it takes, for figures, features and files under way."""


def check_room(parameter: str, count: int, shape: tuple[int, int, int], out: Path | None) -> None:
    """Refuse more samples than there is room for.

    They are kept as shards and as one file in the run folder, or in memory without one.

    Args:
        parameter: the name of the number of samples.
        count: number of samples.
        shape: (C, H, W) of each, 8 bits a pixel.
        out: the run folder, there or not; None if the run is kept in memory.

    Raises:
        InputError: there is no room; the message has the number that fits.
    """
    each = math.prod(shape)
    if out is None:
        where, kept, copies, free = "memory", 0, 1, available_memory()
    else:
        kept = count - num_missing(FolderStore(out / SHARDS, SAMPLES_STORE), count)
        where, copies, free = "disk", 2, _free(out)
    needs = (copies * count - kept) * each
    fits = free // (copies * each)
    most = min(max(fits // _SPARE, min(fits, 1)), MAX_LENGTH - 1)
    if needs > free:
        other = "name another `out`" if out is not None else "name an `out`, on disk"
        none = f"there is no room for one; free some, or {other}"
        remedy = f"choose at most {most}" if most else none
        raise InputError(
            f"`{parameter}={count}`: takes {needs / 1e9:,.1f} GB of {where}, and "
            f"{free / 1e9:,.1f} GB are free; {remedy}"
        )
    if count >= MAX_LENGTH:
        raise InputError(f"`{parameter}={count}`: is more than a run holds; choose at most {most}")


def _free(out: Path) -> int:
    """Bytes free where the folder is, or will be."""
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free
