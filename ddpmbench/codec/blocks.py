"""Blocks: images that share one stack."""

import itertools
import math
import zlib
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpmbench.codec.chain import LEAST_BITS, Chain
from ddpmbench.codec.container import Block, BlockRecord
from ddpmbench.codec.rans import Coder, DamageError

_LANES_AN_IMAGE, _MOST_LANES = 8, 512
Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64] | None


def encode_block(
    chain: Chain,
    pixels: Pixels,
    labels: Labels,
    *,
    batch_size: int,
    device: torch.device,
    progress: Callable[[int], None] = lambda images: None,
) -> Block:
    """Encode images on one stack.

    A batch takes its initial bits from the stack, so the first batches are small, and only the
    initial bits of the first image have to be borrowed.

    Args:
        chain: the code.
        pixels: (N, C, H, W).
        labels: (N,) classes, where the network is conditioned on them.
        batch_size: the most images in a network evaluation.
        device: of the network.
        progress: called with the number of images after every batch.
    """
    coder, net, ideal, batches = Coder(), 0.0, np.zeros(2), list[int]()
    need = chain.bits_of_start * pixels[0].size
    done = 0
    while done < len(pixels):
        affordable = int(16 * len(coder) / need)
        batches.append(max(1, min(affordable, batch_size, len(pixels) - done)))
        coder.set_lanes(_lanes(batches)[-1])
        part = slice(done, done + batches[-1])
        before = coder.bits - 16 * coder.borrowed
        ideal += chain.encode(coder, pixels[part], _on(device, labels, part)).sum(1)
        net += coder.bits - 16 * coder.borrowed - before
        done = part.stop
        progress(batches[-1])
    coder.flush()
    checksum = zlib.crc32(pixels.tobytes())
    record = BlockRecord(batches, checksum, coder.borrowed, net, *ideal.tolist())
    return Block(record, coder.words)


def decode_block(
    chain: Chain,
    block: Block,
    shape: tuple[int, int, int],
    labels: Labels,
    *,
    device: torch.device,
    progress: Callable[[int], None] = lambda images: None,
) -> Pixels:
    """The images of a block.

    Args:
        chain: the code that it was encoded with.
        block: its words.
        shape: (C, H, W) of an image.
        labels: (N,) classes, where the network is conditioned on them.
        device: of the network.
        progress: called with the number of images after every batch.

    Returns:
        (N, C, H, W).

    Raises:
        DamageError: the words do not encode such images with this chain, for instance because the
            network's output differs on another machine.
    """
    coder, batches = Coder(block.words, may_borrow=False), block.record.batches
    lanes = _lanes(batches)
    coder.restore(lanes[-1])
    parts, end = [], sum(batches)
    for index in reversed(range(len(batches))):
        size = batches[index]
        _check_size(coder.bits, size, shape)
        part = slice(end - size, end)
        parts.append(chain.decode(coder, (size, *shape), _on(device, labels, part)))
        coder.set_lanes(lanes[index - 1] if index else 0)
        end = part.start
        progress(size)
    pixels = np.concatenate(parts[::-1])
    if not coder.is_untouched() or zlib.crc32(pixels.tobytes()) != block.record.pixels:
        raise DamageError
    return pixels


def check_claims(record: BlockRecord, bits: int, shape: tuple[int, int, int]) -> None:
    """Refuse a block that claims more images than its words hold, before allocating memory for it.

    The last batch returns its x_K first. Every batch took its initial bits, which are more, from
    the stack below, and left them there except for what later images saved: half must be there.

    Args:
        record: the record of the block.
        bits: bits in its words.
        shape: (C, H, W) of an image.

    Raises:
        DamageError: the words are too few for a batch of the record.
    """
    _check_size(bits, record.batches[-1], shape)
    _check_size(2 * bits, max(record.batches), shape)


def _check_size(bits: float, batch: int, shape: tuple[int, int, int]) -> None:
    if bits < batch * math.prod(shape) * LEAST_BITS:
        raise DamageError


def _lanes(batches: list[int]) -> list[int]:
    """The number of lanes for every batch, which never decreases."""
    return [min(_MOST_LANES, _LANES_AN_IMAGE * most) for most in itertools.accumulate(batches, max)]


def _on(device: torch.device, labels: Labels, part: slice) -> Tensor | None:
    return None if labels is None else torch.from_numpy(labels[part].copy()).to(device)
