"""What `--schedule` says: a noise schedule by its name and numbers, by a file, or by the weights.

Nothing is guessed that changes a number: a schedule whose usual ends depend on who trained it must
name its ends, and a table that may be something else is refused.
"""

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddpmbench.errors import InputError
from ddpmbench.inputs.checkpoints.schedule_tables import (
    BUFFERS,
    ScheduleTables,
    betas_schedule,
    products_schedule,
)
from ddpmbench.inputs.checkpoints.weights import naming
from ddpmbench.process.schedule import NoiseSchedule

FORMS = (
    "linear:1000, linear:T:START:END, cosine:T, sigmoid:T, scaled-linear:T:START:END, "
    "sqrt-linear:T:END, sigmoid-betas:T:START:END, betas:FILE, alphas_cumprod:FILE, buffers"
)
"""All that the option takes, in one line."""

Array = NDArray[np.float64]

_FILES = {"betas": betas_schedule, "alphas_cumprod": products_schedule}
NO_TABLES = ScheduleTables()
"""Those of a file that has none."""


def read_schedule(option: str, tables: ScheduleTables = NO_TABLES) -> NoiseSchedule:
    """The schedule that the option says.

    Args:
        option: one of `FORMS`: a name with its number of steps, and its first and last beta where
            it has them; a file of numbers (.npy, .npz or text), one a step, t = 1 first; or
            `buffers`, the tables beside the weights.
        tables: those beside the weights; they may be none.

    Raises:
        InputError: it is none of these, a number is missing or makes no schedule, or a file does
            not hold what it is said to; the line begins with the option.
    """
    name, _, rest = option.partition(":")
    with naming(f"--schedule {option}"):
        if option == BUFFERS:
            return tables.schedule()
        if name in _FILES:
            if not rest:
                raise InputError(f"name the file, as in {name}:FILE.npy")
            return _FILES[name](_numbers(Path(rest), name), name=name)
        if name not in _NAMED:
            raise InputError(f"no schedule has this form; choose from {FORMS}")
        numbers = rest.split(":") if rest else []
        if not numbers:
            raise InputError(f"say how many steps it has, as in {name}:1000")
        return _NAMED[name](_steps(numbers[0]), [_beta(text) for text in numbers[1:]])


def _linear(steps: int, ends: list[float]) -> NoiseSchedule:
    if not ends and steps == 1000:
        return NoiseSchedule.linear(steps)
    if len(ends) != 2:
        scaled = f"linear:{steps}:{0.1 / steps:g}:{20 / steps:g}"
        raise InputError(
            f"of {steps} steps it is one thing to some and another to others; name its first and "
            f"last beta: linear:{steps}:0.0001:0.02 as Ho et al. have them, {scaled} scaled with "
            "1000 / T as Nichol & Dhariwal do"
        )
    return NoiseSchedule.linear(steps, beta_start=ends[0], beta_end=ends[1])


def _scaled_linear(steps: int, ends: list[float]) -> NoiseSchedule:
    start, end = _two(ends, f"scaled-linear:{steps}:0.00085:0.012")
    return NoiseSchedule.scaled_linear(steps, beta_start=start, beta_end=end)


def _sigmoid_betas(steps: int, ends: list[float]) -> NoiseSchedule:
    start, end = _two(ends, f"sigmoid-betas:{steps}:0.0001:0.02")
    return NoiseSchedule.sigmoid_betas(steps, beta_start=start, beta_end=end)


def _sqrt_linear(steps: int, ends: list[float]) -> NoiseSchedule:
    if len(ends) != 1:
        raise InputError(f"name its last beta, as in sqrt-linear:{steps}:0.02")
    return NoiseSchedule.sqrt_linear(steps, beta_end=ends[0])


def _cosine(steps: int, ends: list[float]) -> NoiseSchedule:
    _none(ends, f"cosine:{steps}")
    return NoiseSchedule.cosine(steps)


def _sigmoid(steps: int, ends: list[float]) -> NoiseSchedule:
    _none(ends, f"sigmoid:{steps}")
    return NoiseSchedule.sigmoid(steps)


_NAMED: Mapping[str, Callable[[int, list[float]], NoiseSchedule]] = {
    "linear": _linear,
    "cosine": _cosine,
    "sigmoid": _sigmoid,
    "scaled-linear": _scaled_linear,
    "sqrt-linear": _sqrt_linear,
    "sigmoid-betas": _sigmoid_betas,
}


def _two(ends: list[float], example: str) -> tuple[float, float]:
    if len(ends) != 2:
        raise InputError(f"name its first and its last beta, as in {example}")
    return ends[0], ends[1]


def _none(ends: list[float], example: str) -> None:
    if ends:
        raise InputError(f"it takes its steps and nothing else, as in {example}")


def _steps(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text[:9]) < 2:
        raise InputError(f"{text!r} is no number of steps; take a whole one from 2 on")
    return int(text[:9])


def _beta(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"{text!r} is no number") from None
    if not 0 < value < 1:
        raise InputError(f"{text} is no beta, which lies strictly between 0 and 1")
    return value


def _numbers(path: Path, name: str) -> Array:
    """(T,) the numbers of a file."""
    try:
        if path.suffix in (".npy", ".npz"):
            with path.open("rb") as file:
                found = np.load(file, allow_pickle=False)
                values = found if path.suffix == ".npy" else _only(found, name)
        else:
            text = path.read_text(encoding="utf-8").replace(",", " ").split()
            values = np.array([float(word) for word in text])
        values = np.asarray(values, dtype=np.float64)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})") from error
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"no numbers of a .npy, .npz or text file ({error})") from error
    return values


def _only(archive: Mapping[str, Array], name: str) -> Array:
    """The array of an archive that has the name, or its only one."""
    if name in archive:
        return archive[name]
    names = list(archive)
    if len(names) != 1:
        raise InputError(f"holds {', '.join(names) or 'nothing'}; name one of its arrays {name}")
    return archive[names[0]]
