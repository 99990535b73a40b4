"""Noise schedules in files of numbers, and checks of such numbers."""

import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from ddpmbench.data.file_kinds import require_regular
from ddpmbench.diffusion.named_schedules import MAX_TIMESTEPS
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError, listed

T = TypeVar("T")
Array = NDArray[np.float64]
_BINARY = (".npy", ".npz")
_READ = "a table is read from .npy, .npz, or text with one number per line"
_MOST_BYTES = 64 * 2**20
"""Most bytes of a file and of one array; a million numbers with all digits take less."""
_LONGEST_WORD = 24
_SEPARATOR = re.compile(r"\s*,\s*|\s+")


def read_table(path: Path, name: str) -> Array:
    """(T,) float64 numbers from a file.

    Args:
        path: of a .npy or .npz file, or of text.
        name: of the array, in a .npz file with several.

    Raises:
        InputError: the file cannot be read, or is not a 1-D array of real numbers.
    """
    if path.suffix.lower() not in _BINARY:
        return _from_text(_bytes_of(path))
    values = _from_numpy(path, lambda content: _chosen(content, name))
    if values.dtype.kind not in "fiu":
        kind = "text" if values.dtype.kind in "US" else _short(str(values.dtype))
        raise InputError(f"holds {kind}, not real numbers; save the numbers as float64")
    if values.dtype.kind == "f" and values.itemsize < 4:
        raise InputError(_too_few_bits(8 * values.itemsize))
    return values.astype(np.float64)


def array_names(path: Path) -> list[str]:
    """The names of the arrays in a .npz file; empty for any other.

    Raises:
        InputError: the file cannot be read.
    """
    if path.suffix.lower() not in _BINARY:
        return []
    return _from_numpy(path, lambda content: list(content) if isinstance(content, NpzFile) else [])


def _chosen(content: NDArray[Any] | NpzFile, name: str) -> NDArray[Any]:
    """The named array of an archive, or its only one."""
    if not isinstance(content, NpzFile):
        return content
    names = list(content)
    if name not in names and len(names) != 1:
        raise InputError(f"holds {listed(names) or 'nothing'}; name one of its arrays {name}")
    chosen = name if name in names else names[0]
    sizes = {e.filename: e.file_size for e in (content.zip.infolist() if content.zip else [])}
    if sizes.get(f"{chosen}.npy", 0) > _MOST_BYTES:
        raise InputError(_too_large(f"its array {chosen} has"))
    values: NDArray[Any] = content[chosen]
    if not isinstance(values, np.ndarray):
        raise TypeError("a file in the archive that is no array")
    return values


def _from_numpy(path: Path, read: Callable[[Any], T]) -> T:
    """The result of `read` for an open .npy or .npz file."""
    _bytes_of(path, most=0)
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")  # numpy warns of headers from old versions of Python
            return read(np.load(file, allow_pickle=False))
    except InputError:
        raise
    # numpy and zipfile raise many kinds of errors on damaged bytes
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
    except (OSError, ValueError) as error:  # ValueError: an invalid file name
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot be read ({reason}); {_READ}") from error


def _too_large(has: str) -> str:
    return f"{has} more than {_MOST_BYTES // 2**20} MB, and no schedule has as many; {_READ}"


def _too_few_bits(bits: int) -> str:
    return (
        f"its numbers have {bits} bits, too few for a schedule; save them as they are computed in "
        "float32 or float64, or name the schedule"
    )


def _from_text(content: bytes) -> Array:
    """The numbers of a text: one per line, all on one line, or a JSON list."""
    try:
        text = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise InputError(f"is no text in UTF-8; {_READ}") from error
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = _SEPARATOR.split(line.strip().removesuffix(",").rstrip()) if line.strip() else []
        for word in words:
            try:
                float(word)
            except ValueError:
                raise InputError(
                    f"line {number}: {_short(word)!r} is no number; {_READ}, and no header"
                ) from None
        rows += [words] if words else []
    most = max(map(len, rows), default=0)
    if len(rows) > 1 and most > 1:
        raise InputError(
            f"has {len(rows):,} lines and up to {most:,} numbers on one of them; save the one "
            "column that is meant, one number per line"
        )
    return np.array([word for row in rows for word in row], dtype=np.float64)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_WORD else f"{text[:_LONGEST_WORD]}..."


# ---- the meaning of a row of numbers

_LEAST_KNOWN = 10
"""Least numbers that are not evenly spaced by chance."""
_EVEN = 0.01
"""Largest distance of evenly spaced numbers from a line, as a share of its rise."""
_LOG_LEAST_OF_BETAS = math.log(1e-30)
"""Least log of alphas_cumprod; usual schedules end above 1e-18."""
_ROUNDING = 2.0**-23
"""Of float32."""


def betas_schedule(values: Array, *, name: str = "betas") -> NoiseSchedule:
    """The schedule of (T,) betas, t = 1 first.

    Raises:
        InputError: they are not betas, or look like something else.
    """
    _check_row(values)
    inside = (values > 0) & (values < 1)
    if values[0] == 0 and inside[1:].all():
        raise InputError(
            "its first number is 0, which is for no noise: leave it out, t = 1 comes first"
        )
    if not inside.all():
        raise InputError(
            "not all of its numbers lie strictly between 0 and 1, as betas do; save them alone, "
            "or say what they are, as in alphas_cumprod:FILE"
        )
    if values[0] > values[-1]:
        raise InputError(
            f"its numbers fall from {values[0]:g} to {values[-1]:g}, and betas rise from the data "
            "on: reverse them, or say what they are, as in alphas_cumprod:FILE (alphas are "
            "1 - beta)"
        )
    ends = float(np.log1p(-values).sum())
    if ends < _LOG_LEAST_OF_BETAS or (values[-1] > 0.9 and _look_like_no_betas(values)):
        raise InputError(
            f"as betas they leave 1e{ends / math.log(10):.0f} of the data's variance and look like "
            "something else; pass the products of 1 - beta, t = 1 first, as alphas_cumprod:FILE"
        )
    return NoiseSchedule.from_betas(values, name=name)


def products_schedule(values: Array, *, name: str = "alphas_cumprod") -> NoiseSchedule:
    """The schedule of (T,) products of 1 - beta, t = 1 first.

    Raises:
        InputError: they are not such products, or look like something else.
    """
    _check_row(values)
    if values[0] == 1 and len(values) > 4 and (values.astype(np.float16) == values).all():
        raise InputError(_too_few_bits(16))
    if values[0] == 1 and values[1] < 1:
        raise InputError(
            "its first number is 1, which is that of no step: leave it out, t = 1 comes first"
        )
    if not ((values > 0) & (values < 1)).all() or not (np.diff(values) < 0).all():
        raise InputError(
            "its numbers do not fall strictly from below 1 to above 0, as products of 1 - beta do; "
            "save the products of t = 1 to T, or say what they are, as in betas:FILE"
        )
    if values[-1] > 0.5 and _look_like_alphas(values):
        raise InputError(
            f"its last number is {values[-1]:g}, more than half of the data's variance: these "
            "look like alphas = 1 - beta; take their cumulative product"
        )
    return NoiseSchedule.from_alphas_cumprod(values, name=name)


FILES = {"betas": betas_schedule, "alphas_cumprod": products_schedule}
"""The forms of a schedule in a file of numbers."""


def _check_row(values: Array) -> None:
    if values.shape == (1,):
        raise InputError("holds one number, of a single step; a schedule has two or more")
    if values.ndim != 1 or len(values) < 2:
        raise InputError(
            f"its shape is {values.shape}, not one row with a number per step; save T numbers, (T,)"
        )
    if len(values) > MAX_TIMESTEPS:
        raise InputError(
            f"has {len(values):,} numbers, more than {MAX_TIMESTEPS:,} steps; name the schedule"
        )
    if not np.isfinite(values).all():
        raise InputError("not all of its numbers are finite; save them as they were computed")


def _betas_of(products: Array) -> Array:
    betas: Array = -np.diff(products, prepend=1.0) / np.append(1.0, products[:-1])
    return betas


def _look_like_no_betas(values: Array) -> bool:
    """Whether rising numbers imply evenly spaced betas if they are something else, and only then.

    They may be 1 - beta or products of these, the last timestep first, 1 minus the products, or
    square roots.
    """
    if values[0] > 0.5:
        return _unevenness(1 - values[::-1]) < _EVEN
    products = (values[::-1], 1 - values, 1 - values**2)
    # below 0.1, rounding to float32 dominates
    implied = [values**2, *(_betas_of(row[row > 0.1]) for row in products)]
    return _unevenness(values) >= _EVEN and min(map(_unevenness, implied)) < _EVEN


def _unevenness(row: Array) -> float:
    """The distance of positive rising numbers from a line, as a share of its rise.

    The least for the numbers, their square roots or their logarithms.
    """
    if len(row) < _LEAST_KNOWN or not (row > 0).all() or not row[-1] > row[0]:
        return math.inf
    shares = []
    for scaled in (row, np.sqrt(row), np.log(row)):
        line = np.linspace(scaled[0], scaled[-1], len(scaled))
        shares.append(float(np.abs(scaled - line).max() / (scaled[-1] - scaled[0])))
    return min(shares)


def _look_like_alphas(values: Array) -> bool:
    """Whether falling numbers are 1 - beta of single timesteps and not their products.

    Then 1 - values, its square root or its logarithm is evenly spaced; as products they would imply
    a variance that falls after the first timestep.
    """
    betas, rest = _betas_of(values), 1 - values
    if betas[1] < betas[0] - 4 * _ROUNDING:
        return True
    scales = ((rest, 0 * rest + 1), (np.sqrt(rest), 1 / np.sqrt(rest)), (np.log(rest), 1 / rest))
    return len(values) > 2 and any(
        (np.abs(np.diff(row, 2)) <= 1e-3 * np.diff(row).mean() + 4 * _ROUNDING * error[1:-1]).all()
        for row, error in scales
    )
