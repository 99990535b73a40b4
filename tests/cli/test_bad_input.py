"""A user's mistake: exit 2, one line that names the file or option, nothing written."""

import shlex

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file


def set_nan(tensors):
    tensors["network.conv_in.weight"][0, 0, 0, 0] = torch.nan


def set_large_beta(tensors):
    tensors["schedule.betas"][3] = 1.5


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (set_nan, "conv_in.weight"),
        (lambda of: of.pop("network.conv_in.weight"), "conv_in.weight"),
        (lambda of: of.update({"network.more.weight": torch.zeros(3)}), "more.weight"),
        (
            lambda of: of.update({"network.conv_in.weight": torch.zeros(8, 1, 5, 5)}),
            "conv_in.weight",
        ),
        (lambda of: of.pop("schedule.betas"), "schedule.betas"),
        (set_large_beta, "beta"),
    ],
)
def test_weights_that_do_not_fit(refused, small_checkpoint, tmp_path, change, word):
    with safe_open(small_checkpoint, framework="pt") as file:
        metadata = file.metadata()
    tensors, path = load_file(small_checkpoint), tmp_path / "changed.safetensors"
    change(tensors)
    save_file(tensors, path, metadata=metadata)
    line = refused("nll", "--ckpt", path)
    assert str(path) in line
    assert word in line


def test_images_that_the_network_cannot_take(refused, small_checkpoint, tmp_path):
    for name, shape in {"size": (2, 12, 12, 1), "channels": (2, 8, 8, 3)}.items():
        path = tmp_path / f"{name}.npz"
        np.savez(path, arr_0=np.zeros(shape, np.uint8))
        line = refused("nll", "--ckpt", small_checkpoint, "--data", path)
        assert str(path) in line
        assert str(small_checkpoint) in line


NLL = {
    "--data imagenet:test": "imagenet",
    "--data cifar10": "cifar10",
    "--data fashion-mnist:validation": "fashion-mnist",
    "--data ''": "--data",
    "--bogus 1": "--bogus",
    "--batch-size many": "--batch-size",
    "--batch-size 0": "--batch-size",
    "--draws 0": "--draws",
    "--seed -1": "--seed",
    f"--seed {2**64}": "--seed",
    "--num-images 0": "--num-images",
    "--num-images 7": "--num-images",
    "--timesteps 0": "--timesteps",
    "--device gpu": "--device",
    "--device cuda:77": "--device",
    "--class 3": "--class",
    "--variance learned_range": "--variance",
    "--format xml": "--format",
    "--out /proc/run": "/proc/run",
    "--ckpt nowhere.pt": "nowhere.pt",
    f"--ckpt {'x' * 5000}": "5,000 bytes",
    "stray": "stray",
}
SMALL = "--channels 8,8 --attention 1 --norm-groups 4 --num-blocks 1"
TRAIN = {
    "--channels 8,8,8,8": "28x28",
    "--attention 9": "--attention",
    f"--seed {2**70}": "--seed",
    "--learning-rate nan": "--learning-rate",
    f"--batch-size {10**12}": "--batch-size",
    "--timesteps 10": "linear",
    "--norm-groups 5": "norm groups 5",
    "--channels 8,x": "--channels",
    "--data nowhere": "nowhere",
    "--objective hybrid --variance fixed_small": "--objective",
}


@pytest.mark.parametrize("words", NLL)
def test_an_option_that_makes_no_sense(refused, small_checkpoint, small_npz, words):
    common = ("--ckpt", small_checkpoint, "--data", small_npz)
    assert NLL[words] in refused("nll", *common, *shlex.split(words))


@pytest.mark.parametrize("words", TRAIN)
def test_training_that_makes_no_sense(refused, tmp_path, words):
    given = f"--data fashion-mnist:test --steps 2 {SMALL} {words}"
    line = refused("train", "--out", tmp_path / "training", *shlex.split(given))
    assert TRAIN[words] in line
    assert not (tmp_path / "training").exists()


def test_an_unknown_command(refused):
    assert "evaluate" in refused("evaluate")


def test_a_folder_that_belongs_to_another_run(invoke, small_checkpoint, small_npz, tmp_path):
    arguments = ["nll", "--ckpt", small_checkpoint, "--data", small_npz]
    arguments += ["--estimator", "every-pair", "--draws", 1, "--out", tmp_path / "run"]
    assert invoke(*arguments)[0] == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    status, _, line = invoke(*arguments, "--seed", 1)
    assert (status, line.count("\n")) == (2, 1)
    assert str(tmp_path / "run") in line
    assert "seed is 0 there, 1 here" in line
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
