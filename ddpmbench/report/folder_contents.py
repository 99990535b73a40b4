"""The contents of run folders, checked when they are read: records, tables, figures, pictures.

The records that are particular to one command are defined beside its text.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pandas as pd
from msgspec import Struct

from ddpmbench.checksums import DamageError, read_json
from ddpmbench.errors import InputError, damaged
from ddpmbench.execution.finished_runs import SUMMARY, texts_of
from ddpmbench.execution.stored_images import Extremes

# ---- records, in summary.json and environment.json


class Data(Struct):
    """An image set."""

    source: str
    split: str | None
    sha256: str


class Checkpoint(Struct):
    """The checkpoint of a run."""

    source: str
    family: str
    sha256: str


class Range(Struct, kw_only=True):
    """The data range; results of earlier versions lack it, and have the default range."""

    data_range: str = ""
    levels: int = 0


class Conventions(Range):
    """The conventions of a bound."""

    prediction: str
    variance: str
    clip: bool
    decoder: str
    schedule: str
    labels: str | None


class SanityCheck(Struct, kw_only=True):
    """`check` of a run whose checkpoint was checked beforehand."""

    warning: str | None
    likely: str | None
    num_evaluations: int
    outcome: str = ""
    better: str | None = None


class NetworkRun(Struct, kw_only=True):
    """The common part of the summaries of `ode`, `likelihoods` and `score`."""

    num_timesteps: int
    num_evaluations: int
    conventions: Conventions
    checkpoint: Checkpoint
    seed: int
    device: str
    precision: str
    seconds: float
    check: SanityCheck | None = None


class Arguments(Struct):
    """The arguments of a command, as resolved and as given."""

    resolved: dict[str, Any]
    given: list[str] | None = None


class Environment(Struct):
    """`environment.json`."""

    versions: dict[str, Any]
    arguments: Arguments


_PLACE = re.compile(r"(?P<problem>.*?)(?: - at `\$\.?(?P<place>.*)`)?")
_MISSING = re.compile(r"Object missing required field `(?P<name>.*)`")


def check(record: object, kind: type[Struct], path: Path) -> None:
    """Check the parsed JSON of a file against a record.

    Raises:
        InputError: a field is missing or has another type; one line names the file and the field.
    """
    try:
        msgspec.convert(record, kind)
    except msgspec.ValidationError as error:
        raise InputError(
            f"{path}: missing or damaged: {_where(str(error))}; run the command of its folder again"
        ) from error


def _where(error: str) -> str:
    """A message of msgspec in the form `conventions.labels: missing`."""
    match = _PLACE.fullmatch(error)
    assert match is not None
    problem, place = match["problem"], match["place"] or ""
    if missing := _MISSING.fullmatch(problem):
        problem, place = "missing", f"{place}.{missing['name']}".lstrip(".")
    return f"{place}: {problem}".removeprefix(": ").replace("`", "")


def sanity_check_warning(summary: Mapping[str, Any]) -> str | None:
    """The warning of the sanity check in a summary, if any."""
    record = summary.get("check")
    return None if record is None else record["warning"]


def schema_of(folder: Path) -> str | None:
    """The schema of a folder's `summary.json`; None if it has none, or it is damaged."""
    try:
        return str(read_json(folder / SUMMARY)["schema"])
    except (DamageError, KeyError):
        return None


def read_environment(folder: Path) -> dict[str, Any] | None:
    """The object of a folder's `environment.json`; None if there is none.

    Raises:
        InputError: it is damaged.
    """
    path = folder / "environment.json"
    if not path.exists():
        return None
    try:
        record = read_json(path)
    except DamageError as error:
        raise damaged(path) from error
    check(record, Environment, path)
    return record


# ---- tables, figures and pictures


def read_table(
    path: Path, columns: Mapping[str, str], *, rows: int | None = None, least: int = 0
) -> pd.DataFrame:
    """A csv file of a run, with every digit of its numbers.

    Args:
        path: the file.
        columns: types of the columns by name.
        rows: its number of rows, where that is known.
        least: its smallest number of rows.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        texts = texts_of(path)
        table = pd.DataFrame({name: _column(texts[name], kind) for name, kind in columns.items()})
    except (ValueError, KeyError) as error:
        raise damaged(path) from error
    if len(table) < least or rows not in (None, len(table)):
        raise damaged(path)
    return table


def json_rows(table: pd.DataFrame) -> list[dict[Any, Any]]:
    """The rows of a table as JSON values, null where unknown."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def read_svgs(path: Path, names: Sequence[str]) -> dict[str, str]:
    """Figures of a run folder by name; missing ones are left out.

    Raises:
        InputError: one is damaged; the message names it.
    """
    places = {name: path / "figures" / f"{name}.svg" for name in names}
    return {name: _svg(place) for name, place in places.items() if place.exists()}


def _svg(place: Path) -> str:
    try:
        text = place.read_text(encoding="utf-8")
        _ = ElementTree.fromstring(text).attrib["viewBox"]
    except (OSError, ValueError, KeyError, ElementTree.ParseError) as error:
        raise InputError(f"{place}: damaged; remove it, or draw it again") from error
    return text


def _column(texts: Any, kind: str) -> Any:  # noqa: ANN401
    if kind == "str":
        return texts.astype(object).where(texts.notna(), "").astype("str")
    if kind == "bool":
        return texts.map({"True": True, "False": False}).astype(kind)
    return texts.map(float).astype(kind)


def read_extremes(path: Path, num_images: int) -> Extremes | None:
    """The images with the fewest and the most bits of `num_images`; None if none can be drawn.

    Raises:
        InputError: it is damaged.
    """
    if not path.exists():
        return None
    extremes = Extremes.read(path)
    for index in (extremes.best_index, extremes.worst_index):
        if not ((index >= 0) & (index < num_images)).all():
            raise damaged(path)
    # A single image has no extremes, and images with other channels cannot be drawn.
    channels = {extremes.best_pixels.shape[1], extremes.worst_pixels.shape[1]}
    is_shown = len(extremes.best_index) > 0 and channels in ({1}, {3})
    return extremes if is_shown else None
