"""A noise schedule by its name and numbers, by a file, or by the tables beside the weights.

A schedule whose usual first and last beta depend on the project must name them, and a table that
may be something else is refused.
"""

import functools
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddpmbench.checkpoints.schedule_tables import (
    BUFFERS,
    ScheduleTables,
    betas_schedule,
    products_schedule,
)
from ddpmbench.checkpoints.weights import naming
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError

FORMS = (
    "linear:1000, linear:T:START:END, cosine:T, cosine:T:OFFSET:POWER, sigmoid:T, "
    "sigmoid:T:START:END:TAU, scaled-linear:T:START:END, sqrt-linear:T:END, "
    "geometric:T:START:END, const:T:BETA, warmup10:T:START:END, warmup50:T:START:END, "
    "sigmoid-betas:T:START:END, cosine-betas:T:START:END, betas:FILE, alphas_cumprod:FILE, "
    "buffers, buffers:T"
)
"""All forms, in one line."""
_ALIASES = {"quad": "scaled-linear", "squaredcos-cap-v2": "cosine"}
"""Their names in the code of Ho et al. and in diffusers."""

Array = NDArray[np.float64]

_FILES = {"betas": betas_schedule, "alphas_cumprod": products_schedule}
NO_TABLES = ScheduleTables()
"""The tables of a file without any."""


def read_schedule(form: str, tables: ScheduleTables = NO_TABLES) -> NoiseSchedule:
    """The schedule of a form.

    Args:
        form: one of `FORMS`: a name with its number of steps, and its first and last beta where
            it has them; a file of numbers (.npy, .npz or text), one a step, t = 1 first; or
            `buffers`, the tables beside the weights, with T where they have one entry more.
        tables: those beside the weights; they may be none.

    Raises:
        InputError: it is none of these, a number is missing or out of range, or the file does not
            hold such a table; the message begins with the form.
    """
    name, _, rest = form.partition(":")
    with naming(f"`schedule={form}`"):
        if name == BUFFERS:
            return tables.schedule(_steps(rest) if ":" in form else None)
        if name in _FILES:
            if not rest:
                raise InputError(f"name the file, as in {name}:FILE.npy")
            return _FILES[name](_numbers(Path(rest), name), name=name)
        name = name.replace("_", "-")
        name = _ALIASES.get(name, name)
        if name not in _NAMED:
            raise InputError(f"no schedule has this form; choose from {FORMS}")
        steps, *others = rest.split(":")
        if not steps:
            raise InputError(f"say how many steps it has, as in {name}:1000")
        return _NAMED[name](_steps(steps), [_number(text) for text in others])


def _linear(steps: int, numbers: list[float]) -> NoiseSchedule:
    if not numbers and steps == 1000:
        return NoiseSchedule.linear(steps)
    if len(numbers) != 2:
        scaled = f"linear:{steps}:{0.1 / steps:g}:{20 / steps:g}"
        raise InputError(
            f"of {steps} steps it is one thing to some and another to others; name its first and "
            f"last beta: linear:{steps}:0.0001:0.02 as Ho et al. have them, {scaled} scaled with "
            "1000 / T as Nichol & Dhariwal do"
        )
    start, end = map(_beta, numbers)
    return NoiseSchedule.linear(steps, beta_start=start, beta_end=end)


def _two_betas(
    make: Callable[..., NoiseSchedule], name: str, start: float = 1e-4, end: float = 0.02
) -> Callable[[int, list[float]], NoiseSchedule]:
    """The form `name:T:START:END` of a constructor; usual ends are its example."""

    def schedule(steps: int, numbers: list[float]) -> NoiseSchedule:
        if len(numbers) != 2:
            example = f"{name}:{steps}:{start:g}:{end:g}"
            raise InputError(f"name its first and its last beta, as in {example}")
        return make(steps, beta_start=_beta(numbers[0]), beta_end=_beta(numbers[1]))

    return schedule


def _sqrt_linear(steps: int, numbers: list[float]) -> NoiseSchedule:
    if len(numbers) != 1:
        raise InputError(f"name its last beta, as in sqrt-linear:{steps}:0.02")
    return NoiseSchedule.sqrt_linear(steps, beta_end=_beta(numbers[0]))


def _const(steps: int, numbers: list[float]) -> NoiseSchedule:
    if len(numbers) != 1:
        raise InputError(f"name its beta, as in const:{steps}:0.02")
    return NoiseSchedule.warmup(steps, beta_end=_beta(numbers[0]), share=0.0)


def _cosine(steps: int, numbers: list[float]) -> NoiseSchedule:
    if not numbers:
        return NoiseSchedule.cosine(steps)
    if len(numbers) != 2 or not (0 <= numbers[0] < 1 and 0 < numbers[1] <= 100):
        raise InputError(
            f"it takes its steps alone, as in cosine:{steps}, or an offset in [0, 1) and a power, "
            f"as in cosine:{steps}:0.008:2"
        )
    return NoiseSchedule.cosine(steps, offset=numbers[0], power=numbers[1])


def _sigmoid(steps: int, numbers: list[float]) -> NoiseSchedule:
    if not numbers:
        return NoiseSchedule.sigmoid(steps)
    if len(numbers) != 3 or not (-100 <= numbers[0] < numbers[1] <= 100 and numbers[2] >= 0.01):
        raise InputError(
            f"it takes its steps alone, as in sigmoid:{steps}, or two ends that rise and a "
            f"temperature, as in sigmoid:{steps}:-3:3:1"
        )
    start, end, temperature = numbers
    return NoiseSchedule.sigmoid(steps, start=start, end=end, temperature=temperature)


_NAMED: Mapping[str, Callable[[int, list[float]], NoiseSchedule]] = {
    "linear": _linear,
    "cosine": _cosine,
    "sigmoid": _sigmoid,
    "scaled-linear": _two_betas(NoiseSchedule.scaled_linear, "scaled-linear", 0.00085, 0.012),
    "sqrt-linear": _sqrt_linear,
    "geometric": _two_betas(NoiseSchedule.geometric, "geometric"),
    "const": _const,
    "warmup10": _two_betas(functools.partial(NoiseSchedule.warmup, share=0.1), "warmup10"),
    "warmup50": _two_betas(functools.partial(NoiseSchedule.warmup, share=0.5), "warmup50"),
    "sigmoid-betas": _two_betas(NoiseSchedule.sigmoid_betas, "sigmoid-betas"),
    "cosine-betas": _two_betas(NoiseSchedule.cosine_betas, "cosine-betas"),
}


def _steps(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text[:9]) < 2:
        raise InputError(f"{text!r} is no number of steps; take a whole one from 2 on")
    return int(text[:9])


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{text!r} is no number") from None


def _beta(value: float) -> float:
    if not 0 < value < 1:
        raise InputError(f"{value:g} is no beta, which lies strictly between 0 and 1")
    return value


def _numbers(path: Path, name: str) -> Array:
    """(T,) the numbers of a file."""
    try:
        if path.suffix in (".npy", ".npz"):
            with path.open("rb") as file:
                content = np.load(file, allow_pickle=False)
                values = content if path.suffix == ".npy" else _only(content, name)
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
