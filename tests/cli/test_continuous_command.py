"""Continuous time and the ODE in commands, and that they find likelihoods that are known."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import oracle_checkpoint, oracle_images

import ddpmbench as db

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import coverage_study as study

CONTINUOUS = ("--timesteps", "continuous")
EVERY_PAIR = ("--estimator", "every-pair", "--draws", "1")


@pytest.fixture
def inputs(small_checkpoint, small_npz):
    return ["--ckpt", small_checkpoint, "--data", small_npz]


def test_the_command(completed, inputs, tmp_path):
    words = ["nll", *inputs, "--estimator", "every-pair"]
    printed, _ = completed(*words, *CONTINUOUS, "--out", tmp_path / "run")
    assert "T = 40, linear, continuous time from t = 1 to T, in " in printed
    printed, _ = completed(*words, "--continuous", "--out", tmp_path / "other")
    assert "bits/dim in continuous time" in printed


def test_a_row_that_is_asked_for_and_absent_is_said(invoke, inputs, tmp_path):
    words = ["nll", *inputs, *EVERY_PAIR, "--timesteps", "61"]
    _, printed, message = invoke(*words, "--out", tmp_path / "run", "--continuous")
    assert "no bound in continuous time beside that of the run: the model visits" in message
    assert "no bound in continuous time" not in printed
    _, _, message = invoke(*words, "--out", tmp_path / "other")
    assert "no bound in continuous time" not in message


def test_continuous_and_discrete_runs_are_not_compared(completed, refused, inputs, tmp_path):
    for name, words in (("one", CONTINUOUS), ("two", ())):
        completed("nll", *inputs, *EVERY_PAIR, *words, "--out", tmp_path / name)
    line = refused("compare", tmp_path / "one", tmp_path / "two")
    assert "schedule is linear, but linear, continuous time" in line


def test_the_ode_needs_times_between_the_timesteps():
    images = oracle_images(2)
    with pytest.raises(db.InputError, match="cannot be solved: it rounds the time"):
        db.evaluate_ode(oracle_checkpoint(images), images)


# ---- a network of one's own whose likelihood is known

NET = """
import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from torch import nn

class Wiener(nn.Module):
    '''The best predictor of the noise in normal data, at any timestep and between them.'''

    image_channels, image_size = 1, 4

    def __init__(self):
        super().__init__()
        self.register_buffer("variance", torch.ones(1, 4, 4))
        kept = np.cumprod(1 - np.linspace({first!r}, {last!r}, {total}))
        self.log_snr = PchipInterpolator(np.arange({total}), np.log(kept / (1 - kept)))

    def forward(self, x, time):
        log_snr = torch.from_numpy(self.log_snr(time.double().numpy())).view(-1, 1, 1, 1)
        signal, noise = log_snr.sigmoid(), (-log_snr).sigmoid()
        return (noise.sqrt() / (signal * self.variance.double() + noise) * x.double()).to(x.dtype)
"""
BETAS = study.SCHEDULE.betas
ENDS = float(BETAS[0]), float(BETAS[-1])
IMAGES = study.images_of(300, seed=7)


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    first, last = ENDS
    text = NET.format(first=first, last=last, total=len(BETAS))
    (folder / "net.py").write_text(text)
    variance = torch.from_numpy(study.VARIANCE).float()
    torch.save({"variance": variance}, folder / "weights.pt")
    np.savez(folder / "images.npz", arr_0=IMAGES.pixels.transpose(0, 2, 3, 1))
    return [
        *("--ckpt", folder / "weights.pt", "--network", f"{folder / 'net.py'}:Wiener"),
        *("--schedule", f"linear:{len(BETAS)}:{first!r}:{last!r}", "--prediction", "eps"),
        *("--variance", "fixed_small", "--time-input", "index", "--data-range", "-1,1"),
        *("--no-clip", "--data", folder / "images.npz", "--format", "json", "--seed", "4"),
    ]


def test_the_bound_in_continuous_time_and_the_ode_are_their_closed_forms(
    completed, known, tmp_path
):
    result = {}
    for name, words in (
        ("continuous", ["nll", "--timesteps", "continuous", "--half-width", "0.03"]),
        ("ode", ["ode", "--num-ode-images", "200", "--trace", "exact", "--half-width", "0.05"]),
    ):
        printed, _ = completed(*words, *known, "--out", tmp_path / name)
        result[name] = json.loads(printed)
    truth = {
        name: study.truths()[name].of_images(IMAGES.pixels).mean() / math.log(2) for name in result
    }
    assert truth["continuous"] == pytest.approx(truth["ode"], abs=1e-3)
    for name, summary in result.items():
        assert abs(summary["bits_per_dim"] - truth[name]) < summary["half_width"], name
    assert abs(result["ode"]["solver_error"]) < 1e-3
    assert result["continuous"]["half_width"] <= 0.03


def test_the_row_of_continuous_time_is_the_closed_form(completed, known, tmp_path):
    words = ["nll", "--continuous", "--half-width", "0.05", "--out", tmp_path / "run"]
    printed, _ = completed(*words, *known)
    summary = json.loads(printed)
    truth = study.truths()["continuous"].of_images(IMAGES.pixels).mean() / math.log(2)
    error = summary["continuous_bits_per_dim"] - truth
    assert abs(error) < summary["continuous_half_width"]
    discrete = study.truths()["discrete"].of_images(IMAGES.pixels).mean() / math.log(2)
    assert abs(summary["bits_per_dim"] - discrete) < summary["half_width"]
    assert summary["continuous_bits_per_dim"] < summary["bits_per_dim"]
