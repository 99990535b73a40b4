"""`--weights` from the command line to the result."""

import hashlib
import json

import pytest
import torch
from peers import pesser_weights
from unet_configs import SMALL_CONFIG

from ddpmbench.unet.unet import UNet

PROCESS = ("--schedule", "linear:21:0.001:0.2", "--variance", "fixed_small")
ROWS = ("--estimator", "every-pair", "--num-images", 2, "--draws", 1)


@pytest.fixture
def training(tmp_path):
    """A file with the last and the averaged weights of a network for gray images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        last = pesser_weights(UNet(SMALL_CONFIG))
    averaged = {name: 0.5 * weight for name, weight in last.items()}
    torch.save({"model": last, "ema": averaged}, tmp_path / "training.ckpt")
    return tmp_path / "training.ckpt"


def test_which_weights_were_evaluated_stands_with_the_result(invoke, training, small_npz, tmp_path):
    command = ("nll", "--ckpt", training, *PROCESS, "--data", small_npz, *ROWS)
    result = {}
    for kind, option in {"ema": (), "raw": ("--weights", "raw")}.items():
        out = tmp_path / kind
        status, printed, message = invoke(*command, *option, "--out", out)
        assert status == 0, message
        assert f"(pesser, {kind}, " in printed
        assert {"ema": "weights: EMA (ema)", "raw": "weights: raw (model)"}[kind] in message
        result[kind] = json.loads((out / "summary.json").read_text())
        record = result[kind]["checkpoint"]
        assert record["files"] == [training.name]
        assert record["sha256"] == hashlib.sha256(training.read_bytes()).hexdigest()
        where = {"ema": "ema", "raw": "model"}[kind]
        assert (record["weights"], record["where"]) == (kind, where)
    assert result["ema"]["bits_per_dim"] != result["raw"]["bits_per_dim"]
    status, printed, message = invoke(*command, "--weights", "raw", "--out", tmp_path / "ema")
    assert status == 2
    assert str(tmp_path / "ema") in message
    assert printed == ""


def test_weights_that_are_not_there(refused, small_checkpoint, small_npz):
    line = refused("nll", "--ckpt", small_checkpoint, "--weights", "raw", "--data", small_npz)
    assert "--weights raw" in line
    assert str(small_checkpoint) in line
