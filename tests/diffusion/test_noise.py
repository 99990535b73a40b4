"""Addressed noise: standard normal, and a function of the address alone."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from ddpmbench.diffusion.noise import normal_noise, philox_4x32

WORD = 0xFFFFFFFF


def counter(*words: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor([word]) for word in words)


def python_philox(words: list[int], key: int) -> list[int]:
    """The same generator in integers without a size, after Salmon et al. 2011, figure 2."""
    left, right, third, fourth = words
    key0, key1 = key & WORD, key >> 32
    for _ in range(10):
        product0, product1 = 0xD2511F53 * left, 0xCD9E8D57 * third
        left, right, third, fourth = (
            (product1 >> 32) ^ right ^ key0,
            product1 & WORD,
            (product0 >> 32) ^ fourth ^ key1,
            product0 & WORD,
        )
        key0, key1 = (key0 + 0x9E3779B9) & WORD, (key1 + 0xBB67AE85) & WORD
    return [left, right, third, fourth]


@pytest.mark.parametrize(
    ("words", "key", "expected"),
    [
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((WORD,) * 4, (1 << 64) - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0x299F31D0 << 32) | 0xA4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_answers_of_its_authors(words, key, expected):
    # The known-answer file of Random123.
    assert tuple(int(word) for word in philox_4x32(counter(*words), key)) == expected


def test_philox_equals_arithmetic_without_overflow():
    rng = np.random.default_rng(0)
    words = rng.integers(0, 1 << 32, (50, 4)).tolist()
    for key, row in zip(rng.integers(0, 1 << 64, 50, dtype=np.uint64).tolist(), words, strict=True):
        got = [int(word) for word in philox_4x32(counter(*row), key)]
        assert got == python_philox(row, key)


ROWS = torch.cartesian_prod(torch.tensor([0, 3, 9999]), torch.tensor([1, 2, 1000]), torch.arange(2))
IMAGE, STEP, DRAW = ROWS.unbind(1)
SHAPE = (3, 5, 3)


def noise(index: torch.Tensor | slice = slice(None), *, shape=SHAPE, seed=7) -> torch.Tensor:
    return normal_noise(IMAGE[index], STEP[index], DRAW[index], shape=shape, seed=seed)


def test_batching_order_and_subset_cannot_change_a_bit():
    together = noise()
    assert together.shape == (len(ROWS), *SHAPE)
    assert together.dtype == torch.float32
    order = torch.randperm(len(ROWS), generator=torch.Generator().manual_seed(0))
    assert torch.equal(noise(order), together[order])
    for size in (1, 4, 7):
        pieces = [noise(slice(i, i + size)) for i in range(0, len(ROWS), size)]
        assert torch.equal(torch.cat(pieces), together)
    assert torch.equal(noise(torch.tensor([2, 2])), together[[2, 2]])


@pytest.mark.parametrize(
    ("address", "seed", "shape"),
    [
        ((12, 345, 6), (5 << 32) | 11, (2, 2, 3)),
        ((9999, 1, WORD), (1 << 64) - 1, (1, 1, 5)),
        ((0, 1000, 0), 0, (3, 1, 1)),
    ],
)
def test_a_block_is_box_muller_of_the_words_at_counter_image_t_draw_block(address, seed, shape):
    # The layout of the address is part of every published number.
    got = normal_noise(*counter(*address), shape=shape, seed=seed).flatten().tolist()
    expected = []
    for block in range(3):
        u = [(word + 0.5) / 2**32 for word in python_philox([*address, block], seed)]
        for radius, angle in ((u[0], u[1]), (u[2], u[3])):
            length = math.sqrt(-2 * math.log(radius))
            expected += [
                length * math.cos(2 * math.pi * angle),
                length * math.sin(2 * math.pi * angle),
            ]
    assert got == pytest.approx(expected[: math.prod(shape)], rel=1e-6, abs=1e-7)


def one_row(image: int, t: int, draw: int, seed: int, size: int = 40_000) -> torch.Tensor:
    return normal_noise(*counter(image, t, draw), shape=(1, 1, size), seed=seed).flatten().double()


@pytest.mark.parametrize("lane", [slice(None), *(slice(i, None, 4) for i in range(4))])
def test_noise_is_standard_normal(lane):
    x = torch.cat([one_row(n, 500, 0, 1) for n in range(5)])[lane].numpy()
    assert stats.kstest(x, "norm").pvalue > 1e-3
    n = len(x)
    # Standard errors of the first four moments of a normal sample.
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**power).mean() - expected) < 4.5 * math.sqrt(variance / n)
