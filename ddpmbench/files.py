"""Writing files so that whatever is on disk is whole, and what cannot be written is said."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ddpmbench.errors import InputError


@contextlib.contextmanager
def replacing(place: Path) -> Iterator[Path]:
    """A path to write to; the file takes the place of `place` if nothing fails."""
    temporary = place.with_name(f"{place.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(place)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(folder: Path, option: str = "--out") -> Iterator[None]:
    """Turn what the file system refuses into an InputError that names the folder.

    Args:
        folder: what is written.
        option: what the user names it with.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{option} {folder}: cannot be written ({reason.lower()})") from error
