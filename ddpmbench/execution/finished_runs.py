"""Finished runs, read from their folders."""

import contextlib
import dataclasses
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from packaging.version import InvalidVersion, Version

from ddpmbench.checksums import (
    CHECKSUMS,
    DamageError,
    checksum,
    read_json,
    read_npz,
    reading,
    unverified_json,
    write_npz,
)
from ddpmbench.errors import InputError
from ddpmbench.execution.folder import IDENTITY, SHARDS, run_store
from ddpmbench.execution.store import FolderStore
from ddpmbench.likelihood.designs import ImportanceDesign
from ddpmbench.likelihood.image_sampling import ImageSample
from ddpmbench.likelihood.regression import Predictions
from ddpmbench.version import __version__

SUMMARY, RATE_DISTORTION = "summary.json", "rate_distortion.csv"
CONTINUOUS_TABLE = "continuous.csv"
PER_IMAGE, ENVIRONMENT = "per_image.csv", "environment.json"
DENSITY, PREDICTIONS = "proposal.csv", "predictions.npz"
_PARTS = ("terms", "totals", "timesteps")
_IMAGES = "image_features"
TERMS, PILOT = "terms", "pilot"
"""The names of the shards that hold the terms of a result, and those of its pilot."""


@dataclasses.dataclass(frozen=True, eq=False)
class FinishedRun:
    """A run folder with a result.

    Attributes:
        path: the folder.
        summary: the object of `summary.json`.
    """

    path: Path
    summary: dict[str, Any]

    @classmethod
    def open(cls, path: Path, *, schema: str, option: str = "") -> "FinishedRun":
        """Open the run in a folder.

        Args:
            path: the folder.
            schema: the expected schema of its summary.
            option: how the user named the folder, for messages.

        Raises:
            InputError: the folder holds no such run, an unfinished one, or one of a newer version.
        """
        named = f"{option} {path}".strip()
        if not os.path.isdir(path):
            raise InputError(f"{named}: is no run folder; name the folder of a finished run")
        if not (path / SUMMARY).exists():
            if (path / IDENTITY).exists():
                raise InputError(f"{named}: the run is unfinished; run its command again first")
            raise InputError(
                f"{named}: holds no run of ddpmbench; name the folder of a finished run"
            )
        try:
            # Before the checksum, which a newer version may have written elsewhere.
            summary = unverified_json(path / SUMMARY)
            kind = summary["schema"]
            refuse_later(kind, schema, named=named)
            run = cls(path, summary)
            refuse_later(run.identity.get("schema"), schema, named=named)
            run._refuse_newer(named)
            read_json(path / SUMMARY)
        except (DamageError, KeyError) as error:
            why = str(error) if isinstance(error, DamageError) else "it states no schema"
            raise InputError(
                f"{named}: {SUMMARY} is damaged or was changed by hand ({why}); run its command "
                "again, into a new folder if an earlier version wrote it"
            ) from error
        if kind != schema:
            wanted = result_kind(schema)
            raise InputError(f"{named}: is {result_kind(kind)}, not {wanted}; name {wanted}")
        summary.pop(CHECKSUMS)
        return run

    def _refuse_newer(self, named: str) -> None:
        if self.version is None:
            return
        try:
            is_newer = Version(self.version) > Version(__version__)
        except InvalidVersion as error:
            raise InputError(
                f"{named}: {self.version} is no version of ddpmbench; its {IDENTITY} is damaged, "
                "run its command again into a new folder"
            ) from error
        if is_newer:
            raise InputError(
                f"{named}: ddpmbench {self.version} wrote it, and this is {__version__}; upgrade "
                "ddpmbench"
            )

    @property
    def version(self) -> str | None:
        """The version of ddpmbench that wrote the run; None where its folder has no record of it.

        Raises:
            InputError: `run.json` is damaged.
        """
        version = self.identity.get("ddpmbench")
        if version is None:
            # A published result has no run.json.
            with contextlib.suppress(DamageError, TypeError, KeyError):
                version = read_json(self.path / ENVIRONMENT)["versions"]["ddpmbench"]
        return None if version is None else str(version)

    @property
    def identity(self) -> dict[str, Any]:
        """The object of `run.json`; empty where only the result was kept."""
        path = self.path / IDENTITY
        try:
            return read_json(path) if path.exists() else {}
        except DamageError as error:
            raise InputError(
                f"{path}: damaged ({error}); run its command again into a new folder"
            ) from error

    def shards(self, name: str) -> FolderStore:
        """The store of this name.

        Raises:
            InputError: the folder has no shards.
        """
        if not (self.path / SHARDS).is_dir():
            raise InputError(
                f"{self.path}: has no shards; run its command again into a new folder and name it"
            )
        return run_store(self.path, name)

    def table(
        self, name: str, columns: Mapping[str, str], *, optional: Collection[str] = ()
    ) -> pd.DataFrame:
        """A table of the folder, with every digit of its numbers.

        Args:
            name: the name of the file.
            columns: types of the columns by name.
            optional: columns that a table may lack.

        Raises:
            InputError: it does not exist, is damaged, or does not belong to `summary.json`.
        """
        path = self.path / name
        with reading(path):
            known = read_json(self.path / SUMMARY)[CHECKSUMS]
            if known[name] != checksum(path):
                raise DamageError("it is not the table of this summary")
            # As text, because pandas rounds the last digit of numbers by default.
            texts = pd.read_csv(path, dtype=str)
            kept = (name for name in columns if name in texts or name not in optional)
            return pd.DataFrame({name: _column(texts[name], columns[name]) for name in kept})

    def density(self) -> NDArray[np.float64]:
        """(T - 1,) the proposal density of the importance estimator over t = 2..T.

        Raises:
            InputError: the run has none, or it is damaged.
        """
        if not (self.path / DENSITY).exists():
            raise InputError(
                f"{self.path}: has no {DENSITY}: it is no run of the importance estimator or of "
                "score, or it is damaged; name a whole one"
            )
        return self.table(DENSITY, {"density": "float64"}).density.to_numpy()

    def predictions(self, design: ImportanceDesign) -> tuple[Predictions, ImageSample]:
        """The predictions subtracted from the terms of a design, and the images sampled.

        Raises:
            InputError: they do not exist, are damaged, or are of another design.
        """
        with reading(self.path / PREDICTIONS):
            parts = read_npz(self.path / PREDICTIONS, (*_PARTS, _IMAGES))
            images = parts.pop(_IMAGES)
            # A command that was stopped may have left those of another design.
            if parts["terms"].shape != (design.num_replicates, design.num_sampled):
                raise DamageError("they are of another design")
            return Predictions(**parts), ImageSample.of(design, images)


def _column(texts: Any, kind: str) -> Any:  # noqa: ANN401
    if kind == "str":
        return texts.astype(object).where(texts.notna(), "").astype("str")
    if kind == "bool":
        return texts.map({"True": True, "False": False}).astype(kind)
    return texts.map(float).astype(kind)


def num_steps(summary: Mapping[str, Any]) -> int:
    """Number of terms in an image's bound: the timesteps, or the parts of continuous time.

    Args:
        summary: the summary of a run of `nll`, or of a comparison of such runs.
    """
    return int(summary.get("num_parts") or summary["num_timesteps"])


def result_kind(schema: object) -> str:
    """The kind of a result in words, from its schema: `a run of nll`, or `a comparison`."""
    program, _, kind = str(schema).partition("/")[0].partition(".")
    if program != "ddpmbench":
        return "no result of ddpmbench"
    return "a comparison" if kind.startswith("compar") else f"a run of {kind}"


def refuse_later(kind: object, schema: str, *, named: str) -> None:
    """Refuse a result of the same kind that a newer version wrote.

    Args:
        kind: the schema of the result.
        schema: the schema that this version reads.
        named: the folder, for the message.

    Raises:
        InputError: the version of the schema is newer.
    """
    name, _, number = str(kind).rpartition("/")
    own, _, least = schema.rpartition("/")
    if name == own and number.isdecimal() and int(number) > int(least):
        raise InputError(
            f"{named}: a newer version of ddpmbench made it ({kind}; this one reads {schema}); "
            "upgrade ddpmbench"
        )


def schema_of(folder: Path) -> str | None:
    """The schema that a folder's `summary.json` states, whole or not; None if it states none."""
    try:
        return str(unverified_json(folder / SUMMARY)["schema"])
    except (DamageError, KeyError):
        return None


def read_environment(folder: Path) -> dict[str, Any] | None:
    """The object of a folder's `environment.json`; None if there is none.

    Raises:
        InputError: it is damaged.
    """
    path = folder / ENVIRONMENT
    if not path.exists():
        return None
    with reading(path):
        return read_json(path)


def write_predictions(path: Path, predictions: Predictions, sample: ImageSample) -> None:
    """Write the file that `FinishedRun.predictions` reads."""
    parts = {name: getattr(predictions, name) for name in _PARTS}
    write_npz(path, parts | {_IMAGES: sample.features})


def density_frame(density: NDArray[np.float64]) -> pd.DataFrame:
    """The table that `FinishedRun.density` reads."""
    return pd.DataFrame({"t": np.arange(2, len(density) + 2), "density": density})
