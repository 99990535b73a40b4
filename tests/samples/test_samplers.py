"""Every sampler: the chain of a known model, diffusers' own samples, and noise of its own."""

import dataclasses
import itertools

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
from peers import SMALL_UNET, DDPMScheduler, diffusers_unet
from torch import nn

from ddpmbench import load_checkpoint
from ddpmbench.diffusion.continuous import with_timesteps
from ddpmbench.diffusion.data_range import UNIT_RANGE, EightBit
from ddpmbench.diffusion.noise import normal_noise
from ddpmbench.diffusion.parameterization import Prediction, TimeInput, Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError
from ddpmbench.likelihood.designs import EveryPairDesign, ImportanceDesign, PilotDesign
from ddpmbench.samples import chain
from ddpmbench.samples.chain import SAMPLE_DRAW, START
from ddpmbench.samples.progressive import INTERPOLATION_DRAW
from ddpmbench.samples.samplers import AddedNoise, SamplerChoice

CPU = torch.device("cpu")
SHAPE = (1, 2, 2)
ANCESTRAL = SamplerChoice()


def chains(sampler, index, shape=SHAPE, labels=None):
    """x_0 of the samples with these indices."""
    x_t = sampler.start(index, shape)
    total = sampler.chain.checkpoint.schedule.num_timesteps
    for step in sampler.steps(x_t, total, sample=index, labels=labels):
        x_t = step.x_previous
    return x_t


def sampled(
    checkpoint, num_samples, choice=ANCESTRAL, *, shape=SHAPE, seed=0, batch_size=None, labels=None
):
    """x_0 of the first samples."""
    sampler = choice.prepare(checkpoint, seed=seed, device=CPU)
    return torch.cat(
        [
            chains(sampler, index, shape, None if labels is None else labels[index])
            for index in torch.arange(num_samples).split(batch_size or num_samples)
        ]
    )


# ---- a chain whose law is known

SPREAD = torch.tensor([[[0.9, 0.4], [0.1, 0.02]]], dtype=torch.float64)
MEAN = torch.tensor([[[0.5, -0.3], [0.0, 1.5]]], dtype=torch.float64)


def gaussian_checkpoint(schedule, variance="fixed_small"):
    checkpoint = oracle_checkpoint(oracle_images(1, shape=SHAPE), schedule, clip=False)
    network = gaussian_denoiser(SPREAD, schedule, variance=variance)
    network.means += MEAN
    return dataclasses.replace(checkpoint, network=network, variance=Variance(variance))


def steps_of(schedule, *, eta=None):
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
    steps = steps_of(schedule)
    noise = [beta if variance == "fixed_large" else posterior for _, _, beta, posterior in steps]
    # The last step's variance is the posterior's of t = 2 under either convention.
    noise[0] = steps[1][3] if added == AddedNoise.EVERY_STEP else 0.0
    return law_of_chain(steps, np.multiply(noise, added != AddedNoise.NONE))


def assert_law(x, mean, variance):
    """Mean, variance and covariance are those, within 4.5 standard errors."""
    n, x = len(x), x.flatten(1).numpy()
    assert np.abs((x.mean(0) - mean) / np.sqrt(variance / n)).max() < 4.5
    scaled = (x - mean) / np.sqrt(variance)
    # A mean of n squares of normals varies by sqrt(2 / n), of products of two by sqrt(1 / n).
    error = np.sqrt((1 + np.eye(4)) / n)
    assert np.abs((scaled.T @ scaled / n - np.eye(4)) / error).max() < 4.5


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize(
    ("num_timesteps", "added"),
    [(1, AddedNoise.INNER), (2, AddedNoise.INNER), (30, AddedNoise.INNER)]
    + [(12, added) for added in AddedNoise],
)
def test_ancestral_samples_have_the_law_of_their_chain(variance, num_timesteps, added):
    schedule = NoiseSchedule.cosine(num_timesteps)
    checkpoint = gaussian_checkpoint(schedule, variance)
    x = sampled(checkpoint, 20_000, SamplerChoice(added_noise=added))
    assert_law(x, *law_of_ancestral(schedule, variance, added))


def test_samples_of_a_refined_model_have_the_law_of_its_chain():
    trained = NoiseSchedule.cosine(12)
    schedule = with_timesteps(trained, 30)
    checkpoint = gaussian_checkpoint(schedule)
    at_its_timesteps, fractions = checkpoint.network, np.linspace(0, 11, 30)
    assert (fractions % 1 > 0).any()

    class Fractional(nn.Module):
        """Takes the times of the trained schedule, 0..11, and those between them."""

        def forward(self, x_t, time):
            index = np.abs(time.numpy()[:, None] - fractions).argmin(1)
            return at_its_timesteps(x_t, torch.from_numpy(index))

    x = sampled(dataclasses.replace(checkpoint, network=Fractional()), 20_000)
    assert_law(x, *law_of_ancestral(schedule, "fixed_small"))


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_samples_of_an_exploding_process_have_the_law_of_its_own_chain(variance):
    # So little noise at the end that x_0 depends on the width of the prior.
    sigma = np.geomspace(0.05, 0.8, 24)
    schedule = NoiseSchedule.variance_exploding(24, sigma_min=0.05, sigma_max=0.8)
    checkpoint = gaussian_checkpoint(schedule)
    spread, mean = SPREAD.numpy(), MEAN.numpy()

    class Score(nn.Module):
        def forward(self, x, level):
            square = torch.from_numpy(sigma**2)[23 - level][:, None, None, None]
            return ((MEAN - x) / (SPREAD + square)).float()

    checkpoint = dataclasses.replace(
        checkpoint,
        network=Score(),
        prediction=Prediction.SCORE,
        time_input=TimeInput.REVERSED_INDEX,
        variance=Variance(variance),
    )
    x = sampled(checkpoint, 20_000)
    # x_{t-1} = x_t + (sigma_t^2 - sigma_{t-1}^2) score + noise, from N(0, sigma_T^2).
    expected, square = np.zeros(SHAPE), np.full(SHAPE, sigma[-1] ** 2)
    for now, before in zip(sigma[::-1], np.append(sigma[-2::-1], 0.0), strict=True):
        added = now**2 - before**2
        gain = added / (spread + now**2)
        noise = added if variance == "fixed_large" else added * before**2 / now**2
        expected = expected + gain * (mean - expected)
        square = (1 - gain) ** 2 * square + noise * (before > 0)
    assert_law(x, expected.flatten(), square.flatten())


def test_the_two_fixed_variances_are_told_apart_by_that():
    schedule = NoiseSchedule.cosine(30)
    small, large = (law_of_ancestral(schedule, kind)[1] for kind in ("fixed_small", "fixed_large"))
    assert (large / small > 1 + 10 * np.sqrt(2 / 20_000)).all()


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_implicit_samples_have_the_law_of_their_chain(eta):
    schedule = NoiseSchedule.cosine(12)
    steps = steps_of(schedule, eta=eta)
    x = sampled(gaussian_checkpoint(schedule), 20_000, SamplerChoice("ddim", eta=eta))
    assert_law(x, *law_of_chain(steps, [eta**2 * posterior for *_, posterior in steps]))


def test_with_all_its_noise_the_implicit_process_is_the_ancestral_one():
    checkpoint = gaussian_checkpoint(NoiseSchedule.cosine(25))
    implicit = sampled(checkpoint, 50, SamplerChoice("ddim", eta=1.0), seed=4)
    torch.testing.assert_close(implicit, sampled(checkpoint, 50, seed=4), rtol=0, atol=1e-9)


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
    asked, real = set(), chain.normal_noise

    def spy(image, t, draw, **of):
        asked.update(zip(t.tolist(), draw.tolist(), strict=True))
        return real(image, t, draw, **of)

    monkeypatch.setattr(chain, "normal_noise", spy)
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


@pytest.mark.parametrize(("num_timesteps", "at", "calls"), [(10, 4, 10), (200, 120, 100)])
def test_a_sample_that_is_not_finite_is_refused(num_timesteps, at, calls):
    checkpoint = oracle_checkpoint(oracle_images(2), NoiseSchedule.cosine(num_timesteps))
    broken = dataclasses.replace(checkpoint, network=Broken(at), source="broken.pt")
    with pytest.raises(InputError, match=rf"^`ckpt=broken\.pt`: .* after timestep t = {at};"):
        sampled(broken, 2, shape=(1, 4, 4))
    # The look at every fiftieth step ends the chain.
    assert broken.network.calls == calls


@pytest.mark.parametrize(
    "choice", [SamplerChoice("ddim"), SamplerChoice(added_noise=AddedNoise.NONE)]
)
def test_without_noise_a_sample_follows_from_its_start(monkeypatch, choice):
    checkpoint = gaussian_checkpoint(NoiseSchedule.cosine(25))
    sampler, asked = choice.prepare(checkpoint, seed=0, device=CPU), []
    noise = sampler.chain.noise
    spy = lambda sample, t, shape: asked.extend(t.unique()) or noise(sample, t, shape)  # noqa: E731
    monkeypatch.setattr(sampler.chain, "noise", spy)
    chains(sampler, torch.arange(3))
    assert asked == [START]


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


@pytest.mark.parametrize(
    ("num_timesteps", "variance"), [(50, "fixed_small"), (50, "fixed_large"), (200, "fixed_large")]
)
def test_images_are_those_of_diffusers_pipeline(
    diffusers_model, tmp_path, monkeypatch, num_timesteps, variance
):
    diffusers, network = diffusers_model
    scheduler = DDPMScheduler(num_train_timesteps=num_timesteps, variance_type=variance)
    pipeline = diffusers.DDPMPipeline(unet=network, scheduler=scheduler)
    pipeline.save_pretrained(tmp_path / "pipeline")
    checkpoint = load_checkpoint(tmp_path / "pipeline")
    assert checkpoint.clip
    shape = (3, 8, 8)
    noise = AddressedNoise(4, range(num_timesteps, 1, -1), shape)
    for module in ("pipelines.ddpm.pipeline_ddpm", "schedulers.scheduling_ddpm"):
        monkeypatch.setattr(f"diffusers.{module}.randn_tensor", noise)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        batch_size=4, num_inference_steps=num_timesteps, output_type="np"
    ).images  # (N, H, W, C) in [0, 1]
    ours = sampled(checkpoint, 4, shape=shape)
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
    shape, sampler = (
        (3, 8, 8),
        SamplerChoice("ddim", eta=eta).prepare(checkpoint, seed=0, device=CPU),
    )
    index = torch.arange(4)
    x = sampler.start(index, shape).float()
    with torch.inference_mode():
        for t in range(50, 0, -1):
            noise = sampler.chain.noise(index, torch.full_like(index, t), shape).float()
            output = network(x, t - 1).sample
            x = theirs.step(
                output, t - 1, x, eta=eta, use_clipped_model_output=True, variance_noise=noise
            ).prev_sample
    ours = chains(sampler, index, shape)
    assert (UNIT_RANGE.to_pixels(ours).int() - UNIT_RANGE.to_pixels(x).int()).abs().max() <= 1


# ---- settings, and pixels


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "euler"}, "`sampler=euler`: choose ancestral, ddim, langevin,"),
        ({"eta": 0.5}, "`eta=0.5`: applies only to `sampler=ddim`"),
        ({"method": "ddim", "eta": 1.5}, "`eta=1.5`: give a number from 0 to 1"),
        ({"method": "ddim", "eta": float("nan")}, "`eta=nan`"),
        ({"method": "ddim", "added_noise": AddedNoise.NONE}, "`added_noise=none`"),
        ({"method": "ddim", "eta": "0.5"}, "`eta='0.5'`: give a number"),
        ({"added_noise": "some"}, "`added_noise=some`: choose inner, every-step or none"),
    ],
)
def test_settings_that_a_sampler_has_not_are_refused(settings, words):
    with pytest.raises(InputError, match=words):
        SamplerChoice(**settings)


def test_a_choice_is_the_sampler_it_names():
    checkpoint = gaussian_checkpoint(NoiseSchedule.cosine(10), "fixed_large")
    x, mean, ddim, noisy = (
        sampled(checkpoint, 5, choice)
        for choice in (
            SamplerChoice(),
            SamplerChoice(added_noise=AddedNoise.NONE),
            SamplerChoice("ddim"),
            SamplerChoice("ddim", eta=1.0),
        )
    )
    for first, other in itertools.combinations((x, mean, ddim, noisy), 2):
        assert (first - other).abs().max() > 1e-3
    # A name is as good as the member.
    assert torch.equal(sampled(checkpoint, 5, SamplerChoice(added_noise="none")), mean)


def test_a_level_is_the_nearest_or_the_one_below():
    levels = torch.arange(256, dtype=torch.float64)
    x = levels / 127.5 - 1
    assert torch.equal(UNIT_RANGE.to_pixels(x).double(), levels)
    above = x + 0.7 / 127.5
    assert torch.equal(UNIT_RANGE.to_pixels(above).double(), (levels + 1).clamp(max=255))
    assert torch.equal(UNIT_RANGE.to_pixels(above, EightBit.TRUNCATE).double(), levels)
    outside = torch.tensor([-3.0, 3.0])
    for how in EightBit:
        assert UNIT_RANGE.to_pixels(outside, how).tolist() == [0, 255]
