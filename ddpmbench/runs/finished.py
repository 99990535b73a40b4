"""Finished runs, as others left them in their folders."""

import dataclasses
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ddpmbench.errors import InputError
from ddpmbench.likelihood.design import EveryPair
from ddpmbench.likelihood.regression import Predictions
from ddpmbench.likelihood.warp import RotatedWarp
from ddpmbench.runs.folder import IDENTITY
from ddpmbench.runs.shards import Shards

SUMMARY, RATE_DISTORTION = "summary.json", "rate_distortion.csv"
DENSITY, PREDICTIONS = "warp.csv", "predictions.npz"
_PARTS = ("rows", "totals", "steps")
_NEEDED = (
    "num_images",
    "num_timesteps",
    "estimator",
    "sampling",
    "conventions",
    "checkpoint",
    "data",
    "seed",
)


@dataclasses.dataclass(frozen=True, eq=False)
class FinishedRun:
    """A run folder with a result in it.

    Attributes:
        path: the folder.
        summary: the object of `summary.json`.
    """

    path: Path
    summary: dict[str, Any]

    @classmethod
    def open(cls, path: Path, *, option: str, schema: str) -> "FinishedRun":
        """Look into a folder.

        Args:
            path: the folder.
            option: how the user named it, for messages.
            schema: what its summary must be.

        Raises:
            InputError: it holds no such run, or an unfinished one.
        """
        named = f"{option} {path}".strip()
        if not os.path.isdir(path):
            raise InputError(f"{named}: is no run folder; name what --out of a run named")
        if not (path / SUMMARY).exists():
            if (path / IDENTITY).exists():
                raise InputError(f"{named}: the run is unfinished; run its command again first")
            raise InputError(f"{named}: holds no run of ddpmbench; name what --out of a run named")
        try:
            summary = json.loads((path / SUMMARY).read_text(encoding="utf-8"))
            found = summary["schema"]
            complete = found != schema or set(_NEEDED) <= set(summary)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"{named}: {SUMMARY} is damaged; run its command again") from error
        if found != schema:
            raise InputError(f"{named}: is a run of {found}, not of {schema}")
        if not complete:
            raise InputError(f"{named}: {SUMMARY} is of another version; run its command again")
        return cls(path, summary)

    @property
    def identity(self) -> dict[str, Any]:
        """The object of `run.json`; empty where only the result was kept."""
        path = self.path / IDENTITY
        try:
            return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path}: damaged; run the command of its folder again") from error

    @property
    def design(self) -> EveryPair | RotatedWarp:
        """Its rows.

        Raises:
            InputError: the folder does not hold what they follow from.
        """
        of, sampling = self.summary, self.summary["sampling"]
        if of["estimator"] == "every-pair":
            return EveryPair(of["num_images"], of["num_timesteps"], sampling["draws"])
        size = (of["num_images"], of["num_timesteps"])
        return RotatedWarp(*size, self.density(), of["seed"], sampling["rotations"])

    def shards(self, name: str) -> Shards:
        """The terms of the rows of this name.

        Raises:
            InputError: the folder has no shards.
        """
        folder = self.path / "shards"
        if not folder.is_dir():
            raise InputError(
                f"{self.path}: has no shards; run its command again with a new --out, and name that"
            )
        return Shards(folder, name)

    def table(self, name: str, columns: Mapping[str, str]) -> pd.DataFrame:
        """A table of the folder with one row a step.

        Args:
            name: of the file.
            columns: to their types; `t` among them.

        Raises:
            InputError: it is not there, or damaged.
        """
        path = self.path / name
        try:
            frame = _as_written(path).astype(columns)[list(columns)]
        except (OSError, ValueError, KeyError) as error:
            raise _lost(path) from error
        if not np.array_equal(frame.t, np.arange(1, self.summary["num_timesteps"] + 1)):
            raise _lost(path)
        return frame

    def density(self) -> NDArray[np.float64]:
        """(T - 1,) that of the rotated warp over t = 2..T.

        Raises:
            InputError: the run has none, or it is damaged.
        """
        path = self.path / DENSITY
        if not path.exists():
            raise InputError(f"{self.path}: has no {DENSITY}; it is no run of rotated-warp")
        try:
            density = _as_written(path)["density"].to_numpy()
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path}: damaged; run the command of its folder again") from error
        is_whole = len(density) == self.summary["num_timesteps"] - 1
        if not is_whole or not (density > 0).all() or abs(density.sum() - 1) > 1e-9:
            raise InputError(f"{path}: damaged; run the command of its folder again")
        return density

    def predictions(self) -> Predictions:
        """What was subtracted at the rows of the rotated warp.

        Raises:
            InputError: they are not there, or damaged.
        """
        path = self.path / PREDICTIONS
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                parts = {name: archive[name] for name in _PARTS}
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise _lost(path) from error
        rotations = self.summary["sampling"]["rotations"]
        of_rows = (rotations, self.summary["num_images"])
        of_steps = (rotations, self.summary["num_timesteps"] - 1)
        if [parts[name].shape for name in _PARTS] != [of_rows, of_rows, of_steps]:
            raise _lost(path)
        return Predictions(**parts)


def _as_written(path: Path) -> pd.DataFrame:
    """Numbers with all their digits."""
    # As text: what reads numbers in pandas rounds the last digit by default.
    return pd.read_csv(path, dtype=str).map(float)


def _lost(path: Path) -> InputError:
    return InputError(f"{path}: missing or damaged; run the command of its folder again")


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write what `FinishedRun.predictions` reads."""
    with path.open("wb") as file:
        np.savez(file, **{name: getattr(predictions, name) for name in _PARTS})


def density_frame(density: NDArray[np.float64]) -> pd.DataFrame:
    """What `FinishedRun.density` reads."""
    return pd.DataFrame({"t": np.arange(2, len(density) + 2), "density": density})
