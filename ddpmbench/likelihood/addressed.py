"""Random numbers of the designs: each is a function of what it is for, as the noise is."""

import numpy as np
import torch
from numpy.typing import NDArray

from ddpmbench.likelihood.blocks import image_blocks
from ddpmbench.process.noise import philox_4x32

# What a random number is for. The noise's counters are (image, t, draw, block) with t >= 1; those
# of the designs have 0 in the place of t, and the purpose in the place of the block.
ROTATION, REDRAW, PILOT, CORRECTION_OF_DECODER, CORRECTION_OF_STEPS, CORRECTION_STEP = range(6)


def words(count: int, seed: int, *, turn: int, purpose: int) -> NDArray[np.uint64]:
    """Two 64-bit numbers for each of some images, or whatever else is counted.

    Args:
        count: how many there are.
        seed: 0 <= seed < 2^64.
        turn: which time they are asked for.
        purpose: one of the constants above.

    Returns:
        (2, count) uniform on [0, 2^64).
    """
    numbers = np.empty((2, count), dtype=np.uint64)
    zero, j, what = (torch.tensor([word]) for word in (0, turn, purpose))
    for part in image_blocks(count):
        index = torch.arange(part.start, part.stop)
        word = [w.numpy().astype(np.uint64) for w in philox_4x32((index, zero, j, what), seed)]
        numbers[0, part] = (word[0] << np.uint64(32)) | word[1]
        numbers[1, part] = (word[2] << np.uint64(32)) | word[3]
    return numbers


def unit_interval(numbers: NDArray[np.uint64]) -> NDArray[np.float64]:
    """The same as numbers of [0, 1), by their upper 53 bits."""
    return np.asarray((numbers >> np.uint64(11)) * 2.0**-53)


def ranks(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Which each number is in increasing order: of random ones a random permutation."""
    found = np.empty(len(keys), dtype=np.int64)
    found[np.argsort(keys, kind="stable")] = np.arange(len(keys))
    return found
