"""The contents of the page of a run: the tables of its report, and files of its folder."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from xml.etree import ElementTree

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ddpmbench.checksums import DamageError, read_json
from ddpmbench.errors import InputError, damaged
from ddpmbench.execution.finished import DENSITY, SUMMARY, FinishedRun, density_frame, texts_of
from ddpmbench.execution.pictures import EXTREMES, Extremes, Pictures
from ddpmbench.report.schema import Environment, check


class RunTables(Protocol):
    """The report of a run of `nll`; see `evaluate.nll_report.NllReport`."""

    @property
    def summary(self) -> dict[str, Any]: ...  # noqa: D102
    @property
    def per_timestep(self) -> pd.DataFrame: ...  # noqa: D102
    @property
    def rate_distortion(self) -> pd.DataFrame: ...  # noqa: D102
    @property
    def per_image(self) -> pd.DataFrame: ...  # noqa: D102
    @property
    def conventions(self) -> pd.DataFrame: ...  # noqa: D102
    @property
    def sub_schedules(self) -> pd.DataFrame: ...  # noqa: D102
    @property
    def continuous(self) -> pd.DataFrame | None: ...  # noqa: D102


@dataclasses.dataclass(frozen=True, eq=False)
class RunContents:
    """The contents of the page of a run of `nll`; None if the run lacks them.

    Attributes:
        tables: the report of the run.
        density: of stratified importance sampling, `t` and `density`.
        extremes: the images with the fewest and the most bits.
        pictures: pictures along the chain.
        environment: the object of `environment.json`.
    """

    tables: RunTables
    density: pd.DataFrame | None = None
    extremes: Extremes | None = None
    pictures: Pictures = dataclasses.field(default_factory=Pictures)
    environment: dict[str, Any] | None = None

    @classmethod
    def of(cls, tables: RunTables, folder: Path | None) -> "RunContents":
        """The tables of a run, with what its figures show of its folder, if it has one.

        Raises:
            InputError: a file is damaged; the message names it.
        """
        if folder is None:
            return cls(tables)
        summary = tables.summary
        has_density = (folder / DENSITY).exists()
        return cls(
            tables,
            density_frame(FinishedRun(folder, summary).density()) if has_density else None,
            read_extremes(folder / EXTREMES, summary["num_images"]),
            Pictures.read(folder, summary["num_timesteps"]),
        )


def bits_of_images(per_image: pd.DataFrame) -> tuple[NDArray[np.float64], str]:
    """(N,) the known bits of each image, and their name for a title."""
    whole = per_image.bits_per_dim
    if whole.notna().all():
        return whole.to_numpy(), "Bits"
    return per_image.decoder.to_numpy(), "Bits of the decoder"


def schema_of(folder: Path) -> str | None:
    """The schema of a folder's `summary.json`; None if it has none, or it is damaged."""
    try:
        return str(read_json(folder / SUMMARY)["schema"])
    except (DamageError, KeyError):
        return None


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
