"""Units: nothing is lost between nats and bits."""

import math

import pytest

from ddpmbench.diffusion.data_range import NATS_PER_BIT


def test_a_bit_is_the_information_of_a_fair_coin():
    assert -math.log(0.5) / NATS_PER_BIT == pytest.approx(1.0, abs=1e-15)
    assert pytest.approx(math.log(2), abs=0) == NATS_PER_BIT
