"""Units: nothing is lost between pixels and the model's range, nor between nats and bits."""

import math

import pytest
import torch

from ddpmbench.process.units import NATS_PER_BIT, bits, to_pixels, to_unit_range

LEVELS = torch.arange(256, dtype=torch.uint8)


def test_a_bit_is_the_information_of_a_fair_coin():
    assert bits(-math.log(0.5)) == pytest.approx(1.0, abs=1e-15)
    assert pytest.approx(math.log(2), abs=0) == NATS_PER_BIT


def test_levels_are_evenly_spaced_and_end_at_minus_one_and_one():
    x = to_unit_range(LEVELS)
    assert x.dtype == torch.float64
    assert (x[0], x[-1]) == (-1.0, 1.0)
    assert torch.allclose(x.diff(), torch.tensor(2 / 255, dtype=torch.float64), atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_level_survives_the_round_trip(dtype):
    assert torch.equal(to_pixels(to_unit_range(LEVELS, dtype)), LEVELS)


def test_the_nearest_level_is_chosen_and_values_outside_are_clamped():
    step = 2 / 255
    near = to_unit_range(LEVELS) + 0.49 * step
    assert torch.equal(to_pixels(near), LEVELS)
    assert to_pixels(torch.tensor([-7.0, 7.0])).tolist() == [0, 255]
