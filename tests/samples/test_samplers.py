"""Ancestral and implicit sampling: the law of their chains, diffusers' own samples, the noise."""

import dataclasses

import numpy as np
import pytest
import torch
from oracles import exact_alphas_cumprod, oracle_checkpoint, oracle_images
from peers import SMALL_UNET, DDPMScheduler, diffusers_unet
from sampled import CPU, MEAN, SHAPE, SPREAD, assert_law, checkpoint_of, sampled, steps_of
from torch import nn

from ddpmbench import load_checkpoint
from ddpmbench.diffusion.continuous import with_timesteps
from ddpmbench.diffusion.data_range import UNIT_RANGE
from ddpmbench.diffusion.noise import normal_noise
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError
from ddpmbench.likelihood.designs import EveryPairDesign, ImportanceDesign, PilotDesign
from ddpmbench.samples.chain import SAMPLE_DRAW, START
from ddpmbench.samples.progressive import INTERPOLATION_DRAW
from ddpmbench.samples.samplers import AddedNoise, SamplerChoice

ANCESTRAL = SamplerChoice()

# ---- a chain whose law is known


def steps_of_law(schedule, *, eta=None):
    """Slope, offset, beta and posterior variance of each step from t = 1: linear in x_t.

    Ancestral, or of the implicit process with this eta.
    """
    ab = exact_alphas_cumprod(schedule)
    spread, mean, found = SPREAD.numpy(), MEAN.numpy(), []
    for now, before in zip(ab, np.append(1.0, ab[:-1]), strict=True):
        beta = 1 - now / before
        posterior = beta * (1 - before) / (1 - now)
        if eta is None:
            of_x_start = np.sqrt(before) * beta / (1 - now)
            of_x_t = np.sqrt(1 - beta) * (1 - before) / (1 - now)
        else:
            of_x_t = np.sqrt((1 - before - eta**2 * posterior) / (1 - now))
            of_x_start = np.sqrt(before) - of_x_t * np.sqrt(now)
        gain = np.sqrt(now) * spread / (now * spread + 1 - now)
        offset = of_x_start * (1 - gain * np.sqrt(now)) * mean
        found.append((of_x_start * gain + of_x_t, offset, beta, posterior))
    return found


def law_of_chain(steps, noise):
    """Mean and variance of x_0 in every pixel, where each step from t = 1 adds this noise."""
    mean, variance = np.zeros(SHAPE), np.ones(SHAPE)
    for (slope, offset, *_), added in reversed(list(zip(steps, noise, strict=True))):
        mean, variance = slope * mean + offset, slope**2 * variance + added
    return mean.flatten(), variance.flatten()


def law_of_ancestral(schedule, variance, added=AddedNoise.INNER):
    steps = steps_of_law(schedule)
    noise = [beta if variance == "fixed_large" else posterior for _, _, beta, posterior in steps]
    # The last step's variance is the posterior's of t = 2 under either convention.
    noise[0] = steps[1][3] if added == AddedNoise.EVERY_STEP else 0.0
    return law_of_chain(steps, np.multiply(noise, added != AddedNoise.NONE))


COSINE = NoiseSchedule.cosine(12)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize(
    ("schedule", "added"),
    [
        (NoiseSchedule.cosine(1), AddedNoise.INNER),
        (NoiseSchedule.cosine(2), AddedNoise.INNER),
        (NoiseSchedule.cosine(200).respaced(30), AddedNoise.INNER),
        *((COSINE, added) for added in AddedNoise),
    ],
)
def test_ancestral_samples_have_the_law_of_their_chain(variance, schedule, added):
    checkpoint = checkpoint_of(schedule, variance=variance)
    x = sampled(checkpoint, SamplerChoice(added_noise=added), torch.arange(20_000))
    assert_law(x, *law_of_ancestral(schedule, variance, added))


def test_samples_of_a_refined_model_have_the_law_of_its_chain():
    schedule = with_timesteps(COSINE, 30)
    x = sampled(checkpoint_of(schedule), ANCESTRAL, torch.arange(20_000))
    assert_law(x, *law_of_ancestral(schedule, "fixed_small"))


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_samples_of_an_exploding_process_have_the_law_of_its_own_chain(variance):
    # So little noise at the end that x_0 depends on the width of the prior.
    sigma = np.geomspace(0.05, 0.8, 24)
    schedule = NoiseSchedule.variance_exploding(24, sigma_min=0.05, sigma_max=0.8)
    checkpoint = checkpoint_of(schedule, prediction="score", variance=variance)
    x = sampled(checkpoint, ANCESTRAL, torch.arange(20_000))
    # x_{t-1} = x_t + (sigma_t^2 - sigma_{t-1}^2) score + noise, from N(0, sigma_T^2).
    expected, square = np.zeros(SHAPE), np.full(SHAPE, sigma[-1] ** 2)
    for now, before in zip(sigma[::-1], np.append(sigma[-2::-1], 0.0), strict=True):
        added = now**2 - before**2
        gain = added / (SPREAD.numpy() + now**2)
        noise = added if variance == "fixed_large" else added * before**2 / now**2
        expected = expected + gain * (MEAN.numpy() - expected)
        square = (1 - gain) ** 2 * square + noise * (before > 0)
    assert_law(x, expected.flatten(), square.flatten())


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_implicit_samples_have_the_law_of_their_chain(eta):
    steps = steps_of_law(COSINE, eta=eta)
    x = sampled(checkpoint_of(COSINE), SamplerChoice("ddim", eta=eta), torch.arange(20_000))
    assert_law(x, *law_of_chain(steps, [eta**2 * posterior for *_, posterior in steps]))


def test_with_all_its_noise_the_implicit_process_is_the_ancestral_one():
    checkpoint, index = checkpoint_of(NoiseSchedule.cosine(25)), torch.arange(50)
    implicit = sampled(checkpoint, SamplerChoice("ddim", eta=1.0), index, seed=4)
    expected = sampled(checkpoint, ANCESTRAL, index, seed=4)
    torch.testing.assert_close(implicit, expected, rtol=0, atol=1e-9)


# ---- the noise


def test_no_noise_is_shared_with_likelihood():
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


@pytest.mark.parametrize(("num_timesteps", "at", "calls"), [(10, 4, 10), (200, 120, 100)])
def test_a_sample_that_is_not_finite_is_refused(num_timesteps, at, calls):
    checkpoint = oracle_checkpoint(oracle_images(2), NoiseSchedule.cosine(num_timesteps))
    broken = dataclasses.replace(checkpoint, network=Broken(at), source="broken.pt")
    with pytest.raises(InputError, match=rf"^`ckpt=broken\.pt`: .* after timestep t = {at};"):
        sampled(broken, ANCESTRAL, torch.arange(2))
    # The check at every fiftieth step ends the chain.
    assert broken.network.calls == calls


# ---- diffusers' own pipeline and scheduler, on the same weights and noise


@pytest.fixture(scope="module")
def diffusers_model():
    import diffusers

    return diffusers, diffusers_unet(SMALL_UNET | {"in_channels": 3, "out_channels": 3})


class AddressedNoise:
    """Gives diffusers, call by call, the noise that ours addresses."""

    def __init__(self, num_samples, steps, shape):
        self.index, self.shape = torch.arange(num_samples), shape
        self.steps = iter([START, *steps])

    def __call__(self, shape, **_):
        t = torch.full_like(self.index, next(self.steps))
        draw = torch.full_like(self.index, SAMPLE_DRAW)
        return normal_noise(self.index, t, draw, shape=self.shape, seed=0)


@pytest.mark.parametrize(("num_timesteps", "variance"), [(50, "fixed_small"), (90, "fixed_large")])
def test_images_are_those_of_diffusers_pipeline(
    diffusers_model, tmp_path, monkeypatch, num_timesteps, variance
):
    diffusers, network = diffusers_model
    scheduler = DDPMScheduler(num_train_timesteps=num_timesteps, variance_type=variance)
    pipeline = diffusers.DDPMPipeline(unet=network, scheduler=scheduler)
    pipeline.save_pretrained(tmp_path / "pipeline")
    checkpoint = load_checkpoint(tmp_path / "pipeline")
    assert checkpoint.clip
    noise = AddressedNoise(4, range(num_timesteps, 1, -1), (3, 8, 8))
    for module in ("pipelines.ddpm.pipeline_ddpm", "schedulers.scheduling_ddpm"):
        monkeypatch.setattr(f"diffusers.{module}.randn_tensor", noise)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        batch_size=4, num_inference_steps=num_timesteps, output_type="np"
    ).images  # (N, H, W, C) in [0, 1]
    ours = sampled(checkpoint, ANCESTRAL, torch.arange(4))
    levels = UNIT_RANGE.to_pixels(ours).numpy().transpose(0, 2, 3, 1).astype(int)
    assert np.abs(levels - (255 * theirs).round()).max() <= 1
    assert levels.std() > 20


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_implicit_images_are_those_of_diffusers(diffusers_model, tmp_path, eta):
    diffusers, network = diffusers_model
    scheduler = DDPMScheduler(num_train_timesteps=50)
    diffusers.DDPMPipeline(unet=network, scheduler=scheduler).save_pretrained(tmp_path / "pipeline")
    checkpoint = load_checkpoint(tmp_path / "pipeline")
    theirs = diffusers.DDIMScheduler(num_train_timesteps=50, set_alpha_to_one=True)
    theirs.set_timesteps(50)
    choice, index = SamplerChoice("ddim", eta=eta), torch.arange(4)
    start, steps = steps_of(checkpoint, choice, index)
    x, noise = start.float(), choice.prepare(checkpoint, seed=0, device=CPU).chain.noise
    with torch.inference_mode():
        for t in range(50, 0, -1):
            addressed = noise(index, torch.full_like(index, t), (3, 8, 8)).float()
            output = network(x, t - 1).sample
            x = theirs.step(
                output, t - 1, x, eta=eta, use_clipped_model_output=True, variance_noise=addressed
            ).prev_sample
    ours = UNIT_RANGE.to_pixels(steps[-1].x_previous).int()
    assert (ours - UNIT_RANGE.to_pixels(x).int()).abs().max() <= 1
