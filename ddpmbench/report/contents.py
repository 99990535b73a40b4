"""What a finished run's folder holds, for those who look at it."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ddpmbench.checksums import DamageError, read_json
from ddpmbench.errors import InputError
from ddpmbench.execution.finished import (
    DENSITY,
    RATE_DISTORTION,
    SUMMARY,
    FinishedRun,
    density_frame,
    texts_of,
)
from ddpmbench.execution.pictures import Pictures
from ddpmbench.execution.terms import EXTREMES, Extremes
from ddpmbench.report.schema import Environment, Run, check
from ddpmbench.report.tables import (
    CONVENTION_COLUMNS,
    RATE_DISTORTION_COLUMNS,
    SUB_SCHEDULE_COLUMNS,
)

PER_TIMESTEP = {
    "t": "int64",
    "part": "str",
    "bits_per_dim": "float64",
    "standard_error": "float64",
    "x_start_mse": "float64",
    "eps_mse": "float64",
    "num_evaluations": "int64",
}
_PER_IMAGE = {"decoder": "float64", "bits_per_dim": "float64"}


@dataclasses.dataclass(frozen=True, eq=False)
class RunContents:
    """The tables of a run; None for those that its folder does not have.

    Attributes:
        summary: the object of `summary.json`.
        per_timestep: see `report.tables.per_timestep`.
        rate_distortion: see `report.tables.rate_distortion`.
        per_image: one row an image; `decoder` and, where it can be told, `bits_per_dim`.
        density: of the importance estimator, `t` and `density`.
        conventions: one row a convention; its first is the run's own.
        sub_schedules: one row a variance, spacing and number of steps.
        extremes: the images that cost the fewest and the most bits.
        pictures: along the chain, those that were made.
        environment: the object of `environment.json`.
    """

    summary: dict[str, Any]
    per_timestep: pd.DataFrame
    rate_distortion: pd.DataFrame
    per_image: pd.DataFrame | None
    density: pd.DataFrame | None
    conventions: pd.DataFrame | None
    sub_schedules: pd.DataFrame | None
    extremes: Extremes | None
    pictures: Pictures
    environment: dict[str, Any] | None

    @property
    def bits_of_images(self) -> tuple[NDArray[np.float64], str]:
        """(N,) the bits of each image that can be told, and in words what they are of."""
        assert self.per_image is not None
        return bits_of_images(self.per_image)

    @classmethod
    def of(cls, run: FinishedRun) -> "RunContents":
        """Read them.

        Raises:
            InputError: a file is damaged; it is named.
        """
        place = run.path
        check(run.summary, Run, place / SUMMARY)
        per_timestep = read_table(place / "per_timestep.csv", PER_TIMESTEP)
        curve = read_table(place / RATE_DISTORTION, RATE_DISTORTION_COLUMNS)
        per_image = _table_if_there(place / "per_image.csv", _PER_IMAGE)
        num_timesteps = run.summary["num_timesteps"]
        for name, table in (("per_timestep.csv", per_timestep), (RATE_DISTORTION, curve)):
            if len(table) != num_timesteps or (np.diff(table.t, prepend=0) != 1).any():
                raise lost(place / name)
        if per_image is not None and len(per_image) != run.summary["num_images"]:
            raise lost(place / "per_image.csv")
        conventions = _table_if_there(place / "conventions.csv", CONVENTION_COLUMNS)
        if conventions is not None and conventions.empty:
            raise lost(place / "conventions.csv")
        return cls(
            summary=run.summary,
            per_timestep=per_timestep,
            rate_distortion=curve,
            per_image=per_image,
            density=_density(run),
            conventions=conventions,
            sub_schedules=_sub_schedules(place / "sub_schedules.csv"),
            extremes=_extremes(place / EXTREMES, run.summary["num_images"]),
            pictures=Pictures.read(place, run.summary["num_timesteps"]),
            environment=read_environment(place / "environment.json"),
        )


def bits_of_images(per_image: pd.DataFrame) -> tuple[NDArray[np.float64], str]:
    """(N,) the bits of each image that can be told, and in words what they are of.

    Args:
        per_image: see `report.tables.per_image`.
    """
    whole = per_image.bits_per_dim
    if whole.notna().all():
        return whole.to_numpy(), "Bits"
    return per_image.decoder.to_numpy(), "Bits of the decoder"


def read_table(path: Path, columns: Mapping[str, str]) -> pd.DataFrame:
    """Columns of a csv file as a run wrote it.

    Args:
        path: the file.
        columns: to their types; an empty text is "".

    Raises:
        InputError: it is not there, or damaged.
    """
    try:
        texts = texts_of(path)
        frame = pd.DataFrame({name: _column(texts[name], kind) for name, kind in columns.items()})
    except (ValueError, KeyError) as error:
        raise lost(path) from error
    return frame


def read_svgs(path: Path, names: Sequence[str]) -> dict[str, str]:
    """The figures of these names that are in a folder.

    Args:
        path: the folder.
        names: of figures.

    Raises:
        InputError: one is damaged; it is named.
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
        return texts.astype(object).where(texts.notna(), "")
    if kind == "bool":
        return texts.map({"True": True, "False": False}).astype(kind)
    return texts.map(float).astype(kind)


def _table_if_there(path: Path, columns: Mapping[str, str]) -> pd.DataFrame | None:
    return read_table(path, columns) if path.exists() else None


def read_environment(path: Path) -> dict[str, Any] | None:
    """The object of `environment.json`; None where there is none.

    Raises:
        InputError: it is damaged.
    """
    if not path.exists():
        return None
    try:
        found = read_json(path)
    except DamageError as error:
        raise lost(path) from error
    check(found, Environment, path)
    return found


def _density(run: FinishedRun) -> pd.DataFrame | None:
    if not (run.path / DENSITY).exists():
        return None
    return density_frame(run.density())


def _sub_schedules(path: Path) -> pd.DataFrame | None:
    table = _table_if_there(path, SUB_SCHEDULE_COLUMNS)
    return None if table is None or table.empty else table


def _extremes(path: Path, num_images: int) -> Extremes | None:
    if not path.exists():
        return None
    found = Extremes.read(path)
    for index in (found.best_index, found.worst_index):
        if not ((index >= 0) & (index < num_images)).all():
            raise lost(path)
    # A single image is neither the best nor the worst; of other channels there is no picture.
    channels = {found.best_pixels.shape[1], found.worst_pixels.shape[1]}
    is_shown = len(found.best_index) > 0 and channels in ({1}, {3})
    return found if is_shown else None


def lost(path: Path) -> InputError:
    """That a file of a run is not there, or not whole."""
    return InputError(f"{path}: missing or damaged; run the command of its folder again")
