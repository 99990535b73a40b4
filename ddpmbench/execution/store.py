"""Arrays by index, kept in shards: npz files of consecutive indices, or memory.

A shard is named by its indices. It is written beside its place and then moved there, so a file that
is there is complete; a run that was killed computes the indices that no shard covers, whichever
process wrote the others. A shard holds its checksum, its first index and the run that it belongs
to, and all of them are verified on every read.
"""

import itertools
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ddpmbench.checksums import (
    DamageError,
    UnreadableError,
    is_whole,
    outline_of_npz,
    read_npz,
    status_of,
    write_npz,
)
from ddpmbench.data import pixel_store
from ddpmbench.errors import InputError
from ddpmbench.files import remove_if, replacing, writing_to

Arrays = dict[str, NDArray[Any]]
Gaps = list[tuple[int, int]]

MAX_LENGTH = 10**12
"""Names of shards have no digits for more."""
ARRIVAL_SECONDS = 120.0
"""A file that another machine wrote to a network file system is visible here after at most that."""
EARLIER = "an earlier version wrote it"
"""The fault of a shard that lacks an array."""
UNREADABLE = "cannot be read"
"""The fault of a shard, before the reason."""
_ELSEWHERE = "is of another run"
_KEPT = {
    _ELSEWHERE: "move it out of the folder",
    UNREADABLE: "try again when it can be read, or name a new `out`",
}
"""Faults of shards that are not removed, and their remedies."""
_START, _RUN, _DEVICE, _SECONDS = "shard_start", "shard_run", "shard_device", "shard_seconds"
_RECORD = (_START, _RUN, _DEVICE, _SECONDS)
_NAME = re.compile(r"(.+)-(\d{12})-(\d{12})\.npz")
_NAMED = 3  # shards in a message


class Store(Protocol):
    """Arrays by index: the same names and one entry per index."""

    def save(self, start: int, arrays: Arrays, *, seconds: float, device: str) -> None:
        """Keep the entries of indices start, start + 1, ...

        Args:
            start: the first index.
            arrays: (B, ...) each.
            seconds: that it took to compute them.
            device: that computed them.
        """

    def missing(self, length: int) -> Gaps:
        """The ranges of indices below `length` without entries."""

    def read(self, length: int, names: Collection[str] | None = None) -> Iterator[Arrays]:
        """The entries of indices below `length`, once each, in order.

        Args:
            length: the indices are below it.
            names: of the arrays to read; None reads all. There may be others besides.
        """

    def seconds(self, length: int) -> float:
        """How long the entries below `length` took, interruptions excluded."""

    def devices(self, length: int) -> set[str]:
        """The devices that computed the entries below `length`."""


class MemoryStore:
    """Arrays of a run without a folder, computed by one process in order."""

    def __init__(self) -> None:
        self._batches: list[Arrays] = []
        self._length = 0
        self._seconds = 0.0
        self._devices: set[str] = set()

    def save(self, start: int, arrays: Arrays, *, seconds: float, device: str) -> None:
        """Keep the next entries."""
        self._batches.append(arrays)
        self._length = start + length_of(arrays)
        self._seconds += seconds
        self._devices.add(device)

    def missing(self, length: int) -> Gaps:
        """The indices after the last entry."""
        return [(self._length, length)] if self._length < length else []

    def read(self, length: int, names: Collection[str] | None = None) -> Iterator[Arrays]:
        """Everything; a run in memory computes no more than it needs."""
        yield from self._batches

    def seconds(self, length: int) -> float:
        """How long everything took."""
        return self._seconds

    def devices(self, length: int) -> set[str]:
        """The devices that computed everything."""
        return self._devices


class FolderStore:
    """Arrays in the shards of one name in a folder; any number of processes may add shards."""

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        run: str | None = None,
        option: str = "`out`",
    ) -> None:
        """A store in a folder, which the first shard creates.

        Args:
            folder: holds the shards.
            name: the first part of their file names.
            run: the run that they belong to; None where it is not known, and not verified.
            option: that names the place of the folder, for messages.
        """
        self.folder, self._name, self._run, self._option = folder, name, run, option

    def save(self, start: int, arrays: Arrays, *, seconds: float, device: str) -> None:
        """Write a shard.

        Raises:
            InputError: the folder cannot be written.
        """
        record = {
            _START: np.int64(start),
            _RUN: np.str_(self._run or ""),
            _DEVICE: np.str_(device),
            _SECONDS: np.float64(seconds),
        }
        path = self.folder / self.name_of(start, start + length_of(arrays))
        with writing_to(self.folder.parent, self._option):
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                write_npz(temporary, {**arrays, **record})

    def missing(self, length: int, *, without: Collection[str] = ()) -> Gaps:
        """The ranges of indices below `length` that no shard covers, except these files."""
        shards = [shard for shard in self._shards(length) if shard[2].name not in without]
        return gaps_between(((start, stop) for start, stop, _ in shards), length)

    def read(self, length: int, names: Collection[str] | None = None) -> Iterator[Arrays]:
        """The entries of indices below `length`, once each, in order.

        Raises:
            InputError: a shard is damaged.
        """
        covered = 0
        for start, stop, path in self._shards(length):
            first, last = max(start, covered), min(stop, length)
            if first < last:
                arrays = _read(path, range(start, stop), names)
                yield {name: array[first - start : last - start] for name, array in arrays.items()}
                covered = last

    def seconds(self, length: int) -> float:
        """How long the entries below `length` took; a shard that extends beyond counts in part."""
        return sum(
            float(_load(path, _RECORD)[_SECONDS]) * (min(stop, length) - start) / (stop - start)
            for start, stop, path in self._shards(length)
        )

    def devices(self, length: int) -> set[str]:
        """The devices that computed the entries below `length`."""
        return {str(_load(path, _RECORD)[_DEVICE]) for *_, path in self._shards(length)}

    def name_of(self, start: int, stop: int) -> str:
        """The file name of the shard of indices start..stop - 1."""
        return f"{self._name}-{start:012d}-{stop:012d}.npz"

    def faults(
        self, length: int, names: Collection[str], *, by_headers: bool = False
    ) -> dict[str, str]:
        """The shards below `length` that cannot be used.

        Args:
            length: the indices are below it.
            names: of the arrays that are needed.
            by_headers: whether the checksums are left out, for callers that read no entries.

        Returns:
            The fault of each, by file name.
        """
        faults = {
            path.name: _fault(path, range(start, stop), self._run, names, by_header=by_headers)
            for start, stop, path in self._shards(length)
        }
        return {name: fault for name, fault in faults.items() if fault is not None}

    def last_saved(self, length: int) -> int:
        """When the last of the shards below `length` was written, nanoseconds of their clock."""
        return max((status_of(path).st_mtime_ns for *_, path in self._shards(length)), default=0)

    def drop_damaged(self) -> list[str]:
        """Remove the damaged shards of the folder; see `drop_damaged`."""
        return drop_damaged(self.folder, self._run, option=self._option)

    def _shards(self, length: int) -> list[tuple[int, int, Path]]:
        """Those that begin below `length`, in order, the longer of two first."""
        shards = [
            (indices.start, indices.stop, path)
            for name, indices, path in _shards_in(self.folder)
            if name == self._name
        ]
        return sorted(
            (shard for shard in shards if shard[0] < min(shard[1], length)),
            key=lambda shard: (shard[0], -shard[1]),
        )


def length_of(arrays: Arrays) -> int:
    """The number of entries."""
    return len(next(iter(arrays.values())))


def gaps_between(ranges: Iterable[tuple[int, int]], length: int) -> Gaps:
    """The ranges of indices below `length` that none covers.

    Args:
        ranges: from and up to, in the order of where they begin; they may overlap.
        length: the indices are below it.
    """
    gaps, covered = [], 0
    for start, stop in ranges:
        if start > covered:
            gaps.append((covered, start))
        covered = max(covered, stop)
    if covered < length:
        gaps.append((covered, length))
    return gaps


def num_missing(store: Store, length: int) -> int:
    """How many indices below `length` have no entry."""
    return sum(stop - start for start, stop in store.missing(length))


def wait_until_complete(store: Store, length: int) -> None:
    """Return when the shards that other processes wrote are visible here.

    Raises:
        InputError: they do not become visible.
    """
    deadline = time.monotonic() + ARRIVAL_SECONDS
    while gaps := store.missing(length):
        if time.monotonic() > deadline:
            raise InputError(
                f"`out`: entries {gaps[0][0]} to {gaps[0][1] - 1} were computed but are not there; "
                "all processes must write to one folder that all machines share"
            )
        time.sleep(0.5)


def gathered(store: Store, name: str, length: int) -> NDArray[Any]:
    """The array of this name, entries 0..length - 1; a large one is mapped from a file.

    Raises:
        InputError: a shard is damaged, or those of another process do not become visible.
    """
    wait_until_complete(store, length)
    portions = (arrays[name] for arrays in store.read(length, (name,)))
    first = next(portions)
    shape = (length, *first.shape[1:])
    return pixel_store.store(shape, itertools.chain([first], portions), first.dtype.type)


def drop_damaged(folder: Path, run: str | None, *, option: str = "`out`") -> list[str]:
    """Remove the damaged shards of a folder, so that their entries are computed again.

    Args:
        folder: holds shards, of any name; it need not exist.
        run: the run that they must belong to.
        option: that names the place of the folder, for messages.

    Returns:
        Their file names.

    Raises:
        InputError: the folder cannot be written, or holds a shard that cannot be read or belongs to
            another run; then none is removed.
    """
    with writing_to(folder.parent, option):
        faults = list(faults_in(folder, run))
        for path, fault in faults:
            for kind, remedy in _KEPT.items():
                if kind in fault:
                    raise InputError(f"{path}: {fault}; {remedy}")
        return [path.name for path, _ in faults if remove_if(path, _judge(path.name, run))]


def faults_in(folder: Path, run: str | None) -> Iterator[tuple[Path, str]]:
    """The shards of a folder, of any name, that cannot be used, and their faults.

    Args:
        folder: holds shards.
        run: the run that they must belong to.
    """
    for _, _, path in _shards_in(folder):
        fault = _judge(path.name, run)(path)
        # One that is not there any more was removed by another process.
        if fault and os.path.lexists(path):
            yield path, fault


def recomputed(names: list[str]) -> str:
    """That damaged shards were removed, in a line.

    Args:
        names: their file names.
    """
    more = len(names) - _NAMED
    listed = ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
    verb = "was damaged and is" if len(names) == 1 else "were damaged and are"
    return f"{listed} {verb} computed again"


def _shards_in(folder: Path) -> Iterator[tuple[str, range, Path]]:
    """The name, the indices and the path of every shard, by file name."""
    try:
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise InputError(f"{folder}: {UNREADABLE} ({(error.strerror or '').lower()})") from error
    for path in paths:
        if match := _NAME.fullmatch(path.name):
            yield match[1], range(int(match[2]), int(match[3])), path


def _judge(name: str, run: str | None) -> Callable[[Path], str | None]:
    """A function that returns the fault of a file as the shard of this name."""
    match = _NAME.fullmatch(name)
    assert match is not None
    return lambda path: _fault(path, range(int(match[2]), int(match[3])), run)


def _fault(
    path: Path,
    indices: range,
    run: str | None,
    names: Collection[str] = (),
    *,
    by_header: bool = False,
) -> str | None:
    try:
        lengths, record = outline_of_npz(path)
        fault = _fault_of(lengths, record, indices, run, names)
        if by_header and fault is None:
            return None
        return fault if is_whole(path) else "is damaged"
    except UnreadableError as error:
        return f"{UNREADABLE} ({error})"
    except DamageError:
        return "is damaged"


def _fault_of(
    lengths: dict[str, int], record: Arrays, indices: range, run: str | None, names: Collection[str]
) -> str | None:
    if not set(_RECORD) <= set(record):
        return "is damaged"
    if lacks := [name for name in names if name not in lengths]:
        return f"lacks {', '.join(lacks)}: {EARLIER}"
    for length in lengths.values():
        if length != len(indices):
            return f"holds {length} entries, not {len(indices)}"
    if record[_START] != indices.start:
        return "holds other entries than its name says"
    if run is not None and record[_RUN] != run:
        return _ELSEWHERE
    return None


def _read(path: Path, indices: range, names: Collection[str] | None) -> Arrays:
    arrays = _load(path, None if names is None else [*names, *_RECORD])
    start, *_ = [arrays.pop(name) for name in _RECORD]
    if start != indices.start or any(len(array) != len(indices) for array in arrays.values()):
        raise _damaged(path)
    return arrays


def _load(path: Path, names: Collection[str] | None) -> Arrays:
    try:
        arrays = read_npz(path, None if names is None else list(names), must_be_sealed=True)
    except UnreadableError as error:
        again = "try again when it can be read"
        raise InputError(f"{path}: {UNREADABLE} ({error}); {again}") from error
    except DamageError as error:
        raise _damaged(path) from error
    if not set(_RECORD) <= set(arrays):
        raise _damaged(path)
    return arrays


def _damaged(path: Path) -> InputError:
    return InputError(f"{path}: damaged; run the command of its folder again to compute it again")
