"""A user's mistake: exit 2, one line that names the file or option, nothing written."""

import os
import pickle
import resource
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ddpmbench.cli.main import run


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    """Runs a command that must be refused, in an empty folder; returns the line it says."""
    empty = tmp_path / "here"
    empty.mkdir()
    monkeypatch.chdir(empty)

    def check(*arguments):
        status = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert status == 2, captured.err
        assert captured.out == ""
        lines = [
            line for line in captured.err.splitlines() if "network evaluations at first" not in line
        ]
        assert len(lines) == 1, captured.err
        assert lines[0].startswith("Error: ")
        assert "Traceback" not in captured.err
        assert not list(empty.iterdir()), "something was written"
        return lines[0]

    return check


@pytest.fixture
def checkpoint(small_checkpoint, tmp_path):
    """A copy of the small checkpoint with something done to its tensors."""

    def make(change):
        from safetensors import safe_open

        with safe_open(small_checkpoint, framework="pt") as file:
            metadata = file.metadata()
        tensors = load_file(small_checkpoint)
        change(tensors)
        path = tmp_path / "changed.safetensors"
        save_file(tensors, path, metadata=metadata)
        return path

    return make


def test_a_path_that_is_not_there(refused):
    assert "nowhere.pt" in refused("nll", "--ckpt", "nowhere.pt")


def test_a_folder_without_a_configuration(refused, tmp_path):
    (tmp_path / "folder").mkdir()
    assert str(tmp_path / "folder") in refused("nll", "--ckpt", tmp_path / "folder")


def test_an_optimizer_s_state(refused, tmp_path):
    path = tmp_path / "opt500000.pt"
    torch.save({"state": {}, "param_groups": []}, path)
    line = refused("nll", "--ckpt", path)
    assert str(path) in line
    assert "optimizer" in line


@pytest.mark.parametrize("keep", [0.9, 0.5, 0.01, 0.0])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_truncated_checkpoint(refused, small_checkpoint, tmp_path, suffix, keep):
    path = tmp_path / f"cut{suffix}"
    if suffix == ".pt":
        torch.save(load_file(small_checkpoint), path)
    else:
        path.write_bytes(small_checkpoint.read_bytes())
    os.truncate(path, int(keep * path.stat().st_size))
    assert str(path) in refused("nll", "--ckpt", path)


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("write", ["torch", "pickle", "zip"])
def test_a_pickle_that_would_run_code_does_not(refused, tmp_path, write):
    path, canary = tmp_path / "model.pt", tmp_path / "canary"
    if write == "torch":
        torch.save({"w": Canary(canary)}, path)
    elif write == "pickle":
        path.write_bytes(pickle.dumps({"w": Canary(canary)}))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model/data.pkl", pickle.dumps(Canary(canary)))
            archive.writestr("model/version", "3\n")
    assert str(path) in refused("nll", "--ckpt", path)
    assert not canary.exists()


def damage_nan(tensors):
    tensors["network.conv_in.weight"][0, 0, 0, 0] = torch.nan


def damage_missing(tensors):
    del tensors["network.conv_in.weight"]


def damage_extra(tensors):
    tensors["network.conv_between.weight"] = torch.zeros(3)


def damage_shape(tensors):
    tensors["network.conv_in.weight"] = torch.zeros(8, 1, 5, 5)


def damage_schedule(tensors):
    del tensors["schedule.betas"]


def damage_betas(tensors):
    tensors["schedule.betas"][3] = 1.5


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (damage_nan, "conv_in.weight"),
        (damage_missing, "conv_in.weight"),
        (damage_extra, "conv_between.weight"),
        (damage_shape, "conv_in.weight"),
        (damage_schedule, "schedule.betas"),
        (damage_betas, "beta"),
    ],
)
def test_weights_that_do_not_fit(refused, checkpoint, change, word):
    path = checkpoint(change)
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


def test_a_corrupt_or_truncated_image_in_a_folder(refused, small_checkpoint, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    for name in ("1.png", "2.png", "10.png"):
        Image.fromarray(noise).save(images / name)
    os.truncate(images / "10.png", 60)
    assert "10.png" in refused("nll", "--ckpt", small_checkpoint, "--data", images)
    (images / "2.png").write_bytes(b"not an image")
    assert "2.png" in refused("nll", "--ckpt", small_checkpoint, "--data", images)


def test_an_empty_folder(refused, small_checkpoint, tmp_path):
    (tmp_path / "none").mkdir()
    line = refused("nll", "--ckpt", small_checkpoint, "--data", tmp_path / "none")
    assert str(tmp_path / "none") in line


def test_floating_point_images(refused, small_checkpoint, tmp_path):
    path = tmp_path / "floats.npz"
    np.savez(path, arr_0=np.zeros((2, 8, 8, 1), np.float32))
    line = refused("nll", "--ckpt", small_checkpoint, "--data", path)
    assert str(path) in line
    assert "uint8" in line


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--data", "imagenet:test"], "imagenet"),
        (["--data", "cifar10"], "cifar10"),
        (["--data", "fashion-mnist:validation"], "fashion-mnist"),
        (["--bogus", "1"], "--bogus"),
        (["--batch-size", "many"], "--batch-size"),
        (["--batch-size", "0"], "--batch-size"),
        (["--draws", "0"], "--draws"),
        (["--seed", "-1"], "--seed"),
        (["--seed", str(2**64)], "--seed"),
        (["--num-images", "0"], "--num-images"),
        (["--num-images", "7"], "--num-images"),
        (["--timesteps", "41"], "--timesteps"),
        (["--device", "gpu"], "--device"),
        (["--device", "cuda:77"], "--device"),
        (["--class", "3"], "--class"),
        (["--variance", "learned_range"], "--variance"),
        (["--format", "xml"], "--format"),
        (["stray"], "stray"),
    ],
)
def test_an_option_that_makes_no_sense(refused, small_checkpoint, small_npz, arguments, name):
    common = ["--ckpt", small_checkpoint]
    if "--data" not in arguments:
        common += ["--data", small_npz]
    assert name in refused("nll", *common, *arguments)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--channels", "8,8,8,8"], "28x28"),
        (["--attention", "9"], "--attention"),
        (["--seed", str(2**70)], "--seed"),
        (["--learning-rate", "nan"], "--learning-rate"),
        (["--batch-size", str(10**12)], "--batch-size"),
        (["--timesteps", "10"], "linear"),
        (["--norm-groups", "5"], "norm groups 5"),
        (["--channels", "8,x"], "--channels"),
        (["--data", "nowhere"], "nowhere"),
        (["--objective", "hybrid", "--variance", "fixed_small"], "--objective"),
    ],
)
def test_training_that_makes_no_sense(refused, tmp_path, arguments, name):
    small = ["--channels", "8,8", "--attention", "1", "--norm-groups", "4", "--num-blocks", "1"]
    out = tmp_path / "training"
    line = refused(
        "train", "--data", "fashion-mnist:test", "--steps", 2, "--out", out, *small, *arguments
    )
    assert name in line
    assert not out.exists()


def test_an_empty_name_is_no_default(refused, small_checkpoint):
    assert "--data" in refused("nll", "--ckpt", small_checkpoint, "--data", "")


def test_a_name_too_long_for_the_file_system(refused):
    assert "5,000 bytes" in refused("nll", "--ckpt", "x" * 5000)


def test_an_unknown_command(refused):
    assert "evaluate" in refused("evaluate")


def test_a_folder_that_belongs_to_another_run(
    refused, small_checkpoint, small_npz, tmp_path, capsys
):
    arguments = ["nll", "--ckpt", str(small_checkpoint), "--data", str(small_npz)]
    arguments += ["--estimator", "every-pair", "--draws", "1"]
    out = tmp_path / "run"
    assert run([*arguments, "--out", str(out)]) == 0
    capsys.readouterr()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    line = refused(*arguments, "--seed", "1", "--out", out)
    assert str(out) in line
    assert "seed is 0 there, 1 here" in line
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_place_that_cannot_be_written(refused, small_checkpoint, small_npz):
    arguments = ["--ckpt", small_checkpoint, "--data", small_npz]
    assert "/proc/run" in refused("nll", *arguments, "--out", "/proc/run")


def test_a_full_disk(refused, small_checkpoint, small_npz, tmp_path):
    out = tmp_path / "run"
    arguments = ["nll", "--ckpt", small_checkpoint, "--data", small_npz]
    arguments += ["--estimator", "every-pair", "--draws", "1"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file may grow beyond 2 kB: the system refuses a shard, but not run.json.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, limits[1]))
    try:
        line = refused(*arguments, "--out", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(out) in line
    assert "cannot be written" in line
    assert not list(out.rglob("*.tmp"))
    assert run([*map(str, arguments), "--out", str(out)]) == 0
