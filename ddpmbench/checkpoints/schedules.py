"""A noise schedule by its name and numbers, by a file, or by the tables beside the weights.

A schedule whose usual first and last beta depend on the project must name them, and a table that
may be something else is refused.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from ddpmbench.checkpoints.schedule_files import array_names, read_table
from ddpmbench.checkpoints.schedule_tables import (
    BUFFERS,
    ScheduleTables,
    betas_schedule,
    products_schedule,
)
from ddpmbench.checkpoints.weights import naming
from ddpmbench.diffusion.schedule import MAX_TIMESTEPS, NoiseSchedule
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
            return _FILES[name](read_table(Path(rest), name), name=name)
        name = name.replace("_", "-")
        name = _ALIASES.get(name, name)
        if name not in _NAMED:
            raise InputError(f"no schedule has this form; choose from {FORMS}")
        steps, *others = rest.split(":")
        if not steps:
            raise InputError(f"say how many steps it has, as in {name}:1000")
        return _NAMED[name](_steps(steps), [_number(text) for text in others])


def notes_on(form: str) -> tuple[str, ...]:
    """A line where a .npz file that a schedule is read from holds another schedule, too.

    Args:
        form: one that `read_schedule` has read.
    """
    name, _, rest = form.partition(":")
    if name not in _FILES:
        return ()
    tables = {}
    for other in array_names(path := Path(rest)):
        try:
            tables[other] = torch.from_numpy(read_table(path, other))
        except InputError:
            continue  # no table
    if name not in tables:
        return ()
    what = ScheduleTables.among(tables).contradiction
    return () if what is None else (f"`schedule={form}`: {what}; its {name} are taken",)


def _linear(steps: int, numbers: list[float]) -> NoiseSchedule:
    if not numbers and steps == 1000:
        return NoiseSchedule.linear(steps)
    usual = f"linear:{steps}:0.0001:0.02"
    _refuse_more(numbers, 2, "linear", steps)
    if not numbers:
        scaled = (
            f", linear:{steps}:{0.1 / steps:g}:{20 / steps:g} scaled with 1000 / T as Nichol & "
        )
        raise InputError(
            f"of {steps} steps it is one thing to some and another to others; name its first and "
            f"last beta: {usual} as Ho et al. have them"
            + (f"{scaled}Dhariwal do" if steps > 20 else "")
        )
    if len(numbers) == 1:
        raise InputError(f"name its first and its last beta, as in {usual}")
    start, end = map(_beta, numbers)
    return NoiseSchedule.linear(steps, beta_start=start, beta_end=end)


def _two_betas(
    make: Callable[..., NoiseSchedule], name: str, start: float = 1e-4, end: float = 0.02
) -> Callable[[int, list[float]], NoiseSchedule]:
    """The form `name:T:START:END` of a constructor; usual ends are its example."""

    def schedule(steps: int, numbers: list[float]) -> NoiseSchedule:
        _refuse_more(numbers, 2, name, steps)
        if len(numbers) != 2:
            example = f"{name}:{steps}:{start:g}:{end:g}"
            raise InputError(f"name its first and its last beta, as in {example}")
        return make(steps, beta_start=_beta(numbers[0]), beta_end=_beta(numbers[1]))

    return schedule


def _sqrt_linear(steps: int, numbers: list[float]) -> NoiseSchedule:
    _refuse_more(numbers, 1, "sqrt-linear", steps)
    if not numbers:
        raise InputError(f"name its last beta, as in sqrt-linear:{steps}:0.02")
    return NoiseSchedule.sqrt_linear(steps, beta_end=_beta(numbers[0]))


def _const(steps: int, numbers: list[float]) -> NoiseSchedule:
    _refuse_more(numbers, 1, "const", steps)
    if not numbers:
        raise InputError(f"name its beta, as in const:{steps}:0.02")
    return NoiseSchedule.warmup(steps, beta_end=_beta(numbers[0]), share=0.0)


def _cosine(steps: int, numbers: list[float]) -> NoiseSchedule:
    if not numbers:
        return NoiseSchedule.cosine(steps)
    _refuse_more(numbers, 2, "cosine", steps)
    if len(numbers) != 2 or not (0 <= numbers[0] < 1 and 0 < numbers[1] <= 100):
        raise InputError(
            f"it takes its steps alone, as in cosine:{steps}, or an offset in [0, 1) and a power, "
            f"as in cosine:{steps}:0.008:2"
        )
    return NoiseSchedule.cosine(steps, offset=numbers[0], power=numbers[1])


def _sigmoid(steps: int, numbers: list[float]) -> NoiseSchedule:
    if not numbers:
        return NoiseSchedule.sigmoid(steps)
    _refuse_more(numbers, 3, "sigmoid", steps)
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
    if not (text.isascii() and text.isdecimal()) or not text.strip("0") or text.lstrip("0") == "1":
        raise InputError(f"{text!r} is no number of steps; take a whole one from 2 on")
    digits = text.lstrip("0")
    if len(digits) > len(str(MAX_TIMESTEPS)) or int(digits) > MAX_TIMESTEPS:
        raise InputError(f"has too many steps; take from 2 to {MAX_TIMESTEPS:,}")
    return int(digits)


def _refuse_more(numbers: list[float], most: int, name: str, steps: int) -> None:
    """Refuse numbers behind those that a form takes."""
    if (more := len(numbers) - most) > 0:
        form = ":".join([name, str(steps), *(f"{number:.12g}" for number in numbers[:most])])
        count = "one number" if more == 1 else f"{more} numbers"
        raise InputError(f"has {count} too many; take {form}")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{text!r} is no number") from None


def _beta(value: float) -> float:
    if not 0 < value < 1:
        raise InputError(f"{value:g} is no beta, which lies strictly between 0 and 1")
    return value
