"""The contents of the folder of a finished run of `fid`."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ddpmbench.checksums import DamageError, is_whole, read_npz, write_npz
from ddpmbench.data import array_files
from ddpmbench.data.arrays import ImageData
from ddpmbench.errors import InputError, damaged
from ddpmbench.execution.finished import SUMMARY, FinishedRun
from ddpmbench.report.contents import read_environment, read_table
from ddpmbench.report.metrics import AGAINST_REFERENCE, METRICS, half_width_of
from ddpmbench.report.schema import Fidelity, check
from ddpmbench.samples.scores import InceptionScore, Scores
from ddpmbench.samples.statistics import Estimate

SCHEMA = "ddpmbench.fid/1"
PER_IMAGE, AGAINST_N = "per_image.csv", "fid_against_n.csv"
NEAREST, SAMPLES = "nearest.npz", "samples.npz"
INFLUENCE = "influence.npz"
"""First-order influence of each sample on a score: (N,) float64 by the score's name."""
NUM_SHOWN = 96
"""Samples on a contact sheet."""

PER_IMAGE_COLUMNS = {
    "image_id": "str",
    "nearest_reference_id": "str",
    "nearest_reference_distance": "float64",
    "class_entropy": "float64",
}
"""Columns of `per_image.csv`: distances in feature space, entropies in nats; empty if unknown."""
AGAINST_N_COLUMNS = {
    "reference": "str",
    "num_generated": "int64",
    "fid": "float64",
    "standard_error": "float64",
}
"""Columns of `fid_against_n.csv`: the points `fid_infinity` is extrapolated from."""


@dataclasses.dataclass(frozen=True, eq=False)
class NearestImages:
    """Samples and the reference images nearest to them in feature space.

    Attributes:
        samples: (K, C, H, W) uint8.
        sample: (K,) int64, indices of the samples.
        references: (K, M, C, H, W) uint8, the nearest first.
        reference_id: (K, M) str.
        distance: (K, M) float64, in feature space.
    """

    samples: NDArray[np.uint8]
    sample: NDArray[np.int64]
    references: NDArray[np.uint8]
    reference_id: NDArray[np.str_]
    distance: NDArray[np.float64]

    @classmethod
    def read(cls, path: Path) -> "NearestImages":
        """Read a file.

        Raises:
            InputError: it is damaged.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        try:
            nearest = cls(**read_npz(path, names))
        except DamageError as error:
            raise damaged(path) from error
        if not nearest._is_whole():
            raise damaged(path)
        return nearest

    def write(self, path: Path) -> None:
        """Write a file for `read`."""
        write_npz(path, dataclasses.asdict(self), compressed=True)

    def _is_whole(self) -> bool:
        kinds = {"samples": "u", "sample": "i", "references": "u", "distance": "f"}
        if any(getattr(self, name).dtype.kind != kind for name, kind in kinds.items()):
            return False
        if self.references.ndim != 5 or self.reference_id.dtype.kind != "U":
            return False
        k, m, *shape = self.references.shape
        return (
            {self.samples.dtype, self.references.dtype} == {np.dtype(np.uint8)}
            and self.samples.shape == (k, *shape)
            and self.sample.shape == (k,)
            and self.reference_id.shape == self.distance.shape == (k, m)
            and min(k, m, *shape) > 0
            and bool(np.isfinite(self.distance).all())
        )


def read_first_samples(path: Path, num_samples: int) -> ImageData:
    """The first of the samples in an npz file as `sample` writes it, which holds `num_samples`.

    Raises:
        InputError: it is damaged.
    """
    try:
        if is_whole(path) is False:
            raise damaged(path)
        return array_files.read_npz(path, min(NUM_SHOWN, num_samples))
    except (DamageError, InputError) as error:
        raise damaged(path) from error


class FidelityTables(Protocol):
    """The report of a run of `fid`; see `evaluate.fid.FidReport`."""

    @property
    def summary(self) -> dict[str, Any]: ...  # noqa: D102
    @property
    def per_image(self) -> pd.DataFrame: ...  # noqa: D102
    @property
    def against_n(self) -> pd.DataFrame: ...  # noqa: D102


@dataclasses.dataclass(frozen=True, eq=False)
class FidelityContents:
    """The contents of the page of a run of `fid`; None if the run lacks them.

    Attributes:
        tables: the report of the run.
        nearest: samples and their nearest reference images.
        samples: the first samples, if the run generated them.
        environment: the object of `environment.json`.
    """

    tables: FidelityTables
    nearest: NearestImages | None = None
    samples: ImageData | None = None
    environment: dict[str, Any] | None = None

    @classmethod
    def of(cls, tables: FidelityTables, folder: Path | None) -> "FidelityContents":
        """The tables of a run, with the files of its folder if it has one.

        Raises:
            InputError: a file is damaged; the message names it.
        """
        nearest, samples = None, None
        if folder is None:
            return cls(tables)
        if (path := folder / NEAREST).exists():
            nearest = NearestImages.read(path)
        if (path := folder / SAMPLES).exists():
            samples = read_first_samples(path, tables.summary["num_generated"])
        return cls(
            tables,
            nearest if nearest and _can_be_shown(nearest.samples) else None,
            samples if samples and _can_be_shown(samples.pixels) else None,
            read_environment(folder),
        )


def read_fidelity_tables(run: FinishedRun) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`per_image.csv` and `fid_against_n.csv` of a run.

    Raises:
        InputError: the summary or a file is damaged; the message names it.
    """
    summary, folder = run.summary, run.path
    check(summary, Fidelity, folder / SUMMARY)
    per_image = read_table(folder / PER_IMAGE, PER_IMAGE_COLUMNS)
    if not len(per_image) == summary["num_generated"] > 0:
        raise damaged(folder / PER_IMAGE)
    against_n = read_table(folder / AGAINST_N, AGAINST_N_COLUMNS)
    references = summary["references"]
    names = {name for one in references for name in (reference_name(one), one["source"])}
    is_needed = any(one["fid_infinity"] is not None for one in references)
    is_whole = set(against_n.reference) <= names and (against_n.num_generated > 0).all()
    if not is_whole or (is_needed and against_n.empty) or not np.isfinite(against_n.fid).all():
        raise damaged(folder / AGAINST_N)
    return per_image, against_n


def reference_name(reference: Mapping[str, Any]) -> str:
    """A reference as `--data` names it."""
    source, split = reference["source"], reference["split"]
    ending = f":{split}" if split else ""
    return str(source) if source.endswith(ending) else f"{source}{ending}"


def _can_be_shown(pixels: NDArray[np.uint8]) -> bool:
    return pixels.shape[1] in (1, 3)


def per_image_frame(
    ids: Sequence[str],
    scores: Scores,
    reference_ids: Sequence[str],
    classes: InceptionScore | None,
) -> pd.DataFrame:
    """One row per sample, columns `PER_IMAGE_COLUMNS`, empty if unknown.

    Args:
        ids: the samples' names.
        scores: against the first reference.
        reference_ids: names of the reference images.
        classes: of the samples, in nats.
    """
    neighbors = scores.neighbors
    nearest = None if neighbors is None else [reference_ids[int(i)] for i in neighbors.nearest]
    columns = {
        "image_id": list(ids),
        "nearest_reference_id": nearest,
        "nearest_reference_distance": None if neighbors is None else neighbors.distance,
        "class_entropy": None if classes is None else classes.class_entropy,
    }
    return pd.DataFrame(columns, columns=list(PER_IMAGE_COLUMNS))


def against_n_frame(sources: Sequence[str], scores: Sequence[Scores]) -> pd.DataFrame:
    """The distance at N, N / 2 and N / 4 samples against each reference."""
    rows: list[tuple[str, int, float, float]] = []
    for source, score in zip(sources, scores, strict=True):
        for point in score.infinity.points if score.infinity is not None else ():
            error = point.standard_error
            rows.append(
                (source, point.num_generated, point.fid, np.nan if error is None else error)
            )
    return pd.DataFrame(rows, columns=list(AGAINST_N_COLUMNS))


def scores_summary(scores: Scores) -> dict[str, float | None]:
    """The scores against one reference by name, each with its half width."""
    return _with_half_widths({name: scores.estimates[name] for name in AGAINST_REFERENCE})


def headline_summary(scores: Scores, classes: InceptionScore | None) -> dict[str, float | None]:
    """All scores of a run by name: against the first reference, and without a reference."""
    of_classes = None if classes is None else classes.estimate
    estimates = {**scores.estimates, "inception_score": of_classes}
    return _with_half_widths({name: estimates[name] for name in METRICS})


def _with_half_widths(estimates: Mapping[str, Estimate | None]) -> dict[str, float | None]:
    return {
        field: value
        for name, estimate in estimates.items()
        for field, value in (
            (name, None if estimate is None else estimate.value),
            (half_width_of(name), None if estimate is None else estimate.half_width),
        )
    }
