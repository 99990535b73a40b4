"""Inspecting a checkpoint: its record, what is printed, and the command that evaluates it."""

import dataclasses
import functools
import json
import math
import shlex

import lucidrains_files
import numpy as np
import pandas as pd
import peers
import pytest
import torch
from custom_networks import bound_of
from sealing import read_record
from unet_configs import DDPM_CIFAR10, SMALL_CONFIG

import ddpmbench as db
from ddpmbench.checkpoints.native import write_native
from ddpmbench.cli import options
from ddpmbench.cli.likelihood import nll
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.evaluate.inspect_text import printed_inspect
from ddpmbench.execution.folder import IDENTITY
from ddpmbench.unet.flops import flop_per_call
from ddpmbench.unet.unet import UNet

FLAGS = (
    "--image_size 8 --num_channels 32 --num_res_blocks 1 --channel_mult 1,2 --num_heads 4 "
    "--attention_resolutions 4 --learn_sigma True --class_cond True --rescale_timesteps True "
    "--diffusion_steps 50 --noise_schedule cosine"
)


OWN = """
import torch
from torch import nn

class Net(nn.Module):
    image_channels = 1

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.time = nn.Embedding(100, 4)
        self.out = nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x, t):
        return self.out(torch.relu(self.conv(x) + self.time(t)[:, :, None, None]))
"""


def own_weights():
    names = {}
    exec(OWN, names)
    return names["Net"]().state_dict()


def pesser_network(**changes):
    return UNet(dataclasses.replace(SMALL_CONFIG, **changes)).eval()


@pytest.fixture(scope="module")
def files(small_checkpoint, tmp_path_factory):
    """A file or folder of each family."""
    folder = tmp_path_factory.mktemp("files")
    torch.save(peers.openai_weights(classes=10), folder / "ema_0.9999_500000.pt")
    torch.save(peers.pesser_weights(pesser_network()), folder / "model.ckpt")
    torch.save(peers.pesser_weights(pesser_network(out_channels=2)), folder / "learned.ckpt")
    (folder / "own.py").write_text(OWN)
    # With a schedule beside its weights: one put in the place of what is open contradicts it.
    content = {"model": own_weights(), "betas": NoiseSchedule.cosine(50).betas}
    torch.save(content, folder / "own.pt")
    trainer, _ = lucidrains_files.saved(folder, lucidrains_files.diffusion())
    return {
        "lucidrains": str(trainer),
        "own": str(folder / "own.pt"),
        "default": "default",
        "native": str(small_checkpoint),
        "diffusers": str(
            peers.save_pipeline(folder / "pipe", peers.diffusers_unet(peers.SMALL_UNET))
        ),
        "openai": str(folder / "ema_0.9999_500000.pt"),
        "pesser": str(folder / "model.ckpt"),
        "learned": str(folder / "learned.ckpt"),
    }


SETTLED = {
    "default": {},
    "native": {"data_range": (-0.12345678, 100.125), "levels": 32},
    "diffusers": {"variance": "fixed_large", "clip": False},
    "openai": {"model_flags": FLAGS},
    "pesser": {"schedule": "cosine:100", "variance": "fixed_large", "prediction": "x_start"},
    "learned": {"schedule": "cosine:100", "variance": "learned_range"},
    "lucidrains": {"clip": False},
    "own": {
        "schedule": "cosine:100",
        "prediction": "v",
        "variance": "fixed_small",
        "time_input": "index",
    },
}
OF_FLAGS = ("schedule", "prediction", "variance", "clip", "time_input")
OPEN = {
    "openai": ["model_flags"],
    "pesser": ["schedule", "variance"],
    "learned": ["schedule", "variance"],
    "own": ["schedule", "prediction", "variance", "time_input"],
}

FILLED = {
    "linear:T:START:END": "cosine:100",
    "PREDICTION": "v",
    "VARIANCE": "fixed_small",
    "TIME": "index",
}
"""Values for the placeholders."""


def own_code(name, files):
    return f"{files['own'].removesuffix('.pt')}.py:Net" if name == "own" else None


def settings(name, files):
    """All settings that a file lacks."""
    return db.CheckpointSettings(network=own_code(name, files), **SETTLED[name])


def without_settings(name, files):
    """The code of a network alone: nothing of how it was trained."""
    return db.CheckpointSettings(network=own_code(name, files))


@pytest.fixture(scope="module")
def seen(files):
    """Gives the summary of a file read with some settings, which is made once."""

    @functools.cache
    def look(name, given=None):
        return db.inspect_checkpoint(files[name], given).summary

    return look


def as_typed(command):
    """The checkpoint's options of a command of nll, as it takes them."""
    assert command[:2] == ["ddpmbench", "nll"]
    given = nll.make_context("nll", list(command[2:])).params
    of = {name: given[name] for name in options.CHECKPOINT}
    return of.pop("ckpt"), of.pop("timesteps"), db.CheckpointSettings(**of)


# ---- the record


CONVENTIONS = ("prediction", "variance", "clip", "time_input")


@pytest.mark.parametrize("name", list(SETTLED))
def test_the_record_and_the_command_are_those_of_the_loaded_checkpoint(files, name):
    result = db.inspect_checkpoint(files[name], settings(name, files), timesteps=20)
    checkpoint = db.load_checkpoint(files[name], settings(name, files)).respaced(20)
    summary, network = result.summary, result.summary["network"]
    assert summary["settled"]
    assert summary["checkpoint"]["sha256"] == checkpoint.sha256
    assert summary["checkpoint"]["bytes"] > 1000
    assert summary["process"]["num_timesteps"] == 20
    assert network["parameters"] == sum(w.numel() for w in checkpoint.network.parameters())
    assert network["flop_per_call"] > 0
    assert network["kind"] == type(checkpoint.network).__name__
    assert summary == json.loads(printed_inspect(summary, "json"))
    source, timesteps, given = as_typed(summary["command"])
    typed = db.load_checkpoint(source, given).respaced(timesteps)
    for model in (result.checkpoint, typed):
        assert (model.sha256, model.fingerprint) == (checkpoint.sha256, checkpoint.fingerprint)
        for convention in (*CONVENTIONS, "data_range"):
            assert getattr(model, convention) == getattr(checkpoint, convention)
    for setting in CONVENTIONS:
        assert summary["settings"][setting] == getattr(checkpoint, setting)


@pytest.mark.parametrize(
    ("name", "whole"), [*((n, True) for n in SETTLED), *((n, False) for n in OPEN)]
)
def test_the_command_arrives_at_a_number(files, seen, tmp_path, name, whole):
    """Of what is open, once its placeholders are filled in with what it was trained with."""
    summary = seen(name, (settings if whole else without_settings)(name, files))
    assert summary["refused"] is None
    network, words = summary["network"], summary["command"][2:]
    if "DATA" in words:
        side = network["image_size"] or 8
        pixels = np.zeros((2, side, side, network["channels"]), np.uint8)
        pixels[:, 1::2] = 200
        np.savez(tmp_path / "images.npz", arr_0=pixels)
        words[words.index("DATA")] = str(tmp_path / "images.npz")
    flags = f"--model-flags={FLAGS}"
    words = [
        flags if word.startswith("--model-flags") else FILLED.get(word, word) for word in words
    ]
    if name == "learned" and "fixed_large" in words:
        words[words.index("fixed_large")] = "learned_range"
    label = ["--class", "0"] if name == "openai" else []
    assert math.isfinite(bound_of([*words, *label, "--num-images", "1", "--timesteps", "3"]))


@pytest.mark.parametrize("name", list(OPEN))
def test_missing_settings_are_named_and_nothing_depends_on_stand_ins(files, name):
    result = db.inspect_checkpoint(files[name], without_settings(name, files), image_size=8)
    settled = db.inspect_checkpoint(files[name], settings(name, files), image_size=8)
    summary, whole = result.summary, settled.summary
    assert result.checkpoint is None
    assert not summary["settled"]
    assert list(summary["missing"]) == OPEN[name]
    assert summary["checkpoint"]["sha256"] == whole["checkpoint"]["sha256"]
    assert summary["checkpoint"]["family"] == whole["checkpoint"]["family"]
    assert summary["process"] is None
    network, other = summary["network"], whole["network"]
    for fact in ("parameters", "flop_per_call", "channels", "image_size"):
        assert network[fact] == other[fact]
    missing = {name for name, value in summary["settings"].items() if value is None}
    assert {"schedule", "variance"} <= missing <= {*OPEN[name], *OF_FLAGS}
    assert summary["notes"] == []
    # It can be typed once its placeholders are filled in, and names every missing option.
    words = [FILLED.get(word, word) for word in summary["command"]]
    source, _, typed = as_typed(words)
    assert source == files[name]
    assert all(getattr(typed, parameter) is not None for parameter in OPEN[name])


def test_a_known_schedule_is_shown_where_other_settings_are_missing(files):
    half = db.CheckpointSettings(schedule="cosine:100")
    summary = db.inspect_checkpoint(files["pesser"], half).summary
    assert summary["process"]["num_timesteps"] == 100
    assert list(summary["missing"]) == ["variance"]


# ---- numbers


@pytest.mark.parametrize(
    "schedule", [NoiseSchedule.linear(40), NoiseSchedule.cosine(30), NoiseSchedule.linear(1000)]
)
def test_the_prior_is_that_of_data_of_unit_mean_square(small_model, tmp_path, schedule):
    model = dataclasses.replace(small_model, schedule=schedule)
    write_native(tmp_path / "model.safetensors", model)
    process = db.inspect_checkpoint(tmp_path / "model.safetensors").summary["process"]
    signs = torch.randint(0, 2, (3, 1, 8, 8), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    expected = db.prior_bits_per_dim(schedule, signs.double())
    assert process["prior"] == pytest.approx(expected.mean().item(), rel=1e-9, abs=1e-12)
    last = process["steps"][-1]
    assert last["t"] == schedule.num_timesteps
    assert math.exp(last["log_snr"]) == pytest.approx(schedule.snr[-1].item())
    assert process["steps"][0]["beta"] == schedule.betas[0].item()


@pytest.mark.parametrize("name", ["native", "openai"])
def test_the_arithmetic_of_a_call_is_counted_without_it(files, name):
    result = db.inspect_checkpoint(files[name], settings(name, files))
    checkpoint = result.checkpoint
    inputs = [torch.zeros(1, checkpoint.channels, 8, 8), torch.zeros(1)]
    if checkpoint.num_classes:
        inputs.append(torch.zeros(1, dtype=torch.int64))
    expected = flop_per_call(checkpoint.network, *inputs)
    assert result.summary["network"]["flop_per_call"] == expected > 0
    assert not any(weight.is_meta for weight in checkpoint.network.parameters())


def test_the_published_network_has_its_known_size(small_model, tmp_path):
    with torch.device("meta"):
        network = UNet(DDPM_CIFAR10)
    network.to_empty(device="cpu")
    for weight in network.parameters():
        torch.nn.init.ones_(weight)
    model = dataclasses.replace(small_model, network=network, channels=3, image_size=32)
    write_native(tmp_path / "model.safetensors", model)
    result = db.inspect_checkpoint(tmp_path / "model.safetensors").summary["network"]
    assert result["parameters"] == 35_746_307
    assert result["flop_per_call"] == 12_443_713_536


# ---- what is printed


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize(
    ("name", "whole"), [*((n, True) for n in SETTLED), *((n, False) for n in OPEN)]
)
def test_it_fits_the_terminal(files, seen, name, whole, width):
    summary = seen(name, (settings if whole else without_settings)(name, files))
    # The command is one line, to be pasted, and a path cannot be broken.
    checkpoint = {**summary["checkpoint"], "source": "model.pt"}
    summary = {**summary, "command": ["ddpmbench", "nll"], "checkpoint": checkpoint}
    text = printed_inspect(summary, "table", width=width)
    assert text.isascii()
    lines = text.splitlines()
    assert max(map(len, lines)) <= min(width, 100)
    assert not any(line != line.rstrip() for line in lines)
    assert "\n\n\n" not in text


def test_respaced_timesteps_are_shown():
    summary = db.inspect_checkpoint("default", timesteps=50).summary
    text = printed_inspect(summary, "table", width=100)
    assert text.splitlines()[0].endswith("gray images, T = 50 of 1,000")
    assert "linear, T = 1,000\n" in text  # as trained
    every = db.inspect_checkpoint("default").summary
    assert " of 1,000" not in printed_inspect(every, "table", width=100)


def test_the_printed_command_can_be_pasted(files, seen):
    summary = seen("openai", settings("openai", files))
    text = printed_inspect(summary, "table", width=80)
    (line,) = (line for line in text.splitlines() if "ddpmbench nll" in line)
    assert shlex.split(line)[1:] == summary["command"]


# ---- what is written


def test_the_folder_holds_the_schedule_and_all_that_is_printed(files, tmp_path):
    out = tmp_path / "look"
    result = db.inspect_checkpoint(files["openai"], settings("openai", files), out=out)
    assert read_record(out / "inspect.json") == result.summary
    names = {path.name for path in (out / "figures").iterdir()}
    assert names == {"schedule.svg", "schedule.png", "schedule.csv"}
    steps = pd.read_csv(out / "figures" / "schedule.csv")
    assert list(steps) == ["t", "beta", "alphas_cumprod", "log_snr"]
    schedule = NoiseSchedule.cosine(50)
    np.testing.assert_allclose(steps.alphas_cumprod, schedule.alphas_cumprod, rtol=1e-12)
    np.testing.assert_allclose(steps.log_snr, schedule.snr.log(), rtol=1e-9, atol=1e-12)
    pd.testing.assert_frame_equal(steps, result.schedule)
    again = db.inspect_checkpoint(files["openai"], settings("openai", files), out=out)
    assert again.summary == result.summary
    with peers.refused(f"`out={out}`", "checkpoint"):
        db.inspect_checkpoint(files["native"], out=out)


def test_a_missing_schedule_has_no_figure(files, tmp_path):
    db.inspect_checkpoint(files["pesser"], out=tmp_path / "look")
    assert {path.name for path in (tmp_path / "look").iterdir()} == {IDENTITY, "inspect.json"}


# ---- mistakes


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [("native", 16, ("`image_size=16`", "8x8")), ("pesser", 9, ("`image_size=9`", "of 2"))],
)
def test_a_size_that_it_does_not_take(files, name, size, words):
    with peers.refused(*words):
        db.inspect_checkpoint(files[name], image_size=size)


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("pesser", {"schedule": "nonsense:100"}, ("nonsense:100",)),
        ("pesser", {"variance": "learned"}, ("variance", "learned")),
        ("learned", {"prediction": "previous_mean", "variance": "fixed_small"}, ("variance",)),
    ],
)
def test_stand_ins_hide_no_mistake(files, name, given, words):
    with peers.refused(*words):
        db.inspect_checkpoint(files[name], db.CheckpointSettings(**given))


def test_stand_ins_hide_no_damage(tmp_path):
    weights = peers.pesser_weights(pesser_network(out_channels=2))
    weights["conv_out.bias"] = weights["conv_out.bias"] * math.nan
    torch.save(weights, tmp_path / "model.ckpt")
    with peers.refused("model.ckpt", "conv_out.bias"):
        db.inspect_checkpoint(tmp_path / "model.ckpt")
