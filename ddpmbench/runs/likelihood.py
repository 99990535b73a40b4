"""A likelihood run: the rows of a design, computed in batches, kept in shards, resumable."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ddpmbench.errors import InputError
from ddpmbench.likelihood.bound import BoundEstimate, estimate_bound
from ddpmbench.likelihood.design import EveryPair
from ddpmbench.likelihood.terms import TermsPass, TermTable, concatenate
from ddpmbench.runs.engine import BatchSize, device_name

SHARD_SECONDS = 10.0
"""A shard is written at least this often; a killed run loses no more work than that."""
SHARD_ROWS = 2**18
"""No shard holds more rows than this by much."""


class TermStore(Protocol):
    """Where the terms of a run go: a run folder, or memory."""

    def save(self, start: int, table: TermTable, *, seconds: float, device: str) -> None:
        """Keep the terms of the rows at positions start, start + 1, ..."""

    def missing(self, length: int) -> list[tuple[int, int]]:
        """The ranges of positions below `length` that are not there yet."""

    def tables(self) -> Iterator[TermTable]:
        """Everything that is there, in the order of the design."""

    def seconds(self) -> float:
        """How long everything that is there took."""

    def devices(self) -> list[str]:
        """Where it was computed."""


class MemoryStore:
    """Keeps the terms of a run that has no folder."""

    def __init__(self) -> None:
        self._tables: list[TermTable] = []
        self._seconds = 0.0
        self._devices: set[str] = set()

    def save(self, start: int, table: TermTable, *, seconds: float, device: str) -> None:
        """Keep the terms of the rows that follow those kept so far."""
        self._tables.append(table)
        self._seconds += seconds
        self._devices.add(device)

    def missing(self, length: int) -> list[tuple[int, int]]:
        """What is not there yet."""
        done = sum(len(table) for table in self._tables)
        return [(done, length)] if done < length else []

    def tables(self) -> Iterator[TermTable]:
        """Everything that is there."""
        yield from self._tables

    def seconds(self) -> float:
        """How long it took."""
        return self._seconds

    def devices(self) -> list[str]:
        """Where it was computed."""
        return sorted(self._devices)


@dataclasses.dataclass(frozen=True)
class RunProgress:
    """Where a run stands.

    Attributes:
        done: rows there are, those of earlier sittings included.
        total: rows of the design.
    """

    done: int
    total: int


@dataclasses.dataclass(frozen=True)
class RunListener:
    """Who is told how a run goes.

    Attributes:
        start: called once, with the number of rows that are missing.
        progress: called after every batch.
        warn: called with a line when something is worth saying.
    """

    start: Callable[[int], None] = lambda rows: None
    progress: Callable[[RunProgress], None] = lambda progress: None
    warn: Callable[[str], None] = lambda line: None


def run_likelihood(
    terms_pass: TermsPass,
    design: EveryPair,
    store: TermStore,
    *,
    batch_size: int | None = None,
    listener: RunListener | None = None,
) -> BoundEstimate:
    """Compute the rows that are missing, and reduce all of them to the bound.

    Args:
        terms_pass: evaluates rows.
        design: which rows.
        store: holds what an earlier sitting computed, and receives the rest.
        batch_size: rows a network call; None for what suits the device and its memory.
        listener: who is told how it goes.

    Raises:
        InputError: the network's output is not finite, the batch does not fit into memory, or
            the store cannot be written.
    """
    listener = listener or RunListener()
    batch = BatchSize(
        batch_size,
        device=terms_pass.device,
        image_shape=terms_pass.images.pixels.shape[1:],
        warn=listener.warn,
    )
    device = device_name(terms_pass.device)
    gaps = store.missing(len(design))
    done = len(design) - sum(stop - start for start, stop in gaps)
    listener.start(len(design) - done)
    listener.progress(RunProgress(done, len(design)))
    for start, stop in gaps:
        with contextlib.closing(_Shard(store, start, whole=design.draws, device=device)) as shard:
            for table in _compute(terms_pass, design, range(start, stop), batch):
                shard.add(table)
                done += len(table)
                listener.progress(RunProgress(done, len(design)))
    prior = _prior(terms_pass, design.num_images, batch)
    tables = _checked(store.tables(), design)
    return estimate_bound(design, prior, tables, clip=terms_pass.diffusion.clip)


def _checked(tables: Iterable[TermTable], design: EveryPair) -> Iterator[TermTable]:
    """The same tables, known to hold the rows of the design in its order."""
    position = 0
    for table in tables:
        expected = design.rows(position, position + len(table))
        if not all(
            np.array_equal(getattr(table.rows, name), getattr(expected, name))
            for name in ("image", "t", "draw")
        ):
            raise InputError(
                f"the shards do not hold the rows from {position} on that their names say; delete "
                "the shards from there on and run the command again"
            )
        position += len(table)
        yield table


class _Shard:
    """Collects batches until they are worth a file; closing it keeps the rest."""

    def __init__(self, store: TermStore, start: int, *, whole: int, device: str) -> None:
        self._store, self._position = store, start
        self._whole, self._device = whole, device
        self._tables: list[TermTable] = []
        self._since = time.perf_counter()

    def add(self, table: TermTable) -> None:
        self._tables.append(table)
        rows = sum(len(table) for table in self._tables)
        if rows >= SHARD_ROWS or time.perf_counter() - self._since >= SHARD_SECONDS:
            self.close()

    def close(self) -> None:
        if not self._tables:
            return
        collected = concatenate(self._tables)
        # The draws of a pair stay in one shard: the reduction reads them side by side.
        size = len(collected) - len(collected) % self._whole
        position, seconds = self._position, time.perf_counter() - self._since
        # Before the rows are saved: an interruption must not save them a second time.
        self._tables = [collected[size:]] if size < len(collected) else []
        self._position, self._since = position + size, time.perf_counter()
        if size:
            self._store.save(position, collected[:size], seconds=seconds, device=self._device)


def _compute(
    terms_pass: TermsPass, design: EveryPair, positions: range, batch: BatchSize
) -> Iterator[TermTable]:
    position = positions.start
    while position < positions.stop:

        def compute(rows: int, position: int = position) -> TermTable:
            return terms_pass.terms(design.rows(position, min(position + rows, positions.stop)))

        table = batch.attempt(compute)
        _check_finite(table, terms_pass)
        yield table
        position += len(table)


def _check_finite(table: TermTable, terms_pass: TermsPass) -> None:
    bad = np.flatnonzero(~np.isfinite(table.values["nats"] + table.values["eps_mse"]))
    if len(bad):
        image, t = int(table.rows.image[bad[0]]), int(table.rows.t[bad[0]])
        raise InputError(
            f"--ckpt {terms_pass.checkpoint.source}: the network's output is not finite for image "
            f"{terms_pass.images.ids[image]} at t = {t}; the terms before it are kept"
        )


def _prior(terms_pass: TermsPass, num_images: int, batch: BatchSize) -> NDArray[np.float64]:
    images = np.arange(num_images, dtype=np.int64)
    parts = np.array_split(images, -(-num_images // batch.rows))
    return np.concatenate([terms_pass.prior(part) for part in parts])
