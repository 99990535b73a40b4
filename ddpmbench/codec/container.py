"""The file of a code: a header, blocks of images, and a checksum of the file.

The file begins with `MAGIC`, whose last byte is the version. Records follow, each with a kind, and
the length and CRC-32 of its body, little-endian:

    H   the header, `Header` as MessagePack
    B   a block: the length of `BlockRecord` as MessagePack, that record, and the words of the stack
    E   SHA-256 of all bytes before this record

The partial file of an interrupted compression lacks the last record.
"""

import dataclasses
import fcntl
import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated, Any, Final

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from ddpmbench.checksums import UnreadableError, status_of
from ddpmbench.codec.chain import ReverseProcess
from ddpmbench.codec.rans import DamageError
from ddpmbench.errors import InputError

MAGIC: Final = b"\x89ddpmbench codec\r\n\x1a\x01"
_HEAD = struct.Struct("<cII")
_HEADER, _BLOCK, _END = b"H", b"B", b"E"
_LENGTH = struct.Struct("<I")
_CHUNK = 1 << 20

MOST: Final = 1 << 40
"""Upper limit of every count."""
Count = Annotated[int, Meta(ge=1, le=MOST)]
Side = Annotated[int, Meta(ge=1, le=1 << 16)]


class Bound(Struct, frozen=True, forbid_unknown_fields=True):
    """The bound of the coded model on the images, according to `evaluate_nll`."""

    bits_per_dim: float
    half_width: float | None
    num_evaluations: int


class Header(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The information that a decoder needs, and must agree with.

    Attributes:
        num_images: images in the file.
        shape: (C, H, W) of an image.
        block_images: images per block; the last one may have fewer.
        batch_size: the most images in a network evaluation.
        process: the timesteps and variances.
        model: identifies the model and its conventions.
        machine: everything else that a decoder's numbers depend on.
        data: the record of the image set.
        ids: names of the images, JSON compressed by zlib; empty for "0", "1", ...
        labels: classes of the images, where the network is conditioned on them.
        bound: the bound of the model; None where unknown.
        run: SHA-256 of the summary of the run that the user gave for `process` and `bound`.
    """

    num_images: Count
    shape: tuple[Side, Side, Side]
    block_images: Count
    batch_size: Count
    process: ReverseProcess
    model: dict[str, Any]
    machine: dict[str, Any]
    data: dict[str, Any]
    ids: bytes
    labels: bytes
    bound: Bound | None
    run: str | None = None


class BlockRecord(Struct, frozen=True, forbid_unknown_fields=True):
    """The information that a decoder needs about a block, and measurements of the encoder.

    Attributes:
        batches: numbers of images encoded together, in order.
        pixels: CRC-32 of the pixels.
        borrowed: words that the encoder borrowed.
        net_bits: growth of the stack from the first image on.
        ideal_bits: the sum of log2 q / p over the drawn values.
        tail_bits: the part of it saved because symbols have probability 2^-32 at least.
    """

    batches: list[Annotated[int, Meta(ge=1, le=1 << 20)]]
    pixels: int
    borrowed: int
    net_bits: float
    ideal_bits: float
    tail_bits: float

    @property
    def num_images(self) -> int:
        """Images in the block."""
        return sum(self.batches)


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """A block of images.

    Attributes:
        record: the record of the block.
        words: its stack, the top last.
    """

    record: BlockRecord
    words: NDArray[np.uint16]

    def to_bytes(self) -> bytes:
        """The body of the block's record in the file."""
        record = msgspec.msgpack.encode(self.record)
        return _LENGTH.pack(len(record)) + record + self.words.astype("<u2").tobytes()

    @classmethod
    def from_bytes(cls, body: bytes) -> "Block":
        """Undo `to_bytes`.

        Raises:
            DamageError: the bytes are not a block.
        """
        try:
            (length,) = _LENGTH.unpack_from(body)
            record = msgspec.msgpack.decode(body[4 : 4 + length], type=BlockRecord)
            words = np.frombuffer(body, "<u2", offset=4 + length)
        except (struct.error, ValueError, msgspec.MsgspecError) as error:
            raise DamageError from error
        return cls(record, words)


def _record(kind: bytes, body: bytes) -> bytes:
    return _HEAD.pack(kind, len(body), zlib.crc32(body)) + body


class Writer:
    """Writes a file record by record, keeping the complete records of a partial file.

    Attributes:
        header: the header of the file.
        records: the records of the blocks in the file, in order.
        block_bytes: the size of their records and words, in bytes.
    """

    def __init__(self, partial: Path, header: Header) -> None:
        """Begin a file, or resume a partial one; no other process may write it meanwhile.

        Args:
            partial: the path of the partial file.
            header: the header of a new file; a partial one keeps its own.

        Raises:
            InputError: another process is writing the file, or its blocks contradict its header.
            OSError: it cannot be written.
        """
        self._path = partial
        self.header = header
        self.records: list[BlockRecord] = []
        self.block_bytes = 0
        self._file = partial.open("ab")
        try:
            self._lock()
            if not os.path.getsize(partial):
                self._append(MAGIC + _record(_HEADER, msgspec.msgpack.encode(header)))
            else:
                self._go_on()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Release the file; remove it if it was refused before its first block."""
        if isinstance(error, InputError) and not self.records and not self._file.closed:
            self._path.unlink(missing_ok=True)
        self._file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_moved = not os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except (BlockingIOError, FileNotFoundError):
            is_moved = True
        if is_moved:
            raise InputError(
                f"{self._path}: another process writes it; wait for its end, or name another file"
            )

    def _go_on(self) -> None:
        with Reader(self._path) as reader:
            self.header, end = reader.header, reader.first
            for block, position in reader.whole_blocks():
                self._count(block.record, block.to_bytes())
                end = position
        size, missing = self.header.block_images, self.header.num_images
        for record in self.records:
            if record.num_images != min(size, missing):
                raise InputError(
                    f"{self._path}: its blocks do not fit its header; remove it, and start again"
                )
            missing -= record.num_images
        self._file.truncate(end)

    def _append(self, record: bytes) -> None:
        self._file.write(record)
        self._file.flush()
        os.fsync(self._file.fileno())

    @property
    def num_images(self) -> int:
        """Images in the blocks so far."""
        return sum(record.num_images for record in self.records)

    def block(self, index: int) -> Block:
        """A block that was written before."""
        with Reader(self._path) as reader:
            return reader.block(index)

    def add(self, block: Block) -> None:
        """Append a block."""
        body = block.to_bytes()
        self._append(_record(_BLOCK, body))
        self._count(block.record, body)

    def _count(self, record: BlockRecord, body: bytes) -> None:
        self.records.append(record)
        self.block_bytes += len(body)

    def finish(self, place: Path) -> None:
        """Append the checksum, and move the file to its place."""
        with self._path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        self._append(_record(_END, digest))
        self._path.replace(place)
        self._file.close()


class Reader:
    """Reads a file without trusting the sizes that it claims.

    Attributes:
        path: the path of the file.
        header: the header of the file.
        first: the position of the first block.
    """

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            InputError: the file cannot be read, is another kind of file, of another version, or
                damaged.
        """
        self.path = path
        try:
            status_of(path)
            self._file: IO[bytes] = path.open("rb")
            self._size = os.fstat(self._file.fileno()).st_size
        except (OSError, UnreadableError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(
                f"{path}: cannot be read ({reason.lower()}); name a file that compress wrote"
            ) from error
        try:
            self.header = self._header()
        except InputError:
            self._file.close()
            raise
        self.first = self._file.tell()

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def whole_blocks(self) -> Iterator[tuple[Block, int]]:
        """Every complete block of a partial file, and the position of its end."""
        self._file.seek(self.first)
        while (record := self._next()) is not None and record[0] == _BLOCK:
            try:
                yield Block.from_bytes(record[1]), self._file.tell()
            except DamageError:
                return

    def verify(self) -> list[tuple[BlockRecord, int]]:
        """Verify every checksum; returns the record and the bytes of the words of each block.

        Raises:
            InputError: a checksum is wrong, something is missing, or the numbers contradict.
        """
        blocks, end = [], self.first
        for block, position in self.whole_blocks():
            blocks.append((block.record, 2 * len(block.words)))
            end = position
        self._file.seek(end)
        last = self._next()
        digest = hashlib.sha256()
        if last is None or last[0] != _END or self._file.tell() != self._size:
            raise self.damaged()
        self._file.seek(0)
        remaining = end
        while remaining:
            chunk = self._file.read(min(_CHUNK, remaining))
            digest.update(chunk)
            remaining -= len(chunk)
        if digest.digest() != last[1]:
            raise self.damaged()
        sizes = [record.num_images for record, _ in blocks]
        is_full = all(size == self.header.block_images for size in sizes[:-1])
        if sum(sizes) != self.header.num_images or not (
            is_full and 0 < sizes[-1] <= self.header.block_images
        ):
            raise self.damaged()
        return blocks

    def block(self, index: int) -> Block:
        """Read one block, skipping the others.

        Raises:
            InputError: it does not exist, or is damaged.
        """
        self._file.seek(self.first)
        for _ in range(index):
            if self._next(skip=True) is None:
                raise self.damaged()
        record = self._next()
        try:
            if record is None or record[0] != _BLOCK:
                raise DamageError
            return Block.from_bytes(record[1])
        except DamageError as error:
            raise self.damaged() from error

    def _header(self) -> Header:
        magic = self._file.read(len(MAGIC))
        if magic[:-1] != MAGIC[:-1]:
            raise self._refused("is no file of ddpmbench compress; name a file that it wrote")
        if magic != MAGIC:
            raise self._refused(
                f"has version {magic[-1]} of the format, and this is version {MAGIC[-1]}; "
                "take the version of ddpmbench that wrote it"
            )
        record = self._next()
        if record is None or record[0] != _HEADER:
            raise self.damaged()
        try:
            header = msgspec.msgpack.decode(record[1], type=Header)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise self.damaged() from error
        if len(header.process.timesteps) != len(header.process.variances):
            raise self.damaged()
        return header

    def _next(self, *, skip: bool = False) -> tuple[bytes, bytes] | None:
        """Kind and body of the next record; None where there is no complete one."""
        head = self._file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            return None
        kind, length, crc = _HEAD.unpack(head)
        if length > self._size - self._file.tell():
            return None
        if skip:
            self._file.seek(length, os.SEEK_CUR)
            return kind, b""
        body = self._file.read(length)
        return (kind, body) if zlib.crc32(body) == crc else None

    def _refused(self, why: str) -> InputError:
        return InputError(f"{self.path}: {why}")

    def damaged(self) -> InputError:
        """The error to raise where the content is impossible."""
        return self._refused("is damaged or incomplete; take another copy, or compress again")
