"""A quality run: samples, their features, and those of the references, each kept as it comes."""

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

from ddpmbench.data.datasets import CACHE_VARIABLE, cache_folder
from ddpmbench.data.image_files import PositionIds
from ddpmbench.data.images import ImageSet
from ddpmbench.data.pixel_store import release
from ddpmbench.errors import InputError
from ddpmbench.execution.chunks import (
    MOST_POSITIONS,
    Arrays,
    FolderParts,
    MemoryParts,
    PartsRun,
    PartStore,
    gathered,
    made_again,
)
from ddpmbench.execution.devices import available_memory, strict_float32
from ddpmbench.execution.distributed import Ranks
from ddpmbench.execution.engine import BatchSize, Engine
from ddpmbench.execution.samples import SAMPLES, Generation, SamplesRun
from ddpmbench.execution.terms import RunListener
from ddpmbench.execution.timing import timer
from ddpmbench.samples.feature_networks import FeatureNetwork
from ddpmbench.samples.statistics import ReferenceStatistics

WORTH_SAYING = 60.0
"""Seconds from which on it is said how long a run takes."""
_MEASURED = 0.3  # seconds, at least


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds that a run takes, and what it would take with other settings.

    Attributes:
        per_call: of a sample and step.
        per_image: of an image's features.
        num_samples: that are still to be made.
        num_timesteps: of each.
        num_images: whose features are still to be made, samples and references.
    """

    per_call: float
    per_image: float
    num_samples: int
    num_timesteps: int
    num_images: int

    @property
    def seconds(self) -> float:
        """Of the run."""
        return self.sampling + self.per_image * self.num_images

    @property
    def sampling(self) -> float:
        """Of the samples alone."""
        return self.per_call * self.num_samples * self.num_timesteps

    def with_timesteps(self, num_timesteps: int) -> "Cost":
        """That of a sampler of so many steps."""
        return dataclasses.replace(self, num_timesteps=num_timesteps)

    def with_samples(self, num_samples: int) -> "Cost":
        """That of so many samples."""
        fewer = self.num_samples - num_samples
        return dataclasses.replace(
            self, num_samples=num_samples, num_images=self.num_images - fewer
        )


def seconds_per_call(run: SamplesRun, rows: int) -> float:
    """Of a sample and step, as they come in batches of so many."""
    sample = torch.arange(rows, device=run.parts.device)
    labels = None
    if run.labels is not None:
        labels = torch.from_numpy(run.labels(np.arange(rows))).to(run.parts.device)
    x_t = run.sampler.start(sample, run.shape)
    steps = run.sampler.steps(x_t, run.num_timesteps, sample=sample, labels=labels)
    with run.engine.running():
        return _measured(lambda: next(steps, None) is not None, run.parts.device) / rows


def seconds_per_image(network: FeatureNetwork, shape: tuple[int, ...], rows: int) -> float:
    """Of an image's features, (C, H, W), as they come in batches of so many."""
    pixels = np.zeros((rows, *shape), np.uint8)
    return _measured(lambda: network(pixels) is not None, torch.device("cpu")) / len(pixels)


def _measured(call: Callable[[], bool], device: torch.device) -> float:
    """Seconds a call, without the first, which warms up; there may be few of them."""
    call()
    clock = timer(device)
    since, count = clock(), 0
    while clock() - since < _MEASURED and call():
        count += 1
    return (clock() - since) / max(count, 1)


BATCH_SHAPE = (3, 64, 64)
"""As large as images are taken to be where a batch size is chosen: a feature network makes them as
large as it wants them, but soon small again."""
FORMAT = 3
"""Of the features kept; another number makes them anew."""


@dataclasses.dataclass(frozen=True, eq=False)
class FeaturesRun:
    """What makes features.

    Attributes:
        network: sees the images.
        parts: in which batches, and by which processes; it counts images.
    """

    network: FeatureNetwork
    parts: PartsRun

    @property
    def alone(self) -> "FeaturesRun":
        """The same without other processes."""
        return dataclasses.replace(self, parts=dataclasses.replace(self.parts, ranks=Ranks()))

    def compute(self, images: ImageSet, store: PartStore) -> None:
        """Make the features that are missing, as `features` and, with classes, `logits`.

        Raises:
            InputError: features are not finite; or see `PartsRun.compute`.
            ProcessLostError: another process has stopped.
        """
        self.parts.compute(len(images), store, self._features_of(images))

    def _features_of(
        self, images: ImageSet
    ) -> Callable[[NDArray[np.int64], Callable[[int], None]], Arrays]:
        def features(index: NDArray[np.int64], told: Callable[[int], None]) -> Arrays:
            found = self.network(images.part(int(index[0]), int(index[-1]) + 1))
            release(images.pixels)
            bad = np.flatnonzero(~np.isfinite(found.features).all(axis=1))
            if len(bad):
                raise InputError(
                    f"--feature-network {self.network.name}: features of image "
                    f"{images.ids[int(index[bad[0]])]} are not finite"
                )
            arrays: Arrays = {"features": found.features}
            if found.logits is not None:
                arrays["logits"] = found.logits
            return arrays

        return features


def reference_store(images: ImageSet, network: FeatureNetwork) -> FolderParts:
    """Where features of a reference are kept: by what they are of, not by its name.

    They lie in the user's cache, so that the next run, of whatever model, finds them.
    """
    text = repr((images.sha256, network.sha256, network.name, network.resize, FORMAT))
    key = hashlib.sha256(text.encode()).hexdigest()[:32]
    return FolderParts(cache_folder() / "features" / key, option=CACHE_VARIABLE)


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

    def engine(
        self, folder: Path | None, *, note: Callable[[str], None] = lambda line: None
    ) -> Engine | None:
        """What calls the network of a checkpoint, that of the run's folder if there is one."""
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


_SPARE = 2
"""What is advised leaves as much free as it takes, for figures, features and files under way."""


def check_room(option: str, count: int, shape: tuple[int, int, int], out: Path | None) -> None:
    """Refuse more samples than there is room for.

    They are kept as parts and as one file in the run folder, or in memory where there is none.

    Args:
        option: that asks for them.
        count: how many.
        shape: (C, H, W) of each, 8 bits a pixel.
        out: the run folder, made or not; None if the run is kept in memory.

    Raises:
        InputError: there is no room; it says for how many there is.
    """
    each = math.prod(shape)
    if out is None:
        where, kept, copies, has = "memory", 0, 1, available_memory()
    else:
        missing = sum(stop - start for start, stop in FolderParts(out / PARTS).missing(count))
        where, kept, copies, has = "disk", count - missing, 2, _free(out)
    needs = (copies * count - kept) * each
    fits = has // (copies * each)
    most = min(max(fits // _SPARE, min(fits, 1)), MOST_POSITIONS - 1)
    if needs > has:
        other = "name another --out" if out is not None else "name an --out, on disk"
        none = f"there is no room for one; free some, or {other}"
        remedy = f"choose at most {most}" if most else none
        raise InputError(
            f"{option} {count}: takes {needs / 1e9:,.1f} GB of {where}, and {has / 1e9:,.1f} GB "
            f"are free; {remedy}"
        )
    if count >= MOST_POSITIONS:
        raise InputError(f"{option} {count}: is more than a run holds; choose at most {most}")


def _free(out: Path) -> int:
    """Bytes free where the folder is, or will be."""
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free
