"""Making what lies in parts: in batches, kept as they come, by one process or many."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from ddpmbench.runs.batch_size import BatchSize
from ddpmbench.runs.devices import device_name
from ddpmbench.runs.distributed import STRIPES, Ranks
from ddpmbench.runs.parts import Arrays, PartStore, blocks
from ddpmbench.runs.rows import RunListener, RunProgress

PART_SECONDS = 10.0
"""A part is written at least this often; a killed run loses that work and a batch."""

Make = Callable[[NDArray[np.int64], Callable[[int], None]], Arrays]
"""What is made at B positions: (B, ...) arrays. It tells the calls that it has made so far."""


@dataclasses.dataclass(frozen=True, eq=False)
class PartsRun:
    """How parts are made.

    Attributes:
        device: where networks run.
        batch: how many positions at once.
        ranks: the processes among which the positions are divided.
        listener: who is told how it goes; it counts calls.
    """

    device: torch.device
    batch: BatchSize
    ranks: Ranks
    listener: RunListener

    def compute(self, length: int, store: PartStore, make: Make, *, calls: int = 1) -> None:
        """Make what is missing at positions 0..length - 1, and wait until every process has.

        A batch begins at a multiple of its size, whoever makes it: so a position shares its
        calls with the same others always.

        Args:
            length: how many positions.
            store: holds what an earlier sitting made, and receives the rest.
            make: makes a batch.
            calls: that a position takes.

        Raises:
            InputError: the batch does not fit into memory, the store cannot be written, or
                `make` raised it.
            ProcessLostError: another process has stopped.
        """
        gaps = self.ranks.once(lambda: store.missing(length))
        missing = sum(stop - start for start, stop in gaps)
        stripes = _stripes(blocks(gaps, self.batch.rows), self.ranks)
        own = sum(stop - start for stripe in stripes for start, stop in stripe)
        done, total = (length - missing) * calls, length * calls
        self.listener.start(missing * calls)
        self.listener.progress(RunProgress(done, total))
        made = 0

        def told(of_batch: int) -> None:
            # Other processes are taken to be as fast as this one.
            now = done + round((made * calls + of_batch) * missing / max(own, 1))
            self.listener.progress(RunProgress(now, total))

        def compute() -> None:
            nonlocal made
            for stripe in stripes:
                # Closed whatever happens: an interruption keeps the batches that are whole.
                with contextlib.closing(_Part(store, device_name(self.device))) as part:
                    for start, arrays in self._batches(stripe, make, told):
                        part.add(start, arrays)
                        made += len(next(iter(arrays.values())))
                        told(0)

        self.ranks.together(compute)
        self.ranks.wait()

    def _batches(
        self, stripe: list[tuple[int, int]], make: Make, told: Callable[[int], None]
    ) -> Iterator[tuple[int, Arrays]]:
        for first, stop in stripe:
            start = first
            while start < stop:

                def attempt(rows: int, start: int = start, stop: int = stop) -> Arrays:
                    return make(np.arange(start, min(start + rows, stop)), told)

                arrays = self.batch.attempt(attempt)
                yield start, arrays
                start += len(next(iter(arrays.values())))


class _Part:
    """Collects batches that follow one another until they are worth a file."""

    def __init__(self, store: PartStore, device: str) -> None:
        self._store, self._device = store, device
        self._start, self._stop = 0, 0
        self._batches: list[Arrays] = []
        self._since = time.perf_counter()

    def add(self, start: int, arrays: Arrays) -> None:
        if start != self._stop:
            self.close()
        if not self._batches:
            self._start = start
        self._batches.append(arrays)
        self._stop = start + len(next(iter(arrays.values())))
        if time.perf_counter() - self._since >= PART_SECONDS:
            self.close()

    def close(self) -> None:
        if self._batches:
            seconds = time.perf_counter() - self._since
            collected = {
                name: np.concatenate([arrays[name] for arrays in self._batches])
                for name in self._batches[0]
            }
            # Before they are saved: an interruption must not save them a second time.
            self._batches = []
            self._store.save(self._start, collected, seconds=seconds, device=self._device)
        self._since = time.perf_counter()


def _stripes(of: list[tuple[int, int]], ranks: Ranks) -> list[list[tuple[int, int]]]:
    """This process's share of the blocks, in runs of neighbors."""
    if ranks.count == 1:
        return [of]
    count = STRIPES * ranks.count
    edges = [len(of) * stripe // count for stripe in range(count + 1)]
    return [of[edges[k] : edges[k + 1]] for k in range(ranks.rank, count, ranks.count)]
