"""One function a question; the commands and `import ddpmbench` offer nothing else."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd

from ddpmbench.errors import InputError
from ddpmbench.inputs.checkpoints.checkpoint import Checkpoint
from ddpmbench.inputs.images import ImageSet
from ddpmbench.likelihood.design import EveryPair
from ddpmbench.likelihood.terms import DECODERS, TermsPass
from ddpmbench.report import tables
from ddpmbench.runs.engine import evaluating, resolve_device, strict_float32
from ddpmbench.runs.folder import RunFolder
from ddpmbench.runs.likelihood import MemoryStore, RunListener, TermStore, run_likelihood
from ddpmbench.runs.provenance import environment
from ddpmbench.version import __version__

PRECISION = "fp32"


@dataclasses.dataclass(frozen=True, eq=False)
class NllReport:
    """The variational bound of a checkpoint on images.

    Attributes:
        summary: the object of `summary.json`.
        per_timestep: one row a step; see `report.tables.per_timestep`.
        per_image: one row an image; see `report.tables.per_image`.
        folder: the run folder; None if the run was kept in memory.
    """

    summary: dict[str, Any]
    per_timestep: pd.DataFrame
    per_image: pd.DataFrame
    folder: Path | None


def evaluate_nll(
    checkpoint: Checkpoint,
    images: ImageSet,
    *,
    estimator: str = "every-pair",
    draws: int = 2,
    decoder: str = "exact",
    seed: int = 0,
    device: str = "auto",
    batch_size: int | None = None,
    out: str | Path | None = None,
    command: list[str] | None = None,
    listener: RunListener | None = None,
) -> NllReport:
    """The variational bound in bits per dimension, its three parts and two intervals.

    Args:
        checkpoint: what `load_checkpoint` returns; its conventions are those of the bound.
        images: what `load_images` returns.
        estimator: "every-pair" computes every step of every image.
        draws: noise draws a pair; with one, the interval for this image set cannot be known.
        decoder: "exact" or "tanh" for the distribution function of the decoder.
        seed: of the noise, 0 <= seed < 2^64.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        batch_size: rows a network call, None for what suits the device. It cannot change a number.
        out: the run folder; one that holds the same run unfinished goes on with it. None keeps
            the run in memory.
        command: the command line, for the record.
        listener: who is told how the run goes.

    Raises:
        InputError: an argument, the images or the folder do not fit.

    Source: Ho, Jain & Abbeel 2020, eq. 5.
    """
    _check_options(estimator=estimator, draws=draws, decoder=decoder, seed=seed)
    if batch_size is not None and batch_size < 1:
        raise InputError(f"--batch-size {batch_size}: needs at least one row, or auto")
    _check_images(checkpoint, images)
    target = resolve_device(device)
    design = EveryPair(len(images), checkpoint.schedule.num_timesteps, draws)
    conventions = _conventions(checkpoint, images, decoder=decoder, draws=draws)
    identity = {
        "schema": tables.SCHEMA,
        "checkpoint": checkpoint.sha256,
        "data": images.sha256,
        "labels": _labels_sha256(checkpoint, images),
        "num_images": len(images),
        "num_timesteps": design.num_timesteps,
        "estimator": estimator,
        "seed": seed,
        "precision": PRECISION,
        "tables": str(checkpoint.diffusion.to(target).dtype),
        "ddpmbench": __version__,
        **conventions,
        "network": checkpoint.fingerprint,
    }
    folder = RunFolder(Path(out), identity) if out is not None else None
    store: TermStore = folder if folder is not None else MemoryStore()
    terms_pass = TermsPass(checkpoint, images, seed=seed, decoder=decoder, device=target)
    with evaluating(checkpoint.network), strict_float32():
        bound = run_likelihood(terms_pass, design, store, batch_size=batch_size, listener=listener)
    device_names = " + ".join(store.devices())
    record = environment(
        target,
        given=command,
        resolved={**identity, "device": str(target), "batch_size": batch_size or "auto"},
    )
    comparability = tables.Comparability(
        num_images=len(images),
        num_timesteps=design.num_timesteps,
        num_evaluations=len(design),
        estimator=estimator,
        conventions=conventions,
        checkpoint={
            "source": checkpoint.source,
            "family": checkpoint.family,
            "sha256": checkpoint.sha256,
        },
        data={"source": images.source, "split": images.split, "sha256": images.sha256},
        seed=seed,
        device=device_names,
        precision=PRECISION,
        seconds=round(store.seconds(), 3),
    )
    report = NllReport(
        summary=tables.summary(bound, comparability),
        per_timestep=tables.per_timestep(bound),
        per_image=tables.per_image(bound, list(images.ids)),
        folder=folder.path if folder is not None else None,
    )
    if folder is not None:
        _write(folder, report, record)
    return report


def _write(folder: RunFolder, report: NllReport, record: dict[str, object]) -> None:
    folder.write_frame("per_timestep.csv", report.per_timestep)
    folder.write_frame("per_image.csv", report.per_image)
    folder.write_text("environment.json", json.dumps(record, indent=2) + "\n")
    folder.write_text("summary.json", json.dumps(report.summary, indent=2) + "\n")


def _conventions(
    checkpoint: Checkpoint, images: ImageSet, *, decoder: str, draws: int
) -> dict[str, object]:
    return {
        "prediction": str(checkpoint.prediction),
        "variance": str(checkpoint.variance),
        "clip": checkpoint.clip,
        "decoder": decoder,
        "schedule": checkpoint.schedule.name,
        "time_input": str(checkpoint.time_input),
        "draws": draws,
        "labels": _labels(checkpoint, images),
    }


def _labels(checkpoint: Checkpoint, images: ImageSet) -> str | None:
    """What the network is conditioned on, in words."""
    if not checkpoint.num_classes or images.labels is None:
        return None
    first = int(images.labels[0])
    return f"class {first}" if (images.labels == first).all() else "of the images"


def _labels_sha256(checkpoint: Checkpoint, images: ImageSet) -> str | None:
    if not checkpoint.num_classes or images.labels is None:
        return None
    return hashlib.sha256(images.labels.tobytes()).hexdigest()


def _check_options(*, estimator: str, draws: int, decoder: str, seed: int) -> None:
    if estimator != "every-pair":
        raise InputError(f"--estimator {estimator}: choose every-pair")
    if draws < 1:
        raise InputError(f"--draws {draws}: at least one draw is needed")
    if decoder not in DECODERS:
        raise InputError(f"--decoder {decoder}: choose exact or tanh")
    if not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise InputError(f"--seed {seed}: choose a whole number from 0 to 2^64 - 1")


def _check_images(checkpoint: Checkpoint, images: ImageSet) -> None:
    checkpoint.check_images(images.pixels.shape[1:], images.source)
    if not checkpoint.num_classes:
        return
    if images.labels is None:
        raise InputError(
            f"--data {images.source}: has no labels, but the checkpoint is conditioned on "
            f"{checkpoint.num_classes} classes; add arr_1 to an npz, or name one with --class"
        )
    if images.labels.min() < 0 or images.labels.max() >= checkpoint.num_classes:
        raise InputError(
            f"--data {images.source}: labels {images.labels.min()}..{images.labels.max()} do not "
            f"fit the checkpoint's classes 0..{checkpoint.num_classes - 1}"
        )
