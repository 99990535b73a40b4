"""Tables of a noise schedule in files of their own: .npy, .npz, or text with one number a line."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from ddpmbench.data.file_kinds import require_regular
from ddpmbench.errors import InputError, listed

T = TypeVar("T")
Array = NDArray[np.float64]

_BINARY = (".npy", ".npz")
_READ = "a table is read from .npy, .npz, or text with one number a line"
_MOST_BYTES = 64 * 2**20
"""Of a file and of one of its arrays; a million numbers with all their digits take less."""
_LONGEST_WORD = 24


def read_table(path: Path, name: str) -> Array:
    """(T,) float64 numbers of a file.

    Args:
        path: of a .npy or .npz file, or else of text.
        name: of the array in a .npz file that holds several.

    Raises:
        InputError: the file cannot be read, or holds anything but one row of real numbers.
    """
    if path.suffix.lower() not in _BINARY:
        return _from_text(_bytes_of(path))
    return _real(_from_numpy(path, lambda content: _chosen(content, name)))


def array_names(path: Path) -> list[str]:
    """The names of the arrays in a .npz file; none in any other.

    Raises:
        InputError: the file cannot be read.
    """
    if path.suffix.lower() not in _BINARY:
        return []
    return _from_numpy(path, lambda content: list(content) if isinstance(content, NpzFile) else [])


def _chosen(content: NDArray[Any] | NpzFile, name: str) -> NDArray[Any]:
    """The array of an archive that has the name, or its only one."""
    if not isinstance(content, NpzFile):
        return content
    names = list(content)
    if name not in names and len(names) != 1:
        raise InputError(f"holds {listed(names) or 'nothing'}; name one of its arrays {name}")
    chosen = name if name in names else names[0]
    entries = [] if content.zip is None else content.zip.infolist()
    if any(
        entry.filename == f"{chosen}.npy" and entry.file_size > _MOST_BYTES for entry in entries
    ):
        raise InputError(_too_large(f"its array {chosen} has"))
    values: NDArray[Any] = content[chosen]
    if not isinstance(values, np.ndarray):
        raise TypeError("a file in the archive that is no array")
    return values


def _from_numpy(path: Path, read: Callable[[Any], T]) -> T:
    """What is read of a .npy or .npz file while it is open."""
    _bytes_of(path, most=0)
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")  # numpy warns of headers by old versions of Python
            return read(np.load(file, allow_pickle=False))
    except InputError:
        raise
    except OSError as error:
        raise _unreadable(error) from error
    # numpy and zipfile raise whatever the damaged bytes lead to
    except Exception as error:
        raise InputError(
            f"holds no plain numbers, or is damaged; {_READ}: write it with np.save(PATH, values)"
        ) from error


def _bytes_of(path: Path, most: int = _MOST_BYTES) -> bytes:
    """The first bytes of a regular file that is no larger than any table."""
    try:
        require_regular(path)
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(_too_large("has"))
        with path.open("rb") as file:
            return file.read(most)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise _unreadable(error) from error


def _unreadable(error: Exception) -> InputError:
    return InputError(f"cannot be read ({getattr(error, 'strerror', None) or error}); {_READ}")


def _too_large(has: str) -> str:
    return f"{has} more than {_MOST_BYTES // 2**20} MB, and no schedule has as many; {_READ}"


def _real(values: NDArray[Any]) -> Array:
    """Real numbers of 32 bits or more, as float64."""
    if values.dtype.kind not in "fiu":
        kind = "text" if values.dtype.kind in "US" else _short(str(values.dtype))
        raise InputError(f"holds {kind}, not real numbers; save the numbers as float64")
    if values.dtype.kind == "f" and values.itemsize < 4:
        raise InputError(
            f"its numbers have {8 * values.itemsize} bits, too few for a schedule; save them as "
            "they are computed in float32 or float64, or name the schedule"
        )
    return values.astype(np.float64)


def _from_text(content: bytes) -> Array:
    """The numbers of a text: one a line, all on one line, or a JSON list."""
    try:
        text = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise InputError(f"is no text in UTF-8; {_READ}") from error
    if text.startswith("["):
        return _from_json(text)
    rows = [
        [(number, word) for word in _words(line)]
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip()
    ]
    values = np.array([_number(*place) for row in rows for place in row], dtype=np.float64)
    most = max(map(len, rows), default=0)
    if len(rows) > 1 and most > 1:
        raise InputError(
            f"has {len(rows):,} lines and up to {most:,} numbers on one of them; save the one "
            "column that is meant, one number a line"
        )
    return values


def _words(line: str) -> list[str]:
    """What stands between commas or blanks; a comma at the end is followed by none."""
    fields = line.strip().removesuffix(",").split(",")
    return [word for field in fields for word in (field.split() or [""])]


def _number(line: int, word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise InputError(
            f"line {line}: {_short(word)!r} is no number; {_READ}, and no header"
        ) from None


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_WORD else f"{text[:_LONGEST_WORD]}..."


def _from_json(text: str) -> Array:
    try:
        values = json.loads(text)
        if all(type(value) in (int, float) for value in values):
            return np.array([float(value) for value in values])
    except (ValueError, RecursionError, OverflowError):
        pass
    raise InputError(f"is no plain list of numbers; {_READ}")
