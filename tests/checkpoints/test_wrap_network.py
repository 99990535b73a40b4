"""`db.wrap_network`: a checkpoint of a module in memory, or one line about its arguments."""

import numpy as np
import pytest
import torch
from peers import refused
from torch import nn

import ddpmbench as db
from ddpmbench.diffusion.data_range import UNIT_RANGE, DataRange

SCHEDULE = db.NoiseSchedule.linear(30)


def wrapped(**named):
    return db.wrap_network(nn.Conv2d(1, 1, 1), **{"schedule": SCHEDULE, **named})


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
        ({"prediction": None}, ["`prediction=None`", "eps"]),
        ({"variance": 3}, ["`variance=3`", "fixed_small"]),
        ({"time_input": None}, ["`time_input=None`", "one-based"]),
        ({"data_range": (0, 1, 2)}, ["`data_range=(0, 1, 2)`", "(-1, 1)", "levels"]),
        ({"data_range": (1,)}, ["`data_range=(1,)`"]),
        ({"data_range": "0,1"}, ["`data_range='0,1'`", "(-1, 1)"]),
        ({"data_range": ("0", "1")}, ["`data_range=('0', '1')`"]),
        ({"data_range": (None, 1)}, ["`data_range=(None, 1)`"]),
        ({"data_range": (False, True)}, ["`data_range=(False, True)`"]),
        ({"data_range": None}, ["`data_range=None`"]),
        ({"data_range": (0, 10**400)}, ["`data_range="]),
        ({"num_classes": -1}, ["`num_classes=-1`", "from 0"]),
        ({"num_classes": "ten"}, ["`num_classes=ten`"]),
        ({"num_classes": True}, ["`num_classes=True`"]),
        ({"num_classes": None}, ["`num_classes=None`"]),
        ({"null_class": 3}, ["`null_class=3`", "`num_classes`"]),
        ({"null_class": -1, "num_classes": 3}, ["`null_class=-1`"]),
        ({"channels": -1}, ["`channels=-1`", "from 1"]),
        ({"channels": 0}, ["`channels=0`"]),
        ({"channels": 1.5}, ["`channels=1.5`"]),
        ({"schedule": [0.1, 0.2]}, ["`schedule=[0.1, 0.2]`", "from_betas"]),
        ({"schedule": torch.ones(9)}, ["`schedule=<Tensor 9", "from_betas"]),
        ({"schedule": None}, ["`schedule=None`", "linear:1000"]),
    ],
)
def test_what_is_no_convention(given, words):
    with refused(*words):
        wrapped(**given)


def test_numbers_of_numpy_are_numbers():
    kept = wrapped(
        channels=np.int64(1), num_classes=np.int64(3), null_class=3, data_range=[np.float32(0), 1]
    )
    assert (kept.channels, kept.num_classes, kept.null_class) == (1, 3, 3)
    assert kept.data_range == DataRange(0.0, 1.0)


def test_tables_that_contradict_each_other_are_a_note(tmp_path):
    betas = SCHEDULE.betas.numpy()
    path = tmp_path / "tables.npz"
    for power, count in ((1, 0), (2, 1)):
        np.savez(path, betas=betas, alphas_cumprod=np.cumprod(1 - betas) ** power)
        notes = wrapped(schedule=f"betas:{path}").notes
        assert len(notes) == count


@pytest.mark.parametrize(("value", "words"), [(0.0, "weights are zero"), (torch.nan, "NaN")])
def test_weights_that_are_not_trained_name_a_remedy(value, words):
    network = nn.Conv2d(1, 1, 1)
    for weight in network.parameters():
        nn.init.constant_(weight, value)
    with refused("wrap_network: ", words, "; take"):
        db.wrap_network(network, schedule=SCHEDULE)


class Timed(nn.Conv2d):
    def forward(self, x_t, time):
        return super().forward(x_t)


def test_what_samples_are_is_a_parameter_where_no_image_says_it():
    def samples(size, **given):
        checkpoint = db.wrap_network(Timed(1, 1, 1), schedule=SCHEDULE, **given).respaced(2)
        settings = db.SampleSettings(image_size=size)
        return db.generate_samples(checkpoint, 1, settings=settings, device="cpu")

    with refused("network Timed", "large its images are and how many", "`image_size`, and pass"):
        samples(None)
    with refused("network Timed", "how many channels", "pass `channels` to wrap_network"):
        samples(8)
    assert samples(8, channels=1).images.pixels.shape == (1, 1, 8, 8)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (lambda: nn.LazyConv2d(1, 1), ["no numbers yet"]),
        (lambda: nn.Conv2d(1, 1, 1, device="meta"), ["no numbers yet"]),
        (lambda: nn.Conv2d, ["takes a torch module", "type"]),
        (lambda: nn.Conv2d(1, 1, 1).state_dict(), ["OrderedDict"]),
    ],
)
def test_what_is_no_network_with_weights(network, words):
    with refused("wrap_network", *words):
        db.wrap_network(network(), schedule=SCHEDULE)


def test_other_weights_are_another_model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        one, other = wrapped(), wrapped()
    assert one.fingerprint != other.fingerprint
