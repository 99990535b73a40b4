"""The fields of a JSON file, each of the kind its reader expects or refused by name."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from ddpmbench.errors import InputError


def read_object(path: Path) -> dict[str, object]:
    """The JSON object in a file.

    Raises:
        InputError: the file cannot be read, or holds no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: broken JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds a JSON {type(value).__name__}, not an object")
    return value


@dataclasses.dataclass(frozen=True)
class Fields:
    """A file's fields, completed by the defaults of the class that wrote it.

    Attributes:
        path: the file, named in every error.
        values: the fields by name.
        given: the names the file itself holds.
    """

    path: Path
    values: dict[str, object]
    given: frozenset[str]

    @classmethod
    def read(cls, path: Path, defaults: Mapping[str, object], old_names: Mapping[str, str]) -> Self:
        """Read a file; a field under an old name counts as the one it became."""
        found = read_object(path)
        renamed = {old_names.get(name, name): value for name, value in found.items()}
        return cls(path, {**defaults, **renamed}, frozenset(renamed))

    def refusal(self, name: str, remedy: str) -> InputError:
        """The error that names a field, its value and what to do."""
        shown = json.dumps(self.values.get(name))
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return InputError(f"{self.path}: {name} = {shown}: {remedy}")

    def require(self, name: str, allowed: tuple[object, ...]) -> None:
        """Refuse a field that holds anything but one of the values allowed."""
        if self.values.get(name) not in allowed:
            choices = " or ".join(json.dumps(value) for value in allowed)
            raise self.refusal(name, f"only {choices} can be read")

    def integer(self, name: str) -> int:
        """A field that is a whole number of at least 0."""
        value = self.values[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self.refusal(name, "must be a whole number")
        return value

    def number(self, name: str) -> float:
        """A field that is a number."""
        value = self.values[name]
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.refusal(name, "must be a number")
        if not -1e9 < value < 1e9:
            raise self.refusal(name, "must be a finite number of a sensible size")
        return float(value)

    def flag(self, name: str) -> bool:
        """A field that is true or false."""
        value = self.values[name]
        if not isinstance(value, bool):
            raise self.refusal(name, "must be true or false")
        return value

    def text(self, name: str) -> str:
        """A field that is a string."""
        value = self.values[name]
        if not isinstance(value, str):
            raise self.refusal(name, "must be a string")
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        """A field that is a list of whole numbers."""
        value = self.values[name]
        if not isinstance(value, list | tuple) or not all(type(item) is int for item in value):
            raise self.refusal(name, "must be a list of whole numbers")
        return tuple(value)

    def numbers(self, name: str) -> tuple[float, ...]:
        """A field that is a list of numbers."""
        value = self.values[name]
        if not isinstance(value, list) or not all(type(item) in (int, float) for item in value):
            raise self.refusal(name, "must be a list of numbers")
        return tuple(value)

    def texts(self, name: str) -> tuple[str, ...]:
        """A field that is a list of strings."""
        value = self.values[name]
        if not isinstance(value, list | tuple) or not all(type(item) is str for item in value):
            raise self.refusal(name, "must be a list of strings")
        return tuple(value)
