"""Decompress what `compress` wrote."""

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ddpmbench.codec.blocks import Labels, check_size, decode_block
from ddpmbench.codec.container import Header, Reader
from ddpmbench.data.arrays import PositionIds
from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.errors import InputError, instance_of, whole_number
from ddpmbench.evaluate.coding import Counter, coding, damage_as, model_of
from ddpmbench.evaluate.progress import listening
from ddpmbench.execution.samples import write_pngs, write_samples
from ddpmbench.execution.worker import RunListener
from ddpmbench.files import (
    move_into_place,
    named_path,
    scratch_folder,
    writing_to,
)


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
            with damage_as(reader.damaged()):
                check_size(8 * length, record.batches[-1], header.shape)
        if block is not None:
            whole_number("block", block, 0, len(records) - 1)
        chosen = range(len(records)) if block is None else [block]
        _check_model(path, header, checkpoint)
        checkpoint.check_images(header.shape, str(path))
        with (
            coding(checkpoint, header.shape, device) as here,
            listening(listener, "decompress", "images", shown=progress) as reporter,
        ):
            _refuse_other(path, "machine", header.machine, here.machine)
            _refuse_other(path, "model", header.model, model_of(here.checkpoint))
            labels, ids = _labels(path, header), _ids(path, header)
            _check_labels(path, labels, here.checkpoint)
            chain = here.chain(header.process)
            total = sum(records[i].num_images for i in chosen)
            count = Counter(reporter, total)
            parts = []
            for index in chosen:
                part = slice(index * header.block_images, (index + 1) * header.block_images)
                refusal = InputError(
                    f"{path}: block {index} does not decode to the images that were compressed; "
                    "the file is damaged, or the network computes otherwise here"
                )
                of_part = None if labels is None else labels[part]
                with damage_as(refusal):
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


def new_place(out: str | Path) -> Path:
    """Where images can be written.

    Raises:
        InputError: something is there.
    """
    place = named_path(out)
    if place.exists():
        raise InputError(f"`out={place}`: is there already; remove it, or name another")
    return place


def write_images(out: str | Path, images: ImageSet) -> None:
    """Write images as an .npz with their labels, or as one PNG each into a new folder.

    Args:
        out: a name ending in .npz, or a folder.
        images: what `decompress` returns.

    Raises:
        InputError: it is there already, or cannot be written.
    """
    place = new_place(out)
    if place.suffix == ".npz":
        write_samples(place, images.pixels, images.labels)
        return
    with writing_to(place.parent), scratch_folder(place) as scratch:
        write_pngs(scratch / place.name, images.pixels)
        move_into_place(scratch / place.name, place)


def _check_model(path: Path, header: Header, checkpoint: Checkpoint) -> None:
    """Refuse another model before its network is called."""
    ours = model_of(checkpoint)
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
