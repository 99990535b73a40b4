"""`db.wrap_network`: a checkpoint of a module in memory, or one line about its arguments."""

import pytest
import torch
from peers import refused
from torch import nn

import ddpmbench as db
from ddpmbench.diffusion.data_range import UNIT_RANGE, DataRange

SCHEDULE = db.NoiseSchedule.linear(30)


def wrapped(**named):
    return db.wrap_network(nn.Conv2d(1, 1, 1), schedule=SCHEDULE, **named)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({}, UNIT_RANGE),
        ({"data_range": (0, 1)}, DataRange(0.0, 1.0)),
        ({"data_range": DataRange(-0.5, 0.5, 32)}, DataRange(-0.5, 0.5, 32)),
    ],
)
def test_a_range_is_two_numbers_or_its_record(given, kept):
    assert wrapped(**given).data_range == kept


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"prediction": "noise"}, ["noise", "eps"]),
        ({"variance": "small"}, ["small", "fixed_small"]),
        ({"time_input": "t"}, ["one-based", "one-based"]),
        ({"data_range": (1, -1)}, ["1,-1"]),
    ],
)
def test_what_is_no_convention(given, words):
    with refused(*words):
        wrapped(**given)


def test_a_state_dict_is_no_network():
    with refused("wrap_network", "OrderedDict"):
        db.wrap_network(nn.Conv2d(1, 1, 1).state_dict(), schedule=SCHEDULE)


def test_other_weights_are_another_model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        one, other = wrapped(), wrapped()
    assert one.fingerprint != other.fingerprint
