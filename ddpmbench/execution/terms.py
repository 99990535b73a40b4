"""The terms of a design: computed with a network, kept in a store, read in order.

A few additional terms may be evaluated in two ways, for the mean difference between the two: low
precision and strict float32, or timesteps and continuous time.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpmbench.data.pixel_store import release
from ddpmbench.errors import InputError
from ddpmbench.execution.distributed import Ranks
from ddpmbench.execution.engine import Engine
from ddpmbench.execution.store import Arrays, Store, num_missing, wait_until_complete
from ddpmbench.execution.worker import RunListener, Worker
from ddpmbench.likelihood.continuous import (
    ContinuousDesign,
    ContinuousDifference,
    ContinuousTermsPass,
    estimate_difference,
)
from ddpmbench.likelihood.designs import Design
from ddpmbench.likelihood.importance_estimator import RoughBound
from ddpmbench.likelihood.precision import (
    Correction,
    CorrectionDesign,
    differences,
    estimate_correction,
)
from ddpmbench.likelihood.terms import VALUE_COLUMNS, TermIndex, TermsPass, TermTable, concatenate
from ddpmbench.unet.timed_unet import Precision

Stores = Callable[[str], Store]
"""The store of terms with a name, such as `finished_runs.TERMS`."""
_ADDRESS = ("image", "t", "draw")
_LARGEST_ERROR = 1e60
"""Intervals use the fourth power of a term's error, which must stay finite in float64."""


@dataclasses.dataclass(frozen=True, eq=False)
class TermsRun:
    """Computes terms.

    Attributes:
        terms_pass: evaluates the terms.
        worker: computes the missing ones in batches.
        precision: precision of the network.
        running: the context in which the network is evaluated.
    """

    terms_pass: TermsPass
    worker: Worker
    precision: Precision = Precision.FP32
    running: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext

    @classmethod
    def of(cls, terms_pass: TermsPass, engine: Engine, worker: Worker) -> "TermsRun":
        """The run whose network is evaluated by an engine."""
        called = terms_pass.calling(engine.model_output)
        return cls(called, worker, engine.choice.precision, engine.running)

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
        """Compute the terms of a design that a store lacks; return when all processes are done.

        Args:
            design: the terms.
            store: holds the terms of earlier sessions, and receives the new ones.
            whole: number of consecutive terms that stay in one shard.
            watch: called with every batch; returns the current estimate of the bound.
            before: terms of the run before those of the design.
            after: terms of the run after them.

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

        with self.running():
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

    def _refused(self, term: TermIndex, error: float) -> InputError:
        terms_pass = self.terms_pass
        problem = "not finite" if not math.isfinite(error) else "too large"
        cause = (
            f"the network's output is {problem} for image "
            f"{terms_pass.images.ids[int(term.image[0])]} at t = {int(term.t[0])}"
        )
        if self.precision is not Precision.FP32:
            return InputError(
                f"`precision={self.precision}`: {cause}; choose fp32 and another `out`, to see "
                "whether it is the precision"
            )
        return InputError(
            f"`ckpt={terms_pass.checkpoint.source}`: {cause}; the batches before it are kept"
        )


def arrays_of(table: TermTable) -> Arrays:
    """The terms as arrays for a store: the address of each, and its values."""
    return {name: getattr(table.index, name) for name in _ADDRESS} | table.values


def table_of(arrays: Arrays, columns: Collection[str]) -> TermTable:
    """The terms in arrays from a store, with the values of these columns."""
    index = TermIndex(*(arrays[name] for name in _ADDRESS))
    return TermTable(index, {name: arrays[name] for name in columns})


def read_terms(
    store: Store, length: int, columns: Collection[str] = VALUE_COLUMNS
) -> Iterator[TermTable]:
    """The terms of a store, in order and without repetition.

    Args:
        store: holds terms.
        length: upper limit of the indices, exclusive.
        columns: the values to read.

    Raises:
        InputError: a shard is damaged.
    """
    for arrays in store.read(length, (*_ADDRESS, *columns)):
        yield table_of(arrays, columns)


def checked(
    tables: Iterable[TermTable], design: Design, *, where: Path | None = None
) -> Iterator[TermTable]:
    """The same tables, verified to hold the terms of the design in order.

    Args:
        tables: the terms.
        design: their addresses.
        where: the run folder, for messages; None for `out` of the command.

    Raises:
        InputError: they hold other terms.
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


class PairedTerms:
    """Terms of a design, each evaluated in several ways."""

    def __init__(self, design: CorrectionDesign, ways: Iterable[tuple[TermsRun, Store]]) -> None:
        """Take the terms of earlier sessions from the stores, which receive the new ones."""
        self._design, self._ways = design, tuple(ways)

    @property
    def num_evaluations(self) -> int:
        """Network evaluations for all ways."""
        return len(self._ways) * len(self._design)

    @property
    def num_missing(self) -> int:
        """Number of missing evaluations."""
        return sum(num_missing(store, len(self._design)) for _, store in self._ways)

    @property
    def seconds(self) -> float:
        """Seconds that the terms took, without interruptions."""
        return sum(store.seconds(len(self._design)) for _, store in self._ways)

    @property
    def devices(self) -> set[str]:
        """The devices that computed them."""
        return {name for _, store in self._ways for name in store.devices(len(self._design))}

    def compute(self, *, before: int = 0, after: int = 0) -> None:
        """Compute the missing terms; `before` and `after` count evaluations of the run around them.

        Raises:
            InputError: see `TermsRun.compute`.
        """
        size, rest = len(self._design), self.num_evaluations
        for run, store in self._ways:
            rest -= size
            run.compute(self._design, store, before=before, after=rest + after)
            before += size

    def _tables(self, *columns: str) -> Iterator[TermTable]:
        """All terms in each way."""
        for _, store in self._ways:
            tables = checked(read_terms(store, len(self._design), columns), self._design)
            yield concatenate(list(tables))


class CorrectionRun(PairedTerms):
    """The terms that correct a run in low precision; empty for a run in strict float32."""

    def __init__(
        self, run: TermsRun, strict: TermsRun, design: CorrectionDesign, stores: Stores
    ) -> None:
        """Prepare the correction of a run.

        Args:
            run: the run to correct.
            strict: the same in strict float32, which may be the run itself.
            design: the terms.
            stores: hold the terms of earlier sessions, and receive the new ones.
        """
        ways = () if strict is run else (run, strict)
        super().__init__(design, [(way, stores(correction_store(way.precision))) for way in ways])

    def estimate(self, *, after: int) -> Correction | None:
        """Compute the missing terms, and estimate the correction.

        Args:
            after: later network evaluations of the run, for the progress.

        Raises:
            InputError: see `TermsRun.compute`.
        """
        if not self._ways:
            return None
        self.compute(after=after)

        def reduce() -> Correction:
            low, strict = self._tables("nats")
            return estimate_correction(self._design, differences(self._design, [strict], [low]))

        return self._ways[0][0].ranks.once(reduce)


def correction_store(precision: Precision | str) -> str:
    """The name of the shards of a correction in this precision."""
    return f"correction-{precision}"


CONTINUOUS_STORES = ("continuous", "continuous-at-timesteps")
"""Stores of the terms in continuous time, and of the same at whole timesteps."""


class ContinuousRun(PairedTerms):
    """The terms for the difference between the bound in continuous time and that of a run."""

    def __init__(self, strict: TermsRun, design: ContinuousDesign, stores: Stores) -> None:
        """Prepare the difference from a run.

        Args:
            strict: the run in strict float32, so that the difference needs no correction.
            design: the terms.
            stores: hold the terms of earlier sessions, and receive the new ones.
        """
        terms_pass = ContinuousTermsPass.like(strict.terms_pass).at(design.fractions)
        continuous = dataclasses.replace(strict, terms_pass=terms_pass)
        ways = zip((continuous, strict), map(stores, CONTINUOUS_STORES), strict=True)
        super().__init__(design, list(ways))
        self._continuous = design

    def estimate(self, *, before: int) -> ContinuousDifference:
        """Compute the missing terms, and estimate the difference.

        Args:
            before: earlier network evaluations of the run, for the progress.

        Raises:
            InputError: see `TermsRun.compute`.
        """
        self.compute(before=before)
        return self._ways[0][0].ranks.once(
            lambda: estimate_difference(self._continuous, *self._tables("nats", "eps_mse"))
        )


def paired_terms(summary: Mapping[str, Any]) -> dict[str, int]:
    """The stores of a finished run's correction and of its continuous time, and their lengths.

    Args:
        summary: the object of `summary.json`.
    """
    lengths = {}
    if (correction := summary["precision_correction"]) is not None:
        for precision in (Precision.FP32, summary["precision"]):
            lengths[correction_store(precision)] = correction["num_evaluations"] // 2
    if count := summary.get("continuous_num_evaluations"):
        lengths |= dict.fromkeys(CONTINUOUS_STORES, count // 2)
    return lengths


TERMS_TABLE = "terms.parquet"
_ROW_GROUP = 2**16
"""Number of terms written together."""


def write_terms(path: Path, store: Store, length: int) -> None:
    """Write the terms of a store as a parquet table: one row per term, in order.

    The columns are the arrays of the shards. Memory use does not depend on the number of terms.

    Args:
        path: the file.
        store: holds the terms.
        length: upper limit of the indices, exclusive.

    Raises:
        InputError: a shard is damaged.
        OSError: the file cannot be written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    names = (*_ADDRESS, *VALUE_COLUMNS)
    schema = pa.schema([(name, pa.int64() if name in _ADDRESS else pa.float64()) for name in names])
    rows = schema.empty_table()
    # A Python file, because its errors are those of the system, with their numbers.
    with path.open("wb") as file, parquet.ParquetWriter(file, schema) as writer:
        for arrays in store.read(length, names):
            columns = {name: arrays[name] for name in names}
            rows = pa.concat_tables([rows, pa.table(columns, schema=schema)])
            if num_complete := len(rows) - len(rows) % _ROW_GROUP:
                writer.write_table(rows.slice(0, num_complete), row_group_size=_ROW_GROUP)
                rows = rows.slice(num_complete)
        if len(rows):
            writer.write_table(rows)
