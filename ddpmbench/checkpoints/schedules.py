"""Noise schedules by name and numbers, or from a file of numbers.

If the usual first and last beta depend on the project, they must be given; a table that may be
something else is refused.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from ddpmbench.checkpoints.schedule_files import (
    FILES,
    array_names,
    read_table,
)
from ddpmbench.checkpoints.schedule_tables import BUFFERS, ScheduleTables
from ddpmbench.checkpoints.weights import naming
from ddpmbench.diffusion.named_schedules import MAX_TIMESTEPS
from ddpmbench.diffusion.parameterization import Process
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError

FORMS = (
    "linear:1000, linear:T:START:END, cosine:T, cosine:T:OFFSET:POWER, sigmoid:T, "
    "sigmoid:T:START:END:TAU, scaled-linear:T:START:END, sqrt-linear:T:END, "
    "geometric:T:START:END, const:T:BETA, warmup10:T:START:END, warmup50:T:START:END, "
    "sigmoid-betas:T:START:END, cosine-betas:T:START:END, betas:FILE, alphas_cumprod:FILE, "
    "buffers, buffers:T, ve:SIGMA_MIN:SIGMA_MAX:LEVELS, flow:T"
)
"""All forms in one line."""
_ALIASES = {"quad": "scaled-linear", "squaredcos-cap-v2": "cosine"}
"""Names of schedules in the code of Ho et al. and in diffusers."""


@dataclasses.dataclass(frozen=True)
class _Form:
    """The form of a named schedule: its number of timesteps, and further numbers.

    Attributes:
        make: called with the number of timesteps, and the further numbers by name.
        names: of the numbers.
        example: of the numbers.
        takes: the numbers in words.
        is_optional: whether they may be left out.
    """

    make: Callable[..., NoiseSchedule]
    names: tuple[str, ...] = ("beta_start", "beta_end")
    example: str = "0.0001:0.02"
    takes: str = "its first and its last beta"
    is_optional: bool = False

    def read(self, name: str, steps: int, numbers: list[float]) -> NoiseSchedule:
        if not numbers and self.is_optional:
            return self.make(steps)
        alone = f", or its steps alone, as in {name}:{steps}" if self.is_optional else ""
        example = f"takes {self.takes}, as in {name}:{steps}:{self.example}{alone}"
        if len(numbers) != len(self.names):
            raise InputError(example)
        given = dict(zip(self.names, numbers, strict=True))
        for parameter, number in given.items():
            if parameter.startswith("beta") and not 0 < number < 1:
                raise InputError(f"{number:g} is no beta, which lies strictly between 0 and 1")
        if not all(_ALLOWED[parameter](given) for parameter in given.keys() & _ALLOWED.keys()):
            raise InputError(example)
        return self.make(steps, **given)


_ALLOWED: Mapping[str, Callable[[Mapping[str, float]], bool]] = {
    "offset": lambda given: 0 <= given["offset"] < 1,
    "power": lambda given: 0 < given["power"] <= 100,
    "start": lambda given: -100 <= given["start"] < given["end"] <= 100,
    "temperature": lambda given: given["temperature"] >= 0.01,
}
_NAMED = {
    "linear": _Form(NoiseSchedule.linear),
    "cosine": _Form(
        NoiseSchedule.cosine,
        ("offset", "power"),
        "0.008:2",
        "an offset in [0, 1) and a power",
        is_optional=True,
    ),
    "sigmoid": _Form(
        NoiseSchedule.sigmoid,
        ("start", "end", "temperature"),
        "-3:3:1",
        "two ends that rise and a temperature",
        is_optional=True,
    ),
    "scaled-linear": _Form(NoiseSchedule.scaled_linear, example="0.00085:0.012"),
    "sqrt-linear": _Form(NoiseSchedule.sqrt_linear, ("beta_end",), "0.02", "its last beta"),
    "geometric": _Form(NoiseSchedule.geometric),
    "const": _Form(
        functools.partial(NoiseSchedule.warmup, share=0.0), ("beta_end",), "0.02", "its beta"
    ),
    "warmup10": _Form(functools.partial(NoiseSchedule.warmup, share=0.1)),
    "warmup50": _Form(functools.partial(NoiseSchedule.warmup, share=0.5)),
    "sigmoid-betas": _Form(NoiseSchedule.sigmoid_betas),
    "cosine-betas": _Form(NoiseSchedule.cosine_betas),
}


def read_schedule(form: str, tables: ScheduleTables | None = None) -> NoiseSchedule:
    """The schedule of a form.

    Args:
        form: one of `FORMS`: a name with the number of timesteps, and the first and last beta if it
            has them; a file of numbers (.npy, .npz or text), one per timestep, t = 1 first;
            `buffers`, the tables beside the weights, with T if they have one more entry; or a
            forward process with its noise levels.
        tables: the tables beside the weights.

    Raises:
        InputError: an unknown form, a number is missing or out of range, or the file does not hold
            such a table; the message begins with the form.
    """
    name, _, rest = form.partition(":")
    with naming(f"`{'process' if name in LEVELS else 'schedule'}={form}`"):
        if name == BUFFERS:
            total = _steps(rest) if ":" in form else None
            if tables is None:
                raise InputError("no betas are beside the weights; name the schedule")
            return tables.schedule(total)
        if name in LEVELS:
            return LEVELS[name](rest)
        if name in FILES:
            if not rest:
                raise InputError(f"name the file, as in {name}:FILE.npy")
            return FILES[name](read_table(Path(rest), name), name=name)
        name = name.replace("_", "-")
        name = _ALIASES.get(name, name)
        if name not in _NAMED:
            raise InputError(f"no schedule has this form; choose from {FORMS}")
        count, *others = rest.split(":")
        if not count:
            raise InputError(f"say how many steps it has, as in {name}:1000")
        steps, numbers = _steps(count), [_number(text) for text in others]
        if name == "linear" and not numbers:
            return _linear(steps)
        return _NAMED[name].read(name, steps, numbers)


def _exploding(levels: str) -> NoiseSchedule:
    numbers = levels.split(":")
    if len(numbers) != 3:
        raise InputError(
            "name its first and its last sigma and the number of levels, as in ve:0.01:50:1000"
        )
    first, last = _number(numbers[0]), _number(numbers[1])
    steps = _steps(numbers[2])
    return NoiseSchedule.variance_exploding(steps, sigma_min=first, sigma_max=last)


LEVELS: Mapping[str, Callable[[str], NoiseSchedule]] = {
    Process.VE: _exploding,
    Process.FLOW: lambda steps: NoiseSchedule.flow(_steps(steps)),
}
"""Parsers of the text after the name of a process with its own noise levels."""


def _linear(steps: int) -> NoiseSchedule:
    """The linear schedule of Ho et al.; with another T projects mean two different ones."""
    if steps == 1000:
        return NoiseSchedule.linear(steps)
    scaled = f"linear:{steps}:{0.1 / steps:g}:{20 / steps:g}"
    raise InputError(
        f"of {steps} steps it is one thing to some and another to others; name its first and "
        f"last beta: linear:{steps}:0.0001:0.02 as Ho et al. have them"
        + (f", {scaled} scaled with 1000 / T as Nichol & Dhariwal do" if steps > 20 else "")
    )


def _steps(text: str) -> int:
    digits = text.lstrip("0")
    if not (text.isascii() and text.isdecimal()) or digits in ("", "1"):
        raise InputError(f"{text!r} is no number of steps; take a whole one from 2 on")
    if len(digits) > len(str(MAX_TIMESTEPS)) or int(digits) > MAX_TIMESTEPS:
        raise InputError(f"has too many steps; take from 2 to {MAX_TIMESTEPS:,}")
    return int(digits)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{text!r} is no number") from None


def notes_on(form: str) -> tuple[str, ...]:
    """A note if the .npz file of a schedule also holds another one.

    Args:
        form: of a schedule that `read_schedule` has read.
    """
    name, _, rest = form.partition(":")
    tables = {}
    for other in array_names(path := Path(rest)) if name in FILES else ():
        with contextlib.suppress(InputError):  # not a table
            tables[other] = torch.from_numpy(read_table(path, other))
    contradiction = ScheduleTables.within(tables).contradiction if name in tables else None
    if contradiction is None:
        return ()
    return (f"`schedule={form}`: {contradiction}; its {name} are taken",)
