"""What a user's code does to the process is undone, or it is one line that names the place."""

import os
import random
import sys

import numpy as np
import pytest
import torch
from custom_networks import Own, opened
from peers import refused

import ddpmbench as db
from ddpmbench.errors import InputError

CODE = """
import asyncio, os, random, sys
import numpy as np

def effect():
    {}
class Build(Net):
    def __init__(self):
        effect()
        super().__init__()
class Attribute(Net):
    @property
    def num_classes(self): effect()
class Loads(Net):
    def load_state_dict(self, *args, **named):
        effect()
        return super().load_state_dict(*args, **named)
class Call(Net):
    def forward(self, x, t):
        effect()
        return super().forward(x, t)
class OfAnySize(Call): image_size = None
class Later(Net):
    def forward(self, x, t):
        if 7 in t.tolist(): effect()
        return super().forward(x, t)
"""


def inspect(own, name):
    summary = own.inspect(name).summary
    if problem := summary["refused"] or summary["network"]["uncounted"]:
        raise InputError(problem)
    return summary["network"]["flop_per_call"]


def check(own, name):
    inputs = opened(own.words(name))
    return db.evaluate_nll(*inputs, check=True, device="cpu", half_width=1000).summary[
        "bits_per_dim"
    ]


def sample(own, name):
    return db.generate_samples(own.load(name), 2, device="cpu").images.pixels.sum()


PLACES = {
    "import": ("Net", Own.bound),
    "build": ("Build", Own.bound),
    "attribute": ("Attribute", Own.bound),
    "load_state_dict": ("Loads", Own.bound),
    "first call": ("Call", Own.bound),
    "later call": ("Later", Own.bound),
    "sanity check": ("Later", check),
    "sample": ("Later", sample),
    "inspect": ("Call", inspect),
    "count": ("OfAnySize", inspect),
}
IN_NETWORK_CHECK = ("first call", "inspect")
LINE = "net.py, line 23: "
STOPS = {
    "raise KeyError('dim')": [LINE, "KeyError: 'dim'"],
    "raise ValueError('a\\nb ' + 'long ' * 1000 + '\\x1b[31m')": [
        LINE,
        "ValueError: a b long",
        "...",
    ],
    "open('/nowhere/config.yaml')": [LINE, "FileNotFoundError"],
    "raise asyncio.CancelledError": [LINE, "CancelledError"],
    "input('factor? ')": [LINE, "EOFError", "no input to read"],
    "sys.exit('usage: net.py --data DATA')": [LINE, "ends the program", "__main__"],
}
UNDONE = (
    "print('hello')",
    "torch.manual_seed(7); np.random.seed(7); random.seed(7)",
    "torch.set_num_threads(2)",
    "os.chdir('/')",
    "torch.set_default_device('meta'); torch.set_default_device('cpu')",
)
DEFAULTS = {
    "torch.set_default_dtype(torch.float64)": ["set_default_dtype", "set it back"],
    "torch.set_grad_enabled(not torch.is_grad_enabled())": ["set_grad_enabled", "set it back"],
}
"""What is undone elsewhere, and by the first call would change the evaluation."""


def state():
    """Of the process, all that a user's code may set."""
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "modes": torch._C._len_torch_function_stack(),
        "grad": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),
        "python": random.getstate(),
        "folder": os.getcwd(),
        "stdin": sys.stdin,
    }


@pytest.fixture
def placed(tmp_path, small_npz, capsys):
    """Runs an effect at a place, after which the process is as it was."""

    def call(effect, place):
        own = Own(tmp_path, data=small_npz)
        own.add(CODE.format(effect) + "effect()" * (place == "import"))
        name, run = PLACES[place]
        before = state()
        try:
            return run(own, name)
        finally:
            assert state() == before
            assert capsys.readouterr().out == ""

    return call


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("effect", [*STOPS, *UNDONE, *DEFAULTS])
def test_an_effect_is_undone_or_one_line(placed, effect, place):
    """What is undone changes no number."""
    words = STOPS.get(effect) or (place in IN_NETWORK_CHECK and DEFAULTS.get(effect))
    if words:
        with refused(*words):
            placed(effect, place)
    else:
        assert placed(effect, place) == pytest.approx(placed("pass", place), abs=1e-6)
