"""Counter-based noise: a normal number depends on its address alone, not on earlier draws.

The address of an element is (seed, image, timestep, draw, element), so that no number depends on
the batch, the order of terms or the number of processes.
"""

import math
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Integers = TypeVar("Integers", Tensor, NDArray[np.int64])

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = 0xFFFFFFFF


def philox_4x32(
    counter: tuple[Integers, Integers, Integers, Integers], key: int
) -> tuple[Integers, Integers, Integers, Integers]:
    """The Philox 4x32-10 counter-based generator.

    Args:
        counter: four int64 tensors or arrays of one broadcastable shape, each in [0, 2^32).
        key: 64 bits; the low word is the generator's first key.

    Returns:
        Four of the same kind and of the broadcast shape, uniform on [0, 2^32).

    Source: Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    word0, word1, word2, word3 = counter
    key0, key1 = key & _WORD, (key >> 32) & _WORD
    for _ in range(_ROUNDS):
        # A product of two 32-bit words overflows int64, but its 64 bits are right.
        product0 = word0 * _MULTIPLIERS[0]
        product1 = word2 * _MULTIPLIERS[1]
        word0, word1, word2, word3 = (
            _high(product1) ^ word1 ^ key0,
            product1 & _WORD,
            _high(product0) ^ word3 ^ key1,
            product0 & _WORD,
        )
        key0, key1 = (key0 + _KEY_STEPS[0]) & _WORD, (key1 + _KEY_STEPS[1]) & _WORD
    return word0, word1, word2, word3


def _high(product: Integers) -> Integers:
    return (product >> 32) & _WORD


def normal_noise(
    image: Tensor, t: Tensor, draw: Tensor, *, shape: tuple[int, ...], seed: int
) -> Tensor:
    r"""Standard normal noise for each (image, timestep, draw).

    .. math::
        z = \sqrt{-2 \log u_1}\, (\cos 2 \pi u_2, \sin 2 \pi u_2)

    with uniform u from the Philox words of counter (image, t, draw, element // 4) and key `seed`.

    Args:
        image: (B,) int64, index of the image in its set.
        t: (B,) int64 timesteps.
        draw: (B,) int64, index of the repetition.
        shape: (C, H, W) of one image.
        seed: 0 <= seed < 2^64.

    Returns:
        (B, C, H, W) float32 on the device of `image`. The underlying integers are the same on
        every device; the normal numbers agree to the last bit or two.

    Source: Box & Muller 1958; Salmon et al. 2011.
    """
    size = math.prod(shape)
    block = torch.arange((size + 3) // 4, device=image.device)
    address = (image[:, None], t[:, None], draw[:, None], block[None, :])
    words = philox_4x32(address, seed)
    # Each block of four words makes four normals; the dtype is float64 where the device has it.
    dtype = torch.float32 if image.device.type == "mps" else torch.float64
    uniform = [(word.to(dtype) + 0.5) * 2.0**-32 for word in words]
    normals = []
    for radius_source, angle_source in ((uniform[0], uniform[1]), (uniform[2], uniform[3])):
        radius = torch.sqrt(-2.0 * torch.log(radius_source))
        angle = (2.0 * math.pi) * angle_source
        normals += [radius * torch.cos(angle), radius * torch.sin(angle)]
    flat = torch.stack(normals, dim=-1).flatten(1)[:, :size]
    return flat.to(torch.float32).reshape(-1, *shape)
