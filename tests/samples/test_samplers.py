"""Every sampler: against closed forms, against one another, and against diffusers' own."""

import dataclasses

import numpy as np
import pytest
import torch
from oracles import exact_alphas_cumprod
from peers import SMALL_UNET, DDPMScheduler, diffusers_unet
from test_sampling import MEAN, SHAPE, SPREAD, gaussian_checkpoint, law_of_chain

from ddpmbench.checkpoints import load_checkpoint
from ddpmbench.diffusion.data_range import UNIT_RANGE, EightBit
from ddpmbench.diffusion.noise import normal_noise
from ddpmbench.diffusion.process import Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError
from ddpmbench.samples.samplers import (
    SAMPLE_DRAW,
    START,
    AddedNoise,
    AncestralSampler,
    ImplicitSampler,
    SamplerChoice,
)

CPU = torch.device("cpu")


def chains(sampler, num_samples, shape=SHAPE):
    index = torch.arange(num_samples)
    x_t = sampler.start(index, shape)
    total = sampler.checkpoint.schedule.num_timesteps
    for step in sampler.steps(x_t, total, sample=index):
        x_t = step.x_previous
    return x_t


# ---- closed forms


def within_errors(x, mean, variance):
    n, x = len(x), x.flatten(1).numpy()
    mean, variance = mean.flatten(), variance.flatten()
    assert np.abs((x.mean(0) - mean) / np.sqrt(variance / n)).max() < 4.5
    assert np.abs((x.var(0, ddof=1) / variance - 1) / np.sqrt(2 / n)).max() < 4.5


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("added", list(AddedNoise))
def test_noise_is_added_after_the_steps_that_are_named(variance, added):
    schedule = NoiseSchedule.cosine(12)
    checkpoint = gaussian_checkpoint(schedule, variance)
    sampler = AncestralSampler(checkpoint, seed=0, device=CPU, added_noise=added)
    mean, inner = law_of_chain(schedule, variance)
    ab = exact_alphas_cumprod(schedule)
    previous = np.append(1.0, ab[:-1])
    posterior = (1 - ab / previous) * (1 - previous) / (1 - ab)
    # The last step's variance is the posterior's of t = 2 under either convention.
    of_chain = {
        AddedNoise.INNER: inner,
        AddedNoise.EVERY_STEP: inner + posterior[1],
        AddedNoise.NONE: np.prod(slopes(schedule), axis=0) ** 2,
    }
    within_errors(chains(sampler, 20_000), mean, of_chain[added])


def slopes(schedule):
    """d x_{t-1} / d x_t of the mean of every step."""
    ab = exact_alphas_cumprod(schedule)
    previous = np.append(1.0, ab[:-1])
    beta = 1 - ab / previous
    spread = SPREAD.numpy()
    found = []
    for i in range(len(ab)):
        gain = np.sqrt(ab[i]) * spread / (ab[i] * spread + 1 - ab[i])
        of_x_start = np.sqrt(previous[i]) * beta[i] / (1 - ab[i])
        found.append(of_x_start * gain + np.sqrt(1 - beta[i]) * (1 - previous[i]) / (1 - ab[i]))
    return found


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_implicit_samples_have_the_law_of_their_chain(eta):
    schedule = NoiseSchedule.cosine(12)
    checkpoint = gaussian_checkpoint(schedule, "fixed_small")
    ab = exact_alphas_cumprod(schedule)
    previous, spread, m = np.append(1.0, ab[:-1]), SPREAD.numpy(), MEAN.numpy()
    mean, variance = np.zeros(SHAPE), np.ones(SHAPE)
    for i in range(len(ab) - 1, -1, -1):
        noise = eta**2 * (1 - previous[i]) / (1 - ab[i]) * (1 - ab[i] / previous[i])
        gain = np.sqrt(ab[i]) * spread / (ab[i] * spread + 1 - ab[i])
        direction = np.sqrt((1 - previous[i] - noise) / (1 - ab[i]))
        slope = np.sqrt(previous[i]) * gain + direction * (1 - np.sqrt(ab[i]) * gain)
        offset = (
            (np.sqrt(previous[i]) - direction * np.sqrt(ab[i])) * m * (1 - gain * np.sqrt(ab[i]))
        )
        mean, variance = slope * mean + offset, slope**2 * variance + noise
    sampler = ImplicitSampler(checkpoint, seed=0, device=CPU, eta=eta)
    within_errors(chains(sampler, 20_000), mean, variance)


def test_with_all_its_noise_the_implicit_process_is_the_ancestral_one():
    checkpoint = gaussian_checkpoint(NoiseSchedule.cosine(25), "fixed_small")
    implicit = ImplicitSampler(checkpoint, seed=4, device=CPU, eta=1.0)
    ancestral = AncestralSampler(checkpoint, seed=4, device=CPU)
    torch.testing.assert_close(chains(implicit, 50), chains(ancestral, 50), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "choice", [SamplerChoice("ddim"), SamplerChoice(added_noise=AddedNoise.NONE)]
)
def test_without_noise_a_sample_follows_from_its_start(monkeypatch, choice):
    checkpoint = gaussian_checkpoint(NoiseSchedule.cosine(25), "fixed_small")
    sampler, asked = choice.prepare(checkpoint, seed=0, device=CPU), []
    noise = sampler._noise
    spy = lambda sample, t, shape: asked.extend(t.unique()) or noise(sample, t, shape)  # noqa: E731
    monkeypatch.setattr(sampler, "_noise", spy)
    chains(sampler, 3)
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
    ("num_timesteps", "variance"), [(50, "fixed_small"), (50, "fixed_large"), (1000, "fixed_large")]
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
    ours = chains(AncestralSampler(checkpoint, seed=0, device=CPU), 4, shape)
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
    shape, sampler = (3, 8, 8), ImplicitSampler(checkpoint, seed=0, device=CPU, eta=eta)
    index = torch.arange(4)
    x = sampler.start(index, shape).float()
    with torch.inference_mode():
        for t in range(50, 0, -1):
            noise = sampler._noise(index, torch.full_like(index, t), shape).float()
            output = network(x, t - 1).sample
            x = theirs.step(
                output, t - 1, x, eta=eta, use_clipped_model_output=True, variance_noise=noise
            ).prev_sample
    ours = chains(sampler, 4, shape)
    assert (UNIT_RANGE.to_pixels(ours).int() - UNIT_RANGE.to_pixels(x).int()).abs().max() <= 1


# ---- settings, and pixels


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "euler"}, "`sampler=euler`: choose ancestral or ddim"),
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
    checkpoint = gaussian_checkpoint(NoiseSchedule.cosine(10), "fixed_small")
    checkpoint = dataclasses.replace(checkpoint, variance=Variance.FIXED_LARGE)
    choices = [
        SamplerChoice(),
        SamplerChoice(added_noise=AddedNoise.NONE),
        SamplerChoice("ddim"),
        SamplerChoice("ddim", eta=1.0),
    ]
    # A name is as good as the member.
    named = SamplerChoice(added_noise="none").prepare(checkpoint, seed=0, device=CPU)
    mean = choices[1].prepare(checkpoint, seed=0, device=CPU)
    assert torch.equal(chains(named, 5), chains(mean, 5))
    made = [chains(choice.prepare(checkpoint, seed=0, device=CPU), 5) for choice in choices]
    for k, first in enumerate(made):
        for other in made[k + 1 :]:
            assert (first - other).abs().max() > 1e-3


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
