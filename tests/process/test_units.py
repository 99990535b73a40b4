"""Units: nothing is lost between pixels and the model's range, nor between nats and bits."""

import math

import pytest
import torch

from ddpmbench.process.units import NATS_PER_BIT, to_pixels, to_unit_range

LEVELS = torch.arange(256, dtype=torch.uint8)


def test_a_bit_is_the_information_of_a_fair_coin():
    assert -math.log(0.5) / NATS_PER_BIT == pytest.approx(1.0, abs=1e-15)
    assert pytest.approx(math.log(2), abs=0) == NATS_PER_BIT


def test_levels_are_evenly_spaced_and_end_at_minus_one_and_one():
    x = to_unit_range(LEVELS)
    assert x.dtype == torch.float64
    assert (x[0], x[-1]) == (-1.0, 1.0)
    assert torch.allclose(x.diff(), torch.tensor(2 / 255, dtype=torch.float64), atol=1e-15)


def test_levels_come_back_and_what_lies_between_goes_to_the_nearest():
    x = to_unit_range(LEVELS)
    for off in (-0.49, 0.0, 0.49):
        assert torch.equal(to_pixels(x + off / 127.5), LEVELS)
    assert to_pixels(torch.tensor([-5.0, 5.0])).tolist() == [0, 255]
