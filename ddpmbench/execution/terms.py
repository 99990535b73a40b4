"""The terms of a design: computed with a network, kept in a store, read in order."""

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ddpmbench.checksums import DamageError, read_npz, write_npz
from ddpmbench.data.pixel_store import release
from ddpmbench.diffusion.data_range import DataRange
from ddpmbench.errors import InputError
from ddpmbench.execution.distributed import Ranks
from ddpmbench.execution.store import Arrays, Store, wait_until_complete
from ddpmbench.execution.worker import RunListener, Worker
from ddpmbench.likelihood.designs import Design
from ddpmbench.likelihood.estimator import RoughBound
from ddpmbench.likelihood.terms import VALUE_COLUMNS, TermIndex, TermsPass, TermTable
from ddpmbench.unet.precision import Precision

Stores = Callable[[str], Store]
"""The store of the terms of a name: "terms", "pilot"."""
_ADDRESS = ("image", "t", "draw")
_LARGEST_ERROR = 1e60
"""Intervals take the fourth power of a term's error, which must stay finite in float64."""


@dataclasses.dataclass(frozen=True, eq=False)
class TermsRun:
    """Computes terms.

    Attributes:
        terms_pass: evaluates them.
        worker: computes the missing ones in batches.
        precision: of the network.
    """

    terms_pass: TermsPass
    worker: Worker
    precision: Precision = Precision.FP32

    @property
    def ranks(self) -> Ranks:
        """The processes of the run."""
        return self.worker.ranks

    @property
    def listener(self) -> RunListener:
        """Receives the progress of the run."""
        return self.worker.listener

    def compute(
        self,
        design: Design,
        store: Store,
        *,
        whole: int = 1,
        watch: Callable[[TermTable], RoughBound | None] = lambda table: None,
        before: int = 0,
        after: int = 0,
    ) -> None:
        """Compute the terms of a design that a store lacks; return when all processes have.

        Args:
            design: the terms.
            store: holds those of earlier sessions, and receives the others.
            whole: so many consecutive terms stay in one shard.
            watch: called with every batch; returns the estimate of the bound so far.
            before: terms of the run before those of the design.
            after: terms after them.

        Raises:
            InputError: the network's output is not finite or too large; or see
                `Worker.map_chunks`.
            ProcessLostError: another process has stopped.
        """

        def terms(index: NDArray[np.int64], report: Callable[[int], None]) -> Arrays:
            table = self.terms_pass.terms(design.index(int(index[0]), int(index[-1]) + 1))
            release(self.terms_pass.images.pixels)
            error = table.values["nats"] + table.values["eps_mse"]
            bad = np.flatnonzero(~(np.abs(error) < _LARGEST_ERROR))
            if len(bad):
                raise self._refused(table.index[bad[0] : bad[0] + 1], float(error[bad[0]]))
            return arrays_of(table)

        self.worker.map_chunks(
            terms,
            store,
            len(design),
            whole=whole,
            balanced=True,
            watch=lambda arrays: watch(table_of(arrays, VALUE_COLUMNS)),
            before=before,
            after=after,
        )
        self.ranks.once(functools.partial(wait_until_complete, store, len(design)))

    def prior(self) -> NDArray[np.float64]:
        """(N,) L_T of every image, nats per dimension."""
        images = np.arange(len(self.terms_pass.images), dtype=np.int64)
        parts = np.array_split(images, -(-len(images) // self.worker.batch.rows))
        prior = np.empty(len(images))
        for part in parts:
            prior[part] = self.terms_pass.prior(part)
            release(self.terms_pass.images.pixels)
        return prior

    def _refused(self, row: TermIndex, error: float) -> InputError:
        terms_pass = self.terms_pass
        problem = "not finite" if not math.isfinite(error) else "too large"
        where = (
            f"the network's output is {problem} for image "
            f"{terms_pass.images.ids[int(row.image[0])]} at t = {int(row.t[0])}"
        )
        if self.precision is not Precision.FP32:
            return InputError(
                f"`precision={self.precision}`: {where}; choose fp32 and another `out`, to see "
                "whether it is the precision"
            )
        return InputError(
            f"`ckpt={terms_pass.checkpoint.source}`: {where}; the batches before it are kept"
        )


def arrays_of(table: TermTable) -> Arrays:
    """Terms as a store keeps them: the address of each, and its values."""
    return {name: getattr(table.index, name) for name in _ADDRESS} | table.values


def table_of(arrays: Arrays, columns: Collection[str]) -> TermTable:
    """Terms of a store, with the values of these columns."""
    rows = TermIndex(*(arrays[name] for name in _ADDRESS))
    return TermTable(rows, {name: arrays[name] for name in columns})


def read_terms(
    store: Store, length: int, columns: Collection[str] = VALUE_COLUMNS
) -> Iterator[TermTable]:
    """The terms of a store, once each, in order.

    Args:
        store: holds terms.
        length: those of indices below it.
        columns: the values that are needed.

    Raises:
        InputError: a shard is damaged.
    """
    for arrays in store.read(length, (*_ADDRESS, *columns)):
        yield table_of(arrays, columns)


def checked(
    tables: Iterable[TermTable], design: Design, *, where: Path | None = None
) -> Iterator[TermTable]:
    """The same tables, verified to hold the terms of the design in its order.

    Args:
        tables: the terms.
        design: their addresses.
        where: the run folder, for messages; None for `out` of the command.

    Raises:
        InputError: they hold others.
    """
    start = 0
    for table in tables:
        expected = design.index(start, start + len(table))
        if not all(
            np.array_equal(getattr(table.index, name), getattr(expected, name)) for name in _ADDRESS
        ):
            raise InputError(
                f"{where or '`out`'}: the shards from entry {start} on hold other terms than the "
                "run has; delete these shards and run the command again"
            )
        start += len(table)
        yield table


TERMS_TABLE = "terms.parquet"
_ROW_GROUP = 2**16
"""Rows that are written together."""


def write_terms(path: Path, store: Store, length: int) -> None:
    """Write the terms of a store as a parquet table: one row a term, in order.

    The columns are the arrays of the shards. Memory does not depend on the number of terms.

    Args:
        path: the file.
        store: holds the terms.
        length: those of indices below it.

    Raises:
        InputError: a shard is damaged.
        OSError: the file cannot be written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    names = (*_ADDRESS, *VALUE_COLUMNS)
    schema = pa.schema([(name, pa.int64() if name in _ADDRESS else pa.float64()) for name in names])
    rows = schema.empty_table()
    # A file of Python: its errors are those of the system, with their numbers.
    with path.open("wb") as file, parquet.ParquetWriter(file, schema) as writer:
        for arrays in store.read(length, names):
            columns = {name: arrays[name] for name in names}
            rows = pa.concat_tables([rows, pa.table(columns, schema=schema)])
            if whole := len(rows) - len(rows) % _ROW_GROUP:
                writer.write_table(rows.slice(0, whole), row_group_size=_ROW_GROUP)
                rows = rows.slice(whole)
        if len(rows):
            writer.write_table(rows)


def num_written(path: Path) -> int:
    """The number of terms in a whole file of `write_terms`."""
    from pyarrow import parquet

    return int(parquet.read_metadata(path).num_rows)


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
            values: (N,) what each image costs, NaN where it is unknown; of equal ones the first
                counts as shorter.
            pixels: (N, C, H, W).
        """
        order = np.argsort(values, kind="stable")[: int(np.isfinite(values).sum())]
        best = order[: min(SHOWN, len(order) // 2)]
        worst = order[::-1][: len(best)]
        return cls(best, pixels[np.array(best)], worst, pixels[np.array(worst)])

    def shown(self, data_range: DataRange) -> Self:
        """The same images in the levels of a model."""
        best, worst = map(data_range.shown, (self.best_pixels, self.worst_pixels))
        return dataclasses.replace(self, best_pixels=best, worst_pixels=worst)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file of `write`.

        Raises:
            InputError: it is not there, or damaged.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        try:
            extremes = cls(**read_npz(path, names))
        except DamageError as error:
            raise _damaged(path) from error
        sizes = {len(getattr(extremes, name)) for name in names}
        pixels = (extremes.best_pixels, extremes.worst_pixels)
        if len(sizes) > 1 or any(of.dtype != np.uint8 or of.ndim != 4 for of in pixels):
            raise _damaged(path)
        return extremes

    def write(self, path: Path) -> None:
        """Write what `read` reads."""
        write_npz(path, dataclasses.asdict(self), compressed=True)


def _damaged(path: Path) -> InputError:
    return InputError(f"{path}: missing or damaged; run the command of its folder again")
