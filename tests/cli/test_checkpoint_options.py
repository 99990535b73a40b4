"""--data-range, --levels, --weights and --process, from the command line to the result."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
import torch
from peers import pesser_weights
from unet_configs import SMALL_CONFIG

from ddpmbench.checkpoints.native import write_native
from ddpmbench.diffusion.data_range import DataRange
from ddpmbench.unet.unet import UNet

RANGE = ("--data-range", "0,1", "--levels", 32)
FEW = ("--timesteps", 3, "--estimator", "every-pair", "--draws", 1)


def test_they_are_said_and_stand_in_the_result(completed, small_checkpoint, small_npz, tmp_path):
    arguments = ("nll", "--ckpt", small_checkpoint, "--data", small_npz, *FEW)
    printed, message = completed(*arguments, *RANGE, "--out", tmp_path / "run")
    assert "--data-range 0,1 overrides -1,1" in message
    assert "--levels 32 overrides 256" in message
    assert "exact decoder, data in [0, 1], 32 levels" in printed
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    resolved = json.loads((tmp_path / "run" / "environment.json").read_text())["arguments"]
    for record in (summary["conventions"], resolved["resolved"]):
        assert (record["data_range"], record["levels"]) == ("[0, 1]", 32)
    # The default said aloud is the default.
    out = ("--out", tmp_path / "other")
    printed, message = completed(*arguments, "--data-range", "-1,1", "--levels", 256, *out)
    assert "overrides" not in message
    assert "levels" not in printed


def test_a_file_that_says_them_needs_no_options(completed, small_model, small_npz, tmp_path):
    file = tmp_path / "model.safetensors"
    write_native(file, dataclasses.replace(small_model, data_range=DataRange(0, 1, 32)))
    bits = set()
    for options in ((), RANGE):
        printed, message = completed(
            "nll", "--ckpt", file, "--data", small_npz, *FEW, *options, "--format", "quiet",
            "--out", tmp_path / f"run{len(options)}",
        )  # fmt: skip
        assert "overrides" not in message
        bits.add(printed)
    assert len(bits) == 1


def test_samples_say_them(completed, small_checkpoint, tmp_path):
    out = tmp_path / "run"
    arguments = ("sample", "--ckpt", small_checkpoint, "-n", 2, "--timesteps", 3, "--out", out)
    printed, message = completed(*arguments, "--levels", 2)
    assert "data in [-1, 1], 2 levels" in printed
    assert "Note: --levels 2 overrides 256" in message
    with np.load(out / "samples.npz") as archive:
        assert set(np.unique(archive["arr_0"])) <= {0, 255}


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


# ---- --weights

SETTINGS_OF_PESSER = ("--schedule", "linear:21:0.001:0.2", "--variance", "fixed_small")
TWO_IMAGES = ("--estimator", "every-pair", "--num-images", 2, "--draws", 1)


@pytest.fixture
def training(tmp_path):
    """A file with the last and the averaged weights of a network for gray images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        last = pesser_weights(UNet(SMALL_CONFIG))
    averaged = {name: 0.5 * weight for name, weight in last.items()}
    torch.save({"model": last, "ema": averaged}, tmp_path / "training.ckpt")
    return tmp_path / "training.ckpt"


def test_which_weights_were_evaluated_stands_with_the_result(
    invoke, completed, training, small_npz, tmp_path
):
    command = ("nll", "--ckpt", training, *SETTINGS_OF_PESSER, "--data", small_npz, *TWO_IMAGES)
    result = {}
    for kind, option in {"ema": (), "raw": ("--weights", "raw")}.items():
        out = tmp_path / kind
        printed, message = completed(*command, *option, "--out", out)
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


# ---- --process: a network of one's own that takes x_t at the scale of another family

# Of pixels from N(0, 0.09): the exact score, whose argument sigma is that of the noise in x.
SCORE = '''
import torch

VARIANCE = 0.09


class Score(torch.nn.Module):
    def forward(self, x, sigma):
        return -x / (VARIANCE + sigma[:, None, None, None] ** 2)


class Inner(torch.nn.Module):
    """What EDM's preconditioning surrounds (Karras et al. 2022, table 1)."""

    def forward(self, x, c_noise):
        sigma = (4 * c_noise).exp()[:, None, None, None]
        width = sigma**2 + 0.25
        noisy = x * width.sqrt()
        x_start = VARIANCE / (VARIANCE + sigma**2) * noisy
        return (x_start - 0.25 / width * noisy) / (0.5 * sigma / width.sqrt())
'''
SETTINGS = ("--variance", "fixed_small", "--no-clip")
LEVELS = ("--process", "ve:0.01:10:1000")
FORMS = {
    "Score": ("--prediction", "score", "--time-input", "sigma"),
    "Inner": ("--prediction", "edm", "--time-input", "quarter-log-sigma"),
}


@pytest.fixture(params=FORMS)
def form(request):
    return request.param


@pytest.fixture
def inputs(tmp_path, form):
    pixels = np.random.default_rng(0).normal(0, 0.3, (60, 4, 4, 1))
    np.savez(tmp_path / "x.npz", np.rint((pixels.clip(-1, 1) + 1) * 127.5).astype(np.uint8))
    (tmp_path / "score.py").write_text(SCORE)
    return (
        "--network",
        f"{tmp_path}/score.py:{form}",
        "--data",
        tmp_path / "x.npz",
        *SETTINGS,
        *FORMS[form],
    )


def closed_form(x):
    """KL in continuous time and the prior of VE, bits per dimension."""
    ends = 1 / np.array([10.0, 0.01]) ** 2  # signal-to-noise ratios
    low, high = (
        (np.log1p(r * 0.09) + 1 / (1 + r * 0.09) - x**2 / 0.09 / (1 + r * 0.09)) / 2 for r in ends
    )
    return (high - low).mean() / np.log(2), (x**2 / 2 / 10.0**2).mean() / np.log(2)


def test_the_bound_of_exact_scores_is_the_closed_form(completed, inputs, tmp_path):
    x = np.load(tmp_path / "x.npz")["arr_0"] / 127.5 - 1
    kl, prior = closed_form(x)
    command = ("nll", *inputs, *LEVELS, "--timesteps", "continuous", "--half-width", 0.04)
    printed, _ = completed(*command, "--out", tmp_path / "run", "--format", "json")
    summary = json.loads(printed)
    assert summary["prior"] == pytest.approx(prior, rel=1e-6)
    assert summary["kl"] == pytest.approx(kl, abs=1.5 * summary["half_width"])
    assert summary["half_width"] <= 0.04


def test_the_ode_of_exact_scores_is_the_closed_form(completed, inputs, tmp_path):
    # So little noise at the end that the density depends on the width of the prior.
    levels = ("--process", "ve:0.01:0.5:200")
    command = ("ode", *inputs, *levels, "--dequantization", "uniform", "--trace", "exact")
    completed(*command, "--num-ode-images", 60, "--out", tmp_path / "run")
    rows = np.genfromtxt(tmp_path / "run" / "per_image.csv", delimiter=",", names=True)
    x = np.load(tmp_path / "x.npz")["arr_0"] / 127.5 - 1
    # The ODE is linear: u_T = u_1 sqrt((v + sigma_T^2) / (v + sigma_1^2)), and u_T ~ N(0, 0.5^2).
    v_1, v_last = 0.09 + 0.01**2, 0.09 + 0.5**2
    square = (x**2).mean((1, 2, 3))
    log_p = -0.5 * (
        square * v_last / v_1 / 0.5**2 + np.log(2 * np.pi * 0.5**2) - np.log(v_last / v_1)
    )
    # The noise of dequantization adds its own square to that of x.
    np.testing.assert_allclose(rows["log_p"] * np.log(2), log_p, atol=0.02)


@pytest.mark.parametrize("form", ["Score"])
def test_the_family_of_a_schedule_and_what_is_none(completed, refused, inputs):
    own = (*inputs, "--time-input", "index")
    assert "others; leave one of them out" in refused(
        "nll", *own, "--process", "ve:0.01:10:1000", "--schedule", "linear:1000"
    )
    assert "choose from vp" in refused("nll", *own, "--process", "vee")
    options = ("--process", "ve", "--schedule", "linear:1000", "--estimator", "every-pair")
    printed, _ = completed("nll", *own, *options, "--timesteps", 5, "--num-images", 2)
    assert "linear, ve" in printed


def test_what_else_must_know_the_family(invoke, small_checkpoint, tmp_path):
    """Diffusers has one alone, and inspect says where it is from."""
    status, _, message = invoke("convert", small_checkpoint, tmp_path / "folder", "--process", "ve")
    assert status == 2
    assert "process but vp" in message.splitlines()[-1]
    assert not (tmp_path / "folder").exists()
    status, printed, _ = invoke("inspect", small_checkpoint, "--process", "ve")
    assert [row.split()[-1] for row in printed.splitlines() if row.startswith("schedule")] == [
        "option"
    ]
