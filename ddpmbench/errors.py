"""The exceptions that users see, and parts of their messages."""

import math
import numbers
import os
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from ddpmbench.records import short_value


def escaped(text: str) -> str:
    """The text with control characters escaped, since messages quote file names."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable(text: str) -> str:
    """The escaped text on one line."""
    return escaped(" ".join(line.strip() for line in text.splitlines()))


class InputError(Exception):
    """A mistake the user can correct: a parameter, a file or its format.

    The message is one line: the parameter or file, the problem, the remedy. The command line prints
    it and exits with status 2.
    """

    def __init__(self, message: object) -> None:
        super().__init__(printable(str(message)))


class ReportedError(InputError):
    """An input error that another process of the run reports."""


class ProcessLostError(Exception):
    """Another process of the run has stopped; the same command resumes.

    The command line prints the message and exits with status 1.
    """


def damaged(path: Path) -> InputError:
    """The error for a file of a run that is missing, or does not hold what was written."""
    return InputError(
        f"{path}: missing or damaged, or changed by hand; run the command of its folder again"
    )


_MOST_LISTED = 3


def refusal(subject: object, reason: str) -> InputError:
    """An error on one line."""
    return InputError(f"{subject}: {reason}")


def listed(names: Sequence[str]) -> str:
    """The first names, and the number of further ones."""
    more = f" and {len(names) - _MOST_LISTED:,} more" if len(names) > _MOST_LISTED else ""
    return f"{', '.join(names[:_MOST_LISTED])}{more}"


def shown_value(value: object) -> str:
    """A value as a message shows it: the first 12 digits of a SHA-256, else 80 characters."""
    text = str(value)
    return text[:12] if re.fullmatch("[0-9a-f]{64}", text) else text[:80]


def counted(number: int, noun: str) -> str:
    """A number of things, in words."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


LARGEST_SEED = 2**64 - 1


def whole_number(name: str, value: object, least: int, most: int | None = None) -> int:
    """The value as an int; numpy's integers are accepted, True and 2.0 are not.

    Args:
        name: of the parameter.
        value: its value.
        least: the smallest allowed.
        most: the largest allowed; None for no limit.

    Raises:
        InputError: it is not a whole number, or outside the limits.
    """
    largest = "2^64 - 1" if most == LARGEST_SEED else most
    limits = f"from {least} on" if most is None else f"from {least} to {largest}"
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_whole or not least <= value <= (math.inf if most is None else most):  # type: ignore[operator]
        raise InputError(f"`{name}={_shown(value)}`: give a whole number {limits}")
    return int(value)  # type: ignore[call-overload, no-any-return]


def number(name: str, value: object, least: float, most: float) -> float:
    """The value as a float.

    Raises:
        InputError: it is not a number from `least` to `most`.
    """
    if not _is_real(value) or not least <= value <= most:  # type: ignore[operator]
        raise InputError(f"`{name}={_shown(value)}`: give a number from {least:g} to {most:g}")
    return float(value)  # type: ignore[arg-type]


def positive_number(name: str, value: object) -> float:
    """The value as a float.

    Raises:
        InputError: it is not a positive, finite number.
    """
    if not _is_real(value) or not 0 < value < math.inf:  # type: ignore[operator]
        raise InputError(f"`{name}={_shown(value)}`: must be positive and finite")
    return float(value)  # type: ignore[arg-type]


def one_of(name: str, value: object, choices: Iterable[str]) -> None:
    """Refuse a value that is not one of the choices.

    Raises:
        InputError: it is none of them.
    """
    *most, last = choices
    if not isinstance(value, str) or value not in (*most, last):
        text = f"{', '.join(most)} or {last}" if most else last
        raise InputError(f"`{name}={_shown(value)}`: choose {text}")


def instance_of(name: str, value: object, kind: type, remedy: str = "") -> None:
    """Refuse a value that is not an instance of a class.

    Args:
        name: of the parameter.
        value: its value.
        kind: the class.
        remedy: if the name of the class is not enough.

    Raises:
        InputError: it is of another class.
    """
    if not isinstance(value, kind):
        text = f"must be of type {kind.__name__}{remedy and f'; {remedy}'}"
        raise InputError(f"`{name}={_shown(value)}`: {text}")


def path_of(name: str, value: object) -> Path:
    """The value as a path.

    Raises:
        InputError: it is neither text nor a path.
    """
    if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes):
        raise InputError(f"`{name}={_shown(value)}`: must be text or a pathlib.Path")
    return Path(value)


def _is_real(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _shown(value: object) -> str:
    """A word as typed; other values as Python shows them."""
    return value if isinstance(value, str) and value.isidentifier() else short_value(value)


def count_to_read(num_images: int | None, total: int, source: object) -> int:
    """The number of images to read: `num_images`, or all.

    Raises:
        InputError: `num_images` is not a whole number from 1 to `total`.
    """
    if num_images is None:
        return total
    count = whole_number("num_images", num_images, 1)
    if count > total:
        raise InputError(
            f"`num_images={count}`: {source} holds {total} images; give a number from 1 to {total}"
        )
    return count


def options(**parameters: object) -> list[str]:
    """Parameters as options of a command, as words; None is left out.

    `num_images=8` becomes --num-images 8, True --clip and False --no-clip.
    """
    words = []
    for name, value in parameters.items():
        option = name.replace("_", "-")
        if value is None:
            continue
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif str(value).startswith("-"):
            words.append(f"--{option}={value}")
        else:
            words += [f"--{option}", str(value)]
    return words


def command(name: str, *arguments: str, **parameters: object) -> str:
    """A command, quoted for a shell."""
    return shlex.join(["ddpmbench", name, *arguments, *options(**parameters)])
