"""Weights of 8 bits are read as what they were rounded to, and noted; damaged ones are refused."""

import pytest
import torch
from peers import openai_weights, refused
from safetensors.torch import save_file

from ddpmbench.checkpoints import CheckpointSettings, load_checkpoint

FLAGS = (
    "--image_size 8 --num_channels 32 --num_res_blocks 1 --channel_mult 1,2 "
    "--attention_resolutions 4 --learn_sigma True"
)
SAVERS = {"model.pt": torch.save, "model.safetensors": save_file}
KINDS = [torch.float8_e4m3fn, torch.float8_e5m2]


def load(path, weights):
    SAVERS[path.name](weights, path)
    return load_checkpoint(path, CheckpointSettings(model_flags=FLAGS))


@pytest.mark.parametrize("name", SAVERS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_they_are_the_weights_they_were_rounded_to(tmp_path, name, kind):
    eight = {n: w.to(kind) for n, w in openai_weights().items()}
    read = load(tmp_path / name, eight)
    single = load(tmp_path / name, {n: w.float() for n, w in eight.items()})
    for mine, weight in single.network.state_dict().items():
        assert torch.equal(read.network.state_dict()[mine], weight)
    (note,) = set(read.notes) - set(single.notes)
    assert str(kind).removeprefix("torch.") in note


@pytest.mark.parametrize("name", SAVERS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_nan_among_them(tmp_path, name, kind):
    eight = {n: w.to(kind) for n, w in openai_weights().items()}
    eight["out.0.bias"] = (openai_weights()["out.0.bias"] * torch.nan).to(kind)
    with refused("out.0.bias", "NaN"):
        load(tmp_path / name, eight)
