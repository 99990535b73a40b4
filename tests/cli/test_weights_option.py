"""`--weights` from the command line to the result."""

import hashlib
import json

import pytest
import torch
from feature_networks import write_network
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


def test_which_weights_were_evaluated_stands_with_the_result(said, training, small_npz, tmp_path):
    command = ("nll", "--ckpt", training, *PROCESS, "--data", small_npz, *ROWS)
    found = {}
    for kind, option in {"ema": (), "raw": ("--weights", "raw")}.items():
        out = tmp_path / kind
        status, printed, told = said(*command, *option, "--out", out)
        assert status == 0, told
        assert f"(pesser, {kind}, " in printed
        assert {"ema": "weights: EMA (ema)", "raw": "weights: raw (model)"}[kind] in told
        found[kind] = json.loads((out / "summary.json").read_text())
        check_record(out, training, kind, {"ema": "ema", "raw": "model"}[kind])
    assert found["ema"]["bits_per_dim"] != found["raw"]["bits_per_dim"]
    status, printed, told = said(*command, "--weights", "raw", "--out", tmp_path / "ema")
    assert status == 2
    assert str(tmp_path / "ema") in told
    assert printed == ""


def test_weights_that_are_not_there(refused, small_checkpoint, small_npz):
    line = refused("nll", "--ckpt", small_checkpoint, "--weights", "raw", "--data", small_npz)
    assert "--weights raw" in line
    assert str(small_checkpoint) in line


COMMANDS = {
    "rd": ("rd", *ROWS, "--pictures", "none"),
    "sample": ("sample", "-n", 2, "--image-size", 8),
    "fid": ("fid", "--num-generated", 4, "--image-size", 8),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_result_says_which_weights_of_which_file_it_is_of(
    name, said, training, small_npz, tmp_path, monkeypatch
):
    monkeypatch.setenv("DDPMBENCH_CACHE", str(tmp_path / "cache"))
    command = (*COMMANDS[name], "--ckpt", training, *PROCESS, "--out", tmp_path / "run")
    if name != "sample":
        command += ("--data", small_npz)
    if name == "fid":
        network = write_network(tmp_path / "stand-in.pt", num_features=6, num_classes=4)
        command += ("--feature-network", network)
    status, _, told = said(*command)
    assert status == 0, told
    assert "Note: weights: EMA (ema)" in told
    check_record(tmp_path / "run", training, "ema", "ema")


def check_record(out, file, kind, where):
    record = json.loads((out / "summary.json").read_text())["checkpoint"]
    assert record["files"] == [file.name]
    assert record["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (record["weights"], record["where"]) == (kind, where)
