"""Finished runs, read from their folders."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from packaging.version import InvalidVersion, Version

from ddpmbench.checksums import CHECKSUMS, DamageError, checksum, read_json, read_npz, write_npz
from ddpmbench.errors import InputError, damaged
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
_MOST = 2**31
_PARTS = ("terms", "totals", "timesteps")
_IMAGES = "image_features"
TERMS, PILOT = "terms", "pilot"
"""The names of the shards that hold the terms of a result, and those of its pilot."""
_NEEDED = {
    "ddpmbench.nll": ("num_images", "num_timesteps", "estimator", "sampling", "data", "seed"),
    "ddpmbench.score": ("num_timesteps",),
}
"""Fields of summaries that are read before validation, by the kind of schema."""


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
    def open(cls, path: Path, *, option: str, schema: str) -> "FinishedRun":
        """Open the run in a folder.

        Args:
            path: the folder.
            option: how the user named the folder, for messages.
            schema: the expected schema of its summary.

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
            summary = read_json(path / SUMMARY)
            kind = summary["schema"]
        except (DamageError, KeyError) as error:
            raise InputError(f"{named}: {SUMMARY} is damaged; run its command again") from error
        refuse_later(kind, schema, named=named)
        if kind != schema:
            wanted = result_kind(schema)
            raise InputError(f"{named}: is {result_kind(kind)}, not {wanted}; name {wanted}")
        summary.pop(CHECKSUMS, None)
        run = cls(path, summary)
        refuse_later(run.identity.get("schema"), schema, named=named)
        run._refuse_newer(named)
        needed = _NEEDED.get(schema.partition("/")[0], ())
        if not set(needed) <= set(summary) or not _has_plausible_counts(summary):
            raise InputError(
                f"{named}: {SUMMARY} is damaged or of another version; run its command again"
            )
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
            raise InputError(f"{path}: damaged; run its command again into a new folder") from error

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

    def table(self, name: str, columns: Mapping[str, str]) -> pd.DataFrame:
        """A table of the folder with one row per timestep.

        Args:
            name: the name of the file.
            columns: names, `t` among them, and types of the columns.

        Raises:
            InputError: the table does not exist, or is damaged.
        """
        path = self.path / name
        try:
            frame = texts_of(path).map(float).astype(columns)[list(columns)]
        except (ValueError, KeyError) as error:
            raise damaged(path) from error
        if not np.array_equal(frame.t, np.arange(1, num_steps(self.summary) + 1)):
            raise damaged(path)
        return frame

    def density(self) -> NDArray[np.float64]:
        """(T - 1,) the proposal density of the importance estimator over t = 2..T.

        Raises:
            InputError: the run has none, or it is damaged.
        """
        path = self.path / DENSITY
        if not path.exists():
            raise InputError(
                f"{self.path}: has no {DENSITY}: it is no run of the importance estimator or of "
                "score, or it is damaged; name a whole one"
            )
        try:
            density = texts_of(path)["density"].map(float).to_numpy()
        except (ValueError, KeyError) as error:
            raise damaged(path) from error
        is_whole = len(density) == num_steps(self.summary) - 1
        if not is_whole or not (density > 0).all() or abs(density.sum() - 1) > 1e-9:
            raise damaged(path)
        return density

    def predictions(self, design: ImportanceDesign) -> tuple[Predictions, ImageSample]:
        """The predictions subtracted from the terms of a design, and the images sampled.

        Raises:
            InputError: they do not exist, or are damaged.
        """
        path = self.path / PREDICTIONS
        try:
            parts = read_npz(path, (*_PARTS, _IMAGES))
        except DamageError as error:
            raise damaged(path) from error
        images = parts.pop(_IMAGES)
        by_image = (design.num_replicates, design.num_sampled)
        by_timestep = (design.num_replicates, design.num_timesteps - 1)
        is_whole = [parts[name].shape for name in _PARTS] == [by_image, by_image, by_timestep]
        if not is_whole or images.ndim != 2 or len(images) != design.num_sampled:
            raise damaged(path)
        return Predictions(**parts), ImageSample.of(design, images)


def num_steps(summary: Mapping[str, Any]) -> int:
    """Number of terms in an image's bound: the timesteps, or the parts of continuous time.

    Args:
        summary: the summary of a run of `nll`, or of a comparison of such runs.
    """
    return int(summary.get("num_parts") or summary["num_timesteps"])


def _has_plausible_counts(summary: Mapping[str, Any]) -> bool:
    """Whether the counts in a summary are plausible, since tables are allocated by them."""
    names = ("num_images", "num_timesteps", "num_generated", "num_samples")
    counts = [summary[name] for name in names if name in summary]
    counts += [] if summary.get("num_parts") is None else [summary["num_parts"]]
    if isinstance(sampling := summary.get("sampling"), dict):
        count_names = ("draws", "num_replicates", "num_blocks")
        counts += [sampling[name] for name in count_names if name in sampling]
    return all(type(count) is int and 0 < count < _MOST for count in counts) and (
        math.prod(counts) < _MOST**2
    )


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


def read_summary(folder: Path) -> dict[str, Any]:
    """The object of a folder's `summary.json`, without its checksums.

    Raises:
        InputError: the file does not exist, or is damaged.
    """
    try:
        summary = read_json(folder / SUMMARY)
    except DamageError as error:
        raise damaged(folder / SUMMARY) from error
    summary.pop(CHECKSUMS, None)
    return summary


def texts_of(path: Path) -> pd.DataFrame:
    """A csv of a run folder as text, with all digits of every number.

    Raises:
        InputError: the file does not exist, is damaged, or does not belong to `summary.json`.
    """
    try:
        digest = checksum(path)
        checksums = read_json(path.parent / SUMMARY).get(CHECKSUMS)
        if checksums is not None and checksums.get(path.name) != digest:
            raise damaged(path)
        # As text, because pandas rounds the last digit of numbers by default.
        return pd.read_csv(path, dtype=str)
    except (DamageError, OSError, ValueError) as error:
        raise damaged(path) from error


def write_predictions(path: Path, predictions: Predictions, sample: ImageSample) -> None:
    """Write the file that `FinishedRun.predictions` reads."""
    parts = {name: getattr(predictions, name) for name in _PARTS}
    write_npz(path, parts | {_IMAGES: sample.features})


def density_frame(density: NDArray[np.float64]) -> pd.DataFrame:
    """The table that `FinishedRun.density` reads."""
    return pd.DataFrame({"t": np.arange(2, len(density) + 2), "density": density})
