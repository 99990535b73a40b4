"""Noise schedules by name and numbers, or from a file of numbers.

If the usual first and last beta depend on the project, they must be given; a table that may be
something else is refused.
"""

import dataclasses
import functools
import math
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from ddpmbench.checkpoints.weights import naming
from ddpmbench.data.file_kinds import require_regular
from ddpmbench.diffusion.named_schedules import MAX_TIMESTEPS
from ddpmbench.diffusion.parameterization import Process
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError, listed
from ddpmbench.files import JOINED, is_alone

T = TypeVar("T")
Array = NDArray[np.float64]

BUFFERS = "buffers"
"""The form of a schedule from the tables beside the weights."""

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


def read_schedule(
    form: str, beside: Callable[[int | None], NoiseSchedule] | None = None
) -> NoiseSchedule:
    """The schedule of a form.

    Args:
        form: one of `FORMS`: a name with the number of timesteps, and the first and last beta if it
            has them; a file of numbers (.npy, .npz or text), one per timestep, t = 1 first;
            `buffers`, the tables beside the weights, with T if they have one more entry; or a
            forward process with its noise levels.
        beside: from T, if given, to the schedule of the tables beside the weights.

    Raises:
        InputError: an unknown form, a number is missing or out of range, or the file does not hold
            such a table; the message begins with the form.
    """
    name, _, rest = form.partition(":")
    with naming(f"`{'process' if name in LEVELS else 'schedule'}={form}`"):
        if name == BUFFERS:
            total = _steps(rest) if ":" in form else None
            if beside is None:
                raise InputError("no betas are beside the weights; name the schedule")
            return beside(total)
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


# ---- files of numbers

_BINARY = (".npy", ".npz")
_READ = "a table is read from .npy, .npz, or text with one number per line"
_MOST_BYTES = 64 * 2**20
"""Most bytes of a file and of one array; a million numbers with all digits take less."""


def read_table(path: Path, name: str) -> Array:
    """(T,) float64 numbers from a file.

    Args:
        path: of a .npy or .npz file, or of text.
        name: of the array, in a .npz file with several.

    Raises:
        InputError: the file cannot be read, or is not an array of real numbers.
    """
    values = _from_numpy(path, lambda content: _chosen(content, name))
    if values.dtype.kind not in "fiu":
        kind = "text" if values.dtype.kind in "US" else f"{values.dtype!s:.24}"
        raise InputError(f"holds {kind}, not real numbers; save the numbers as float64")
    if values.dtype.kind == "f" and values.itemsize < 4:
        raise InputError(_too_few_bits(8 * values.itemsize))
    return values.astype(np.float64)


def array_names(path: Path) -> list[str]:
    """The names of the arrays in a .npz file; empty for any other.

    Raises:
        InputError: the file cannot be read.
    """
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
    """The result of `read` for the content of a file, an archive while it is open."""
    try:
        require_regular(path)
        file = path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: an invalid file name
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot be read ({reason}); {_READ}") from error
    try:
        with warnings.catch_warnings(), file:
            warnings.simplefilter("ignore")  # of old versions of Python, and of no numbers
            if os.fstat(file.fileno()).st_size > _MOST_BYTES:
                raise InputError(_too_large("has"))
            if path.suffix.lower() in _BINARY:
                content = np.load(file, allow_pickle=False)
                if isinstance(content, NpzFile) and not is_alone(content.zip):
                    raise InputError(JOINED)
                if not isinstance(content, NpzFile) and file.read(1):
                    raise InputError("holds other data after its array; save each array by itself")
                return read(content)
            return read(np.loadtxt(file, ndmin=1, encoding="utf-8-sig"))
    except InputError:
        raise
    # numpy and zipfile raise many kinds of errors on damaged bytes
    except Exception as error:
        raise InputError(
            f"holds no plain numbers, or is damaged; {_READ}: write it with np.save(PATH, values)"
        ) from error


def _too_large(has: str) -> str:
    return f"{has} more than {_MOST_BYTES // 2**20} MB, and no schedule has as many; {_READ}"


def _too_few_bits(bits: int) -> str:
    return (
        f"its numbers have {bits} bits, too few for a schedule; save them as they are computed in "
        "float32 or float64, or name the schedule"
    )


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
