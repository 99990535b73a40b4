"""Compress images losslessly to the length that the bound predicts."""

import dataclasses
import json
import os
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from ddpmbench.codec.blocks import Labels, Pixels, decode_block, encode_block
from ddpmbench.codec.chain import Chain, ReverseProcess
from ddpmbench.codec.container import MOST, Block, Bound, Header, Reader, Writer
from ddpmbench.codec.rans import DamageError
from ddpmbench.data.images import ImageSet
from ddpmbench.data.load import ImageSource, load_images
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.errors import InputError, instance_of, one_of, path_of, whole_number
from ddpmbench.evaluate.coding import (
    BEST_CONSTANT,
    VARIANCES,
    CodingSession,
    Counter,
    as_coded,
    bound_of,
    chosen_process,
    coding,
    digest_of,
    finished_run,
    model_of,
)
from ddpmbench.evaluate.evaluation import check_images, note_images
from ddpmbench.evaluate.nll import evaluate_nll
from ddpmbench.evaluate.other_codecs import CodecSize, other_codecs
from ddpmbench.evaluate.progress import listening
from ddpmbench.execution.folder import refuse_other
from ddpmbench.execution.worker import RunListener
from ddpmbench.files import (
    check_writable,
    named_path,
    sha256_of,
    writing_to,
)
from ddpmbench.likelihood.designs import PilotDesign
from ddpmbench.likelihood.importance_estimator import initial_terms
from ddpmbench.report.codec import codec_card
from ddpmbench.report.display import Card, Shown

SCHEMA = "ddpmbench.codec/1"
DEFAULT_TIMESTEPS, DEFAULT_BLOCK, DEFAULT_BATCH = 50, 1024, 64
PARTIAL = ".partial"
"""Appended to the name of a file until it is complete."""
VERIFY = ("first", "all", "none")
_EVALUATIONS = 4000
"""Network evaluations of the run that chooses the timesteps and bounds the model, unless its
interval takes more."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class CompressReport(Shown):
    """A compressed image set.

    Attributes:
        summary: sizes, the bound, and what they depend on.
        file: the path of the file.
    """

    summary: dict[str, Any]
    file: Path

    def _card(self) -> Card:
        return codec_card(self.summary)


def compress(
    checkpoint: Checkpoint,
    images: ImageSource,
    out: str | Path,
    *,
    timesteps: int | None = None,
    code_variance: str = BEST_CONSTANT,
    run: str | Path | None = None,
    block_images: int = DEFAULT_BLOCK,
    batch_size: int = DEFAULT_BATCH,
    verify: str = "first",
    compare: bool = True,
    device: str = "auto",
    listener: RunListener | None = None,
    progress: bool = True,
) -> CompressReport:
    """Compress images losslessly by bits-back coding with a diffusion model.

    An interrupted call leaves a partial file beside `out`; the same call completes it.

    Args:
        checkpoint: what `load_checkpoint` returns.
        images: what `load_images` returns or takes: a name, a path, a uint8 array.
        out: the file to write.
        timesteps: K, the number of timesteps to visit, the best according to `run`; each image
            takes K network evaluations. None for 50, or all if there are fewer.
        code_variance: variance of the reverse process: "best_constant" at every timestep,
            "fixed_small" or "fixed_large".
        run: the folder of a run of `evaluate_nll` on the same images, from which the timesteps,
            the variances and the bound are taken; None evaluates a small one.
        block_images: images per block. A block can be decoded alone, but costs a start-up.
        batch_size: the most images in a batch. It is stored in the file.
        verify: "first" decodes the first block at once and compares it, "all" every block, "none"
            no block.
        compare: whether to report the sizes under other lossless codecs.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps". The file can be decompressed only there.
        listener: called as the run proceeds.
        progress: whether progress, warnings and notes go to standard error where there is no
            listener.

    Raises:
        InputError: an argument, the images or the network is unsuitable, or `out` exists.

    Source: Townsend, Bird & Barber 2019; Kingma, Abbeel & Ho 2019, "Bit-Swap"; Ho, Jain & Abbeel
    2020, section 4.3.
    """
    instance_of("checkpoint", checkpoint, Checkpoint, "see load_checkpoint")
    one_of("code_variance", code_variance, VARIANCES)
    one_of("verify", verify, VERIFY)
    place = named_path(out)
    partial = named_path(place.with_name(place.name + PARTIAL))
    run = None if run is None else path_of("run", run)
    total = checkpoint.schedule.num_timesteps
    timesteps = min(DEFAULT_TIMESTEPS, total) if timesteps is None else timesteps
    timesteps = whole_number("timesteps", timesteps, 1, total)
    settings: dict[str, Any] = {
        "block_images": whole_number("block_images", block_images, 1, MOST),
        "batch_size": whole_number("batch_size", batch_size, 1, 1 << 16),
    }
    images = load_images(images)
    check_images(checkpoint, images)
    _check_lossless(checkpoint, images)
    _refuse_existing(place)
    check_writable(place.parent)
    with (
        coding(checkpoint, images.pixels.shape[1:], device) as session,
        listening(listener, "compress", "images", shown=progress) as reporter,
    ):
        note_images(checkpoint, images, reporter)
        begun = time.perf_counter()
        known = {**_fixed_fields(session, images), "run": None if run is None else digest_of(run)}
        with writing_to(place.parent):
            if partial.exists() and os.path.getsize(partial):
                header = _resumed_header(
                    partial, known, {"timesteps": timesteps, **settings}, code_variance
                )
            else:
                shown = progress and listener is None
                process, bound = _choose_process(
                    session, images, run, timesteps, code_variance, shown=shown
                )
                header = Header(
                    num_images=len(images),
                    shape=images.pixels.shape[1:],
                    process=process,
                    bound=bound,
                    **settings,
                    **known,
                )
            chain = session.chain(header.process)
            seconds_of_choice = time.perf_counter() - begun
            with Writer(partial, header) as writer:
                timed = _write_blocks(writer, chain, session, images, verify, reporter)
                _refuse_existing(place)
                writer.finish(place)
        others = other_codecs(images.pixels) if compare else []
        summary = {
            **_summary(writer, place, others, session),
            **timed,
            "seconds_of_choice": round(seconds_of_choice, 3),
        }
        return CompressReport(summary, place)


def _refuse_existing(place: Path) -> None:
    if place.exists():
        raise InputError(f"`out={place}`: is there already; remove it, or name another file")


def _check_lossless(checkpoint: Checkpoint, images: ImageSet) -> None:
    """Refuse pixels that are not levels of the model."""
    data_range = checkpoint.data_range
    for start in range(0, len(images), 1024):
        part = images.pixels[start : start + 1024]
        if not np.array_equal(data_range.shown(part), part):
            raise InputError(
                f"`levels={data_range.levels}`: the images have pixels between the levels of the "
                "model, which it cannot code without loss; compress images of as many levels"
            )


def _fixed_fields(session: CodingSession, images: ImageSet) -> dict[str, Any]:
    """The fields of a header that are known before any evaluation."""
    labels = images.labels if session.checkpoint.num_classes else None
    ids = images.ids
    is_numbered = all(name == str(index) for index, name in enumerate(ids))
    return {
        "model": model_of(session.checkpoint),
        "machine": session.machine,
        "data": {**images.record, "sha256": images.sha256},
        "ids": b"" if is_numbered else zlib.compress(json.dumps(list(ids)).encode()),
        "labels": b"" if labels is None else zlib.compress(labels.astype("<i8").tobytes()),
    }


def _resumed_header(
    partial: Path, known: Mapping[str, Any], settings: Mapping[str, int], variance: str
) -> Header:
    """The header of a partial file; InputError if it is of another compression."""
    with Reader(partial) as reader:
        header = reader.header
    theirs, process = msgspec.structs.asdict(header), header.process
    theirs |= {"timesteps": len(process.timesteps), "code_variance": process.variance}
    ours = {**settings, "code_variance": variance, **known}
    remedy = "run the command that began it, or remove the file"
    refuse_other(f"{partial}: was begun otherwise", theirs, ours, remedy, names=ours)
    return header


def _choose_process(
    session: CodingSession,
    images: ImageSet,
    run: Path | None,
    timesteps: int,
    variance: str,
    *,
    shown: bool,
) -> tuple[ReverseProcess, Bound | None]:
    """The timesteps and variances of a code, and the bound of its model, according to a run."""
    checkpoint = session.checkpoint
    if run is not None:
        report, is_same = finished_run(run, checkpoint, images)
        process = chosen_process(checkpoint, report, timesteps, variance)
        return process, bound_of(report, process) if is_same else None
    with (
        listening(None, "choose timesteps", "evaluations", shown=shown) as reporter,
        np.errstate(over="ignore", invalid="ignore"),  # in bounds that a code does not need
    ):
        report = evaluate_nll(
            as_coded(checkpoint),
            images,
            **_design(len(images), checkpoint.schedule.num_timesteps),
            device=str(session.device),
            check=False,
            continuous=False,
            listener=RunListener(progress=reporter.progress),
        )
    process = chosen_process(checkpoint, report, timesteps, variance)
    return process, bound_of(report, process)


def _design(num_images: int, num_timesteps: int) -> dict[str, Any]:
    """The design of the run that chooses: every pair if few, else a few thousand terms."""
    if num_images * num_timesteps * 2 <= _EVALUATIONS:
        return {"estimator": "every-pair", "draws": 2}
    least = len(PilotDesign(num_images, num_timesteps, 0)) + initial_terms(num_images)
    return {"max_evaluations": max(_EVALUATIONS, least)}


def _write_blocks(
    writer: Writer,
    chain: Chain,
    session: CodingSession,
    images: ImageSet,
    verify: str,
    reporter: RunListener,
) -> dict[str, Any]:
    """Encode the missing blocks, and time it unless some existed already."""
    header, before = writer.header, writer.num_images
    verified, seconds = 0, 0.0
    count = Counter(reporter, len(images), before)
    labels = images.labels if session.checkpoint.num_classes else None
    for index, start in enumerate(range(0, len(images), header.block_images)):
        is_written = start < before
        is_verified = verify == "all" or (verify == "first" and index == 0)
        if is_written and not is_verified:
            continue
        part = slice(start, start + header.block_images)
        pixels = np.ascontiguousarray(images.pixels[part])
        part_labels = None if labels is None else labels[part]
        if is_written:
            block = writer.block(index)
        else:
            begun = time.perf_counter()
            block = encode_block(
                chain,
                pixels,
                part_labels,
                batch_size=header.batch_size,
                device=session.device,
                progress=count,
            )
            seconds += time.perf_counter() - begun
        if is_verified:
            _verify(session.chain(header.process), block, pixels, part_labels, session.device)
            verified += 1
        if not is_written:
            writer.add(block)
    return {
        "verified_blocks": verified,
        "num_evaluations": chain.num_evaluations + before * len(header.process.timesteps),
        "seconds": None if before else round(seconds, 3),
        "seconds_per_image": None if before else round(seconds / len(images), 6),
    }


def _verify(
    chain: Chain, block: Block, pixels: Pixels, labels: Labels, device: torch.device
) -> None:
    try:
        decoded = decode_block(chain, block, pixels.shape[1:], labels, device=device)
        is_equal = np.array_equal(decoded, pixels)
    except DamageError:
        is_equal = False
    if not is_equal:
        raise InputError(
            "the network's output for the same input changes from one call to the next, so what it "
            "encodes cannot be decoded; choose `device=cpu`"
        )


def _summary(
    writer: Writer, place: Path, others: list[CodecSize], session: CodingSession
) -> dict[str, Any]:
    header = writer.header
    records = writer.records
    dims = float(np.prod(header.shape)) * header.num_images
    net = sum(record.net_bits for record in records)
    size = os.path.getsize(place)
    start = 8 * writer.block_bytes - net
    overhead_bits = 8 * (size - writer.block_bytes)
    per_image = net / header.num_images
    once = overhead_bits + start / len(records)
    return {
        "schema": SCHEMA,
        "bits_per_dim": net / dims,
        "bits_per_dim_with_startup": 8 * size / dims,
        "ideal_bits_per_dim": sum(record.ideal_bits for record in records) / dims,
        "tail_bits_per_dim": sum(record.tail_bits for record in records) / dims,
        "bound": None if header.bound is None else msgspec.to_builtins(header.bound),
        "header_bits": overhead_bits,
        "startup_bits": start,
        "startup_below_one_percent_from": int(np.ceil(once / (0.01 * per_image))),
        "num_images": header.num_images,
        "num_blocks": len(records),
        "block_images": header.block_images,
        "batch_size": header.batch_size,
        "shape": list(header.shape),
        "timesteps": list(header.process.timesteps),
        "code_variance": header.process.variance,
        "evaluations_per_image": len(header.process.timesteps),
        "file": str(place),
        "bytes": size,
        "sha256": sha256_of(place),
        "codecs": [dataclasses.asdict(other) for other in others],
        "checkpoint": session.checkpoint.record,
        "data": header.data,
        "machine": header.machine,
    }
