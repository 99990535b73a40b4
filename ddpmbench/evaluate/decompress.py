"""Decompress files of `compress`."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from ddpmbench.codec.blocks import Labels, Pixels, check_claims, decode_block
from ddpmbench.codec.chain import Chain
from ddpmbench.codec.container import Header, Reader
from ddpmbench.data.images import ImageSet, PositionIds
from ddpmbench.diffusion.model import OUTPUT, Checkpoint
from ddpmbench.errors import InputError, instance_of, whole_number
from ddpmbench.evaluate.coding import CodingSession, Counter, coding, damage_as, model_of
from ddpmbench.evaluate.progress import listening
from ddpmbench.execution.folder import refuse_other
from ddpmbench.execution.samples import write_pngs, write_samples
from ddpmbench.execution.worker import RunListener
from ddpmbench.files import (
    check_writable,
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
    """Decompress a file to exactly the original images.

    Args:
        file: a file that `compress` wrote.
        checkpoint: the one that compressed it.
        block: the number of a single block to decode, from 0; None for all.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps": that of `compress`.
        listener: called as the run proceeds.
        progress: whether progress goes to standard error where there is no listener.

    Raises:
        InputError: the file is damaged, or was compressed with another model, device, or version
            of a library.
    """
    instance_of("checkpoint", checkpoint, Checkpoint, "see load_checkpoint")
    path = named_path(file, "file")
    with Reader(path) as reader:
        header, blocks = reader.header, reader.verify()
        records = [record for record, _ in blocks]
        for record, length in blocks:
            with damage_as(reader.damaged()):
                check_claims(record, 8 * length, header.shape)
        if block is not None:
            whole_number("block", block, 0, len(records) - 1)
        chosen = range(len(records)) if block is None else [block]
        _check_model(path, header, checkpoint)
        checkpoint.check_images(header.shape, str(path))
        with (
            coding(checkpoint, header.shape, device) as session,
            listening(listener, "decompress", "images", shown=progress) as reporter,
        ):
            what, remedy = f"{path}: is of another machine", "decompress it where it was compressed"
            refuse_other(what, header.machine, session.machine, remedy)
            _check_model(path, header, session.checkpoint)
            labels = _labels(path, header)
            _check_labels(path, labels, session.checkpoint)
            try:
                chain = session.chain(header.process)
            except InputError as error:  # the encoder of the same model accepted the process
                raise reader.damaged() from error
            total = sum(records[i].num_images for i in chosen)
            count = Counter(reporter, total)
            parts = [_decoded(reader, chain, index, labels, session, count) for index in chosen]
    ids = _ids(path, header)  # names of images in the file
    first = chosen[0] * header.block_images
    span = slice(first, first + total)
    return ImageSet(
        pixels=np.concatenate(parts),
        ids=PositionIds(range(header.num_images))[span] if ids is None else ids[span],
        labels=None if labels is None else labels[span],
        source=str(path),
    )


def _decoded(
    reader: Reader, chain: Chain, index: int, labels: Labels, session: CodingSession, count: Counter
) -> Pixels:
    """The images of a block."""
    header = reader.header
    part = slice(index * header.block_images, (index + 1) * header.block_images)
    refusal = InputError(
        f"{reader.path}: block {index} does not decode to the images that were compressed; the "
        "file is damaged, or the network computes otherwise here"
    )
    with damage_as(refusal):
        return decode_block(
            chain,
            reader.block(index),
            header.shape,
            None if labels is None else labels[part],
            device=session.device,
            progress=count,
        )


def new_place(out: str | Path) -> Path:
    """A path to which images can be written.

    Raises:
        InputError: it exists, or cannot be written.
    """
    place = named_path(out)
    if place.exists():
        raise InputError(f"`out={place}`: is there already; remove it, or name another")
    folder = place.parent
    while place.suffix != ".npz" and not folder.exists():  # missing parents will be created
        folder = folder.parent
    check_writable(folder)
    return place


def first_image(file: str | Path, block: int | None) -> int:
    """The index, within its file, of the first image that `decompress` returns."""
    with Reader(named_path(file, "file")) as reader:
        return (block or 0) * reader.header.block_images


def write_images(out: str | Path, images: ImageSet, *, first: int = 0) -> None:
    """Write images as an .npz with their labels, or as one PNG each into a new folder.

    The PNG files are named after the images if all names are plain and distinct, else by number.

    Args:
        out: a name ending in .npz, or a folder.
        images: the images that `decompress` returned.
        first: the number of the first image.

    Raises:
        InputError: `out` exists, or cannot be written.
    """
    place = new_place(out)
    if place.suffix == ".npz":
        write_samples(place, images.pixels, images.labels)
        return
    with writing_to(place.parent), scratch_folder(place) as scratch:
        numbered, named = scratch / "numbered", scratch / "named"
        write_pngs(numbered, images.pixels)
        named.mkdir()
        for index, name in enumerate(_names(images.ids, first)):
            (numbered / f"{index:06d}.png").rename(named / name)
        move_into_place(named, place)


_LONGEST_ID = 1 << 13  # bytes of JSON per image
_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_LONGEST = 200  # bytes of a file name


def _names(ids: Sequence[str], first: int) -> list[str]:
    """File names of images; none of them can leave the folder."""
    numbers = [f"{first + index:06d}.png" for index in range(len(ids))]
    if all(name.isdecimal() for name in ids):
        return numbers
    names = [_stem(name) + ".png" for name in ids]
    is_unique = len({name.casefold() for name in names}) == len(names)
    return names if is_unique and all(map(_is_plain, names)) else numbers


def _stem(name: str) -> str:
    stem, dot, ending = name.rpartition(".")
    return stem if (dot + ending).lower() in _ENDINGS else name


def _is_plain(name: str) -> bool:
    is_long = len(name.encode(errors="replace")) > _LONGEST
    return (
        name.isprintable()
        and name[0] not in ".- "
        and not is_long
        and not set(name) & set('/\\:*?"<>|')
    )


def _check_model(path: Path, header: Header, checkpoint: Checkpoint) -> None:
    """Refuse another model; before its network is evaluated, by all but its output."""
    ours = model_of(checkpoint)
    names = [name for name in ours if checkpoint.output_numbers or name != OUTPUT]
    remedy = "give the checkpoint and the options that it was compressed with"
    refuse_other(f"{path}: is of another model", header.model, ours, remedy, names=names)


def _labels(path: Path, header: Header) -> Labels:
    if not header.labels:
        return None
    data = _inflated(path, header.labels, 8 * header.num_images + 1)
    if len(data) != 8 * header.num_images:
        raise InputError(f"{path}: is damaged: it has not one label per image")
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
            _inflated(path, header.ids, _LONGEST_ID * header.num_images), type=list[str]
        )
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is damaged: its names of images cannot be read") from error
    if len(ids) != header.num_images:
        raise InputError(f"{path}: is damaged: it has not one name per image")
    return ids


def _inflated(path: Path, data: bytes, most: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, most)
    except zlib.error as error:
        raise InputError(f"{path}: is damaged: it cannot be decompressed") from error
