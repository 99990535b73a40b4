"""Records that print as one line, with the size of large values instead of their contents."""

import dataclasses
import reprlib
from collections.abc import Mapping
from enum import Enum

_LONGEST_VALUE, _LONGEST = 60, 400

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _LONGEST_VALUE
_short.maxlevel = 2


def short_repr(record: object) -> str:
    """The repr of a dataclass in at most about 400 characters.

    Arrays and tables are shown by type and shape, networks by their number of parameters. Fields
    that are None or empty are omitted, and so are the last ones once the line is full.

    Args:
        record: an instance of a dataclass.
    """
    assert dataclasses.is_dataclass(record)
    parts: list[str] = []
    room = _LONGEST
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if not field.repr or _is_empty(value):
            continue
        part = f"{field.name}={short_value(value)}"
        room -= len(part) + 2
        if room < 0:
            parts.append("...")
            break
        parts.append(part)
    return f"{type(record).__name__}({', '.join(parts)})"


def short_value(value: object) -> str:
    """A value in at most about 60 characters."""
    kind = type(value).__name__
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):
        dtype = getattr(value, "dtype", None)
        text = f"<{kind} {'x'.join(map(str, shape)) or 'scalar'}"
        return f"{text}>" if dtype is None else f"{text} {str(dtype).removeprefix('torch.')}>"
    if callable(parameters := getattr(value, "parameters", None)):
        return f"<{kind} of {sum(p.numel() for p in parameters()):,} parameters>"
    if isinstance(value, Enum):
        return str(value)
    if isinstance(value, Mapping):
        return f"<{kind} of {len(value):,}>" if value else "{}"
    if callable(value):
        return getattr(value, "__name__", kind)
    if hasattr(value, "__len__") and not isinstance(value, str | tuple | list | bytes):
        return f"<{kind} of {len(value):,}>"
    text = _short.repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"<{kind}>"


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, str | tuple | dict) and not value)
