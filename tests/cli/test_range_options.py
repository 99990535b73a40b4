"""--data-range and --levels as a user types them."""

import dataclasses
import json

import numpy as np
import pytest

from ddpmbench.checkpoints.native import write_native
from ddpmbench.diffusion.data_range import DataRange

RANGE = ("--data-range", "0,1", "--levels", 32)
FEW = ("--timesteps", 3, "--estimator", "every-pair", "--draws", 1)


def test_they_are_said_and_stand_in_the_result(invoke, small_checkpoint, small_npz, tmp_path):
    arguments = ("nll", "--ckpt", small_checkpoint, "--data", small_npz, *FEW)
    status, printed, message = invoke(*arguments, *RANGE, "--out", tmp_path / "run")
    assert status == 0, message
    assert "--data-range 0,1 overrides -1,1" in message
    assert "--levels 32 overrides 256" in message
    assert "exact decoder, data in [0, 1], 32 levels" in printed
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    resolved = json.loads((tmp_path / "run" / "environment.json").read_text())["arguments"]
    for record in (summary["conventions"], resolved["resolved"]):
        assert (record["data_range"], record["levels"]) == ("[0, 1]", 32)
    # The default said aloud is the default.
    out = ("--out", tmp_path / "other")
    status, printed, message = invoke(*arguments, "--data-range", "-1,1", "--levels", 256, *out)
    assert status == 0, message
    assert "overrides" not in message
    assert "levels" not in printed


def test_a_file_that_says_them_needs_no_options(invoke, small_model, small_npz, tmp_path):
    file = tmp_path / "model.safetensors"
    write_native(file, dataclasses.replace(small_model, data_range=DataRange(0, 1, 32)))
    bits = set()
    for options in ((), RANGE):
        status, printed, message = invoke(
            "nll", "--ckpt", file, "--data", small_npz, *FEW, *options, "--format", "quiet",
            "--out", tmp_path / f"run{len(options)}",
        )  # fmt: skip
        assert status == 0, message
        assert "overrides" not in message
        bits.add(printed)
    assert len(bits) == 1


def test_samples_say_them(invoke, small_checkpoint, tmp_path):
    out = tmp_path / "run"
    arguments = ("sample", "--ckpt", small_checkpoint, "-n", 2, "--timesteps", 3, "--out", out)
    status, printed, message = invoke(*arguments, "--levels", 2)
    assert status == 0, message
    assert "data in [-1, 1], 2 levels" in printed
    assert "Note: --levels 2 overrides 256" in message
    with np.load(out / "samples.npz") as archive:
        assert set(np.unique(archive["arr_0"])) <= {0, 255}


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--data-range", "1,-1"), "--data-range 1,-1: takes two finite numbers, the lower one"),
        (("--data-range", "0,0"), "--data-range 0,0: takes two finite numbers, the lower one"),
        (("--data-range", "nan,1"), "--data-range nan,1: takes two finite numbers, the lower one"),
        (("--data-range", "0:1"), "'--data-range': '0:1' is not LOW,HIGH, as in -1,1"),
        (("--data-range", "0,1,2"), "'--data-range': '0,1,2' is not LOW,HIGH, as in -1,1"),
        (("--levels", "1"), "'--levels': 1 is not in the range 2<=x<=256"),
        (("--levels", "257"), "'--levels': 257 is not in the range 2<=x<=256"),
    ],
)
def test_what_is_no_range_is_refused(refused, small_checkpoint, options, line):
    assert line in refused("nll", "--ckpt", small_checkpoint, *options)


@pytest.mark.parametrize("command", ["nll", "rd", "speed", "fid"])
def test_images_that_look_reduced_already(invoke, small_model, small_images, tmp_path, command):
    file, data, out = (tmp_path / name for name in ("a.safetensors", "reduced.npz", "run"))
    write_native(file, dataclasses.replace(small_model, data_range=DataRange(levels=32)))
    np.savez(data, arr_0=small_images.pixels.transpose(0, 2, 3, 1) >> 3)
    more = ("--feature-network", "efficientnet-lite0") if command == "fid" else ()
    status, printed, message = invoke(command, "--ckpt", file, "--data", data, "--out", out, *more)
    assert (status, printed) == (2, "")
    line = message.splitlines()[-1]
    assert line.startswith(f"Error: {data}: no pixel is above 31, so its images look")
    assert "save level k as the pixel 256 k / 32, rounded up" in line
    assert not out.exists()
