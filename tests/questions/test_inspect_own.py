"""What is told of a network of one's own, whose code is the user's."""

import pytest
import torch

import ddpmbench as db
from ddpmbench.report.printed_inspect import printed_inspect

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


@pytest.mark.parametrize(
    ("outputs", "variance", "channels"),
    [(3, "fixed_small", 3), (6, "learned", 3), (6, "fixed_small", None), (6, None, 3)],
)
def test_channels_are_those_that_come_in_and_out(own, outputs, variance, channels):
    found = own(PLAIN.format(outputs=outputs, first="pass"), variance=variance)
    network = found.summary["network"]
    assert network["channels"] == channels
    assert network["flop_per_call"] == 2 * 32 * 32 * 3 * 9 * outputs
    assert network["flop_channels"] == 3
    assert ("RGB" in printed(found)) == (channels == 3)
    assert ("image_channels" in printed(found)) == (channels is None)


def test_what_the_first_convolution_takes_is_no_fact(own):
    found = own(COORDINATES)
    network = found.summary["network"]
    assert network["channels"] is network["flop_per_call"] is None
    text = printed(found)
    assert "a diffusion model of images, T" in text
    assert "a call could not be counted: net.py, line 13: RuntimeError" in text
    assert "image_channels" in text
    said = own(COORDINATES.replace("def __init__", "image_channels = 1\n\n    def __init__", 1))
    assert said.summary["network"]["flop_per_call"] == 2 * 32 * 32 * (3 * 9 * 4 + 4 * 9)
    assert "image_channels" not in printed(said)


@pytest.mark.parametrize(
    ("first", "told"),
    [
        ("sys.exit(3)", "a call could not be counted: net.py, line 12: ends the program"),
        ("raise KeyError('no')", "a call could not be counted: net.py, line 12: KeyError: 'no'"),
        ("print('in the network')", "MFLOP a call"),
    ],
)
def test_what_a_network_does_in_a_call_stays_there(own, capsys, first, told):
    found = own(PLAIN.format(outputs=3, first=first))
    assert told in printed(found)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("first", ["pass", "x.sum().item()"])
def test_what_was_looked_at_can_be_evaluated(own, first):
    network = own(PLAIN.format(outputs=3, first=first)).checkpoint.network
    assert network.table is None
    assert network(torch.ones(1, 3, 4, 4), torch.ones(1)).isfinite().all()
