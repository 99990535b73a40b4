"""`--network` in a command: from a folder with net.py and weights.pt to a bound."""

import json

import pytest
import torch

NET = """
import torch
from torch import nn

class Net(nn.Module):
    image_channels, image_size = 1, 8

    def __init__(self):
        super().__init__()
        self.time = nn.Embedding(40, 1)
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, t):
        return self.conv(x) + self.time(t)[:, :, None, None]
"""
SAID = {
    "--schedule": "linear:40:0.001:0.3",
    "--prediction": "eps",
    "--variance": "fixed_small",
    "--time-input": "index",
    "--data-range": "-1,1",
}


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "own"
    made.mkdir()
    (made / "net.py").write_text(NET)
    spaces = {}
    exec(NET, spaces)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(spaces["Net"]().state_dict(), made / "weights.pt")
    return made


def evaluation(folder, small_npz, *more, **changed):
    options = {**SAID, **{f"--{name.replace('_', '-')}": value for name, value in changed.items()}}
    words = [word for name, value in options.items() if value is not None for word in (name, value)]
    network = ["--ckpt", folder / "weights.pt", "--network", f"{folder / 'net.py'}:Net"]
    sizes = ["--data", small_npz, "--estimator", "every-pair", "--draws", "1"]
    return ["nll", *network, *words, *sizes, *more]


def test_it_is_evaluated_and_named_and_what_it_prints_is_no_result(
    invoke, folder, small_npz, tmp_path
):
    (folder / "net.py").write_text(NET.replace("return", "print('called'); return"))
    status, printed, message = invoke(
        *evaluation(folder, small_npz, "--out", tmp_path / "run", "--format", "json")
    )
    assert status == 0
    checkpoint = json.loads(printed)["checkpoint"]
    assert checkpoint["family"] == "own network"
    assert checkpoint["network"].endswith("net.py:Net")
    assert message.count("called") > 2  # two are before the run


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            dict.fromkeys(["schedule", "prediction", "variance", "time_input"]),
            [
                "--schedule linear:T:START:END",
                "--prediction PREDICTION",
                "--variance VARIANCE",
                "--time-input TIME as it was",
                "eps, x_start, v, previous_mean",
            ],
        ),
        ({"schedule": "linear:50:0.001:0.3"}, ["nn.Embedding of 40 rows", "50 steps"]),
        ({"time_input": "one-based"}, ["nn.Embedding of 40 rows", "--time-input one-based"]),
        ({"model_flags": "--image_size 8"}, ["--model-flags"]),
        ({"weights": "ema"}, ["--weights ema", "weights.pt"]),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(refused, folder, small_npz, changed, words):
    line = refused(*evaluation(folder, small_npz, **changed))
    assert all(word in line for word in words), line
