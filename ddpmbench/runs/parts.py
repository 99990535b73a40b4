"""Arrays that come in parts: what is made of image i lies at position i, whoever made it.

A part is an npz file named by its positions. Whatever is on disk is whole, because every file is
written beside its place and then moved there; so a run that was killed goes on with the positions
that no part covers. A part holds its checksum and its first position: one that has changed since is
none.
"""

import functools
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ddpmbench.array_store import store
from ddpmbench.checksums import (
    DamageError,
    UnreadableError,
    is_whole,
    lengths_of_npz,
    read_npz,
    write_npz,
)
from ddpmbench.errors import InputError
from ddpmbench.files import remove_if, replacing, writing_to
from ddpmbench.runs.positions import gaps_between, wait_until_there

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
