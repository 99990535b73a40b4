"""What a finished run's folder holds, for those who look at it."""

import dataclasses
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ddpmbench.errors import InputError
from ddpmbench.report.figures.images import Extremes
from ddpmbench.report.tables import RATE_DISTORTION_COLUMNS
from ddpmbench.runs.finished import DENSITY, RATE_DISTORTION, FinishedRun

_PER_TIMESTEP = {
    "t": "int64",
    "part": "str",
    "bits_per_dim": "float64",
    "standard_error": "float64",
    "x_start_mse": "float64",
    "eps_mse": "float64",
    "num_evaluations": "int64",
}
_PER_IMAGE = {"decoder": "float64", "bits_per_dim": "float64"}
_DENSITY = {"t": "int64", "density": "float64"}
_CONVENTIONS = {
    "convention": "str",
    "num_timesteps": "int64",
    "rate_bits_per_dim": "float64",
    "decoder_bits_per_dim": "float64",
    "bits_per_dim": "float64",
    "half_width": "float64",
    "difference": "float64",
    "used_by": "str",
}
_SUB_SCHEDULES = {
    "variance": "str",
    "spacing": "str",
    "num_timesteps": "int64",
    "bits_per_dim": "float64",
    "half_width": "float64",
}


@dataclasses.dataclass(frozen=True, eq=False)
class RunContents:
    """The tables of a run; None for those that its folder does not have.

    Attributes:
        summary: the object of `summary.json`.
        per_timestep: see `report.tables.per_timestep`.
        rate_distortion: see `report.tables.rate_distortion`.
        per_image: one row an image; `decoder` and, where it can be told, `bits_per_dim`.
        density: of a rotated warp, `t` and `density`.
        conventions: one row a convention; its first is the run's own.
        sub_schedules: one row a variance, spacing and number of steps.
        extremes: the images that cost the fewest and the most bits.
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
    environment: dict[str, Any] | None

    @property
    def bits_of_images(self) -> tuple[NDArray[np.float64], str]:
        """(N,) the bits of each image that can be told, and in words what they are of."""
        assert self.per_image is not None
        whole = self.per_image.bits_per_dim
        if whole.notna().all():
            return whole.to_numpy(), "Bits"
        return self.per_image.decoder.to_numpy(), "Bits of the decoder"

    @classmethod
    def of(cls, run: FinishedRun) -> "RunContents":
        """Read them.

        Raises:
            InputError: a file is damaged; it is named.
        """
        place = run.path
        per_timestep = read_table(place / "per_timestep.csv", _PER_TIMESTEP)
        curve = read_table(place / RATE_DISTORTION, RATE_DISTORTION_COLUMNS)
        per_image = _table_if_there(place / "per_image.csv", _PER_IMAGE)
        steps = np.arange(1, run.summary["num_timesteps"] + 1)
        for name, table in (("per_timestep.csv", per_timestep), (RATE_DISTORTION, curve)):
            if not np.array_equal(table.t, steps):
                raise _lost(place / name)
        if per_image is not None and len(per_image) != run.summary["num_images"]:
            raise _lost(place / "per_image.csv")
        return cls(
            summary=run.summary,
            per_timestep=per_timestep,
            rate_distortion=curve,
            per_image=per_image,
            density=_table_if_there(place / DENSITY, _DENSITY),
            conventions=_table_if_there(place / "conventions.csv", _CONVENTIONS),
            sub_schedules=_table_if_there(place / "sub_schedules.csv", _SUB_SCHEDULES),
            extremes=_extremes(place / "extremes.npz", run.summary["num_images"]),
            environment=_environment(place / "environment.json"),
        )


def read_table(path: Path, columns: Mapping[str, str]) -> pd.DataFrame:
    """Columns of a csv file as a run wrote it.

    Args:
        path: the file.
        columns: to their types; an empty text is "".

    Raises:
        InputError: it is not there, or damaged.
    """
    try:
        # As text: what reads numbers in pandas rounds the last digit by default.
        texts = pd.read_csv(path, dtype=str)
        frame = pd.DataFrame({name: _column(texts[name], kind) for name, kind in columns.items()})
    except (OSError, ValueError, KeyError) as error:
        raise _lost(path) from error
    if frame.empty:
        raise _lost(path)
    return frame


def _column(texts: Any, kind: str) -> Any:  # noqa: ANN401
    if kind == "str":
        return texts.astype(object).where(texts.notna(), "")
    return texts.map(float).astype(kind)


def _table_if_there(path: Path, columns: Mapping[str, str]) -> pd.DataFrame | None:
    return read_table(path, columns) if path.exists() else None


def _environment(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8")))
        if not all(isinstance(found[name], dict) for name in ("versions", "arguments")):
            raise _lost(path)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _lost(path) from error
    return found


def _extremes(path: Path, num_images: int) -> Extremes | None:
    if not path.exists():
        return None
    names = [field.name for field in dataclasses.fields(Extremes)]
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            found = Extremes(**{name: archive[name] for name in names})
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise _lost(path) from error
    for index, pixels in (
        (found.best_index, found.best_pixels),
        (found.worst_index, found.worst_pixels),
    ):
        is_of_images = pixels.dtype == np.uint8 and pixels.ndim == 4 and pixels.shape[1] in (1, 3)
        in_set = ((index >= 0) & (index < num_images)).all()
        if not is_of_images or not in_set or index.shape != pixels.shape[:1]:
            raise _lost(path)
    # A single image is neither the best nor the worst.
    return found if len(found.best_index) and len(found.worst_index) else None


def _lost(path: Path) -> InputError:
    return InputError(f"{path}: missing or damaged; run the command of its folder again")
