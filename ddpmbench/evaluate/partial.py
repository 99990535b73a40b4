"""What does a damaged run still say? The images all of whose rows are left."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ddpmbench.checksums import checksum, write_json
from ddpmbench.diffusion.data_range import NATS_PER_BIT
from ddpmbench.errors import InputError
from ddpmbench.execution.finished import (
    RATE_DISTORTION,
    SUMMARY,
    FinishedRun,
    Losses,
    columns_of,
    find_losses,
    usable,
)
from ddpmbench.files import replacing, writing_to
from ddpmbench.likelihood.partial import PartialBound, partial_bound
from ddpmbench.likelihood.terms import TermTable
from ddpmbench.report import tables
from ddpmbench.report.schema import CORRECTION, check
from ddpmbench.report.tables import CorrectionInBits
from ddpmbench.report.text import data_range_of

SCHEMA = "ddpmbench.partial/1"
"""Of its own, so that nothing takes what is left for a run."""
FOLDER = "partial"
"""In the run folder, where it is written."""


@dataclasses.dataclass(frozen=True, eq=False)
class PartialRun:
    """What is left of a run.

    Attributes:
        summary: the object of `summary.json`: that of a run on the images that are left, and
            under `partial` what is gone.
        per_timestep: one row a step; see `report.tables.per_timestep`.
        rate_distortion: one row a step; see `report.tables.rate_distortion`.
        folder: where these are written.
    """

    summary: dict[str, Any]
    per_timestep: pd.DataFrame
    rate_distortion: pd.DataFrame
    folder: Path


def reduce_what_is_left(run: str | Path, *, option: str = "--run") -> PartialRun | None:
    """Reduce the images of a finished run all of whose rows are there and readable.

    Every shard is read and held against the design. Nothing in the run folder is changed; the
    result is written into `partial/` in it.

    Args:
        run: the folder.
        option: how the user named it, for messages.

    Returns:
        None where nothing is gone, and the run's own result holds.

    Raises:
        InputError: the folder holds no finished run, what its rows follow from is gone too, or
            not a single image has all its rows.
    """
    finished = FinishedRun.open(Path(run), option=option, schema=tables.SCHEMA)
    if not (finished.path / "shards").is_dir():
        return None
    design = finished.design
    losses = find_losses(finished, design=design)
    if losses is None:
        return None
    store, of_bound = usable(finished, losses.faults), columns_of(finished)
    prior = finished.prior()

    def left() -> Iterator[TermTable]:
        return store.tables(len(design), of_bound)

    conventions = finished.summary["conventions"]
    clip = bool(conventions["clip"])
    data_range = data_range_of(conventions, finished.path / SUMMARY)
    found = partial_bound(design, _nats(prior, finished), left, clip=clip)
    if found is None:
        named = f"{option} {finished.path}".strip()
        raise InputError(
            f"{named}: --partial: no image has all its rows left: {losses.named}; "
            f"{losses.remedy(finished)}"
        )
    summary = _summary(finished, found, losses, store.seconds(len(design)))
    summary["partial"]["prior"] = "of all images" if prior is None else "of these images"
    partial = PartialRun(
        summary=summary,
        per_timestep=tables.per_timestep(found.bound),
        rate_distortion=tables.rate_distortion(found.bound, found.distortion, data_range),
        folder=finished.path / FOLDER,
    )
    _write(partial)
    return partial


def _nats(prior: NDArray[np.float64] | None, run: FinishedRun) -> NDArray[np.float64]:
    """(N,) L_T of every image; of a run that keeps the mean alone it stands for each."""
    if prior is None:
        prior = np.full(run.summary["num_images"], float(run.summary["prior"]))
    return prior * NATS_PER_BIT


def _summary(
    run: FinishedRun, found: PartialBound, losses: Losses, seconds: float
) -> dict[str, Any]:
    names = (field.name for field in dataclasses.fields(tables.Comparability))
    of: dict[str, Any] = {name: run.summary.get(name) for name in names}
    sampling = of["sampling"]
    if of["precision_correction"] is not None:
        # What rounding does was found on rows of all images; it holds for any of them.
        record = of["precision_correction"]
        check(record, CORRECTION, run.path / SUMMARY)
        of["precision_correction"] = CorrectionInBits(
            **{name: record[name] for name in CORRECTION}
            | {"uncorrected_bits_per_dim": found.bound.nats / NATS_PER_BIT}
        )
    of |= {
        "num_images": len(found.image),
        "num_evaluations": found.num_rows,
        "sampling": {n: sampling[n] for n in ("draws", "rotations") if n in sampling},
        "seconds": round(seconds, 3),
    }
    summary = tables.summary(found.bound, tables.Comparability(**of))
    width = found.bound.half_width
    return {
        **summary,
        "schema": SCHEMA,
        "half_width": None if width is None or math.isnan(width) else summary["half_width"],
        "partial": {
            "num_images": len(found.image),
            "of": run.summary["num_images"],
            "lost_rows": losses.num_rows,
            "shards": list(losses.shards),
        },
    }


def _write(partial: PartialRun) -> None:
    checksums = {}
    with writing_to(partial.folder):
        partial.folder.mkdir(exist_ok=True)
        for name, frame in (
            ("per_timestep.csv", partial.per_timestep),
            (RATE_DISTORTION, partial.rate_distortion),
        ):
            with replacing(partial.folder / name) as temporary:
                frame.to_csv(temporary, index=False)
                checksums[name] = checksum(temporary)
        with replacing(partial.folder / SUMMARY) as temporary:
            write_json(temporary, partial.summary, checksums)
