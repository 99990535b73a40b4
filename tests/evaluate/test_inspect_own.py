"""Inspecting a network whose code is the user's."""

import dataclasses

import pytest
import torch
from custom_networks import SETTINGS, Own
from peers import refused

import ddpmbench as db
from ddpmbench.evaluate.inspect_text import printed_inspect

COORDINATES = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x, t):
        maps = torch.zeros(x.shape[0], 2, *x.shape[2:], device=x.device)
        return self.last(self.first(torch.cat([x, maps], 1)))
"""
PLAIN = """
class Net(nn.Module):
    image_channels = 3
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.table = None

    def forward(self, x, t):
        {first}
        if self.table is None:
            self.table = torch.ones(1, device=x.device)
        return self.conv(x) * self.table
"""


@pytest.fixture
def own(tmp_path):
    """Inspects the network Net of some code."""
    return lambda code, **changed: Own(tmp_path, code).inspect(**changed)


def printed(found):
    return " ".join(printed_inspect(found.summary, "table", width=80).split())


def test_channels_are_what_the_network_says_and_no_guess(own):
    result = own(COORDINATES)
    network = result.summary["network"]
    assert network["channels"] is network["flop_per_call"] is None
    text = printed(result)
    assert "a diffusion model of images, T" in text
    assert "image_channels" in text
    inspection = own(
        COORDINATES.replace("def __init__", "image_channels = 1\n\n    def __init__", 1)
    )
    assert inspection.summary["network"]["flop_per_call"] == 2 * 32 * 32 * (3 * 9 * 4 + 4 * 9)
    assert "image_channels" not in printed(inspection)


@pytest.mark.parametrize("size", [None, 8])
@pytest.mark.parametrize("first", ["pass", "x.sum().item()"])
def test_inspection_leaves_the_network_usable(own, first, size):
    """Counted, and called in the network check where the size of an image is known."""
    code = PLAIN.format(first=first).replace("channels = 3", f"channels, image_size = 3, {size}")
    network = own(code).checkpoint.network
    assert network.table is None
    assert network(torch.ones(1, 3, 8, 8), torch.ones(1)).isfinite().all()


# ---- the call that a run makes first

SHARES = """
class Net(nn.Module):
    image_channels, image_size = 1, 8

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.linear = nn.Linear(1, 1)

    def forward(self, x, t):
        return self.conv(x) * self.linear(t[:, None])[:, :, None, None]
"""
LABELLED = SHARES.replace("def forward(self, x, t):", "def forward(self, x, t, y):")
DRAWN = SHARES.replace("return ", "return self.kept * ").replace(
    "super().__init__()", "super().__init__(); import random; self.kept = random.random()"
)
CHANCE = SHARES.replace("return ", "return torch.rand(1) * ").replace("(t[", "(t.float()[")


@pytest.mark.parametrize(
    ("code", "said", "words"),
    [
        (SHARES, {}, ["time (3,) int64", "index"]),
        (CHANCE, {}, ["gives another output for the same input each time"]),
        (
            DRAWN,
            {"time_input": "fraction"},
            ["other random numbers"],
        ),
        (LABELLED, {"time_input": "fraction"}, ["needs y too", "num_classes = 10"]),
        (LABELLED.replace("image_channels, image_size = 1, 8", ""), {}, ["needs y too"]),
        (LABELLED, {"time_input": None}, ["needs y too"]),
    ],
)
def test_what_a_run_would_refuse_is_refused(own, code, said, words):
    """With the run's own line; of a network whose images are not known, its parameters alone."""
    result = own(code, **said)
    text = printed(result)
    assert all(word in result.summary["refused"] for word in words)
    assert all(word in text for word in words)
    assert "to evaluate ddpmbench nll" in text
    if result.checkpoint is not None and result.checkpoint.image_size is not None:
        images = db.load_images("fashion-mnist:test", num_images=1)
        small = dataclasses.replace(images, pixels=images.pixels[:, :, :8, :8].copy())
        with refused(result.summary["refused"]):
            db.evaluate_nll(result.checkpoint, small, device="cpu")


def test_what_a_run_takes_is_not_refused(own):
    result = own(SHARES, time_input="fraction")
    assert result.summary["refused"] is None
    assert "evaluate ddpmbench nll" in printed(result)
    # of a side that is not known nothing is refused: 32 may not be its own
    of_eight = PLAIN.format(first="assert x.shape[-1] == 8")
    assert own(of_eight).summary["refused"] is None
    assert own(of_eight, time_input=None).summary["refused"] is None


def test_what_is_not_known_is_a_placeholder(own):
    result = own(SHARES, **dict.fromkeys(SETTINGS))
    assert result.summary["refused"] is None
    command = " ".join(result.summary["command"])
    assert "--schedule linear:T:START:END --prediction PREDICTION" in command
    text = " ".join(printed(result).split())
    placeholders = "linear:T:START:END, PREDICTION, VARIANCE and TIME"
    assert f"put how it was trained in place of {placeholders}" in text
    assert "linear:1000" not in text


def test_a_process_with_levels_is_named_once(own):
    process = "ve:0.01:50:100"
    result = own(PLAIN.format(first="pass"), schedule=None, process=process)
    words = result.summary["command"]
    assert "--schedule" not in words
    assert words.count(process) == 1


@pytest.mark.parametrize("changed", [{}, dict.fromkeys(SETTINGS)])
def test_code_that_loads_its_weights_needs_no_file(tmp_path, changed):
    own = Own(tmp_path)
    own.add(f"""
        def load():
            net = Net()
            net.load_state_dict(torch.load({str(tmp_path / "weights.pt")!r}))
            return net
    """)
    result = own.inspect("load", ckpt=None, **changed)
    command = result.summary["command"]
    assert command[:4] == ["ddpmbench", "nll", "--network", own.option("load")]
    assert "--ckpt" not in command
    assert "--schedule" in command
    assert result.summary["checkpoint"]["source"] == own.option("load")
    assert result.summary["checkpoint"]["bytes"] is None
    assert result.summary["refused"] is None
    assert "load: a diffusion model of 8x8 gray images" in printed(result)
