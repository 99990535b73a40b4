"""The ancestral sampler: the chain of a known model, and noise that is a sample's own."""

import dataclasses

import numpy as np
import pytest
import torch
from oracles import (
    exact_alphas_cumprod,
    gaussian_denoiser,
    log_snr_schedule,
    oracle_checkpoint,
    oracle_images,
    unit_range,
)
from torch import nn

from ddpmbench.diffusion.process import Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError
from ddpmbench.likelihood.designs import EveryPairDesign, ImportanceDesign, PilotDesign
from ddpmbench.samples import samplers
from ddpmbench.samples.progressive import INTERPOLATION_DRAW
from ddpmbench.samples.samplers import SAMPLE_DRAW, START, AncestralSampler

CPU = torch.device("cpu")
SHAPE = (1, 2, 2)


def sampled(checkpoint, num_samples, *, shape=SHAPE, seed=0, batch_size=None, labels=None):
    """x_0 of the first samples."""
    sampler = AncestralSampler(checkpoint, seed=seed, device=CPU)
    parts = []
    for index in torch.arange(num_samples).split(batch_size or num_samples):
        x_t = sampler.start(index, shape)
        of_batch = None if labels is None else labels[index]
        num_timesteps = checkpoint.schedule.num_timesteps
        for step in sampler.steps(x_t, num_timesteps, sample=index, labels=of_batch):
            x_t = step.x_previous
        parts.append(x_t)
    return torch.cat(parts)


# ---- a chain whose law is known

SPREAD = torch.tensor([[[0.9, 0.4], [0.1, 0.02]]], dtype=torch.float64)
MEAN = torch.tensor([[[0.5, -0.3], [0.0, 1.5]]], dtype=torch.float64)


def gaussian_checkpoint(schedule, variance):
    checkpoint = oracle_checkpoint(oracle_images(1, shape=SHAPE), schedule, clip=False)
    network = gaussian_denoiser(SPREAD, schedule, variance=variance)
    network.means += MEAN
    return dataclasses.replace(checkpoint, network=network, variance=Variance(variance))


def law_of_chain(schedule, variance):
    """Mean and variance of x_0 in every pixel: a step is linear in x_t, and adds noise."""
    ab = exact_alphas_cumprod(schedule)
    previous = np.append(1.0, ab[:-1])
    beta = 1 - ab / previous
    spread, m = SPREAD.numpy(), MEAN.numpy()
    mean, var = np.zeros(SHAPE), np.ones(SHAPE)
    for t in range(len(ab), 0, -1):
        i = t - 1
        of_x_start = np.sqrt(previous[i]) * beta[i] / (1 - ab[i])
        of_x_t = np.sqrt(1 - beta[i]) * (1 - previous[i]) / (1 - ab[i])
        gain = np.sqrt(ab[i]) * spread / (ab[i] * spread + 1 - ab[i])
        slope = of_x_start * gain + of_x_t
        mean = slope * mean + of_x_start * (m - gain * np.sqrt(ab[i]) * m)
        noise = beta[i] if variance == "fixed_large" else beta[i] * (1 - previous[i]) / (1 - ab[i])
        var = slope**2 * var + (noise if t > 1 else 0.0)
    return mean, var


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("num_timesteps", [1, 2, 30])
def test_samples_have_the_mean_and_covariance_of_the_chain(variance, num_timesteps):
    schedule = NoiseSchedule.cosine(num_timesteps)
    checkpoint = gaussian_checkpoint(schedule, variance)
    n = 20_000
    x = sampled(checkpoint, n).flatten(1).numpy()
    mean, var = (values.flatten() for values in law_of_chain(schedule, variance))
    assert np.abs((x.mean(0) - mean) / np.sqrt(var / n)).max() < 4.5
    scaled = (x - mean) / np.sqrt(var)
    covariance = scaled.T @ scaled / n
    # A mean of n squares of normals varies by sqrt(2 / n), of products of two by sqrt(1 / n).
    error = np.sqrt((1 + np.eye(4)) / n)
    assert np.abs((covariance - np.eye(4)) / error).max() < 4.5


def test_the_two_fixed_variances_are_told_apart_by_that():
    schedule = NoiseSchedule.cosine(30)
    small, large = (law_of_chain(schedule, kind)[1] for kind in ("fixed_small", "fixed_large"))
    assert (large / small > 1 + 10 * np.sqrt(2 / 20_000)).all()


@pytest.mark.parametrize("prediction", ["eps", "x_start", "v", "previous_mean"])
@pytest.mark.parametrize("variance", ["fixed_small", "learned_range", "learned"])
def test_samples_of_a_finite_set_are_of_the_set(prediction, variance):
    images = oracle_images(5, shape=(1, 3, 3), seed=2)
    checkpoint = oracle_checkpoint(
        images, log_snr_schedule(60), prediction=prediction, variance=variance
    )
    x = sampled(checkpoint, 40, shape=(1, 3, 3))
    distance = (x[:, None] - unit_range(images)).abs().flatten(2).amax(2)
    assert distance.amin(1).max() < 1e-3
    assert len(distance.argmin(1).unique()) == 5


def test_a_sample_is_of_its_class():
    images = oracle_images(6, shape=(1, 3, 3), num_classes=3)
    checkpoint = oracle_checkpoint(images, log_snr_schedule(40))
    labels = torch.arange(30) % 3
    x = sampled(checkpoint, 30, shape=(1, 3, 3), labels=labels)
    nearest = (x[:, None] - unit_range(images)).square().flatten(2).sum(2).argmin(1)
    assert torch.equal(torch.from_numpy(images.labels)[nearest], labels)


def test_a_respaced_model_takes_its_own_steps_only():
    images = oracle_images(3, shape=(1, 3, 3))
    checkpoint = oracle_checkpoint(images, log_snr_schedule(200)).respaced(12)
    x = sampled(checkpoint, 20, shape=(1, 3, 3))
    distance = (x[:, None] - unit_range(images)).abs().flatten(2).amax(2)
    assert distance.amin(1).max() < 1e-3


# ---- the noise


def test_neither_batch_nor_number_can_change_a_sample(small_model):
    shape = (1, 8, 8)
    together = sampled(small_model, 8, shape=shape)
    for size in (1, 3):
        apart = sampled(small_model, 8, shape=shape, batch_size=size)
        torch.testing.assert_close(apart, together, rtol=0, atol=2e-4)  # the network's rounding
    few = sampled(small_model, 3, shape=shape)
    torch.testing.assert_close(few, together[:3], rtol=0, atol=2e-4)
    assert (sampled(small_model, 8, shape=shape, seed=1) - together).abs().mean() > 0.05
    assert (together[1:] - together[:-1]).abs().mean() > 0.05


@pytest.fixture
def addresses(monkeypatch):
    """The (t, draw) of all noise that the sampler asks for."""
    asked, real = set(), samplers.normal_noise

    def spy(image, t, draw, **of):
        asked.update(zip(t.tolist(), draw.tolist(), strict=True))
        return real(image, t, draw, **of)

    monkeypatch.setattr(samplers, "normal_noise", spy)
    return asked


def test_no_noise_is_shared_with_likelihood_or_used_twice(addresses):
    images = oracle_images(6)
    checkpoint = oracle_checkpoint(images, NoiseSchedule.linear(30))
    sampled(checkpoint, 6, shape=(1, 4, 4))
    # One of each step, whose weight at the last is 0, and x_T's own.
    assert addresses == {(t, SAMPLE_DRAW) for t in (*range(1, 31), START)}
    density = np.full(29, 1 / 29)
    importance, pilot, pairs = (
        ImportanceDesign(6, 30, density, 0, num_replicates=100),
        PilotDesign(6, 30, 0),
        EveryPairDesign(6, 30, 100),
    )
    for design in (importance, pilot, pairs):
        assert design.index(0, len(design)).draw.max() < SAMPLE_DRAW
    assert SAMPLE_DRAW != INTERPOLATION_DRAW
    assert max(START, SAMPLE_DRAW, INTERPOLATION_DRAW) < 2**32


class Broken(nn.Module):
    """Gives no number at one step."""

    def __init__(self, at):
        super().__init__()
        self.at, self.calls = at, 0

    def forward(self, x, t):
        self.calls += 1
        return torch.where(t[:, None, None, None] == self.at - 1, torch.nan, x)


@pytest.mark.parametrize(("num_timesteps", "at", "calls"), [(10, 4, 10 + 7), (200, 120, 100 + 31)])
def test_a_sample_that_is_not_finite_is_refused(num_timesteps, at, calls):
    checkpoint = oracle_checkpoint(oracle_images(2), NoiseSchedule.cosine(num_timesteps))
    broken = dataclasses.replace(checkpoint, network=Broken(at), source="broken.pt")
    with pytest.raises(InputError, match=rf"^`ckpt=broken\.pt`: .* after timestep t = {at};"):
        sampled(broken, 2, shape=(1, 4, 4))
    # The look at every fiftieth step ends the chain, and steps since the last are taken again.
    assert broken.network.calls == calls


class BrokenOnce(Broken):
    """Gives no number at one step, and does when it is asked again."""

    def forward(self, x, t):
        given = super().forward(x, t)
        return given if self.calls <= 10 else x


def test_the_search_for_a_step_that_is_finite_again_has_an_end():
    checkpoint = oracle_checkpoint(oracle_images(2), NoiseSchedule.cosine(10))
    broken = dataclasses.replace(checkpoint, network=BrokenOnce(4), source="broken.pt")
    with pytest.raises(InputError, match=r"not finite after timestep t = 1;"):
        sampled(broken, 2, shape=(1, 4, 4))
    assert broken.network.calls == 10 + 9
