"""Rate and distortion: those of an oracle, those of the shipped checkpoint, and what is kept."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from oracles import (
    exact_alphas_cumprod,
    gaussian_denoiser,
    oracle_checkpoint,
    oracle_images,
    reference_prior,
    unit_range,
)
from scipy.special import gammaln, hyp1f1

import ddpmbench as db
from ddpmbench.diffusion.process import Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.report import rate_distortion as report

SHIPPED = Path(__file__).parents[2] / "results" / "every-pair"
SPREAD = 0.3


# ---- data whose curve has a closed form


def gaussian_checkpoint(images, schedule):
    """The linear denoiser of white data, with the matched variances."""
    checkpoint = oracle_checkpoint(images, schedule, clip=False)
    spread = torch.full(images.pixels.shape[1:], SPREAD)
    network = gaussian_denoiser(spread, schedule, variance="learned")
    return dataclasses.replace(checkpoint, network=network, variance=Variance.LEARNED)


def closed_form(images, schedule):
    """(T,) rate in bits/dim, RMSE and MSE on 0..255 of these very images, expected over the noise.

    The denoiser's error is (1 - w a) x_start - w s eps in every pixel: the sum of its squares is
    w^2 s^2 times a noncentral chi square.
    """
    ab = exact_alphas_cumprod(schedule)
    previous = np.append(1.0, ab[:-1])
    total = ab * SPREAD + 1 - ab
    w = np.sqrt(ab) * SPREAD / total
    x = unit_range(images).flatten(1).numpy()
    size = x.shape[1]
    noise = w**2 * (1 - ab)
    bias = np.square((1 - w * np.sqrt(ab)) * np.sqrt((x**2).sum(1))[:, None])  # (N, T)
    mse = bias / size + noise
    root_chi = np.sqrt(2) * np.exp(gammaln((size + 1) / 2) - gammaln(size / 2))
    root = root_chi * hyp1f1(-0.5, size / 2, -bias / noise / 2)
    rmse = np.sqrt(noise / size) * root
    beta = 1 - ab / previous
    posterior = beta * (1 - previous) / (1 - ab)
    weight = previous * np.square(beta / (1 - ab))
    variance = posterior + weight * SPREAD * (1 - ab) / total
    with np.errstate(divide="ignore"):  # the decoder's step has no posterior variance
        kl = np.log(variance / posterior) + (posterior + weight * mse) / variance - 1
    kl = kl.mean(0)[1:] / 2
    rate = reference_prior(ab, unit_range(images)).mean()
    rate += np.append(np.cumsum(kl[::-1])[::-1], 0.0)
    return rate / np.log(2), 127.5 * rmse.mean(0), 127.5**2 * mse.mean(0)


@pytest.fixture(scope="module", params=[100, 1000])
def gaussian(request):
    """A curve of every pair and the exact one."""
    images = oracle_images(4, shape=(1, 4, 4), seed=3)
    schedule = NoiseSchedule.linear(request.param)
    checkpoint = gaussian_checkpoint(images, schedule)
    result = db.evaluate_nll(checkpoint, images, estimator="every-pair", draws=8)
    return result, closed_form(images, schedule)


def test_the_curve_of_gaussian_data_is_the_known_one(gaussian):
    result, (rate, rmse, mse) = gaussian
    curve = result.rate_distortion
    # The last rate is the prior alone, which is exact.
    assert curve.rate_bits_per_dim.iloc[-1] == pytest.approx(rate[-1], rel=1e-6)
    assert curve.rate_standard_error.iloc[-1] == 0
    off = ((curve.rate_bits_per_dim - rate) / curve.rate_standard_error)[:-1]
    assert np.abs(off).max() < 4.5
    off = (curve.distortion_rmse - rmse) / curve.distortion_standard_error
    assert np.abs(off).max() < 5  # of 28 degrees of freedom, at up to 1000 steps
    assert np.sqrt(np.square(off).mean()) == pytest.approx(1, abs=0.25)
    relative = np.square(curve.distortion_rmse_of_mean_mse) / mse - 1
    # Of a chi square of 16 in each of 32 rows, or less.
    assert np.abs(relative).max() < 4.5 * np.sqrt(2 / 16 / 32)
    assert np.abs(relative.mean()) < 4.5 * np.sqrt(2 / 16 / 32 / len(curve))
    np.testing.assert_allclose(curve.psnr, 10 * np.log10(255**2 / mse), atol=1.5)


def test_the_steps_of_a_receiver_count_from_the_end(gaussian):
    result, _ = gaussian
    curve = result.rate_distortion
    num_timesteps = len(curve)
    assert list(curve.t) == list(range(1, num_timesteps + 1))
    assert list(curve.num_decoded_steps) == list(range(num_timesteps, 0, -1))
    assert (np.diff(curve.rate_bits_per_dim) < 0).all()
    assert (curve.distortion_rmse <= curve.distortion_rmse_of_mean_mse).all()


# ---- the shipped checkpoint


@pytest.fixture(scope="module")
def few_rows():
    """The first 200 images from 6,000 of the 200,000 network evaluations that there are."""
    images = db.load_images("fashion-mnist:test", num_images=200)
    result = db.evaluate_nll(db.load_checkpoint(), images, half_width=1e-4, max_evaluations=6000)
    assert 5000 < result.summary["num_evaluations"] <= 6000
    return result


@pytest.mark.slow
def test_a_few_rows_give_the_exact_curve_of_the_shipped_checkpoint(few_rows):
    exact, sampled = pd.read_csv(SHIPPED / "rate_distortion.csv"), few_rows.rate_distortion
    grid = np.linspace(1, 1000, 20).round().astype(int) - 1
    for name, error in (
        ("rate_bits_per_dim", "rate_standard_error"),
        ("distortion_rmse", "distortion_standard_error"),
    ):
        off = np.abs(sampled[name] - exact[name])[grid]
        # All 40 intervals hold with a probability of 95 %, at 3.2 standard errors (Bonferroni).
        interval = 3.2 * np.hypot(sampled[error], exact[error])[grid]
        assert (off <= interval + 1e-12).all(), name  # the last rate is the prior, without error


def test_a_few_rows_give_the_exact_bounds_under_other_conventions(few_rows):
    exact = pd.read_csv(SHIPPED / "conventions.csv")
    sampled = few_rows.conventions
    assert list(sampled.convention) == list(exact.convention)
    off = np.abs(sampled.bits_per_dim - exact.bits_per_dim)
    assert (off <= np.hypot(sampled.half_width, exact.half_width)).all()
    # Conventions differ by more than they are unsure of.
    spread = exact.bits_per_dim.max() - exact.bits_per_dim.min()
    assert sampled.half_width.median() < spread / 100


# ---- from a report and from a folder


@pytest.fixture(params=["every-pair", "one-draw", "importance"])
def run(request, runs):
    return runs[request.param]


def test_a_folder_holds_the_curve_of_its_report(run):
    of_report, of_folder = db.rate_distortion(run), db.rate_distortion(run.folder)
    assert of_report.summary == of_folder.summary
    pd.testing.assert_frame_equal(of_report.curve, of_folder.curve, check_exact=True)
    assert of_report.folder == of_folder.folder == run.folder


def test_the_summary_is_that_of_the_run_with_ten_points(run):
    result = db.rate_distortion(run)
    points = result.summary["curve"]
    own = {**run.summary, "schema": report.SCHEMA}
    assert {name: result.summary[name] for name in own} == own
    assert [row["num_decoded_steps"] for row in points] == list(range(40, 0, -4))
    for row in points:
        there = result.curve.set_index("num_decoded_steps").loc[row["num_decoded_steps"]]
        for name in set(there.index) - {"t"}:
            value = None if np.isnan(there[name]) else there[name]
            assert row[name] == value


# ---- beside the published table


def smooth_curve(num_timesteps):
    """A curve of that many steps, of no run."""
    t = np.arange(1, num_timesteps + 1)
    return pd.DataFrame(
        {
            "t": t,
            "num_decoded_steps": num_timesteps + 1 - t,
            "rate_bits_per_dim": 2 / t,
            "rate_standard_error": 0.01 / t,
            "distortion_rmse": np.sqrt(t),
            "distortion_standard_error": 0.01 * np.sqrt(t),
            "distortion_rmse_of_mean_mse": 1.1 * np.sqrt(t),
            "psnr": 20 * np.log10(255 / np.sqrt(t)),
        }
    )


@pytest.mark.parametrize("run", ["one-draw"], indirect=True)
@pytest.mark.parametrize(
    ("source", "num_timesteps", "is_beside"),
    [
        ("cifar10", 1000, True),
        ("cifar10", 500, False),
        ("cifar10", 4000, False),
        ("fashion-mnist", 1000, False),
    ],
)
def test_the_published_table_stands_beside_what_it_is_of(run, source, num_timesteps, is_beside):
    of_source = {**run.summary, "data": {**run.summary["data"], "source": source}}
    curve = smooth_curve(num_timesteps)
    result = report.curve_summary(curve, of_source)
    text = report.printed_rate_distortion(result, curve, "table")
    for row in result["curve"]:
        assert ("published_rate_bits_per_dim" in row) == is_beside
        assert ("published_distortion_rmse" in row) == is_beside
    assert ("Ho et al. 2020" in text) == is_beside
    if is_beside:
        # From likelihood.md, digit by digit, in the line of the same number of steps.
        lines = {line.split()[0]: line.split()[-2:] for line in text.splitlines()[1:11]}
        assert lines["1000"] == ["1.77581", "0.95136"]
        assert lines["600"] == ["0.01507", "30.80948"]
        assert lines["100"] == ["0.00000", "67.60125"]
        assert len(lines) == 10


def test_what_is_no_run_of_a_bound_is_one_line():
    with pytest.raises(db.InputError, match="run"):
        db.rate_distortion(object())
