"""`--network` in a command: from a folder with net.py and weights.pt to a bound."""

import json
import os
import sys

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


def options(folder, **changed):
    said = {**SAID, **{f"--{name.replace('_', '-')}": value for name, value in changed.items()}}
    words = [word for name, value in said.items() if value is not None for word in (name, value)]
    network = f"{folder / 'net.py'}:Net"
    return ["--ckpt", folder / "weights.pt", "--network", network, *words]


def evaluation(folder, small_npz, *more, **changed):
    sizes = ["--data", small_npz, "--estimator", "every-pair", "--draws", "1"]
    return ["nll", *options(folder, **changed), *sizes, *more]


def test_it_is_evaluated_and_named(said, folder, small_npz, tmp_path):
    status, printed, _ = said(
        *evaluation(folder, small_npz, "--out", tmp_path / "run", "--format", "json")
    )
    assert status == 0
    checkpoint = json.loads(printed)["checkpoint"]
    assert checkpoint["family"] == "own network"
    assert checkpoint["network"].endswith("net.py:Net")


def test_it_is_sampled(said, folder, tmp_path):
    status, _, told = said("sample", *options(folder), "-n", "2", "--out", tmp_path / "samples")
    assert status == 0, told


def test_what_a_call_prints_or_imports_spoils_nothing(
    said, folder, small_npz, tmp_path, monkeypatch
):
    """From another folder, and in every call of a run."""
    monkeypatch.chdir(tmp_path)
    (folder / "factors_of_net.py").write_text("FACTOR = 2\n")
    call = "from factors_of_net import FACTOR; print('called'); return FACTOR * self.conv(x)"
    (folder / "net.py").write_text(NET.replace("return self.conv(x)", call))
    status, printed, told = said(*evaluation(folder, small_npz, "--format", "json"))
    assert status == 0, told
    assert json.loads(printed)["checkpoint"]["family"] == "own network"
    assert told.count("called") > 2  # two are before the run


def test_a_folder_of_other_imported_code_is_refused(said, folder, small_npz, tmp_path, monkeypatch):
    """Its file and its weights are the same; the output in the network check is not."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    call = "from factors_of_net import FACTOR; return FACTOR * self.conv(x)"
    (folder / "net.py").write_text(NET.replace("return self.conv(x)", call))
    command = evaluation(folder, small_npz, "--out", tmp_path / "run")
    for factor, expected in ((1.0, 0), (1.5, 2), (1.0, 0)):
        (folder / "factors_of_net.py").write_text(f"FACTOR = {factor}\n")
        os.utime(folder / "factors_of_net.py", (1, 1))  # as if within the same second
        status, _, told = said(*command)
        assert status == expected, told


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
        ({"schedule": None}, ["add --schedule linear:T:START:END as it was"]),
        ({"schedule": "linear:40"}, ["--schedule linear:40", "linear:40:0.0001:0.02"]),
        ({"schedule": "betas:nowhere.npy"}, ["--schedule betas:nowhere.npy"]),
        ({"schedule": "linear:50:0.001:0.3"}, ["nn.Embedding of 40 rows", "50 steps"]),
        ({"time_input": "one-based"}, ["nn.Embedding of 40 rows", "--time-input one-based"]),
        ({"time_input": "fraction"}, ["embedding", "Long, Int", "--time-input fraction"]),
        ({"variance": "learned"}, ["--variance learned", "fixed_small"]),
        ({"network": "nowhere.py:Net"}, ["nowhere.py"]),
        ({"model_flags": "--image_size 8"}, ["--model-flags"]),
        ({"weights": "ema"}, ["--weights ema", "weights.pt"]),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(refused, folder, small_npz, changed, words):
    line = refused(*evaluation(folder, small_npz, **changed))
    assert all(word in line for word in words), line


def test_code_that_fails_is_one_line_with_its_place(refused, folder, small_npz):
    (folder / "net.py").write_text(NET.replace("self.conv(x)", "self.convolution(x)"))
    line = refused(*evaluation(folder, small_npz))
    assert "net.py, line 14: AttributeError: 'Net' object has no attribute 'convolution'" in line
    assert "x_t (2, 1, 8, 8) float32, time (2,) int64" in line


def test_a_mistake_that_is_mended_leaves_the_folder_free(said, folder, small_npz, tmp_path):
    command = evaluation(folder, small_npz, "--out", tmp_path / "run")
    (folder / "net.py").write_text(NET.replace("self.conv(x)", "self.convolution(x)"))
    assert said(*command)[0] == 2
    (folder / "net.py").write_text(NET)
    assert said(*command)[0] == 0
    (folder / "net.py").write_text(NET.replace("self.conv(x)", "2 * self.conv(x)"))
    status, _, told = said(*command)
    assert status == 2
    assert str(tmp_path / "run") in told
