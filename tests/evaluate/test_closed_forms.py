"""Networks of one's own whose likelihood is known, from their files to the numbers."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from custom_networks import opened

import ddpmbench as db

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import coverage_study as study

# ---- the best predictor of the noise in normal data

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
IMAGES = study.images_of(300, seed=7)
HOW = {"device": "cpu", "seed": 4}


@pytest.fixture
def known(tmp_path):
    first, last = float(BETAS[0]), float(BETAS[-1])
    (tmp_path / "net.py").write_text(NET.format(first=first, last=last, total=len(BETAS)))
    torch.save({"variance": torch.from_numpy(study.VARIANCE).float()}, tmp_path / "weights.pt")
    np.savez(tmp_path / "images.npz", arr_0=IMAGES.pixels.transpose(0, 2, 3, 1))
    return [
        *("--ckpt", tmp_path / "weights.pt", "--network", f"{tmp_path / 'net.py'}:Wiener"),
        *("--schedule", f"linear:{len(BETAS)}:{first!r}:{last!r}", "--prediction", "eps"),
        *("--variance", "fixed_small", "--time-input", "index", "--data-range", "-1,1"),
        *("--no-clip", "--data", tmp_path / "images.npz"),
    ]


def truth(name):
    return study.truths()[name].of_images(IMAGES.pixels).mean() / math.log(2)


def test_the_bound_in_continuous_time_and_the_ode_are_their_closed_forms(known):
    in_continuous_time = opened([*known, "--timesteps", "continuous"])
    flow = {"num_ode_images": 200, "trace": "exact", "half_width": 0.05}
    result = {
        "continuous": db.evaluate_nll(*in_continuous_time, half_width=0.03, **HOW).summary,
        "ode": db.evaluate_ode(*opened(known), **flow, **HOW).summary,
    }
    assert truth("continuous") == pytest.approx(truth("ode"), abs=1e-3)
    for name, summary in result.items():
        assert abs(summary["bits_per_dim"] - truth(name)) < summary["half_width"], name
    assert abs(result["ode"]["solver_error"]) < 1e-3
    assert result["continuous"]["half_width"] <= 0.03


def test_the_row_of_continuous_time_is_the_closed_form(known):
    summary = db.evaluate_nll(*opened(known), continuous=True, half_width=0.05, **HOW).summary
    error = summary["continuous_bits_per_dim"] - truth("continuous")
    assert abs(error) < summary["continuous_half_width"]
    assert abs(summary["bits_per_dim"] - truth("discrete")) < summary["half_width"]
    assert summary["continuous_bits_per_dim"] < summary["bits_per_dim"]


# ---- networks that take x_t at the scale of another family

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
FORMS = {
    "Score": ("--prediction", "score", "--time-input", "sigma"),
    "Inner": ("--prediction", "edm", "--time-input", "quarter-log-sigma"),
}


@pytest.fixture(params=FORMS)
def exact(request, tmp_path):
    """Opens the network on images, with options."""
    pixels = np.random.default_rng(0).normal(0, 0.3, (60, 4, 4, 1))
    np.savez(tmp_path / "x.npz", np.rint((pixels.clip(-1, 1) + 1) * 127.5).astype(np.uint8))
    (tmp_path / "score.py").write_text(SCORE)
    words = ("--network", f"{tmp_path}/score.py:{request.param}", "--data", tmp_path / "x.npz")
    said = ("--variance", "fixed_small", "--no-clip", *FORMS[request.param])
    return lambda *options: opened([*words, *said, *options])


def closed_form(x):
    """KL in continuous time and the prior of VE, bits per dimension."""
    ends = 1 / np.array([10.0, 0.01]) ** 2  # signal-to-noise ratios
    low, high = (
        (np.log1p(r * 0.09) + 1 / (1 + r * 0.09) - x**2 / 0.09 / (1 + r * 0.09)) / 2 for r in ends
    )
    return (high - low).mean() / np.log(2), (x**2 / 2 / 10.0**2).mean() / np.log(2)


def test_the_bound_of_exact_scores_is_the_closed_form(exact):
    model, images = exact("--process", "ve:0.01:10:1000", "--timesteps", "continuous")
    kl, prior = closed_form(images.pixels / 127.5 - 1)
    summary = db.evaluate_nll(model, images, half_width=0.04).summary
    assert summary["prior"] == pytest.approx(prior, rel=1e-6)
    assert summary["kl"] == pytest.approx(kl, abs=1.5 * summary["half_width"])
    assert summary["half_width"] <= 0.04


def test_the_ode_of_exact_scores_is_the_closed_form(exact):
    # So little noise at the end that the density depends on the width of the prior.
    model, images = exact("--process", "ve:0.01:0.5:200")
    how = {"dequantization": "uniform", "trace": "exact", "num_ode_images": 60}
    rows = db.evaluate_ode(model, images, **how).per_image
    x = images.pixels / 127.5 - 1
    # The ODE is linear: u_T = u_1 sqrt((v + sigma_T^2) / (v + sigma_1^2)), and u_T ~ N(0, 0.5^2).
    v_1, v_last = 0.09 + 0.01**2, 0.09 + 0.5**2
    square = (x**2).mean((1, 2, 3))
    log_p = -0.5 * (
        square * v_last / v_1 / 0.5**2 + np.log(2 * np.pi * 0.5**2) - np.log(v_last / v_1)
    )
    # The noise of dequantization adds its own square to that of x.
    np.testing.assert_allclose(rows["log_p"] * np.log(2), log_p, atol=0.02)
