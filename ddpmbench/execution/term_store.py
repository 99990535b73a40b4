"""Where the terms of a run are kept: shards in a folder, or memory.

A shard is a parquet file named by the positions of its rows in the design. Whatever is on disk is
whole, because every file is written beside its place and then moved there; so a run that was
killed goes on with the positions that no shard covers, whoever computed the others. A shard holds
its checksum, its first position and the run that it is of: one that has changed since, or came from
elsewhere, is none.
"""

import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ddpmbench.checksums import UnreadableError, is_whole, seal, status_of
from ddpmbench.errors import InputError
from ddpmbench.files import remove_if, replacing, writing_to
from ddpmbench.likelihood.terms import VALUE_COLUMNS, TermIndex, TermTable

ARRIVAL_SECONDS = 120.0
"""What another machine wrote to a network file system is seen here no later than that."""

Gaps = list[tuple[int, int]]


def gaps_between(ranges: Iterable[tuple[int, int]], length: int) -> Gaps:
    """The ranges of positions below `length` that none covers.

    Args:
        ranges: from and up to, in the order of where they begin; they may overlap.
        length: the positions are below it.
    """
    gaps, covered = [], 0
    for start, stop in ranges:
        if start > covered:
            gaps.append((covered, start))
        covered = max(covered, stop)
    if covered < length:
        gaps.append((covered, length))
    return gaps


def wait_until_there(missing: Callable[[], Gaps], *, what: str) -> None:
    """Go on when what other processes wrote is seen here.

    Args:
        missing: the gaps at present.
        what: lies at the positions, for the message.

    Raises:
        InputError: it does not come to be seen.
    """
    deadline = time.monotonic() + ARRIVAL_SECONDS
    while gaps := missing():
        if time.monotonic() > deadline:
            raise InputError(
                f"--out: {what} {gaps[0][0]} to {gaps[0][1] - 1} are not there, though they were "
                "computed; all processes must write to one folder that all machines see"
            )
        time.sleep(0.5)


_SECONDS, _DEVICE, _START, _RUN = b"seconds", b"device", b"start", b"run"
_ADDRESS = ("image", "t", "draw")
_FINITE = ("nats", "x_start_mse", "eps_mse")
_ELSEWHERE = "is of another run"
_ANY = re.compile(r".+-(\d{12})-(\d{12})\.parquet")
EARLIER = "an earlier version wrote it"
"""Said of a shard without a checksum, or without some of the columns."""
UNREAD = "cannot be read"
"""Said of a shard, before the reason."""
_UNSEALED = f"has no checksum: {EARLIER}"
_KEPT = {
    _ELSEWHERE: "move it out of the folder",
    EARLIER: "name a new --out",
    UNREAD: "try again when it can, or name a new --out",
}
"""What is wrong with shards that are not removed, and what then to do."""


class TermStore(Protocol):
    """The terms of one sequence of rows, addressed by their positions in it."""

    def save(self, start: int, table: TermTable, *, seconds: float, device: str) -> None:
        """Keep the terms of the rows at positions start, start + 1, ..."""

    def missing(self, length: int) -> list[tuple[int, int]]:
        """The ranges of positions below `length` that are not there yet."""

    def tables(self, length: int, columns: Sequence[str] = VALUE_COLUMNS) -> Iterator[TermTable]:
        """What is there of the rows at positions below `length`, once each, in order.

        Args:
            length: the positions are below it.
            columns: the values that are needed; the tables may hold more.
        """

    def seconds(self, length: int) -> float:
        """How long the rows below `length` took, all interruptions left out."""

    def devices(self, length: int) -> set[str]:
        """Where they were computed."""


class MemoryTerms:
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

    def tables(self, length: int, columns: Sequence[str] = VALUE_COLUMNS) -> Iterator[TermTable]:
        """Everything that is there; it holds nothing but what was asked for."""
        yield from self._tables

    def seconds(self, length: int) -> float:
        """How long it took."""
        return self._seconds

    def devices(self, length: int) -> set[str]:
        """Where it was computed."""
        return self._devices


class Shards:
    """The shards of one sequence of rows in a folder; several processes may add to them."""

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        run: str | None = None,
        without: Collection[str] = (),
    ) -> None:
        """Look at a folder that exists.

        Args:
            folder: holds the shards.
            name: the first part of their names.
            run: which run they are of, as `RunFolder.tag` has it; None where it is not known.
            without: files that count as not there.
        """
        self._folder, self._name, self._without = folder, name, frozenset(without)
        self._run = run
        self._pattern = re.compile(re.escape(name) + r"-(\d{12})-(\d{12})\.parquet")

    def save(self, start: int, table: TermTable, *, seconds: float, device: str) -> None:
        """Keep the terms of the rows at positions start, start + 1, ...

        Args:
            start: position of the first row.
            table: the terms.
            seconds: how long they took.
            device: where they were computed.

        Raises:
            InputError: the folder cannot be written.
        """
        columns = {name: getattr(table.index, name) for name in _ADDRESS}
        arrow = pa.table({**columns, **table.values})
        metadata = {
            _SECONDS: repr(seconds).encode(),
            _DEVICE: device.encode(),
            _START: str(start).encode(),
            _RUN: (self._run or "").encode(),
        }
        arrow = arrow.replace_schema_metadata(metadata)
        path = self._folder / self.name_of(start, start + len(table))
        with writing_to(self._folder.parent), replacing(path) as temporary:
            pq.write_table(arrow, temporary)
            seal(temporary)

    def missing(self, length: int) -> list[tuple[int, int]]:
        """The gaps: ranges of positions below `length` that no shard covers."""
        ranges = ((start, stop) for start, stop, _ in self._ranges(length))
        return gaps_between(ranges, length)

    def tables(self, length: int, columns: Sequence[str] = VALUE_COLUMNS) -> Iterator[TermTable]:
        """The terms of the rows below `length` that are there, once each, in order.

        Args:
            length: the positions are below it.
            columns: the values that are read.

        Raises:
            InputError: a shard cannot be read.
        """
        covered = 0
        for start, stop, path in self._ranges(length):
            if stop > covered:
                yield _read(path, stop - start, columns)[max(0, covered - start) : length - start]
                covered = stop

    def name_of(self, start: int, stop: int) -> str:
        """What the shard of the rows at positions start..stop - 1 is called."""
        return f"{self._name}-{start:012d}-{stop:012d}.parquet"

    def without(self, names: Collection[str]) -> "Shards":
        """The same shards but for these files, which count as not there."""
        without = self._without.union(names)
        return Shards(self._folder, self._name, run=self._run, without=without)

    def faults(
        self,
        length: int,
        columns: Sequence[str],
        *,
        by_footers: bool = False,
    ) -> dict[str, str]:
        """The shards of the rows below `length` that cannot be used.

        Args:
            length: the positions are below it.
            columns: the values that are needed.
            by_footers: whether the checksums are left out, for who does not read the rows.

        Returns:
            What is wrong with each, by the name of its file.
        """
        faults = {}
        for start, stop, path in self._ranges(length):
            fault = _fault(path, range(start, stop), columns, self._run, by_footer=by_footers)
            if fault is not None:
                faults[path.name] = fault
        return faults

    def seconds(self, length: int) -> float:
        """How long the rows below `length` took, all interruptions left out.

        Of a shard that goes beyond it counts its share.
        """
        total = 0.0
        for start, stop, path in self._ranges(length):
            share = (min(stop, length) - start) / (stop - start)
            total += share * float(_metadata(path)[_SECONDS])
        return total

    def devices(self, length: int) -> set[str]:
        """Where the rows below `length` were computed."""
        return {_metadata(path)[_DEVICE].decode() for _, _, path in self._ranges(length)}

    def _ranges(self, length: int) -> list[tuple[int, int, Path]]:
        try:
            matches = [(self._pattern.fullmatch(p.name), p) for p in self._folder.iterdir()]
        except OSError as error:
            raise InputError(f"{self._folder}: cannot be read ({error.strerror})") from error
        ranges = sorted(
            (int(m[1]), int(m[2]), path)
            for m, path in matches
            if m and path.name not in self._without
        )
        return [found for found in ranges if found[0] < length]


def drop_damaged(folder: Path, run: str) -> list[str]:
    """Remove the shards that are damaged, so that their rows are computed again.

    Args:
        folder: holds shards.
        run: which run they must be of.

    Returns:
        Their names.

    Raises:
        InputError: the folder cannot be written, or has a shard that cannot be read, is of another
            run, or of an earlier version; then none is removed.
    """
    with writing_to(folder.parent):
        faults = list(faults_in(folder, run))
        for path, fault in faults:
            for kind, remedy in _KEPT.items():
                if kind in fault:
                    raise InputError(f"{path}: {fault}; {remedy}")
        return [path.name for path, _ in faults if remove_if(path, _judge(path.name, run))]


def faults_in(folder: Path, run: str) -> Iterator[tuple[Path, str]]:
    """The shards of a folder, of whatever rows, that cannot be used, and why.

    Args:
        folder: holds shards.
        run: which run they must be of.
    """
    for path in sorted(folder.iterdir()):
        fault = _judge(path.name, run)(path)
        # One that is not there any more was removed by another process.
        if fault and os.path.lexists(path):
            yield path, fault


def _judge(name: str, run: str) -> Callable[[Path], str | None]:
    """What is wrong with a file as a shard of this name; nothing, where it is none of a shard."""
    if not (match := _ANY.fullmatch(name)):
        return lambda _: None
    positions = range(*map(int, match.groups()))
    return lambda path: _fault(path, positions, VALUE_COLUMNS, run)


def _metadata(path: Path) -> dict[bytes, bytes]:
    _refuse_damaged(path)
    try:
        metadata: dict[bytes, bytes] | None = pq.read_schema(path).metadata
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path) from error
    if not metadata or not {_SECONDS, _DEVICE} <= set(metadata):
        raise _damaged(path)
    return metadata


def _refuse_damaged(path: Path) -> None:
    try:
        whole = is_whole(path)
    except UnreadableError as error:
        raise InputError(f"{path}: {UNREAD} ({error}); try again when it can") from error
    if not whole:
        raise _damaged(path)


def _read(path: Path, length: int, columns: Sequence[str]) -> TermTable:
    _refuse_damaged(path)
    try:
        arrow = pq.read_table(path, columns=[*_ADDRESS, *columns])
        rows = TermIndex(*(arrow[name].to_numpy() for name in _ADDRESS))
        table = TermTable(rows, {name: arrow[name].to_numpy() for name in columns})
    except (pa.ArrowException, OSError, KeyError) as error:
        raise _damaged(path) from error
    if len(table) != length:
        raise _damaged(path)
    finite = [table.values[name] for name in columns if name in _FINITE]
    if not all(np.isfinite(values).all() for values in finite):
        raise _damaged(path)
    return table


def _fault(
    path: Path,
    positions: range,
    columns: Sequence[str],
    run: str | None,
    *,
    by_footer: bool = False,
) -> str | None:
    try:
        status_of(path)
        with path.open("rb") as file:
            footer = pq.read_metadata(file)
        fault = _fault_of(footer, positions, columns, run)
        if by_footer and fault is None:
            return None
        whole = is_whole(path)
    except (UnreadableError, pa.ArrowException, OSError) as error:
        if isinstance(error, UnreadableError) or getattr(error, "errno", None):
            return f"{UNREAD} ({(getattr(error, 'strerror', None) or str(error)).lower()})"
        return "is damaged"
    # Those of earlier versions name no run.
    return fault if whole or (whole is None and fault == _UNSEALED) else "is damaged"


def _fault_of(
    footer: pq.FileMetaData, positions: range, columns: Sequence[str], run: str | None
) -> str | None:
    metadata = footer.metadata or {}
    if _RUN not in metadata:
        return _UNSEALED
    lacks = [name for name in (*_ADDRESS, *columns) if name not in footer.schema.names]
    if lacks:
        return f"lacks {', '.join(lacks)}: {EARLIER}"
    if footer.num_rows != len(positions):
        return f"holds {footer.num_rows} rows, not {len(positions)}"
    if metadata.get(_START) != str(positions.start).encode():
        return "holds other rows than its name says"
    if run is not None and metadata.get(_RUN) != run.encode():
        return _ELSEWHERE
    return None


def _damaged(path: Path) -> InputError:
    return InputError(f"{path}: damaged; run the command of its folder again to compute it again")
