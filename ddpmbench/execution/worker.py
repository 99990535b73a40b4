"""Computing the missing entries of a store: in batches, by one process or many.

`Worker.map_chunks` is the loop of every run. `BatchSize` decides how many entries are computed
together, `Ranks.share` assigns them to processes, and `_ShardWriter` decides when to write a shard.
However the loop ends, even by Ctrl-C, the shard is closed: all complete batches are kept.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ddpmbench.errors import InputError
from ddpmbench.execution.devices import device_name, is_out_of_memory
from ddpmbench.execution.distributed import Ranks
from ddpmbench.execution.store import Arrays, Gaps, Store, length_of
from ddpmbench.likelihood.importance_estimator import RoughBound
from ddpmbench.records import short_repr

SHARD_SECONDS = 10.0
"""A shard is written at least this often; a killed run loses that much work and a batch."""
SHARD_BYTES = 2**25
"""Approximate upper limit of the size of a shard."""


T = TypeVar("T")

PIXELS_PER_BATCH = {"cpu": 48 * 28 * 28, "cuda": 2048 * 32 * 32, "mps": 256 * 32 * 32}
"""Height times width, summed over the images of an automatic batch."""


def auto_batch_size(device: torch.device, image_shape: tuple[int, ...]) -> int:
    """Images (C, H, W) in an automatic batch, before it is halved for lack of memory."""
    return max(1, PIXELS_PER_BATCH[device.type] // math.prod(image_shape[1:]))


class BatchSize:
    """How many images share a network evaluation.

    A given number is kept. The automatic one is `auto_batch_size`: 48 images of 28x28 on a CPU,
    2,048 of 32x32 on CUDA, 256 of those on MPS, and as many pixels for other images. It is halved,
    with a warning, until a batch fits into memory, and depends on nothing else.

    Attributes:
        rows: the current number.
    """

    def __init__(
        self,
        given: int | None,
        *,
        device: torch.device,
        image_shape: tuple[int, ...],
        warn: Callable[[str], None],
    ) -> None:
        """Begin with the given number, None for auto."""
        self._is_fixed = given is not None
        self._warn = warn
        self.rows = given or auto_batch_size(device, image_shape)

    def attempt(self, compute: Callable[[int], T]) -> T:
        """The result of `compute` for the largest batch that fits.

        Args:
            compute: called with the number of images.

        Raises:
            InputError: the given number, or a single image, does not fit.
        """
        while True:
            try:
                return compute(self.rows)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            if self.rows == 1:
                raise InputError("one image does not fit into memory; take another `device`")
            if self._is_fixed:
                raise InputError(
                    f"`batch_size={self.rows}`: does not fit into memory; choose a smaller one"
                )
            self.rows //= 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._warn(f"out of memory: continuing with `batch_size={self.rows}`")


@dataclasses.dataclass(frozen=True)
class RunProgress:
    """The progress of a run.

    Attributes:
        done: network evaluations done, including earlier sessions; other processes are assumed to
            be as fast as this one.
        total: network evaluations known to be needed.
        bound: the current estimate of the bound, if any.
        stage: the current work other than network evaluations; empty for those.
    """

    done: int
    total: int
    bound: RoughBound | None = None
    stage: str = ""


@dataclasses.dataclass(frozen=True)
class RunListener:
    """Callbacks of a run.

    Attributes:
        start: called once, or once a stage, with the number of missing network evaluations.
        progress: called after every batch.
        warn: called with a warning, one line.
        note: called with a note, one line.
    """

    start: Callable[[int], None] = lambda num_evaluations: None
    progress: Callable[[RunProgress], None] = lambda progress: None
    warn: Callable[[str], None] = lambda line: None
    note: Callable[[str], None] = lambda line: None

    __repr__ = short_repr

    def stage(self, name: str, unit: str, calls: int) -> AbstractContextManager["RunListener"]:
        """The listener of a stage, which has its own start and progress; by default this one.

        Args:
            name: of the stage.
            unit: of progress.
            calls: network evaluations per unit.
        """
        return contextlib.nullcontext(self)


Function = Callable[[NDArray[np.int64], Callable[[int], None]], Arrays]
"""Computes the entries of (B,) indices, and reports its network evaluations so far."""


@dataclasses.dataclass(frozen=True, eq=False)
class Worker:
    """Computes entries of stores.

    Attributes:
        device: where networks are evaluated.
        batch: the number of entries computed together.
        ranks: the processes that share the indices.
        listener: receives the progress.
    """

    device: torch.device
    batch: BatchSize
    ranks: Ranks
    listener: RunListener

    @classmethod
    def of(
        cls,
        device: torch.device,
        image_shape: tuple[int, ...],
        *,
        batch_size: int | None = None,
        ranks: Ranks | None = None,
        listener: RunListener | None = None,
    ) -> "Worker":
        """A worker whose batch size suits the device, unless one is given."""
        listener = listener or RunListener()
        batch = BatchSize(batch_size, device=device, image_shape=image_shape, warn=listener.warn)
        return cls(device, batch, ranks or Ranks(), listener)

    @property
    def alone(self) -> "Worker":
        """The same without other processes."""
        return dataclasses.replace(self, ranks=Ranks())

    def map_chunks(
        self,
        function: Function,
        store: Store,
        length: int,
        *,
        cost: int = 1,
        whole: int = 1,
        balanced: bool = False,
        watch: Callable[[Arrays], RoughBound | None] = lambda arrays: None,
        before: int = 0,
        after: int = 0,
    ) -> None:
        """Compute entries 0..length - 1 that a store lacks; return when all processes are done.

        A batch begins at a multiple of its size, whichever process computes it, so an entry always
        shares its network evaluations with the same neighbors.

        Args:
            function: computes a batch.
            store: holds the entries of earlier sessions, and receives the new ones.
            length: number of entries.
            cost: network evaluations per entry.
            whole: number of consecutive entries that stay in one shard; divides `length`.
            balanced: whether to use smaller batches, so that all processes have equally many.
            watch: called with every batch; its estimate of the bound is part of the progress.
            before: network evaluations of the run before these entries.
            after: network evaluations of the run after them.

        Raises:
            InputError: the batch does not fit into memory, the store cannot be written, or
                `function` raised it.
            ProcessLostError: another process has stopped.
        """
        # All processes must divide the entries alike: by the gaps before any of them adds entries,
        # and by one batch size, which may differ between them after running out of memory.
        gaps, rows = self.ranks.once(lambda: (store.missing(length), self.batch.rows))
        rows = max(whole, rows - rows % whole)
        if balanced and self.ranks.count > 1:
            num_batches = self.ranks.count * -(-length // (self.ranks.count * rows))
            rows = whole * -(-(length // whole) // num_batches)
        own_share = self.ranks.share(cut(gaps, rows))
        num_missing, share_size = (sum(b - a for a, b in ranges) for ranges in (gaps, own_share))
        done, total = before + (length - num_missing) * cost, before + length * cost + after
        computed, bound = 0, None

        def report(num_evaluations: int) -> None:
            # Other processes are assumed to be as fast as this one.
            now = (computed * cost + num_evaluations) * num_missing / max(share_size, 1)
            self.listener.progress(RunProgress(done + round(now), total, bound))

        def compute() -> None:
            nonlocal computed, bound
            # Closed in any case: an interruption keeps the complete batches.
            with contextlib.closing(_ShardWriter(store, device_name(self.device), whole)) as shard:
                for start, stop in own_share:
                    while start < stop:
                        arrays = self.batch.attempt(_on_range(function, start, stop, report))
                        shard.add(start, arrays)
                        start += length_of(arrays)
                        computed += length_of(arrays)
                        bound = watch(arrays)
                        report(0)

        report(0)
        self.ranks.together(compute)


def _on_range(
    function: Function, start: int, stop: int, report: Callable[[int], None]
) -> Callable[[int], Arrays]:
    return lambda rows: function(np.arange(start, min(start + rows, stop)), report)


def cut(gaps: Gaps, rows: int) -> Gaps:
    """The gaps, cut at multiples of `rows`."""
    return [
        (max(start, edge), min(stop, edge + rows))
        for start, stop in gaps
        for edge in range(start - start % rows, stop, rows)
    ]


class _ShardWriter:
    """Collects consecutive batches until they are worth a file; closing it saves the rest."""

    def __init__(self, store: Store, device: str, whole: int) -> None:
        self._store, self._device, self._whole = store, device, whole
        self._start, self._stop = 0, 0
        self._batches: list[Arrays] = []
        self._size = 0
        self._since = time.perf_counter()

    def add(self, start: int, arrays: Arrays) -> None:
        if start != self._stop:
            self.close()
            self._batches = []
        if not self._batches:
            self._start, self._size = start, 0
        self._batches.append(arrays)
        self._stop = start + length_of(arrays)
        self._size += _bytes(arrays)
        if self._size >= SHARD_BYTES or time.perf_counter() - self._since >= SHARD_SECONDS:
            self.close()

    def close(self) -> None:
        size = self._stop - self._start if self._batches else 0
        size -= size % self._whole
        start, seconds = self._start, time.perf_counter() - self._since
        if size:
            collected = {
                name: np.concatenate([arrays[name] for arrays in self._batches])
                for name in self._batches[0]
            }
            entries = {name: array[:size] for name, array in collected.items()}
            # Kept until they are saved: if that is interrupted, they are saved when this is closed.
            self._store.save(start, entries, seconds=seconds, device=self._device)
            rest = {name: array[size:] for name, array in collected.items()}
            self._batches, self._start = ([rest] if length_of(rest) else []), start + size
            self._size = _bytes(rest)
        self._since = time.perf_counter()


def _bytes(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays.values())
