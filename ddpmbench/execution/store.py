"""Arrays by index, kept in shards: npz files of consecutive indices, or memory.

A shard is named by its indices. It is written to a temporary file and then moved, so an existing
shard is complete. A killed run computes the indices that no shard covers, whichever process wrote
the others. A shard holds its checksum, its first index and the run that it belongs to, and all of
them are verified on every read.
"""

import dataclasses
import itertools
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ddpmbench.checksums import (
    DamageError,
    UnreadableError,
    is_whole,
    outline_of_npz,
    read_npz,
    write_npz,
)
from ddpmbench.data import pixel_store
from ddpmbench.errors import InputError, listed
from ddpmbench.files import remove_if, replacing, writing_to

Arrays = dict[str, NDArray[Any]]
Gaps = list[tuple[int, int]]
T = TypeVar("T")

ARRIVAL_SECONDS = 120.0
"""A file that another machine wrote to a network file system becomes visible within this time."""
EARLIER = "an earlier version wrote it"
"""The fault of a shard that lacks an array."""
UNREADABLE = "cannot be read"
"""The fault of an unreadable shard, before the reason."""
_DAMAGED, _ELSEWHERE = "is damaged", "is of another run"
_KEPT = {
    _ELSEWHERE: "move it out of the folder",
    UNREADABLE: "try again when it can be read, or name a new `out`",
}
"""Faults of shards that are not removed, and the remedies."""
_START, _RUN, _DEVICE, _SECONDS = "shard_start", "shard_run", "shard_device", "shard_seconds"
_RECORD = (_START, _RUN, _DEVICE, _SECONDS)
_NAME = re.compile(r"(.+)-(\d{12})-(\d{12})\.npz")


class MemoryStore:
    """Arrays of a run without a folder, computed by one process in order; see `FolderStore`."""

    def __init__(self) -> None:
        self._batches: list[Arrays] = []
        self._length = 0
        self._seconds = 0.0
        self._devices: set[str] = set()

    def save(self, start: int, arrays: Arrays, *, seconds: float, device: str) -> None:
        """Store the entries of indices start, start + 1, ..."""
        self._batches.append(arrays)
        self._length = start + length_of(arrays)
        self._seconds += seconds
        self._devices.add(device)

    def missing(self, length: int) -> Gaps:
        """The indices after the last entry."""
        return [(self._length, length)] if self._length < length else []

    def read(self, length: int, names: Collection[str] | None = None) -> Iterator[Arrays]:
        """All entries; a run in memory computes no more than it needs."""
        yield from self._batches

    def seconds(self, length: int) -> float:
        """Seconds that all entries took."""
        return self._seconds

    def devices(self, length: int) -> set[str]:
        """The devices that computed all entries."""
        return self._devices


class FolderStore:
    """Arrays in the shards of one name in a folder; any number of processes may add shards."""

    def __init__(
        self, folder: Path, name: str, *, run: str | None = None, option: str = "`out`"
    ) -> None:
        """A store in a folder, which the first shard creates.

        Args:
            folder: holds the shards.
            name: the first part of their file names.
            run: the run of the shards; None where it is unknown, and not verified.
            option: the option for the folder, for messages.
        """
        self.folder, self._name, self._run, self._option = folder, name, run, option

    def save(self, start: int, arrays: Arrays, *, seconds: float, device: str) -> None:
        """Store the entries of indices start, start + 1, ... as a shard.

        Args:
            start: the first index.
            arrays: (B, ...) each.
            seconds: time to compute them.
            device: the device that computed them.

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

    def missing(self, length: int) -> Gaps:
        """The ranges of indices below `length` that no shard covers."""
        return gaps_between(((shard.start, shard.stop) for shard in self._shards(length)), length)

    def read(self, length: int, names: Collection[str] | None = None) -> Iterator[Arrays]:
        """The entries of indices below `length`, in order and without repetition.

        Args:
            length: upper limit of the indices, exclusive.
            names: names of the arrays to read, of all that are stored; None reads all.

        Raises:
            InputError: a shard is damaged.
        """
        covered = 0
        for shard in self._shards(length):
            first, last = max(shard.start, covered), min(shard.stop, length)
            if first < last:
                part = slice(first - shard.start, last - shard.start)
                yield {name: array[part] for name, array in shard.read(names).items()}
                covered = last

    def seconds(self, length: int) -> float:
        """Seconds that the entries below `length` took; a longer shard counts in proportion."""
        return sum(
            float(shard.record()[_SECONDS])
            * (min(shard.stop, length) - shard.start)
            / (shard.stop - shard.start)
            for shard in self._shards(length)
        )

    def devices(self, length: int) -> set[str]:
        """The devices that computed the entries below `length`."""
        return {str(shard.record()[_DEVICE]) for shard in self._shards(length)}

    def name_of(self, start: int, stop: int) -> str:
        """The file name of the shard of indices start..stop - 1."""
        return f"{self._name}-{start:012d}-{stop:012d}.npz"

    def faults(
        self, length: int, names: Collection[str], *, by_headers: bool = False
    ) -> dict[str, str]:
        """The unusable shards below `length`.

        Args:
            length: upper limit of the indices, exclusive.
            names: names of the required arrays.
            by_headers: whether to skip the checksums, for callers that read no entries.

        Returns:
            The fault of each, by file name.
        """
        faults = {
            shard.path.name: shard.fault(self._run, names, by_header=by_headers)
            for shard in self._shards(length)
        }
        return {name: fault for name, fault in faults.items() if fault is not None}

    def drop_damaged(self) -> list[str]:
        """Remove the damaged shards of the folder; see `drop_damaged`."""
        return drop_damaged(self.folder, self._run, option=self._option)

    def _shards(self, length: int) -> "list[_Shard]":
        """The shards that begin below `length`, in order, longer ones first."""
        return sorted(
            (
                shard
                for shard in _shards_in(self.folder)
                if shard.name == self._name and shard.start < min(shard.stop, length)
            ),
            key=lambda shard: (shard.start, -shard.stop),
        )


Store = MemoryStore | FolderStore


def length_of(arrays: Arrays) -> int:
    """The number of entries."""
    return len(next(iter(arrays.values())))


def gaps_between(ranges: Iterable[tuple[int, int]], length: int) -> Gaps:
    """The ranges of indices below `length` that no range covers.

    Args:
        ranges: start and stop of each, sorted by start; they may overlap.
        length: upper limit of the indices, exclusive.
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
    """Number of indices below `length` without an entry."""
    return sum(stop - start for start, stop in store.missing(length))


def wait_until_complete(store: Store, length: int) -> None:
    """Wait until the shards that other processes wrote are visible here.

    Raises:
        InputError: they do not become visible in time.
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
        folder: holds shards of any name; it need not exist.
        run: the run to which they must belong.
        option: the option for the folder, for messages.

    Returns:
        The file names of the removed shards.

    Raises:
        InputError: the folder cannot be written, or holds a shard that cannot be read or belongs to
            another run; no shard is removed then.
    """
    with writing_to(folder.parent, option):
        faults = list(_faults_in(folder, run))
        for shard, fault in faults:
            for kind, remedy in _KEPT.items():
                if kind in fault:
                    raise InputError(f"{shard.path}: {fault}; {remedy}")
        return [
            shard.path.name
            for shard, _ in faults
            if remove_if(shard.path, partial(_fault_at, shard=shard, run=run))
        ]


def _fault_at(path: Path, shard: "_Shard", run: str | None) -> str | None:
    return dataclasses.replace(shard, path=path).fault(run)


def recomputed(names: list[str]) -> str:
    """A line about damaged shards that were removed.

    Args:
        names: their file names.
    """
    verb = "was damaged and is" if len(names) == 1 else "were damaged and are"
    return f"{listed(names)} {verb} computed again"


def _faults_in(folder: Path, run: str | None) -> "Iterator[tuple[_Shard, str]]":
    for shard in _shards_in(folder):
        fault = shard.fault(run)
        # A shard that has vanished was removed by another process.
        if fault and os.path.lexists(shard.path):
            yield shard, fault


def _shards_in(folder: Path) -> "Iterator[_Shard]":
    """All shards of a folder, by file name."""
    try:
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise InputError(f"{folder}: {UNREADABLE} ({(error.strerror or '').lower()})") from error
    for path in paths:
        if match := _NAME.fullmatch(path.name):
            yield _Shard(path, match[1], int(match[2]), int(match[3]))


@dataclasses.dataclass(frozen=True)
class _Shard:
    """A file named as a shard of this store, for the indices start..stop - 1."""

    path: Path
    name: str
    start: int
    stop: int

    def fault(
        self, run: str | None = None, names: Collection[str] = (), *, by_header: bool = False
    ) -> str | None:
        """Why it cannot be used; None if it can."""
        try:
            lengths, record = outline_of_npz(self.path)
            fault = self._fault_of_header(lengths, record, run, names)
            if by_header and fault is None:
                return None
            return fault if is_whole(self.path) else _DAMAGED
        except UnreadableError as error:
            return f"{UNREADABLE} ({error})"
        except DamageError:
            return _DAMAGED

    def _fault_of_header(
        self,
        lengths: Mapping[str, int],
        record: Mapping[str, NDArray[Any]],
        run: str | None,
        names: Collection[str],
    ) -> str | None:
        if not set(_RECORD) <= set(record):
            return _DAMAGED
        if lacks := [name for name in names if name not in lengths]:
            return f"lacks {', '.join(lacks)}: {EARLIER}"
        for length in lengths.values():
            if length != self.stop - self.start:
                return f"holds {length} entries, not {self.stop - self.start}"
        if record[_START] != self.start:
            return "holds other entries than its name says"
        return _ELSEWHERE if run is not None and record[_RUN] != run else None

    def record(self) -> Mapping[str, NDArray[Any]]:
        """Its first index, its run, and the device and seconds that it took."""
        return self._whole(outline_of_npz)[1]

    def read(self, names: Collection[str] | None) -> Arrays:
        """The arrays of these names, or all of them."""
        arrays = self._whole(partial(read_npz, names=names), names or ())
        return {name: array for name, array in arrays.items() if name not in _RECORD}

    def _whole(self, read: Callable[[Path], T], names: Collection[str] = ()) -> T:
        """What a function reads from the file, which has no fault."""
        if fault := self.fault(names=names):
            raise self._unusable(fault)
        try:
            return read(self.path)
        except UnreadableError as error:  # since it was verified
            raise self._unusable(f"{UNREADABLE} ({error})") from error
        except DamageError as error:
            raise self._unusable(_DAMAGED) from error

    def _unusable(self, fault: str) -> InputError:
        if UNREADABLE in fault:
            return InputError(f"{self.path}: {fault}; try again when it can be read")
        return InputError(
            f"{self.path}: damaged; run the command of its folder again to compute it again"
        )
