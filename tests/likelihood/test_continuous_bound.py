"""The bound in continuous time against its closed form for normal data."""

import dataclasses

import numpy as np
import pytest
import torch
from oracles import checkpoint_of
from scipy.interpolate import PchipInterpolator
from torch import nn

from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.continuous import refined
from ddpmbench.diffusion.process import Prediction, Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.likelihood.continuous import ContinuousDesign, ContinuousTermsPass
from ddpmbench.likelihood.designs import EveryPairDesign
from ddpmbench.likelihood.precision import differences, estimate_correction
from ddpmbench.likelihood.sub_schedules import Transitions
from ddpmbench.likelihood.terms import TermsPass

SHAPE = (1, 4, 4)
VARIANCE = np.random.default_rng(1).permutation(np.geomspace(1e-3, 0.5, 16)).reshape(SHAPE)
CPU = torch.device("cpu")


class LinearDenoiser(nn.Module):
    """Of data from N(0, diag(v)), at any timestep of its schedule and between them."""

    def __init__(self, schedule, prediction):
        super().__init__()
        # A second interpolation, in the same points.
        points = np.arange(1, schedule.num_timesteps + 1)
        self.log_snr = PchipInterpolator(points, schedule.snr.log().numpy())
        self.prediction = prediction

    def forward(self, x, time):
        log_snr = torch.from_numpy(self.log_snr(time.double().numpy() + 1))[:, None, None, None]
        a, s = log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()
        v = torch.from_numpy(VARIANCE)
        x_start = a * v / (a**2 * v + s**2) * x.double()
        eps = (x.double() - a * x_start) / s
        outputs = {
            Prediction.X_START: x_start,
            Prediction.EPSILON: eps,
            Prediction.V: a * eps - s * x_start,
        }
        return outputs[self.prediction].float()


def linear_model(schedule, prediction=Prediction.EPSILON):
    network = LinearDenoiser(schedule, prediction)
    return checkpoint_of(network, schedule, prediction=prediction, clip=False)


def normal_images(count):
    numbers = np.random.default_rng(2).normal(size=(count, *SHAPE)) * np.sqrt(VARIANCE)
    pixels = np.rint((numbers.clip(-1, 1) + 1) * 127.5).astype(np.uint8)
    return ImageSet(pixels, [str(i) for i in range(count)], "normal data")


def antiderivative(x, r):
    """Half of E (x_0 - x)^2 integrated over the signal-to-noise ratio up to r, by pixel."""
    x, v = x**2, VARIANCE
    return (np.log1p(r * v) + 1 / (1 + r * v) - x / v / (1 + r * v)) / 2


def exact(images, schedule):
    """(N,) the integral of each image, nats per dimension."""
    x = images.pixels / 127.5 - 1
    high, low = schedule.snr[0].item(), schedule.snr[-1].item()
    return (antiderivative(x, high) - antiderivative(x, low)).mean((1, 2, 3))


def terms_of(checkpoint, images, draws, kind=ContinuousTermsPass):
    design = EveryPairDesign(len(images), checkpoint.schedule.num_timesteps, draws)
    run = kind(checkpoint, images, seed=3, decoder="exact", device=CPU)
    return run.terms(design.index(0, len(design))), design


def discrete_exact(images, schedule):
    """The sum over t = 2..T under fixed_small, mean over the images, from the exact errors."""
    x, r = images.pixels / 127.5 - 1, schedule.snr.numpy()[1:, None, None, None, None]
    error = ((x**2 + r * VARIANCE**2) / (1 + r * VARIANCE) ** 2).mean((1, 2, 3, 4))
    t = np.arange(2, schedule.num_timesteps + 1)
    return float(Transitions(schedule).weight(Variance.FIXED_SMALL, t - 1, t) @ error)


def mean_and_error(checkpoint, images, draws, kind=ContinuousTermsPass):
    """Mean over the images of the sums over t = 2..T, and its standard error."""
    table, design = terms_of(checkpoint, images, draws, kind)
    size = (len(images), design.num_timesteps, draws)
    nats = table.values["nats"].reshape(size)[:, 1:]
    error = np.sqrt((nats.var(2, ddof=1) / draws).sum()) / len(images)
    return nats.mean(2).sum() / len(images), error


SCHEDULES = {
    "linear": NoiseSchedule.linear(60),
    "cosine": NoiseSchedule.cosine(40),
    "two timesteps": NoiseSchedule.linear(2, beta_start=0.02, beta_end=0.4),
}


@pytest.mark.parametrize("prediction", ["eps", "x_start", "v"])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_it_is_the_closed_form(schedule, prediction):
    checkpoint, images = linear_model(schedule, Prediction(prediction)), normal_images(6)
    mean, error = mean_and_error(checkpoint, images, 2000 // schedule.num_timesteps)
    assert mean == pytest.approx(exact(images, schedule).mean(), abs=4 * error)
    assert error < 0.03 * exact(images, schedule).mean()


def test_the_places_of_an_interval_are_uniform_and_independent_of_the_noise():
    schedule = NoiseSchedule.linear(10, beta_start=1e-3, beta_end=0.2)
    seen = []

    def model_output(x, u, labels):
        seen.append(u.numpy())
        return torch.zeros_like(x)

    checkpoint, images = linear_model(schedule), normal_images(2)
    run = ContinuousTermsPass(
        checkpoint, images, seed=0, decoder="exact", device=CPU, model_output=model_output
    )
    design = EveryPairDesign(2, 10, 500)
    run.terms(design.index(0, len(design)))
    u = np.concatenate(seen).reshape(2, 10, 500)
    assert (u[:, 0] == 1).all()
    fraction = u[:, 1:] - np.arange(1, 10)[:, None]
    assert ((fraction > 0) & (fraction < 1)).all()
    assert abs(fraction.mean() - 0.5) < 4 / np.sqrt(12 * fraction.size)
    assert len(np.unique(fraction)) == fraction.size


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_smaller_parts_sum_to_the_same(schedule):
    images = normal_images(6)
    checkpoint = linear_model(schedule)
    fine = checkpoint.in_continuous_time()
    parts = -np.diff(fine.schedule.snr.log().numpy())
    assert (parts < 0.2).all()
    visited = fine.schedule.original_timesteps.tolist()
    assert set(schedule.original_timesteps.tolist()) <= set(visited)
    mean, error = mean_and_error(fine, images, 1 + 4000 // fine.schedule.num_timesteps)
    assert mean == pytest.approx(exact(images, schedule).mean(), abs=4 * error)


def test_the_difference_from_the_discrete_bound_is_unbiased_and_its_interval_covers():
    schedule, images = NoiseSchedule.linear(40), normal_images(8)
    checkpoint = linear_model(schedule)
    truth = exact(images, schedule).mean() - discrete_exact(images, schedule)
    estimates = []
    for seed in range(200):
        design = ContinuousDesign(len(images), 40, seed, 60)
        how = {"seed": seed, "decoder": "exact", "device": CPU}
        one = ContinuousTermsPass(checkpoint, images, **how).at(design.fractions)
        other = TermsPass(checkpoint, images, **how)
        tables = ([run.terms(design.index(0, 60))] for run in (one, other))
        estimates.append(estimate_correction(design, differences(design, *tables)))
    nats = np.array([estimate.nats for estimate in estimates])
    half_width = np.array([estimate.half_width for estimate in estimates])
    assert nats.mean() == pytest.approx(truth, abs=4 * nats.std() / np.sqrt(len(nats)))
    assert 0.93 <= (abs(nats - truth) <= half_width).mean() <= 1.0
    assert nats.std() < 0.1 * abs(truth)


def test_neither_batch_nor_order_changes_a_term():
    checkpoint, images = linear_model(NoiseSchedule.linear(30)), normal_images(3)
    whole, design = terms_of(checkpoint, images, 1)
    run = ContinuousTermsPass(checkpoint, images, seed=3, decoder="exact", device=CPU)
    for start in reversed(range(0, len(design), 7)):
        part = run.terms(design.index(start, start + 7))
        np.testing.assert_allclose(
            part.values["nats"], whole.values["nats"][start : start + 7], rtol=1e-6
        )


def test_the_decoder_is_that_of_the_discrete_bound():
    checkpoint, images = linear_model(NoiseSchedule.linear(30)), normal_images(3)
    continuous, _ = terms_of(checkpoint, images, 1)
    discrete, _ = terms_of(checkpoint, images, 1, TermsPass)
    first = continuous.index.t == 1
    for name, value in continuous.values.items():
        np.testing.assert_allclose(value[first], discrete.values[name][first], rtol=1e-5)


def test_a_term_is_the_error_under_the_run_s_clip_times_a_weight():
    checkpoint, images = linear_model(NoiseSchedule.linear(30)), normal_images(3)
    weights = []
    for clip, column in ((True, "x_start_mse"), (False, "x_start_mse_noclip")):
        table, _ = terms_of(dataclasses.replace(checkpoint, clip=clip), images, 1)
        later = table.index.t > 1
        weights.append((table.values["nats"] / table.values[column])[later])
    np.testing.assert_allclose(*weights, rtol=1e-9)


@pytest.mark.parametrize("prediction", ["eps", "x_start"])
def test_a_refined_model_has_the_bound_of_its_own_timesteps(prediction):
    """The network is evaluated at the fractional ones, and each term has its own weight."""
    schedule, images = NoiseSchedule.linear(30), normal_images(5)
    fine = linear_model(schedule, Prediction(prediction)).respaced(88)
    mean, error = mean_and_error(fine, images, 100, TermsPass)
    truth = discrete_exact(images, fine.schedule)
    assert mean == pytest.approx(truth, abs=4 * error)
    assert error < 0.01 * truth


def test_refined_schedules_tend_to_it_as_one_over_their_number():
    """The bound of variance fixed_small, from the exact error at each timestep."""
    schedule, images = NoiseSchedule.linear(30), normal_images(5)
    limit = exact(images, schedule).mean()
    fine = (refined(schedule, 29 * factor + 1) for factor in (16, 32, 64, 128))
    gaps = [discrete_exact(images, of) - limit for of in fine]
    assert all(gap > 0 for gap in gaps)
    rates = np.log2(np.array(gaps[:-1]) / gaps[1:])
    np.testing.assert_allclose(rates, 1.0, atol=0.05)


def test_a_finite_set_of_images_costs_the_choice_among_them():
    """Prior, integral and the entropy of x_1 given the image sum to log K as SNR_1 grows."""
    pixels = np.random.default_rng(5).integers(0, 256, (4, 1, 3, 3), dtype=np.uint8)
    images = ImageSet(pixels, list("abcd"), "four images")
    # From a high SNR at t = 1 to a low one at T.
    schedule = NoiseSchedule.from_alphas_cumprod(1 / (1 + np.exp(-np.linspace(14, -14, 60))))
    means = torch.from_numpy(pixels / 127.5 - 1)
    points = PchipInterpolator(np.arange(1, 61), schedule.snr.log().numpy())

    class Denoiser(nn.Module):
        def forward(self, x, time):
            log_snr = torch.from_numpy(points(time.double().numpy() + 1))[:, None, None, None]
            a, s = log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()
            distance = (x.double()[:, None] - a[:, None] * means).square().sum((2, 3, 4))
            weight = (-distance / (2 * s.flatten(1) ** 2)).softmax(1)
            return torch.einsum("bk,kchw->bchw", weight, means).float()

    checkpoint = dataclasses.replace(linear_model(schedule, Prediction.X_START), network=Denoiser())
    mean, error = mean_and_error(checkpoint, images, 200)
    assert 9 * mean == pytest.approx(np.log(4), abs=4 * 9 * error)
    assert 9 * error < 0.05
