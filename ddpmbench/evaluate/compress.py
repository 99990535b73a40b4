"""Compress images losslessly to the length that the bound states, and decompress them."""

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import scipy
import torch

from ddpmbench.codec.blocks import Labels, Pixels, check_size, decode_block, encode_block
from ddpmbench.codec.chain import Chain, ReverseProcess
from ddpmbench.codec.container import Block, Bound, Header, Process, Reader, Writer
from ddpmbench.codec.rans import DamageError
from ddpmbench.data.arrays import PositionIds
from ddpmbench.data.images import ImageSet, ImageSource, load_images
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.errors import InputError, instance_of, one_of, whole_number
from ddpmbench.evaluate.code_choice import BEST_CONSTANT, VARIANCES, bound_of, chosen_process
from ddpmbench.evaluate.codecs import CodecSize, other_codecs
from ddpmbench.evaluate.inputs import check_images, note_images
from ddpmbench.evaluate.load_report import load_report
from ddpmbench.evaluate.nll import NllReport, evaluate_nll
from ddpmbench.evaluate.progress import listening
from ddpmbench.execution.devices import device_name
from ddpmbench.execution.engine import Engine
from ddpmbench.execution.engine_choice import at_once
from ddpmbench.execution.samples import write_pngs, write_samples
from ddpmbench.execution.session import Session, session
from ddpmbench.execution.worker import RunListener, RunProgress
from ddpmbench.files import (
    move_into_place,
    named_path,
    scratch_folder,
    sha256_of,
    writing_to,
)
from ddpmbench.report.card import Card, Shown
from ddpmbench.report.codec import codec_card
from ddpmbench.unet.precision import Precision
from ddpmbench.user_code import user_errors

SCHEMA = "ddpmbench.codec/1"
DEFAULT_TIMESTEPS, DEFAULT_BLOCK, DEFAULT_BATCH = 50, 1024, 64
PARTIAL = ".partial"
"""What is added to the name of a file while it is not complete."""
VERIFY = ("first", "all", "none")
_EVALUATIONS = 4000  # of the run that chooses the timesteps and bounds the model


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class CompressReport(Shown):
    """A compressed image set.

    Attributes:
        summary: its sizes, the bound, and what they depend on.
        file: its path.
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

    What was interrupted lies beside `out`, and the same call goes on with it, to the same file.

    Args:
        checkpoint: what `load_checkpoint` returns.
        images: what `load_images` returns or takes: a name, a path, a uint8 array.
        out: the file to write.
        timesteps: K, so many are visited, the best by `run`; an image takes K network evaluations.
            None for 50, or all if there are fewer.
        code_variance: of the reverse process: "best_constant" at every timestep, "fixed_small" or
            "fixed_large".
        run: the folder of a run of `evaluate_nll` on the same images, which tells the timesteps,
            the variances and the bound; None for a small one.
        block_images: images that lie on one stack. A block can be decoded alone, and costs a
            start-up.
        batch_size: the most images in a network evaluation. It is kept in the file.
        verify: "first" decodes the first block at once and compares, "all" every block, "none"
            none.
        compare: whether other lossless codecs compress the same images, for the report.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps". Another one cannot decompress the file.
        listener: called as the run proceeds.
        progress: whether progress, warnings and notes go to standard error where there is no
            listener.

    Raises:
        InputError: an argument, the images or the network do not fit, or `out` is there already.

    Source: Townsend, Bird & Barber 2019; Kingma, Abbeel & Ho 2019, "Bit-Swap"; Ho, Jain & Abbeel
    2020, section 4.3.
    """
    instance_of("checkpoint", checkpoint, Checkpoint, "see load_checkpoint")
    one_of("code_variance", code_variance, VARIANCES)
    one_of("verify", verify, VERIFY)
    place = named_path(out)
    total = checkpoint.schedule.num_timesteps
    timesteps = min(DEFAULT_TIMESTEPS, total) if timesteps is None else timesteps
    settings = {
        "timesteps": whole_number("timesteps", timesteps, 1, total),
        "block_images": whole_number("block_images", block_images, 1),
        "batch_size": whole_number("batch_size", batch_size, 1, 1 << 16),
    }
    images = load_images(images)
    check_images(checkpoint, images)
    _check_lossless(checkpoint, images)
    if place.exists():
        raise InputError(f"`out={place}`: is there already; remove it, or name another file")
    with (
        _coding(checkpoint, images.pixels.shape[1:], device) as here,
        listening(listener, "compress", "images", shown=progress) as reporter,
    ):
        note_images(checkpoint, images, reporter)
        begun = time.perf_counter()
        partial = place.with_name(place.name + PARTIAL)
        known = _known(here, images)
        with writing_to(place.parent):
            if partial.exists():
                writer = _resumed(partial, known, settings, code_variance)
            else:
                process, bound = _chosen(here, images, run, timesteps, code_variance)
                writer = Writer(
                    partial,
                    Header(
                        num_images=len(images),
                        shape=images.pixels.shape[1:],
                        block_images=settings["block_images"],
                        batch_size=settings["batch_size"],
                        process=process,
                        bound=bound,
                        **known,
                    ),
                )
            chosen = time.perf_counter()
            verified = _write_blocks(writer, here, images, verify, reporter)
            seconds = time.perf_counter() - chosen
            writer.finish(place)
        others = other_codecs(images.pixels) if compare else []
        summary = _summary(writer, place, others, here) | {
            "verified_blocks": verified,
            "num_evaluations": here.num_evaluations,
            "seconds": round(seconds, 3),
            "seconds_of_choice": round(chosen - begun, 3),
        }
        return CompressReport(summary, place)


def decompress(
    file: str | Path,
    checkpoint: Checkpoint,
    *,
    block: int | None = None,
    device: str = "auto",
    listener: RunListener | None = None,
    progress: bool = True,
) -> ImageSet:
    """The images of a compressed file, every pixel as it was.

    Args:
        file: what `compress` wrote.
        checkpoint: that it was compressed with.
        block: the number of a block to decode alone, from 0 on; None for all.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps", that of `compress`.
        listener: called as the run proceeds.
        progress: whether progress goes to standard error where there is no listener.

    Raises:
        InputError: the file is damaged, or was compressed with another model, device, or version
            of a library.
    """
    instance_of("checkpoint", checkpoint, Checkpoint, "see load_checkpoint")
    path = named_path(file)
    with Reader(path) as reader:
        header, blocks = reader.header, reader.verify()
        records = [record for record, _ in blocks]
        for record, length in blocks:
            with _damage(reader.damaged()):
                check_size(8 * length, record.batches[-1], header.shape)
        if block is not None:
            whole_number("block", block, 0, len(records) - 1)
        chosen = range(len(records)) if block is None else [block]
        _check_model(path, header, checkpoint)
        checkpoint.check_images(header.shape, str(path))
        with (
            _coding(checkpoint, header.shape, device) as here,
            listening(listener, "decompress", "images", shown=progress) as reporter,
        ):
            _refuse_other(path, "machine", header.machine, here.machine)
            _refuse_other(path, "model", header.model, _model(here.checkpoint))
            labels, ids = _labels(path, header), _ids(path, header)
            _check_labels(path, labels, here.checkpoint)
            chain = here.chain(header.process)
            total = sum(records[i].num_images for i in chosen)
            count = _Counter(reporter, total)
            parts = []
            for index in chosen:
                part = slice(index * header.block_images, (index + 1) * header.block_images)
                refusal = InputError(
                    f"{path}: block {index} does not decode to the images that were compressed; "
                    "the file is damaged, or the network computes otherwise here"
                )
                of_part = None if labels is None else labels[part]
                with _damage(refusal):
                    decoded = decode_block(
                        chain,
                        reader.block(index),
                        header.shape,
                        of_part,
                        device=here.device,
                        progress=count,
                    )
                parts.append(decoded)
    first = chosen[0] * header.block_images
    span = slice(first, first + total)
    return ImageSet(
        pixels=np.concatenate(parts),
        ids=PositionIds(range(header.num_images))[span] if ids is None else ids[span],
        labels=None if labels is None else labels[span],
        source=str(path),
    )


def write_images(out: str | Path, images: ImageSet) -> None:
    """Write images as an .npz with their labels, or as one PNG each into a new folder.

    Args:
        out: a name ending in .npz, or a folder.
        images: what `decompress` returns.

    Raises:
        InputError: it is there already, or cannot be written.
    """
    place = named_path(out)
    if place.exists():
        raise InputError(f"`out={place}`: is there already; remove it, or name another")
    if place.suffix == ".npz":
        write_samples(place, images.pixels, images.labels)
        return
    with writing_to(place.parent), scratch_folder(place) as scratch:
        write_pngs(scratch / place.name, images.pixels)
        move_into_place(scratch / place.name, place)


@dataclasses.dataclass(eq=False)
class _Here:
    """A checkpoint where it is evaluated.

    Attributes:
        checkpoint: on the device, checked.
        device: that is.
        engine: that calls the network.
        num_evaluations: of the network, by its chains.
    """

    checkpoint: Checkpoint
    device: torch.device
    engine: Engine
    _chains: list[Chain] = dataclasses.field(default_factory=list)

    def chain(self, process: Process) -> Chain:
        """A code."""
        of = ReverseProcess(tuple(process.timesteps), tuple(process.variances))
        output = self.engine.model_output
        chain = Chain(self.checkpoint, of, device=self.device, model_output=output)
        self._chains.append(chain)
        return chain

    @property
    def num_evaluations(self) -> int:
        """Of the network."""
        return sum(chain.num_evaluations for chain in self._chains)

    @property
    def machine(self) -> dict[str, Any]:
        """What the floating-point numbers of a code depend on."""
        return {
            "device": device_name(self.device),
            "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
            "engine": str(self.engine.choice),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
        }


@contextlib.contextmanager
def _coding(checkpoint: Checkpoint, shape: tuple[int, ...], device: str) -> Iterator[_Here]:
    """The checkpoint on a device, whose network gives the same numbers whenever it is called."""
    if checkpoint.schedule.is_continuous:
        raise InputError("`checkpoint`: a code visits whole timesteps; leave out continuous time")
    with session(device, None) as run_session:
        _refuse_processes(run_session)
        checkpoint = run_session.checked(checkpoint, shape)
        target = run_session.device
        choice = at_once(checkpoint, target, Precision.FP32)
        engine = Engine(checkpoint, device=target, choice=choice)
        with (
            user_errors(checkpoint.network_name),
            engine.running(),
            _same_kernels(),
            torch.inference_mode(),
        ):
            yield _Here(checkpoint, target, engine)


@contextlib.contextmanager
def _same_kernels() -> Iterator[None]:
    """Inside, cuDNN takes the same deterministic kernels for the same shapes."""
    cudnn: Any = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before


def _refuse_processes(run_session: Session) -> None:
    if run_session.ranks.count > 1:
        raise InputError("a code is written by one process; start the command without torchrun")


def _check_lossless(checkpoint: Checkpoint, images: ImageSet) -> None:
    """Refuse pixels that are no levels of the model."""
    data_range = checkpoint.data_range
    for start in range(0, len(images), 1024):
        part = images.pixels[start : start + 1024]
        if not np.array_equal(data_range.shown(part), part):
            raise InputError(
                f"`levels={data_range.levels}`: the images have pixels between the levels of the "
                "model, which it cannot code without loss; compress images of as many levels"
            )


@contextlib.contextmanager
def _damage(refusal: InputError) -> Iterator[None]:
    """Raise this error where the bits are not what was written."""
    try:
        yield
    except DamageError as error:
        raise refusal from error


class _Counter:
    """Counts images for the listener."""

    def __init__(self, reporter: RunListener, total: int, done: int = 0) -> None:
        self._reporter, self._total, self._done = reporter, total, done
        self(0)

    def __call__(self, images: int) -> None:
        self._done += images
        self._reporter.progress(RunProgress(self._done, self._total))


def _known(here: _Here, images: ImageSet) -> dict[str, Any]:
    """The parts of a header that are known before any evaluation."""
    labels = images.labels if here.checkpoint.num_classes else None
    ids = images.ids
    is_numbered = all(name == str(index) for index, name in enumerate(ids))
    return {
        "model": _model(here.checkpoint),
        "machine": here.machine,
        "data": {**images.record, "sha256": images.sha256},
        "ids": b"" if is_numbered else zlib.compress(json.dumps(list(ids)).encode()),
        "labels": b"" if labels is None else zlib.compress(labels.astype("<i8").tobytes()),
    }


def _model(checkpoint: Checkpoint) -> dict[str, Any]:
    """What identifies a model and the conventions of its code."""
    table = checkpoint.schedule.log_alphas_cumprod.numpy().tobytes()
    return {
        "checkpoint": checkpoint.sha256,
        "prediction": str(checkpoint.prediction),
        "clip": checkpoint.clip,
        "time_input": str(checkpoint.time_input),
        "process": str(checkpoint.schedule.process),
        "schedule": hashlib.sha256(table).hexdigest(),
        **checkpoint.data_range.record,
        "network": checkpoint.fingerprint,
        "network_output": list(checkpoint.output_numbers),
    }


def _check_model(path: Path, header: Header, checkpoint: Checkpoint) -> None:
    """Refuse another model before its network is called."""
    ours = _model(checkpoint)
    del ours["network_output"]
    _refuse_other(path, "model", header.model, ours)


def _refuse_other(
    path: Path, what: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]
) -> None:
    """Raise InputError where a file was compressed with something else; it names the first."""
    for name, value in ours.items():
        if theirs.get(name) != value:
            remedy = (
                "give the checkpoint and the options that it was compressed with"
                if what == "model"
                else "decompress it where it was compressed"
            )
            raise InputError(
                f"{path}: was compressed with {name} {_short(theirs.get(name))}, and here it is "
                f"{_short(value)}; {remedy}"
            )


def _short(value: object) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text[:60]


def _resumed(
    partial: Path, known: Mapping[str, Any], settings: Mapping[str, int], variance: str
) -> Writer:
    """The writer of a partial file; another compression's is refused."""
    with Reader(partial) as reader:
        header = reader.header
    theirs = {
        "timesteps": len(header.process.timesteps),
        "block_images": header.block_images,
        "batch_size": header.batch_size,
        "code_variance": header.process.variance,
    }
    ours = {**settings, "code_variance": variance}
    for name, value in ours.items():
        if theirs[name] != value:
            raise InputError(
                f"{partial}: was begun with `{name}={theirs[name]}`; give that, or remove the file"
            )
    for name, value in known.items():
        if getattr(header, name) != value:
            raise InputError(
                f"{partial}: was begun with another {name}; run the same command, or remove it"
            )
    return Writer(partial, header)


def _chosen(
    here: _Here, images: ImageSet, run: str | Path | None, timesteps: int, variance: str
) -> tuple[Process, Bound | None]:
    """The timesteps and variances of a code, and the bound of its model, by a run."""
    checkpoint = here.checkpoint
    if run is None:
        size = len(images) * checkpoint.schedule.num_timesteps * 2
        design: dict[str, Any] = (
            {"estimator": "every-pair", "draws": 2}
            if size <= _EVALUATIONS
            else {"max_evaluations": _EVALUATIONS}
        )
        report = evaluate_nll(
            checkpoint,
            images,
            **design,
            device=str(here.device),
            check=False,
            continuous=False,
            progress=False,
        )
    else:
        loaded = load_report(run)
        if not isinstance(loaded, NllReport):
            raise InputError(f"`run={run}`: is no run of nll; name one, or leave it out")
        report = loaded
        theirs = report.summary["checkpoint"]["sha256"], report.summary["data"]["sha256"]
        if theirs[0] != checkpoint.sha256:
            raise InputError(f"`run={run}`: is of another checkpoint; name one of this one")
        if report.summary["num_timesteps"] != checkpoint.schedule.num_timesteps:
            raise InputError(f"`run={run}`: visits other timesteps; name a run of all of them")
        if theirs[1] != images.sha256:
            process = chosen_process(checkpoint, report, timesteps, variance)
            return process, None
    process = chosen_process(checkpoint, report, timesteps, variance)
    return process, bound_of(checkpoint, report, process)


def _write_blocks(
    writer: Writer, here: _Here, images: ImageSet, verify: str, reporter: RunListener
) -> int:
    """Encode the blocks that are missing; the number of those that were verified."""
    header = writer.header
    chain, verified = here.chain(header.process), 0
    count = _Counter(reporter, len(images), writer.num_images)
    labels = images.labels if here.checkpoint.num_classes else None
    for start in range(writer.num_images, len(images), header.block_images):
        part = slice(start, min(start + header.block_images, len(images)))
        pixels = np.ascontiguousarray(images.pixels[part])
        of_part = None if labels is None else labels[part]
        block = encode_block(
            chain,
            pixels,
            of_part,
            batch_size=header.batch_size,
            device=here.device,
            progress=count,
        )
        if verify == "all" or (verify == "first" and start == 0):
            _verify(here.chain(header.process), block, pixels, of_part, here.device)
            verified += 1
        writer.add(block)
    return verified


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


def _labels(path: Path, header: Header) -> Labels:
    if not header.labels:
        return None
    data = _inflated(path, header.labels, 8 * header.num_images)
    if len(data) != 8 * header.num_images:
        raise InputError(f"{path}: is damaged: it has not a label an image")
    return np.frombuffer(data, "<i8").astype(np.int64)


def _check_labels(path: Path, labels: Labels, checkpoint: Checkpoint) -> None:
    known = [] if labels is None else np.unique(labels).tolist()
    if bool(checkpoint.num_classes) != (labels is not None) or not all(
        map(checkpoint.has_class, known)
    ):
        raise InputError(f"{path}: is damaged: its labels are no classes of the checkpoint")


def _ids(path: Path, header: Header) -> list[str] | None:
    if not header.ids:
        return None
    try:
        ids: list[str] = msgspec.json.decode(
            _inflated(path, header.ids, 1 << 12 + header.num_images.bit_length()), type=list[str]
        )
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is damaged: its names of images cannot be read") from error
    if len(ids) != header.num_images:
        raise InputError(f"{path}: is damaged: it has not a name an image")
    return ids


def _inflated(path: Path, data: bytes, most: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, most)
    except zlib.error as error:
        raise InputError(f"{path}: is damaged: it cannot be decompressed") from error


def _summary(writer: Writer, place: Path, others: list[CodecSize], here: _Here) -> dict[str, Any]:
    header = writer.header
    records = [record for record, _ in writer.blocks]
    dims = float(np.prod(header.shape)) * header.num_images
    net = sum(record.net_bits for record in records)
    size = os.path.getsize(place)
    of_blocks = sum(length for _, length in writer.blocks)
    start = 8 * of_blocks - net
    of_file = 8 * (size - of_blocks)
    per_image = net / header.num_images
    once = of_file + start / len(records)
    return {
        "schema": SCHEMA,
        "bits_per_dim": net / dims,
        "bits_per_dim_with_startup": 8 * size / dims,
        "ideal_bits_per_dim": sum(record.ideal_bits for record in records) / dims,
        "tail_bits_per_dim": sum(record.tail_bits for record in records) / dims,
        "bound": None if header.bound is None else msgspec.to_builtins(header.bound),
        "header_bits": of_file,
        "startup_bits": start,
        "startup_below_one_percent_from": int(np.ceil(once / (0.01 * per_image))),
        "num_images": header.num_images,
        "num_blocks": len(records),
        "block_images": header.block_images,
        "batch_size": header.batch_size,
        "shape": list(header.shape),
        "timesteps": header.process.timesteps,
        "code_variance": header.process.variance,
        "evaluations_per_image": len(header.process.timesteps),
        "file": str(place),
        "bytes": size,
        "sha256": sha256_of(place),
        "codecs": [dataclasses.asdict(other) for other in others],
        "checkpoint": here.checkpoint.record,
        "data": header.data,
        "machine": header.machine,
    }
