"""Files that show when a bit of them has changed: the checksum lies in the file itself.

A file and its checksum come to a folder by one rename, so no kill and no other process can part
them. The checksum is the sha256 of all bytes but its own 64 hexadecimal digits, which lie where the
readers of the format pass them by: in an npz in the comment at its end, in JSON in the last field.
A csv has no such place; `summary.json`, which is written after the tables, names theirs.
"""

import functools
import hashlib
import json
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

CHECKSUMS = "checksums"
"""The last field of a JSON file: those of other files by their names, then its own."""
_DIGITS = 64
_MARK = b"ddpmbench sha256 "
_NONE = _MARK + b"0" * _DIGITS  # before it is known
_TRACE = re.compile(rb"ddpmbench sh|a256 ")
"""One of these remains in a mark with one changed bit."""
_JSON_END = b'"\n  }\n}\n'
_CHUNK = 1 << 20


class DamageError(Exception):
    """A file cannot be read as it was written."""


class UnreadableError(DamageError):
    """A file cannot be opened, so its content is unknown."""


def seal(path: Path) -> None:
    """Put its checksum into a file that was just written: an npz, or JSON of `write_json`.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    if is_zip:
        with zipfile.ZipFile(path, "a") as archive:
            archive.comment = _NONE
    with path.open("r+b") as file:
        place = _place(file)
        digest = _digest(file, place)
        file.seek(place)
        file.write(digest)


def is_whole(path: Path) -> bool | None:
    """Whether the checksum of a file holds; None if it has none.

    The result is cached until the file changes.

    Raises:
        UnreadableError: it is not there, is no plain file, or cannot be read.
    """
    status = status_of(path)
    try:
        return _is_whole(path, status.st_ino, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise UnreadableError(_reason(error)) from error


def status_of(path: Path) -> os.stat_result:
    """Status of a regular file; opening another kind may block.

    Raises:
        UnreadableError: it is not there, or is no plain file.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise UnreadableError(_reason(error)) from error
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableError("it is no plain file")
    return status


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


@functools.lru_cache(maxsize=1 << 16)
def _is_whole(path: Path, inode: int, size: int, changed: int) -> bool | None:
    with path.open("rb") as file:
        place = _place(file)
        if place >= 0:
            file.seek(place)
            if file.read(_DIGITS) == _digest(file, place):
                return True
        length = len(_NONE) + len(_JSON_END)
        for begin in (place - len(_MARK), size - length):
            file.seek(max(0, begin))
            if _TRACE.search(file.read(length)):
                return False
        return None


def _place(file: IO[bytes]) -> int:
    """Where the checksum of a file begins; negative where it is too short to have one."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - len(_JSON_END)))
    return size - _DIGITS - (len(_JSON_END) if file.read() == _JSON_END else 0)


def _digest(file: IO[bytes], place: int) -> bytes:
    """The checksum of all but the digits at `place`."""
    digest = hashlib.sha256()
    file.seek(0)
    remaining = place
    while remaining and (chunk := file.read(min(remaining, _CHUNK))):
        digest.update(chunk)
        remaining -= len(chunk)
    file.seek(place + _DIGITS)
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest().encode()


def checksum(path: Path) -> str:
    """The sha256 of a whole file.

    Raises:
        UnreadableError: it is not there, is no plain file, or cannot be read.
    """
    status_of(path)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UnreadableError(_reason(error)) from error


def damaged_record(archive: zipfile.ZipFile) -> str | None:
    """The first record of a zip archive whose CRC-32 does not hold; None if all hold.

    A stored CRC-32 of 0 is that of a writer that computes none, and passes.

    Args:
        archive: of records that are stored, not compressed.

    Raises:
        OSError: the archive cannot be read.
        RuntimeError: a record is encrypted or needs another version.
    """
    for member in archive.infolist():
        if member.CRC == 0:
            continue
        try:
            with archive.open(member) as record:
                while record.read(_CHUNK):
                    pass
        except (zipfile.BadZipFile, EOFError):
            return member.filename
    return None


def write_json(
    path: Path, record: Mapping[str, Any], tables: Mapping[str, str] | None = None
) -> None:
    """Write a record with its checksum.

    Args:
        path: of the file; in the place of another only with `files.replacing`.
        record: as JSON can hold it.
        tables: checksums of other files by name, to store in the record.

    Raises:
        OSError: it cannot be written.
    """
    of = {**(tables or {}), "this": _NONE.decode()}
    text = json.dumps({**record, CHECKSUMS: of}, indent=2) + "\n"
    path.write_text(text, encoding="utf-8")
    seal(path)


def read_json(path: Path) -> dict[str, Any]:
    """The record of a JSON file, whose checksum holds if it has one.

    Its field `CHECKSUMS` holds the checksums of other files.

    Raises:
        DamageError: the file is not there or damaged, or holds no record.
    """
    if is_whole(path) is False:
        raise DamageError("its checksum does not hold")
    try:
        record = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_record)
    except (OSError, ValueError, RecursionError) as error:
        raise DamageError("it is no JSON") from error
    if not isinstance(record, dict):
        raise DamageError("it is no record")
    return record


def _record(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError("a name occurs twice")
    return record


def write_npz(path: Path, arrays: Mapping[str, Any], *, compressed: bool = False) -> None:
    """Write arrays with their checksum.

    Raises:
        OSError: they cannot be written.
    """
    with path.open("wb") as file:
        (np.savez_compressed if compressed else np.savez)(file, **arrays)
    seal(path)


_UNREADABLE = (
    *(OSError, EOFError, ValueError, TypeError, LookupError, MemoryError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)
"""Errors of numpy and zipfile for damaged archives."""


def read_npz(
    path: Path, names: Sequence[str] | None = None, *, must_be_sealed: bool = False
) -> dict[str, NDArray[Any]]:
    """The arrays of an npz file, whose checksum holds if it has one.

    Args:
        path: of the file.
        names: of the arrays that are needed; None for all.
        must_be_sealed: whether one without a checksum counts as damaged.

    Raises:
        DamageError: the file is not there or damaged, or lacks an array.
    """
    if not is_whole(path) and (must_be_sealed or is_whole(path) is False):
        raise DamageError("its checksum does not hold")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in names or archive.files}
    except _UNREADABLE as error:
        raise _no_arrays(error) from error


def outline_of_npz(path: Path) -> tuple[dict[str, int], dict[str, NDArray[Any]]]:
    """The lengths of the arrays of an npz file, and its scalars; no array is loaded.

    It must have a checksum, which is not verified.

    Raises:
        UnreadableError: the file is not there, is no plain file, or cannot be read.
        DamageError: it is no npz file.
    """
    status_of(path)
    try:
        lengths, scalars = {}, {}
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if len(archive.zip.comment) != len(_NONE):
                raise DamageError("it has no checksum")
            for name in archive.files:
                with archive.zip.open(f"{name}.npy") as array:
                    np.lib.format.read_magic(array)
                    shape = np.lib.format.read_array_header_1_0(array)[0]
                if shape:
                    lengths[name] = int(shape[0])
                else:
                    scalars[name] = archive[name]
        return lengths, scalars
    except _UNREADABLE as error:
        raise _no_arrays(error) from error


def _no_arrays(error: Exception) -> DamageError:
    if isinstance(error, OSError) and error.errno:
        return UnreadableError(_reason(error))
    return DamageError("it holds no such arrays")
