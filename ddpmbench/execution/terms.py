"""Computing the rows of a design: in batches, kept as they come, by one process or many."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ddpmbench.checksums import DamageError, read_npz, write_npz
from ddpmbench.data.pixel_store import release
from ddpmbench.diffusion.data_range import DataRange
from ddpmbench.errors import InputError
from ddpmbench.execution.devices import device_name
from ddpmbench.execution.distributed import Ranks
from ddpmbench.execution.engine import BatchSize
from ddpmbench.execution.term_store import TermStore, wait_until_there
from ddpmbench.likelihood.designs import Design
from ddpmbench.likelihood.stopping import RoughBound
from ddpmbench.likelihood.terms import TermIndex, TermsPass, TermTable, concatenate
from ddpmbench.records import short_repr
from ddpmbench.unet.precision import Precision

SHARD_SECONDS = 10.0
"""A shard is written at least this often; a killed run loses no more work than that."""
SHARD_ROWS = 2**18
"""No shard holds more rows than this by much."""


@dataclasses.dataclass(frozen=True)
class RunProgress:
    """Where a run stands.

    Attributes:
        done: rows there are, those of earlier sittings included; those of other processes are
            taken to come as fast as this one's.
        total: rows known to be needed.
        bound: what is known of the bound so far, if anything.
        stage: what is being done where no rows are computed; empty where they are.
    """

    done: int
    total: int
    bound: RoughBound | None = None
    stage: str = ""


@dataclasses.dataclass(frozen=True)
class RunListener:
    """Who is told how a run goes.

    Attributes:
        start: called once, with the number of rows that are missing.
        progress: called after every batch.
        warn: called with a line when something is worth saying.
        note: called with a line that is no warning.
    """

    start: Callable[[int], None] = lambda rows: None
    progress: Callable[[RunProgress], None] = lambda progress: None
    warn: Callable[[str], None] = lambda line: None
    note: Callable[[str], None] = lambda line: None

    __repr__ = short_repr


@dataclasses.dataclass(frozen=True, eq=False)
class RowsRun:
    """What computes rows: a network in batches, for this process's share of them.

    Attributes:
        terms_pass: evaluates rows.
        batch: how many at once.
        ranks: the processes among which the rows are divided.
        listener: who is told how it goes.
        precision: what the network computes in.
    """

    terms_pass: TermsPass
    batch: BatchSize
    ranks: Ranks
    listener: RunListener
    precision: Precision = Precision.FP32

    @classmethod
    def of(
        cls,
        terms_pass: TermsPass,
        *,
        batch_size: int | None = None,
        ranks: Ranks | None = None,
        listener: RunListener | None = None,
        precision: Precision = Precision.FP32,
    ) -> "RowsRun":
        """A run whose batch size suits the device, unless one is given."""
        listener = listener or RunListener()
        batch = BatchSize(
            batch_size,
            device=terms_pass.device,
            image_shape=terms_pass.images.pixels.shape[1:],
            warn=listener.warn,
        )
        return cls(terms_pass, batch, ranks or Ranks(), listener, precision)

    def compute(
        self,
        design: Design,
        store: TermStore,
        *,
        whole: int = 1,
        watch: Callable[[TermTable], RoughBound | None] = lambda table: None,
        before: int = 0,
        after: int = 0,
    ) -> None:
        """Compute the rows that are missing, and wait until every process has.

        Args:
            design: which rows.
            store: holds what an earlier sitting computed, and receives the rest.
            whole: so many rows that follow one another stay in one shard.
            watch: sees every batch, and says what is known of the bound.
            before: rows of this run that came before the design's.
            after: rows that will come after them.

        Raises:
            InputError: the network's output is not finite, the batch does not fit into memory,
                or the store cannot be written or is not shared.
            ProcessLostError: another process has stopped.
        """
        # What is missing is seen before any process adds to it; and the batches of processes may
        # differ once they have run out of memory, but all must divide the rows alike.
        gaps, batch = self.ranks.once(lambda: (store.missing(len(design)), self.batch.rows))
        missing = sum(stop - start for start, stop in gaps)
        part = self.ranks.share(gaps, whole, batch=batch)
        share = sum(stop - start for start, stop in part) / max(missing, 1)
        done, total = before + len(design) - missing, before + len(design) + after
        self.listener.progress(RunProgress(done, total))

        def compute() -> None:
            computed = 0
            for start, stop in part:
                with contextlib.closing(self._shard(store, start, whole)) as shard:
                    for table in self._tables(design, range(start, stop)):
                        shard.add(table)
                        computed += len(table)
                        now = done + round(computed / share)
                        self.listener.progress(RunProgress(now, total, watch(table)))

        self.ranks.together(compute)
        missing_now = functools.partial(store.missing, len(design))
        self.ranks.once(lambda: wait_until_there(missing_now, what="rows"))

    def prior(self) -> NDArray[np.float64]:
        """(N,) L_T of every image, nats per dimension."""
        images = np.arange(len(self.terms_pass.images), dtype=np.int64)
        parts = np.array_split(images, -(-len(images) // self.batch.rows))
        prior = np.empty(len(images))
        for part in parts:
            prior[part] = self.terms_pass.prior(part)
            release(self.terms_pass.images.pixels)
        return prior

    def _shard(self, store: TermStore, start: int, whole: int) -> "_Shard":
        return _Shard(store, start, whole=whole, device=device_name(self.terms_pass.device))

    def _tables(self, design: Design, positions: range) -> Iterator[TermTable]:
        position = positions.start
        while position < positions.stop:

            def compute(rows: int, position: int = position) -> TermTable:
                stop = min(position + rows, positions.stop)
                return self.terms_pass.terms(design.index(position, stop))

            table = self.batch.attempt(compute)
            release(self.terms_pass.images.pixels)
            bad = np.flatnonzero(~np.isfinite(table.values["nats"] + table.values["eps_mse"]))
            if len(bad):
                if bad[0]:
                    yield table[: bad[0]]
                raise _not_finite(table.index[bad[0] : bad[0] + 1], self)
            yield table
            position += len(table)


def checked(
    tables: Iterable[TermTable], design: Design, *, where: Path | None = None
) -> Iterator[TermTable]:
    """The same tables, known to hold the rows of the design in its order.

    Args:
        tables: the terms.
        design: the rows.
        where: the run folder, to be named in a message; None where it is the one of the command.

    Raises:
        InputError: they do not.
    """
    position = 0
    for table in tables:
        expected = design.index(position, position + len(table))
        if not all(
            np.array_equal(getattr(table.index, name), getattr(expected, name))
            for name in ("image", "t", "draw")
        ):
            raise InputError(
                f"{where or '--out'}: the shards do not hold the rows from {position} on that "
                "their names say; delete the shards from there on and run the command again"
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


def _not_finite(row: TermIndex, run: RowsRun) -> InputError:
    terms_pass = run.terms_pass
    where = (
        f"the network's output is not finite for image "
        f"{terms_pass.images.ids[int(row.image[0])]} at t = {int(row.t[0])}"
    )
    if run.precision is not Precision.FP32:
        return InputError(
            f"--precision {run.precision}: {where}; choose fp32 and another --out, which tells "
            "whether it is the precision"
        )
    return InputError(
        f"--ckpt {terms_pass.checkpoint.source}: {where}; the terms before it are kept"
    )


EXTREMES = "extremes.npz"
SHOWN = 8
"""At most so many of the best, and of the worst."""


@dataclasses.dataclass(frozen=True, eq=False)
class Extremes:
    """The images with the shortest and the longest codes.

    Attributes:
        best_index: (K,) int64 index in the image set, the shortest code first.
        best_pixels: (K, C, H, W) uint8.
        worst_index: (K,) int64, the longest code first.
        worst_pixels: (K, C, H, W) uint8.
    """

    best_index: NDArray[np.int64]
    best_pixels: NDArray[np.uint8]
    worst_index: NDArray[np.int64]
    worst_pixels: NDArray[np.uint8]

    @classmethod
    def of(cls, values: NDArray[np.float64], pixels: NDArray[np.uint8]) -> Self:
        """Those of an image set.

        Args:
            values: (N,) what each image costs; of equal ones the first counts as shorter.
            pixels: (N, C, H, W).
        """
        order = np.argsort(values, kind="stable")
        best = order[: min(SHOWN, len(order) // 2)]
        worst = order[::-1][: len(best)]
        return cls(best, pixels[np.array(best)], worst, pixels[np.array(worst)])

    def shown(self, data_range: DataRange) -> Self:
        """The same images in the levels of a model."""
        best, worst = map(data_range.shown, (self.best_pixels, self.worst_pixels))
        return dataclasses.replace(self, best_pixels=best, worst_pixels=worst)

    @classmethod
    def read(cls, path: Path) -> Self:
        """What `write` wrote.

        Raises:
            InputError: it is not there, or damaged.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        try:
            found = cls(**read_npz(path, names))
        except DamageError as error:
            raise _lost(path) from error
        sizes = {len(getattr(found, name)) for name in names}
        pixels = (found.best_pixels, found.worst_pixels)
        if len(sizes) > 1 or any(of.dtype != np.uint8 or of.ndim != 4 for of in pixels):
            raise _lost(path)
        return found

    def write(self, path: Path) -> None:
        """Write what `read` reads."""
        write_npz(path, dataclasses.asdict(self), compressed=True)


def _lost(path: Path) -> InputError:
    return InputError(f"{path}: missing or damaged; run the command of its folder again")
