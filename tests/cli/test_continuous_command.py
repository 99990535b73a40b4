"""`nll --timesteps continuous`, `nll --continuous` and `ode`, and what they refuse in one line."""

import dataclasses

import numpy as np
import pytest
import torch

from ddpmbench.checkpoints.native import write_native
from ddpmbench.diffusion.process import Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.unet.unet import UNet

CONTINUOUS = ("--timesteps", "continuous")
EVERY_PAIR = ("--estimator", "every-pair", "--draws", "1")


def error_of(told):
    """The one line that says what is wrong."""
    assert "Traceback" not in told
    (error,) = (line for line in told.splitlines() if line.startswith("Error: "))
    return error


@pytest.fixture
def inputs(small_checkpoint, small_npz):
    return ["--ckpt", small_checkpoint, "--data", small_npz]


def test_the_command(said, inputs, tmp_path):
    words = ["nll", *inputs, "--estimator", "every-pair"]
    status, printed, _ = said(*words, *CONTINUOUS, "--out", tmp_path / "run")
    assert status == 0
    assert "T = 40, linear, continuous time from t = 1 to T, in " in printed
    status, printed, _ = said(*words, "--continuous", "--out", tmp_path / "other")
    assert status == 0
    assert "bits/dim in continuous time" in printed
    status, _, told = said(*words, "--timesteps", "none")
    assert status == 2
    assert "--timesteps" in told


def test_a_row_that_is_asked_for_and_absent_is_said(said, inputs, tmp_path):
    words = ["nll", *inputs, *EVERY_PAIR, "--timesteps", "61"]
    _, printed, told = said(*words, "--out", tmp_path / "run", "--continuous")
    assert "no bound in continuous time beside that of the run: the model visits" in told
    assert "no bound in continuous time" not in printed
    _, _, told = said(*words, "--out", tmp_path / "other")
    assert "no bound in continuous time" not in told


def test_a_run_in_continuous_time_has_no_row_of_it_besides(refused, inputs):
    line = refused("nll", *inputs, *EVERY_PAIR, *CONTINUOUS, "--continuous")
    assert line.startswith("Error: --continuous: the run itself is in continuous time")


def test_only_the_bound_is_in_continuous_time(said, inputs):
    for command in ("ode", "rd", "score", "sample"):
        data = inputs if command != "sample" else [*inputs[:2], "-n", "2"]
        status, _, told = said(command, *data, *CONTINUOUS)
        assert status == 2
        assert "--timesteps" in told


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--probes", "0"], "--probes"),
        (["--probes", "2", "--trace", "exact"], "--probes 2"),
        (["--solver-steps", "7"], "--solver-steps 7"),
        (["--solver-steps", "0"], "--solver-steps"),
        (["--solver", "euler"], "--solver"),
        (["--num-ode-images", "0"], "--num-ode-images"),
        (["--timesteps", "80"], "timesteps between those of its training"),
        (["--timesteps", "5"], "visits 5 of its timesteps only"),
        (["--timesteps", "1"], "visits 1 of its timesteps only"),
    ],
)
def test_options_of_the_ode_that_make_no_sense(said, inputs, words, line, tmp_path):
    status, printed, told = said("ode", *inputs, *words, "--out", tmp_path / "run")
    assert (status, printed) == (2, "")
    assert line in error_of(told)


NET = """
import torch
from torch import nn

class Net(nn.Module):
    image_channels, image_size = 1, 8

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.table = nn.Embedding(40, 1)

    def forward(self, x, t):
        {body}
"""
BODIES = {
    "a table of embeddings": ("return x + self.table(t).view(-1, 1, 1, 1)", "whole timesteps only"),
    "whole numbers": ("return x * (t.long() / 40).view(-1, 1, 1, 1)", "rounds the time"),
}


def own_network(folder, body, total=40):
    (folder / "net.py").write_text(NET.format(body=body))
    spaces = {}
    exec((folder / "net.py").read_text(), spaces)
    torch.save(spaces["Net"]().state_dict(), folder / "weights.pt")
    return [
        *("--ckpt", folder / "weights.pt", "--network", f"{folder / 'net.py'}:Net"),
        *("--schedule", f"linear:{total}:0.001:0.3", "--prediction", "eps"),
        *("--variance", "fixed_small", "--time-input", "index", "--data-range", "-1,1"),
    ]


@pytest.mark.parametrize(("body", "words"), BODIES.values(), ids=BODIES)
def test_networks_of_whole_timesteps(refused, small_npz, tmp_path, body, words):
    network = [*own_network(tmp_path, body), "--data", small_npz]
    for command in (
        ["nll", *EVERY_PAIR, *CONTINUOUS],
        ["nll", *EVERY_PAIR, "--continuous"],
        ["ode"],
    ):
        assert words in refused(*command, *network)


def test_a_network_without_gradient_has_no_ode(said, small_npz, tmp_path):
    body = "return (self.scale * x).detach() * (1 + t / 40).view(-1, 1, 1, 1)"
    words = ["ode", *own_network(tmp_path, body), "--data", small_npz]
    status, printed, told = said(*words, "--out", tmp_path / "run")
    assert (status, printed) == (2, "")
    assert "has no gradient" in error_of(told)


def test_a_divergence_that_is_infinite_names_image_and_sigma(said, tmp_path):
    body = "dark = x.mean((1, 2, 3), keepdim=True) < -0.5; "
    body += "return x * torch.where(dark, torch.inf, 1.0) * (1 + t / 40).view(-1, 1, 1, 1)"
    pixels = np.full((3, 8, 8, 1), 200, dtype=np.uint8)
    pixels[1] = 0
    np.savez(tmp_path / "images.npz", arr_0=pixels)
    words = ["ode", *own_network(tmp_path, body), "--data", tmp_path / "images.npz"]
    status, _, told = said(*words, "--out", tmp_path / "run", "--solver-steps", "2")
    assert status == 2
    assert "not finite for image 1 at sigma = " in error_of(told)


@pytest.mark.parametrize("words", [CONTINUOUS, ("--continuous",)])
def test_a_single_timestep_has_nothing_between(refused, small_model, small_npz, tmp_path, words):
    single = dataclasses.replace(
        small_model, schedule=NoiseSchedule.linear(1, beta_start=0.01, beta_end=0.01)
    )
    write_native(tmp_path / "single.safetensors", single)
    inputs = ["--ckpt", tmp_path / "single.safetensors", "--data", small_npz]
    line = refused("nll", *inputs, *EVERY_PAIR, *words)
    assert "visits one" in line or "single timestep" in line


@pytest.mark.parametrize("command", [["nll", *EVERY_PAIR, *CONTINUOUS], ["ode"]])
def test_a_network_of_classes_needs_labels(refused, small_model, small_npz, tmp_path, command):
    config = dataclasses.replace(small_model.network.config, num_classes=3)
    of_classes = dataclasses.replace(small_model, network=UNet(config).eval(), num_classes=3)
    write_native(tmp_path / "classes.safetensors", of_classes)
    line = refused(*command, "--ckpt", tmp_path / "classes.safetensors", "--data", small_npz)
    assert "label" in line


def test_a_learned_variance_has_continuous_time_and_the_ode_but_no_more_timesteps(
    said, refused, small_model, small_npz, tmp_path
):
    config = dataclasses.replace(small_model.network.config, out_channels=2)
    learned = dataclasses.replace(
        small_model, network=UNet(config).eval(), variance=Variance.LEARNED
    )
    write_native(tmp_path / "learned.safetensors", learned)
    inputs = ["--ckpt", tmp_path / "learned.safetensors", "--data", small_npz]
    assert "choose at most as many" in refused("nll", *inputs, *EVERY_PAIR, "--timesteps", "80")
    status, _, told = said("nll", *inputs, *EVERY_PAIR, *CONTINUOUS, "--out", tmp_path / "nll")
    assert status == 0, told
    status, _, told = said("ode", *inputs, "--solver-steps", "2", "--out", tmp_path / "ode")
    assert status == 0, told


def test_continuous_and_discrete_runs_are_not_compared(said, refused, inputs, tmp_path):
    for name, words in (("one", CONTINUOUS), ("two", ())):
        status, _, told = said("nll", *inputs, *EVERY_PAIR, *words, "--out", tmp_path / name)
        assert status == 0, told
    line = refused("compare", tmp_path / "one", tmp_path / "two")
    assert "schedule is linear, but linear, continuous time" in line
