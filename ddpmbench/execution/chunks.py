"""Arrays that come in parts: what is made of image i lies at position i, whoever made it.

A part is an npz file named by its positions. Whatever is on disk is whole, because every file is
written beside its place and then moved there; so a run that was killed goes on with the positions
that no part covers. A part holds its checksum and its first position: one that has changed since is
none.
"""

import contextlib
import dataclasses
import functools
import itertools
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ddpmbench.checksums import (
    DamageError,
    UnreadableError,
    is_whole,
    lengths_of_npz,
    read_npz,
    write_npz,
)
from ddpmbench.data.pixel_store import store
from ddpmbench.errors import InputError
from ddpmbench.execution.devices import device_name
from ddpmbench.execution.distributed import STRIPES, Ranks
from ddpmbench.execution.engine import BatchSize
from ddpmbench.execution.term_store import gaps_between, wait_until_there
from ddpmbench.execution.terms import RunListener, RunProgress
from ddpmbench.files import remove_if, replacing, writing_to

Arrays = dict[str, NDArray[Any]]

MOST_POSITIONS = 10**9
"""Which the names of parts have no digits for."""
_NAMED = 3  # damaged files in a message
_SECONDS, _DEVICE, _START = "part_seconds", "part_device", "part_start"
_RECORD = (_SECONDS, _DEVICE, _START)
_NAME = re.compile(r"(\d{9})-(\d{9})\.npz")


class PartStore(Protocol):
    """Arrays of one value a position, kept as they come."""

    def save(self, start: int, arrays: Arrays, *, seconds: float, device: str) -> None:
        """Keep what was made at positions start, start + 1, ...: arrays of one length."""

    def missing(self, length: int) -> list[tuple[int, int]]:
        """The ranges of positions below `length` that are not there yet."""

    def parts(self, length: int) -> Iterator[Arrays]:
        """What is there of the positions below `length`, once each, in order."""

    def seconds(self, length: int) -> float:
        """How long the parts below `length` took, all interruptions left out."""

    def devices(self, length: int) -> set[str]:
        """Where they were made."""


class MemoryParts:
    """Keeps the arrays of a run that has no folder."""

    def __init__(self) -> None:
        self._parts: list[Arrays] = []
        self._length = 0
        self._seconds = 0.0
        self._devices: set[str] = set()

    def save(self, start: int, arrays: Arrays, *, seconds: float, device: str) -> None:
        """Keep what follows that kept so far."""
        self._parts.append(arrays)
        self._length = start + _length(arrays)
        self._seconds += seconds
        self._devices.add(device)

    def missing(self, length: int) -> list[tuple[int, int]]:
        """What is not there yet."""
        return [(self._length, length)] if self._length < length else []

    def parts(self, length: int) -> Iterator[Arrays]:
        """Everything that is there; it holds nothing but what was asked for."""
        yield from self._parts

    def seconds(self, length: int) -> float:
        """How long it took."""
        return self._seconds

    def devices(self, length: int) -> set[str]:
        """Where it was made."""
        return self._devices


class FolderParts:
    """Parts in a folder; several processes may add to them."""

    def __init__(self, folder: Path, *, option: str = "--out") -> None:
        """Look at a folder, which is made when the first part is saved.

        Args:
            folder: holds the parts and nothing else.
            option: what the user names its place with.
        """
        self.folder, self._option = folder, option

    def save(self, start: int, arrays: Arrays, *, seconds: float, device: str) -> None:
        """Keep what was made at positions start, start + 1, ...

        Raises:
            InputError: the folder cannot be written.
        """
        path = self.folder / f"{start:09d}-{start + _length(arrays):09d}.npz"
        record = {
            _SECONDS: np.float64(seconds),
            _DEVICE: np.str_(device),
            _START: np.int64(start),
        }
        with writing_to(self.folder.parent, self._option):
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                write_npz(temporary, {**arrays, **record})

    def missing(self, length: int) -> list[tuple[int, int]]:
        """The gaps: ranges of positions below `length` that no part covers."""
        ranges = ((start, stop) for start, stop, _ in self._ranges(length))
        return gaps_between(ranges, length)

    def parts(self, length: int) -> Iterator[Arrays]:
        """What is there of the positions below `length`, once each, in order.

        Raises:
            InputError: a part is damaged.
        """
        covered = 0
        for start, stop, path in self._ranges(length):
            first, last = max(start, covered), min(stop, length)
            if first >= last:
                continue
            arrays = self._read(path, start, stop)
            covered = last
            yield {name: array[first - start : last - start] for name, array in arrays.items()}

    def seconds(self, length: int) -> float:
        """How long the parts below `length` took, all interruptions left out."""
        return sum(float(self._record(path)[_SECONDS]) for *_, path in self._ranges(length))

    def devices(self, length: int) -> set[str]:
        """Where they were made."""
        return {str(self._record(path)[_DEVICE]) for *_, path in self._ranges(length)}

    def drop_damaged(self) -> list[str]:
        """Remove the parts that cannot be used, so that they are made again.

        Returns:
            Their names.

        Raises:
            InputError: the folder cannot be written, or has a part that cannot be read, or that an
                earlier version wrote; then none is removed.
        """
        parts = self._ranges(MOST_POSITIONS)
        with writing_to(self.folder.parent, self._option):
            damaged = [part for part in parts if self._is_damaged(part[2], *part[:2])]
            return [
                f"{self.folder.name}/{path.name}"
                for start, stop, path in damaged
                if remove_if(path, functools.partial(self._is_damaged, start=start, stop=stop))
            ]

    def _is_damaged(self, path: Path, start: int, stop: int) -> bool:
        """Whether a file is there, but not as the part of these positions; none is loaded."""
        try:
            if (whole := is_whole(path)) is False:
                return True
            lengths = lengths_of_npz(path)
            if whole is None and _START not in lengths:
                raise InputError(
                    f"{path}: has no checksum: an earlier version wrote it; name a new "
                    f"{self._option}"
                )
            lacks = any(lengths.pop(name, 0) is not None for name in _RECORD)
            if not whole or lacks or set(lengths.values()) != {stop - start}:
                return True
            return int(read_npz(path, (_START,))[_START]) != start
        except UnreadableError as error:
            if not os.path.lexists(path):
                return False  # another process removed it
            raise InputError(
                f"{path}: cannot be read ({error}); try again when it can, or name a new "
                f"{self._option}"
            ) from error
        except DamageError:
            return True

    def _ranges(self, length: int) -> list[tuple[int, int, Path]]:
        """Of every part that begins below `length`, in order, the longer of two first."""
        found = []
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if match := _NAME.fullmatch(path.name):
                start, stop = map(int, match.groups())
                if start < min(stop, length):
                    found.append((start, stop, path))
        return sorted(found, key=lambda part: (part[0], -part[1]))

    def _read(self, path: Path, start: int, stop: int) -> Arrays:
        arrays = _load(path)
        record = {name: arrays.pop(name, None) for name in _RECORD}
        lengths = {array.shape[:1] for array in arrays.values()}
        is_whole = all(value is not None for value in record.values())
        if not is_whole or record[_START] != start or lengths != {(stop - start,)}:
            raise _damaged(path)
        return arrays

    def _record(self, path: Path) -> Arrays:
        return _load(path, (_SECONDS, _DEVICE))


def gathered(kept: PartStore, name: str, length: int) -> NDArray[Any]:
    """The array of this name at positions 0..length - 1; a large one lies in a file.

    Raises:
        InputError: a part is damaged, or what another process wrote does not come to be seen here.
    """
    wait_until_there(lambda: kept.missing(length), what="parts")
    parts = (arrays[name] for arrays in kept.parts(length))
    first = next(parts)
    shape = (length, *first.shape[1:])
    return store(shape, itertools.chain([first], parts), first.dtype.type)


def made_again(dropped: list[str]) -> str:
    """That damaged files of a run were removed, in a line.

    Args:
        dropped: their names.
    """
    more = len(dropped) - _NAMED
    named = ", ".join(dropped[:_NAMED]) + (f" and {more} more" if more > 0 else "")
    how = "was damaged and is" if len(dropped) == 1 else "were damaged and are"
    return f"{named} {how} computed again"


def blocks(gaps: list[tuple[int, int]], rows: int) -> list[tuple[int, int]]:
    """The gaps cut at the multiples of `rows`.

    So a position shares its network calls with the same neighbors whoever makes it, and whatever
    was there before.
    """
    cut = []
    for start, stop in gaps:
        edges = [start, *range(start - start % rows + rows, stop, rows), stop]
        cut += list(itertools.pairwise(edges))
    return cut


def _length(arrays: Arrays) -> int:
    return len(next(iter(arrays.values())))


def _load(path: Path, names: tuple[str, ...] | None = None) -> Arrays:
    try:
        return read_npz(path, names, must_be_sealed=True)
    except UnreadableError as error:
        raise InputError(f"{path}: cannot be read ({error}); try again when it can") from error
    except DamageError as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> InputError:
    return InputError(f"{path}: damaged; run the command of its folder again to make it again")


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
