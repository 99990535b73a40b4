"""Writing files so that whatever is on disk is whole, and what cannot be written is said."""

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from ddpmbench.errors import InputError

_TEMPORARY = re.compile(r".+\.\d+\.ddpmbench\.tmp", re.DOTALL)
_STEM = 80  # characters of a name that its temporary file has; names have a limit


def is_temporary(path: Path) -> bool:
    """Whether a name is that of a file which a process is writing, or was when it was killed."""
    return _TEMPORARY.fullmatch(path.name) is not None


def _temporary(place: Path) -> Path:
    return place.with_name(f"{place.name[:_STEM]}.{os.getpid()}.ddpmbench.tmp")


def named_path(out: str | Path) -> Path:
    """The place that a caller names for a result.

    Raises:
        InputError: it is empty, which would be the current folder.
    """
    if not str(out).strip():
        raise InputError("out: is empty; name a folder or a file")
    return Path(out)


@contextlib.contextmanager
def replacing(place: Path) -> Iterator[Path]:
    """A path to write to; the file takes the place of `place` if nothing fails."""
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
    """Remove a file with a fault, even while other processes may put a good one in its place.

    It is moved aside and judged there, so that what is removed is what was judged.

    Args:
        place: the file.
        fault: what is wrong with it, at whatever path; false where nothing is.

    Returns:
        Whether it was removed, by this process.

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
    """An empty folder beside `place` in which something is made that will be there; then gone."""
    temporary = _temporary(place)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def move_into_place(made: Path, place: Path) -> None:
    """Put a file or folder that is whole in the place of what may be there.

    Args:
        made: on the same file system, in a scratch folder.
        place: where it goes; a folder there is replaced as a whole.
    """
    for file in sorted(made.rglob("*")) if made.is_dir() else [made]:
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
    if not (made.is_dir() and place.is_dir()):
        made.replace(place)
        return
    before = made.with_name(f"{made.name}.before")
    try:
        place.replace(before)
        made.replace(place)
    except BaseException:  # an interruption, too: the scratch folder and all in it will be gone
        if before.exists() and not place.exists():
            before.replace(place)
        raise


@contextlib.contextmanager
def os_errors() -> Iterator[None]:
    """Raise what the file system refuses as the OSError it is, whoever writes.

    safetensors raises an error of its own, and `torch.save` a RuntimeError after the OSError of the
    open file it is given.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        if of_system := re.search(r"\(os error (\d+)\)", str(error)):
            code = int(of_system[1])
            raise OSError(code, os.strerror(code)) from error
        raise


@contextlib.contextmanager
def writing_to(folder: Path, option: str = "`out`") -> Iterator[None]:
    """Turn what the file system refuses into an InputError that names the folder.

    Args:
        folder: what is written.
        option: what the user names it with; empty where the folder alone is named.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        named = f"{option} {folder}".strip()
        raise InputError(f"{named}: cannot be written ({reason.lower()})") from error
