"""Inspecting a network whose code is the user's."""

import dataclasses

import pytest
import torch
from peers import refused

import ddpmbench as db
from ddpmbench.evaluate.inspect_text import printed_inspect

IMPORTS = "import sys\nimport torch\nfrom torch import nn\n"
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
        self.conv = nn.Conv2d(3, {outputs}, 3, padding=1)
        self.table = None

    def forward(self, x, t):
        {first}
        if self.table is None:
            self.table = torch.ones(1, device=x.device)
        return self.conv(x) * self.table
"""
HOW = {
    "schedule": "cosine:100",
    "prediction": "v",
    "variance": "fixed_small",
    "time_input": "index",
}


@pytest.fixture
def own(tmp_path):
    """Gives a look at a network of one's own."""

    def look(code, **changes):
        (tmp_path / "net.py").write_text(IMPORTS + code)
        names = {}
        exec(IMPORTS + code, names)
        torch.save(names["Net"]().state_dict(), tmp_path / "net.pt")
        given = {**HOW, "network": f"{tmp_path / 'net.py'}:Net", **changes}
        return db.inspect_checkpoint(tmp_path / "net.pt", db.CheckpointSettings(**given))

    return look


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


@pytest.mark.parametrize(
    ("first", "told"),
    [
        ("sys.exit(3)", "an evaluation could not be counted: net.py, line 13: ends the program"),
        (
            "raise KeyError('no')",
            "an evaluation could not be counted: net.py, line 13: KeyError: 'no'",
        ),
        ("print('in the network')", "MFLOP per evaluation"),
    ],
)
def test_what_a_network_does_in_a_call_stays_there(own, capsys, first, told):
    result = own(PLAIN.format(outputs=3, first=first))
    assert told in printed(result)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("first", ["pass", "x.sum().item()"])
def test_inspection_leaves_the_network_usable(own, first):
    network = own(PLAIN.format(outputs=3, first=first)).checkpoint.network
    assert network.table is None
    assert network(torch.ones(1, 3, 4, 4), torch.ones(1)).isfinite().all()


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
CHANCE = SHARES.replace("return ", "return torch.rand(1) * ").replace("(t[", "(t.float()[")


@pytest.mark.parametrize(
    ("code", "said", "words"),
    [
        (SHARES, {}, ["time (2,) int64", "index"]),
        (CHANCE, {}, ["gives another output for the same input each time"]),
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
    of_eight = PLAIN.format(outputs=3, first="assert x.shape[-1] == 8")
    assert own(of_eight).summary["refused"] is None
    assert own(of_eight, time_input=None).summary["refused"] is None


def test_the_network_check_leaves_nothing_behind(own):
    kept = PLAIN.format(outputs=3, first="pass").replace(
        "def __init__", "image_channels, image_size = 3, 8\n    def __init__"
    )
    network = own(kept).checkpoint.network
    assert network.table is None


def test_what_is_not_known_is_a_placeholder(own):
    result = own(SHARES, **dict.fromkeys(HOW))
    assert result.summary["refused"] is None
    command = " ".join(result.summary["command"])
    assert "--schedule linear:T:START:END --prediction PREDICTION" in command
    text = " ".join(printed(result).split())
    placeholders = "linear:T:START:END, PREDICTION, VARIANCE and TIME"
    assert f"put how it was trained in place of {placeholders}" in text
    assert "linear:1000" not in text


def test_a_process_with_levels_is_named_once(own):
    process = "ve:0.01:50:100"
    result = own(PLAIN.format(outputs=3, first="pass"), schedule=None, process=process)
    words = result.summary["command"]
    assert "--schedule" not in words
    assert words.count(process) == 1


def test_code_that_loads_its_weights_needs_no_file(own, tmp_path):
    own(SHARES, time_input="fraction")
    (tmp_path / "load.py").write_text(
        f"from net import Net\nimport torch\ndef load():\n    net = Net()\n"
        f"    net.load_state_dict(torch.load({str(tmp_path / 'net.pt')!r}))\n    return net\n"
    )
    option = f"{tmp_path / 'load.py'}:load"
    settings = db.CheckpointSettings(**{**HOW, "time_input": "fraction"}, network=option)
    result = db.inspect_checkpoint(settings=settings)
    command = result.summary["command"]
    assert command[:4] == ["ddpmbench", "nll", "--network", option]
    assert "--ckpt" not in command
    assert result.summary["checkpoint"]["source"] == option
    assert result.summary["checkpoint"]["bytes"] is None
    assert result.summary["refused"] is None
    assert "load.py:load: a diffusion model of 8x8 gray images" in printed(result)
    open_one = db.inspect_checkpoint(settings=db.CheckpointSettings(network=option))
    assert "--schedule linear:T:START:END" in " ".join(open_one.summary["command"])
    assert "--ckpt" not in open_one.summary["command"]
