"""Files that hold their own checksum, so that a changed bit is noticed.

One rename moves a file with its checksum into a folder, so that neither a kill nor another process
can separate them. The checksum is the sha256 of all bytes but its own 64 hexadecimal digits, which
are where readers of the format ignore them: in an npz in the comment at the end, in JSON in the
last field. A csv has no such place; `summary.json`, written after the tables, holds their
checksums.
"""

import contextlib
import functools
import hashlib
import io
import json
import os
import stat
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ddpmbench.errors import damaged

CHECKSUMS = "checksums"
"""Last field of a JSON file: checksums of other files by name, then its own."""
_DIGITS = 64
_MARK = b"ddpmbench sha256 "
_NONE = _MARK + b"0" * _DIGITS  # placeholder for the digits
_JSON_END = b'"\n  }\n}\n'
_CHUNK = 1 << 20


class DamageError(Exception):
    """A file does not hold what was written."""


class UnreadableError(DamageError):
    """A file cannot be opened, so its content is unknown."""


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Name a file of a run whose content is damaged, or is not what this version writes.

    Raises:
        InputError: a `DamageError`, or an error of a value that is missing or of another type.
    """
    try:
        yield
    except (DamageError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise damaged(path) from error


def seal(path: Path) -> None:
    """Put the checksum into a file that was just written: an npz, or JSON from `write_json`.

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


def is_whole(path: Path) -> bool:
    """Whether a file matches its checksum; one that has none is damaged.

    The result is cached until the file changes.

    Raises:
        UnreadableError: it is missing, not a regular file, or cannot be read.
    """
    status = status_of(path)
    try:
        return _is_whole(path, status.st_ino, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise UnreadableError(_reason(error)) from error


def status_of(path: Path) -> os.stat_result:
    """Status of a regular file; opening any other kind may block.

    Raises:
        UnreadableError: it is missing, or not a regular file.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise UnreadableError(_reason(error)) from error
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableError("it is no plain file")
    return status


def _reason(error: OSError | ValueError) -> str:
    """What the system says of a file; a name with a null character is a ValueError."""
    return (getattr(error, "strerror", None) or str(error)).lower()


@functools.lru_cache(maxsize=1 << 16)
def _is_whole(path: Path, inode: int, size: int, changed: int) -> bool:
    with path.open("rb") as file:
        place = _place(file)
        if place < 0:
            return False
        file.seek(place)
        return file.read(_DIGITS) == _digest(file, place)


def _place(file: IO[bytes]) -> int:
    """Position of the checksum in a file; negative if the file is too short for one."""
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
        UnreadableError: it is missing, not a regular file, or cannot be read.
    """
    status_of(path)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UnreadableError(_reason(error)) from error


def damaged_record(archive: zipfile.ZipFile) -> str | None:
    """The first record of a zip archive that fails its CRC-32; None if all pass.

    A stored CRC-32 of 0 is from a writer that computes none, and passes.

    Args:
        archive: with stored, uncompressed records.

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
        path: of the file; to replace another, use `files.replacing`.
        record: of JSON values.
        tables: checksums of other files by name, to store in the record.

    Raises:
        OSError: it cannot be written.
    """
    checksums = {**(tables or {}), "this": _NONE.decode()}
    text = json.dumps({**record, CHECKSUMS: checksums}, indent=2) + "\n"
    path.write_text(text, encoding="utf-8")
    seal(path)


def read_json(path: Path) -> dict[str, Any]:
    """The record of a JSON file whose checksum holds.

    Its field `CHECKSUMS` holds the checksums of other files.

    Raises:
        DamageError: the file is missing or damaged, or holds no record.
    """
    sealed = is_whole(path)
    record = unverified_json(path)
    if CHECKSUMS not in record:
        raise DamageError("no checksum: of an earlier version, or changed by hand")
    if not sealed:
        raise DamageError("its checksum does not hold")
    return record


def unverified_json(path: Path) -> dict[str, Any]:
    """The record of a JSON file, whether or not its checksum holds.

    Raises:
        DamageError: the file is missing, or holds no record.
    """
    status_of(path)
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


def read_npz(path: Path, names: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
    """The arrays of an npz file whose checksum holds.

    Args:
        path: of the file.
        names: of the arrays that are needed; None for all.

    Raises:
        DamageError: the file is missing or damaged, or lacks an array.
    """
    if not is_whole(path):
        raise DamageError("its checksum does not hold")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in (archive.files if names is None else names)}
    except _UNREADABLE as error:
        raise _no_arrays(error) from error


def outline_of_npz(path: Path) -> tuple[Mapping[str, int], Mapping[str, NDArray[Any]]]:
    """The lengths of the arrays of an npz file, and its scalars; no array is loaded.

    The file must have a checksum, which is not verified. The result is cached until the file
    changes.

    Raises:
        UnreadableError: the file is missing, not a regular file, or cannot be read.
        DamageError: not an npz file.
    """
    status = status_of(path)
    return _outline(path, status.st_ino, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=1 << 12)
def _outline(
    path: Path, inode: int, size: int, changed: int
) -> tuple[Mapping[str, int], Mapping[str, NDArray[Any]]]:
    try:
        lengths, scalars = {}, {}
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if len(archive.zip.comment) != len(_NONE):
                raise DamageError("it has no checksum")
            for name in archive.files:
                with archive.zip.open(f"{name}.npy") as array:
                    start = array.read(_HEADER_START)
                    shape = _shape(start + array.read(int.from_bytes(start[-2:], "little")))
                if shape:
                    lengths[name] = int(shape[0])
                else:
                    scalars[name] = archive[name]
        return lengths, scalars
    except _UNREADABLE as error:
        raise _no_arrays(error) from error


_HEADER_START = np.lib.format.MAGIC_LEN + 2
"""Bytes of an array before its header; the last two are the header's length."""


@functools.lru_cache(maxsize=1 << 10)
def _shape(header: bytes) -> tuple[int, ...]:
    """The shape that a header states; numpy takes long to parse one, and most are alike."""
    file = io.BytesIO(header)
    np.lib.format.read_magic(file)
    shape: tuple[int, ...] = np.lib.format.read_array_header_1_0(file)[0]
    return shape


def _no_arrays(error: Exception) -> DamageError:
    if isinstance(error, OSError) and error.errno:
        return UnreadableError(_reason(error))
    return DamageError("it holds no such arrays")
