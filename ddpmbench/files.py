"""Atomic writes of files and folders, and the hash of a file."""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from ddpmbench.errors import InputError, path_of

_TEMPORARY = re.compile(r".+\.\d+\.ddpmbench\.tmp", re.DOTALL)
_STEM = 80  # characters of a name in its temporary file's; names have a limit


def is_temporary(path: Path) -> bool:
    """Whether this is a temporary file of a process, running or killed."""
    return _TEMPORARY.fullmatch(path.name) is not None


def _temporary(place: Path) -> Path:
    return place.with_name(f"{place.name[:_STEM]}.{os.getpid()}.ddpmbench.tmp")


JOINED = "holds other data before its zip archive, as joined files do; pass each file by itself"
"""The problem of an archive that is not `is_alone`, and its remedy."""


def is_alone(archive: zipfile.ZipFile | None) -> bool:
    """Whether a zip archive, if it is one, begins where its file does.

    Zip readers look for the last archive in a file, and pass over what stands before it.
    """
    members = [] if archive is None else archive.infolist()
    return min((member.header_offset for member in members), default=0) == 0


LONGEST_NAME = 255
"""Longest file name that file systems take, in bytes."""


def named_path(out: str | Path, name: str = "out") -> Path:
    """A user's path for a result, or of the parameter with another name.

    Raises:
        InputError: it is empty, which would mean the current folder, or no name of a file.
    """
    path = path_of(name, out)
    if not str(out).strip():
        raise InputError(f"`{name}`: is empty; name a folder or a file")
    if "\0" in str(out):
        raise InputError(f"`{name}`: holds a null character; choose another name")
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
        raise InputError(
            f"`{name}`: a name of more than {LONGEST_NAME} bytes; choose a shorter one"
        )
    return path


@contextlib.contextmanager
def replacing(place: Path) -> Iterator[Path]:
    """A temporary path to write to; on success the file replaces `place`."""
    temporary = _temporary(place)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(place)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_if(place: Path, fault: Callable[[Path], object]) -> bool:
    """Remove a faulty file, even while other processes may replace it with a good one.

    The file is moved aside before it is examined, so that exactly this file is removed.

    Args:
        place: the file.
        fault: examines a path; returns a false value for a good file.

    Returns:
        Whether this process removed it.

    Raises:
        OSError: it cannot be removed.
    """
    aside = _temporary(place)
    try:
        place.rename(aside)
    except FileNotFoundError:
        return False
    removes = False
    try:
        removes = bool(fault(aside))
    finally:
        if not removes:
            aside.replace(place)
    if removes:
        aside.unlink(missing_ok=True)
    return removes


@contextlib.contextmanager
def scratch_folder(place: Path) -> Iterator[Path]:
    """A temporary folder beside `place`, removed afterwards."""
    temporary = _temporary(place)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def move_into_place(source: Path, place: Path) -> None:
    """Move a complete file or folder to its place, replacing an existing one.

    Args:
        source: on the same file system, in a scratch folder.
        place: where it goes; an existing folder is replaced as a whole.
    """
    for file in sorted(source.rglob("*")) if source.is_dir() else [source]:
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
    if not (source.is_dir() and place.is_dir()):
        source.replace(place)
        return
    before = source.with_name(f"{source.name}.before")
    try:
        place.replace(before)
        source.replace(place)
    except BaseException:  # also on interruption: the scratch folder will be removed
        if before.exists() and not place.exists():
            before.replace(place)
        raise


@contextlib.contextmanager
def os_errors() -> Iterator[None]:
    """Raise errors of the file system as OSError.

    safetensors raises its own error, and `torch.save` a RuntimeError after an OSError.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            code = int(number[1])
            raise OSError(code, os.strerror(code)) from error
        raise


@contextlib.contextmanager
def writing_to(folder: Path, option: str = "`out`") -> Iterator[None]:
    """Turn an OSError into an InputError that names the folder.

    Args:
        folder: the folder written to.
        option: the parameter or variable that named it; empty to name only the folder.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        named = f"{option} {folder}".strip()
        raise InputError(f"{named}: cannot be written ({reason.lower()})") from error


def check_writable(folder: Path, option: str = "`out`") -> None:
    """Refuse a folder that cannot be written to, before the results are computed.

    Args:
        folder: the folder.
        option: the parameter that named it.

    Raises:
        InputError: it is missing, not a folder, or not writable.
    """
    with writing_to(folder, option):
        if not stat.S_ISDIR(folder.stat().st_mode):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
