"""Training that cannot come to anything: refused, or stopped with what is good kept."""

import errno
import math
import resource

import numpy as np
import pytest
import torch

from ddpmbench.checkpoints.native import read_native
from ddpmbench.cli.main import run
from ddpmbench.files import os_errors
from ddpmbench.train import loop

SMALL = "--channels 8,8 --attention 1 --norm-groups 4 --num-blocks 1 --batch-size 4 --timesteps 40"


@pytest.fixture
def train(tmp_path, capsys):
    """Runs the command on eight images; returns its status and what it said."""
    data = tmp_path / "images.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
    np.savez(data, arr_0=pixels)

    def call(*arguments, out=tmp_path / "run"):
        capsys.readouterr()
        given = ["train", "--data", data, "--steps", 2, *SMALL.split(), "--out", out, *arguments]
        status = run([str(argument) for argument in given])
        return status, capsys.readouterr().err

    return call


@pytest.fixture
def refused(train, tmp_path, monkeypatch):
    """As that, of what must be refused before a network is built and anything is written."""
    monkeypatch.setattr("ddpmbench.train.loop.UNet", None)

    def call(*arguments):
        status, message = train(*arguments)
        assert status == 2, message
        assert message.startswith("Error: ")
        assert message.count("\n") == 1
        assert not (tmp_path / "run").exists()
        return message

    return call


ABSURD = ("nan", "inf", "-inf", "-1", "1e400", str(10**12), str(10**30))
NUMBERS = {
    "--ema-decay": ABSURD,
    "--dropout": ABSURD,
    "--learning-rate": ("nan", "inf", "-inf", "-1", "0", "1e400"),
    "--warmup-steps": ("nan", "inf", "-1", "0"),
    "--batch-size": (*ABSURD, "0"),
    "--timesteps": (*ABSURD, "0", "1"),
    "--steps": (*ABSURD, "0"),
    "--num-blocks": (*ABSURD, "0", str(10**8)),
    "--channels": (*ABSURD, "0", "8," * 61 + "8", "8,1000000"),
    "--model-channels": (*ABSURD, "0"),
    "--norm-groups": (*ABSURD, "0"),
    "--seed": ("nan", "inf", "-1", str(10**30)),
}


@pytest.mark.parametrize("option", NUMBERS)
def test_a_number_that_makes_no_sense_is_refused_before_anything_is_built(refused, option):
    for value in NUMBERS[option]:
        line = refused(option, value, "--attention", "0")
        named = option.strip("-")
        assert any(named.replace("-", mark) in line for mark in "-_ "), line


def test_images_that_are_not_square_are_refused(refused, tmp_path):
    np.savez(tmp_path / "wide.npz", np.zeros((4, 8, 16, 1), np.uint8))
    line = refused("--data", tmp_path / "wide.npz")
    assert "--data" in line
    assert "16x8; crop them to squares" in line


def test_a_network_that_does_not_fit_is_refused_and_a_smaller_one_trains(
    refused, train, monkeypatch
):
    assert "GB of memory" in refused("--channels", "60000,60000")
    monkeypatch.setattr(loop, "_memory_of", lambda device: 10**6)
    assert "--batch-size 4096" in refused("--batch-size", 4096)
    monkeypatch.undo()
    assert train("--batch-size", 2)[0] == 0


def test_memory_that_is_not_there_after_all_is_one_line(train, monkeypatch):
    def step(*arguments):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    monkeypatch.setattr(loop, "_train_step", step)
    status, message = train()
    assert status == 2
    assert message.startswith("Error: --batch-size 4: ")


@pytest.mark.parametrize("what", ["loss", "weight", "average"])
def test_what_is_not_finite_stops_training_and_the_last_good_state_is_kept(
    train, tmp_path, monkeypatch, what
):
    assert train("--steps", 3)[0] == 0
    files = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    real = loop._train_step

    def step(state, *arguments):
        loss = real(state, *arguments)
        with torch.no_grad():
            if what == "weight":
                next(state.network.parameters()).view(-1)[0] = math.nan
            if what == "average":
                next(iter(state.average.values())).view(-1)[0] = math.inf
        return loss * math.nan if what == "loss" else loss

    monkeypatch.setattr(loop, "_train_step", step)
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0)
    status, message = train("--steps", 6)
    assert status == 2
    assert "diverged before step 4" in message
    assert "last good checkpoint is kept); lower --learning-rate" in message
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == files
    weights = read_native(tmp_path / "run" / "checkpoint.safetensors").network.state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    monkeypatch.undo()
    # What the line says.
    assert train("--learning-rate", "1e-5", out=tmp_path / "other")[0] == 0


@pytest.fixture
def small_disk():
    """Limits how many bytes a file can have: the system refuses as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# The state is the larger file: the first limit refuses it, the second one the checkpoint's.
@pytest.mark.parametrize("size", [200, 4096])
def test_training_on_a_full_disk_keeps_what_was_there(train, tmp_path, small_disk, size):
    out = tmp_path / "run"
    assert train("--steps", 2)[0] == 0
    files = {path: path.read_bytes() for path in out.iterdir()}
    small_disk(size)
    status, message = train("--steps", 4)
    small_disk(resource.RLIM_INFINITY)
    assert status == 2
    assert message.startswith(f"Error: --out {out}: cannot be written")
    assert message.count("\n") == 1
    assert {path: path.read_bytes() for path in out.iterdir()} == files
    assert train("--steps", 4)[0] == 0


@pytest.mark.parametrize(("name", "size"), [("model.safetensors", 100), ("pipeline", 2048)])
def test_convert_on_a_full_disk_keeps_what_was_there(
    small_checkpoint, tmp_path, capsys, small_disk, name, size
):
    out = tmp_path / name
    arguments = ["convert", str(small_checkpoint), str(out), "--overwrite"]
    assert run(arguments) == 0
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    small_disk(size)
    capsys.readouterr()
    status, message = run(arguments), capsys.readouterr().err
    small_disk(resource.RLIM_INFINITY)
    assert status == 2
    assert message.splitlines()[-1].startswith(f"Error: OUT {out}: cannot be written")
    assert "Traceback" not in message
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_what_libraries_raise_is_the_error_of_the_system(code):
    def of_safetensors():
        raise ValueError(f"Error while serializing: I/O error: No space left (os error {code})")

    def of_torch():
        try:
            raise OSError(code, "no space")
        except OSError:
            raise RuntimeError("[enforce fail at inline_container.cc:672]")  # noqa: B904

    for write in (of_safetensors, of_torch):
        with pytest.raises(OSError, match=r".") as caught, os_errors():
            write()
        assert caught.value.errno == code
    with pytest.raises(ValueError, match="another"), os_errors():
        raise ValueError("another")
