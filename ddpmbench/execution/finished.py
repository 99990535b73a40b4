"""Finished runs, as others left them in their folders."""

import contextlib
import dataclasses
import math
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from packaging.version import InvalidVersion, Version

from ddpmbench.checksums import CHECKSUMS, DamageError, checksum, read_json, read_npz, write_npz
from ddpmbench.errors import InputError, options
from ddpmbench.execution.folder import IDENTITY, SHARDS, run_store
from ddpmbench.execution.store import EARLIER, UNREADABLE, FolderStore
from ddpmbench.likelihood.designs import EveryPairDesign, ImportanceDesign, num_terms
from ddpmbench.likelihood.image_sampling import ImageSample
from ddpmbench.likelihood.regression import Predictions
from ddpmbench.likelihood.terms import columns_of_bound
from ddpmbench.version import __version__

SUMMARY, RATE_DISTORTION = "summary.json", "rate_distortion.csv"
CONTINUOUS_TABLE = "continuous.csv"
PER_IMAGE, ENVIRONMENT = "per_image.csv", "environment.json"
DENSITY, PREDICTIONS = "proposal.csv", "predictions.npz"
_MOST = 2**31
_PARTS = ("terms", "totals", "timesteps")
_IMAGES = "image_features"
_NEEDED = {
    "ddpmbench.ode": ("num_images", "num_ode_images", "ode", "conventions", "checkpoint", "data"),
    "ddpmbench.likelihoods": ("likelihoods", "num_images", "ode", "checkpoint", "data"),
    "ddpmbench.fid": ("name", "fid", "num_generated", "protocol", "references", "samples"),
    "ddpmbench.sample": ("num_samples", "sha256", "sampler", "checkpoint", "seed"),
    "ddpmbench.score": ("sets", "num_timesteps", "evaluations_per_image", "checkpoint", "seed"),
}
"""What a summary must hold, by the kind of its schema; of all others what follows."""
_NEEDED_OF_BOUND = (
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
            InputError: it holds no such run, an unfinished one, or one of a newer version.
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
            needed = _NEEDED.get(schema.partition("/")[0], _NEEDED_OF_BOUND)
            complete = kind != schema or set(needed) <= set(summary)
        except (DamageError, KeyError) as error:
            raise InputError(f"{named}: {SUMMARY} is damaged; run its command again") from error
        refuse_later(kind, schema, named=named)
        if kind != schema:
            raise InputError(f"{named}: is a run of {kind}, not of {schema}; name another folder")
        summary.pop(CHECKSUMS, None)
        run = cls(path, summary)
        refuse_later(run.identity.get("schema"), schema, named=named)
        run._refuse_newer(named)
        complete = complete and _has_plausible_counts(summary)
        if not complete:
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
        """The version of ddpmbench that wrote it; None where its folder has none.

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

    @property
    def design(self) -> EveryPairDesign | ImportanceDesign:
        """The design of its terms.

        Raises:
            InputError: the folder does not hold what they follow from.
        """
        of, sampling = self.summary, self.summary["sampling"]
        size = (of["num_images"], num_steps(of))
        if of["estimator"] == "every-pair":
            return EveryPairDesign(*size, sampling["draws"])
        return ImportanceDesign(
            *size,
            self.density(),
            of["seed"],
            sampling["num_replicates"],
            sampling.get("num_blocks"),
        )

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
        """A table of the folder with one row a timestep.

        Args:
            name: of the file.
            columns: to their types; `t` among them.

        Raises:
            InputError: it is not there, or damaged.
        """
        path = self.path / name
        try:
            frame = texts_of(path).map(float).astype(columns)[list(columns)]
        except (ValueError, KeyError) as error:
            raise _lost(path) from error
        if not np.array_equal(frame.t, np.arange(1, num_steps(self.summary) + 1)):
            raise _lost(path)
        return frame

    def density(self) -> NDArray[np.float64]:
        """(T - 1,) that of the importance estimator over t = 2..T.

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
            raise _lost(path) from error
        is_whole = len(density) == num_steps(self.summary) - 1
        if not is_whole or not (density > 0).all() or abs(density.sum() - 1) > 1e-9:
            raise _lost(path)
        return density

    def predictions(self, design: ImportanceDesign) -> tuple[Predictions, ImageSample]:
        """What was subtracted at the terms of its design, and the images of it.

        Raises:
            InputError: they are not there, or damaged.
        """
        path = self.path / PREDICTIONS
        try:
            parts = read_npz(path, (*_PARTS, _IMAGES))
        except DamageError as error:
            raise _lost(path) from error
        images = parts.pop(_IMAGES)
        of_rows = (design.num_replicates, design.num_sampled)
        of_steps = (design.num_replicates, design.num_timesteps - 1)
        is_whole = [parts[name].shape for name in _PARTS] == [of_rows, of_rows, of_steps]
        if not is_whole or images.ndim != 2 or len(images) != design.num_sampled:
            raise _lost(path)
        return Predictions(**parts), ImageSample.of(design, images)


def num_steps(summary: Mapping[str, Any]) -> int:
    """Number of terms of an image's bound: the timesteps, or the parts of continuous time.

    Args:
        summary: of a run of `nll`, or of a comparison of such.
    """
    return int(summary.get("num_parts") or summary["num_timesteps"])


def _has_plausible_counts(summary: Mapping[str, Any]) -> bool:
    """Whether what a summary counts can be counted: tables are made that long."""
    names = ("num_images", "num_timesteps", "num_generated", "num_samples")
    sampling = summary.get("sampling")
    inner = sampling if isinstance(sampling, dict) else {}
    counts = [summary[name] for name in names if name in summary]
    counts += [parts for parts in (summary.get("num_parts"),) if parts is not None]
    of_terms = ("draws", "num_replicates", "num_blocks")
    counts += [inner[name] for name in of_terms if name in inner]
    return all(type(count) is int and 0 < count < _MOST for count in counts) and (
        math.prod(counts) < _MOST**2
    )


def refuse_later(kind: object, schema: str, *, named: str) -> None:
    """Refuse a result of the same kind that a newer version made.

    Args:
        kind: its schema.
        schema: the one that is read here.
        named: the folder, for the message.

    Raises:
        InputError: its number is higher.
    """
    name, _, number = str(kind).rpartition("/")
    own, _, least = schema.rpartition("/")
    if name == own and number.isdecimal() and int(number) > int(least):
        raise InputError(
            f"{named}: a newer version of ddpmbench made it ({kind}; this one reads {schema}); "
            "upgrade ddpmbench"
        )


def read_summary(folder: Path) -> dict[str, Any]:
    """The object of a folder's `summary.json`, as it was in memory: without checksums.

    Raises:
        InputError: it is not there, or damaged.
    """
    try:
        summary = read_json(folder / SUMMARY)
    except DamageError as error:
        raise _lost(folder / SUMMARY) from error
    summary.pop(CHECKSUMS, None)
    return summary


def texts_of(path: Path) -> pd.DataFrame:
    """A csv of a run folder as it was written: of every number all digits.

    Raises:
        InputError: it is not there or damaged, or not that of the `summary.json` beside it.
    """
    try:
        digest = checksum(path)
        known = read_json(path.parent / SUMMARY).get(CHECKSUMS)
        if known is not None and known.get(path.name) != digest:
            raise _lost(path)
        # As text: what reads numbers in pandas rounds the last digit by default.
        return pd.read_csv(path, dtype=str)
    except (DamageError, OSError, ValueError) as error:
        raise _lost(path) from error


def _lost(path: Path) -> InputError:
    return InputError(f"{path}: missing or damaged; run the command of its folder again")


def write_predictions(path: Path, predictions: Predictions, sample: ImageSample) -> None:
    """Write what `FinishedRun.predictions` reads."""
    parts = {name: getattr(predictions, name) for name in _PARTS}
    write_npz(path, parts | {_IMAGES: sample.features})


def density_frame(density: NDArray[np.float64]) -> pd.DataFrame:
    """What `FinishedRun.density` reads."""
    return pd.DataFrame({"t": np.arange(2, len(density) + 2), "density": density})


TERMS = "terms"
"""The name of the shards that hold the terms of a result."""
_NAMED = 4  # in a message; of the others it has the number


@dataclasses.dataclass(frozen=True)
class MissingShards:
    """The terms of a run that no usable shard holds.

    Attributes:
        num_terms: how many terms there are of them.
        gaps: the ranges of indices that no shard is named for, from and up to.
        faults: of each shard that cannot be used, by file name.
        names: the file names of shards that are missing or cannot be used.
    """

    num_terms: int
    gaps: tuple[tuple[int, int], ...]
    faults: dict[str, str]
    names: tuple[str, ...]

    def __str__(self) -> str:
        """All of them in words, or the first few and the number of the others."""
        parts = [f"no shard holds terms {start} to {stop - 1}" for start, stop in self.gaps]
        parts += [f"{name} {fault}" for name, fault in self.faults.items()]
        more = len(parts) - _NAMED
        return ", ".join(parts[:_NAMED]) + (f", and {more} more" if more > 0 else "")

    def remedy(self, run: FinishedRun) -> str:
        """The remedy, in the imperative."""
        if any(EARLIER in fault for fault in self.faults.values()):
            return "run its command again into a new folder"
        if any(UNREADABLE in fault for fault in self.faults.values()):
            return "try again when they can be read"
        return f"run its command again with {shlex.join(options(out=run.path))} to compute them"


def missing_shards(run: FinishedRun, *, by_headers: bool = False) -> MissingShards | None:
    """The shards of a run that are missing or cannot be used.

    A folder without shards is a published one, which has none.

    Args:
        run: the run.
        by_headers: whether the checksums are left out, for callers that read no terms.

    Returns:
        None where all are there and usable.

    Raises:
        InputError: the folder cannot be read, or its summary is damaged.
    """
    if not (run.path / SHARDS).is_dir():
        return None
    length, store = _length(run), run.shards(TERMS)
    faults = store.faults(length, columns_of(run), by_headers=by_headers)
    gaps = store.missing(length)
    if not gaps and not faults:
        return None
    return MissingShards(
        num_terms=sum(stop - start for start, stop in store.missing(length, without=faults)),
        gaps=tuple(gaps),
        faults=faults,
        names=tuple(sorted([*(store.name_of(*gap) for gap in gaps), *faults])),
    )


def refuse_missing_shards(run: FinishedRun, *, option: str, reads_terms: bool = False) -> None:
    """Refuse a run with missing shards.

    Args:
        run: the run.
        option: how the user named it.
        reads_terms: whether the command reads the terms, so that all of each shard counts; the
            others read the tables, which have checksums of their own.

    Raises:
        InputError: some are missing or damaged; the message names them.
    """
    missing = missing_shards(run, by_headers=not reads_terms)
    if missing is not None:
        named = f"{option} {run.path}".strip()
        raise InputError(
            f"{named}: some of its shards are missing or damaged: {missing}; {missing.remedy(run)}"
        )


def columns_of(run: FinishedRun) -> tuple[str, str, str]:
    """The columns that the result of a run is made of.

    Raises:
        InputError: its summary is damaged.
    """
    try:
        return columns_of_bound(clip=bool(run.summary["conventions"]["clip"]))
    except (KeyError, TypeError) as error:
        raise _damaged(run) from error


def _length(run: FinishedRun) -> int:
    """Rows of the run; what they follow from need not be at hand."""
    of = run.summary
    try:
        num_images = int(of["num_images"])
        if of["estimator"] == "every-pair":
            return num_images * num_steps(of) * int(of["sampling"]["draws"])
        sampling = of["sampling"]
        return num_terms(num_images, int(sampling["num_replicates"]), sampling.get("num_blocks"))
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(run) from error


def _damaged(run: FinishedRun) -> InputError:
    return InputError(f"{run.path / SUMMARY}: damaged; run the command of its folder again")
