"""Pipelines with a ScoreSdeVeScheduler, as google/ncsnpp-*, against the package that runs them."""

import dataclasses
import sys
import warnings

import numpy as np
import pytest
import torch
from peers import diffusers_unet, edit_json, refused, save_flat

import ddpmbench as db
from ddpmbench import CheckpointSettings, load_checkpoint
from ddpmbench.checkpoints.settings import MissingSettingsError
from ddpmbench.diffusion.model import TimeInput
from ddpmbench.diffusion.parameterization import Prediction, Process, Variance

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its own imports
    from diffusers import ScoreSdeVeScheduler

UNET = {
    "sample_size": 8,
    "block_out_channels": [32, 32],
    "down_block_types": ["SkipDownBlock2D", "AttnSkipDownBlock2D"],
    "up_block_types": ["AttnSkipUpBlock2D", "SkipUpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "norm_eps": 1e-6,
    "time_embedding_type": "fourier",
    "attention_head_dim": None,
    "mid_block_scale_factor": 1.41421356237,
    "freq_shift": 0,
}
STEPS, FIRST, LAST = 20, 0.01, 30.0


@pytest.fixture(scope="module")
def peer():
    return diffusers_unet(UNET)


@pytest.fixture
def folder(peer, tmp_path):
    scheduler = ScoreSdeVeScheduler(
        num_train_timesteps=STEPS, sigma_min=FIRST, sigma_max=LAST, snr=0.1
    )
    for name, part in (("unet", peer), ("scheduler", scheduler)):
        part.save_pretrained(tmp_path / "model" / name)
    return tmp_path / "model"


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sigmas():
    return torch.from_numpy(np.geomspace(FIRST, LAST, STEPS))


def test_the_settings_are_those_of_the_pipeline(folder):
    checkpoint = load_checkpoint(folder)
    schedule = checkpoint.schedule
    assert (schedule.process, schedule.num_timesteps) == (Process.VE, STEPS)
    sigma = schedule.one_minus_alphas_cumprod.sqrt() * schedule.log_scale.exp()
    torch.testing.assert_close(sigma, sigmas(), rtol=1e-10, atol=0)
    assert (checkpoint.prediction, checkpoint.variance) == (Prediction.SCORE, Variance.FIXED_LARGE)
    assert (checkpoint.time_input, checkpoint.clip) == (TimeInput.SIGMA, False)
    assert checkpoint.data_range.interval == "[0, 1]"
    assert (checkpoint.channels, checkpoint.image_size, checkpoint.size_multiple) == (3, 8, 2)
    assert any("network run by diffusers" in note for note in checkpoint.notes)


def test_the_score_is_the_network_s(folder, peer):
    checkpoint = load_checkpoint(folder)
    t = torch.tensor([1, 7, STEPS])
    sigma = sigmas()[t - 1]
    x_t = 0.5 + sigma[:, None, None, None] * drawn(3, 3, 8, 8)
    at_unit_scale = x_t / checkpoint.schedule.log_scale.exp()[t - 1][:, None, None, None]
    with torch.no_grad():
        theirs = peer(x_t.float(), sigma.float()).sample
        ours = checkpoint.model_output(at_unit_scale, t)
    scale = theirs.abs().amax((1, 2, 3), keepdim=True)
    assert float(((ours - theirs).abs() / scale).max()) < 1e-5


def test_the_reverse_step_is_the_scheduler_s(folder):
    checkpoint = load_checkpoint(folder)
    scheduler = ScoreSdeVeScheduler.from_pretrained(folder / "scheduler")
    score, noise = drawn(2, 3, 8, 8), drawn(2, 3, 8, 8, seed=1)
    scale = checkpoint.schedule.log_scale.exp()
    for t in (2, 9, STEPS):
        x_t = 0.5 + sigmas()[t - 1] * noise
        theirs = scheduler.step_pred(score, (t - 1) / (STEPS - 1), x_t)
        steps = torch.full((2,), t)
        ours = checkpoint.diffusion.p_mean_variance(score, x_t / scale[t - 1], steps)
        mean = ours.mean * scale[t - 2]
        torch.testing.assert_close(mean, theirs.prev_sample_mean, rtol=1e-5, atol=1e-5)
        added = (0.5 * ours.log_variance).exp() * scale[t - 2]
        forward = (sigmas()[t - 1] ** 2 - sigmas()[t - 2] ** 2).sqrt()
        torch.testing.assert_close(
            added.flatten(), torch.full((added.numel(),), float(forward), dtype=torch.float64)
        )


def test_the_terms_are_those_of_the_process_written_out(folder, peer):
    """Divergences of Gaussians in the pipeline's own units, x_t = x + sigma eps."""
    checkpoint = load_checkpoint(folder)
    x = torch.linspace(0, 1, 2 * 3 * 64, dtype=torch.float64).view(2, 3, 8, 8)
    eps = drawn(2, 3, 8, 8)
    for t in (2, 9, STEPS):
        before, now = sigmas()[t - 2], sigmas()[t - 1]
        x_t = x + now * eps
        with torch.no_grad():
            score = peer(x_t.float(), now.float().expand(2)).sample.double()
        forward = now**2 - before**2
        posterior = before**2 * forward / now**2
        apart = forward / now**2 * (x - (x_t + now**2 * score))
        expected = 0.5 * (forward / posterior).log() - 0.5 + 0.5 * posterior / forward
        expected = (expected + 0.5 * apart**2 / forward).flatten(1).sum(1)
        steps = torch.full((2,), t)
        unit = x_t / checkpoint.schedule.log_scale.exp()[t - 1]
        with torch.no_grad():
            output = checkpoint.model_output(unit, steps).double()
        diffusion = checkpoint.diffusion
        true_mean, true_log = diffusion.q_posterior_mean_variance(x, unit, steps)
        step = diffusion.p_mean_variance(output, unit, steps)
        gap = step.log_variance - true_log
        ours = 0.5 * (gap - 1 + (-gap).exp())
        ours = ours + 0.5 * (step.mean - true_mean) ** 2 * (-step.log_variance).exp()
        torch.testing.assert_close(ours.flatten(1).sum(1), expected, rtol=1e-4, atol=0)


def test_a_run_has_a_number(folder):
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    report = db.evaluate_nll(load_checkpoint(folder), images, estimator="every-pair")
    assert np.isfinite(report.summary["bits_per_dim"])


def test_a_flat_folder_and_the_files_of_another_configuration(folder, peer, tmp_path):
    scheduler = ScoreSdeVeScheduler(num_train_timesteps=STEPS, sigma_min=FIRST, sigma_max=LAST)
    flat = save_flat(tmp_path / "flat", peer, scheduler)
    one, other = load_checkpoint(folder), load_checkpoint(flat)
    assert one.sha256 == other.sha256
    edit_json(flat / "config.json", mid_block_scale_factor=1)
    assert load_checkpoint(flat).fingerprint != other.fingerprint


def test_levels_that_the_scheduler_does_not_say_are_asked_for(folder):
    edit_json(folder / "scheduler" / "scheduler_config.json", remove=("sigma_max",))
    with pytest.raises(MissingSettingsError) as caught:
        load_checkpoint(folder)
    assert caught.value.missing == {"process": "ve:SIGMA_MIN:SIGMA_MAX:LEVELS"}
    assert "sigma_max" in str(caught.value)
    given = CheckpointSettings(process="ve:0.01:50:30")
    assert load_checkpoint(folder, given).schedule.num_timesteps == 30


def test_a_process_of_the_settings_replaces_that_of_the_scheduler(folder):
    checkpoint = load_checkpoint(folder, CheckpointSettings(process="ve:0.01:50:30"))
    assert checkpoint.schedule.num_timesteps == 30
    assert any("overrides ve, sigma" in note and "of 20 steps" in note for note in checkpoint.notes)


@pytest.mark.parametrize(
    ("file", "fields", "words"),
    [
        ("scheduler/scheduler_config.json", {"sigma_min": 40}, ("sigma from 40 to 30",)),
        ("scheduler/scheduler_config.json", {"sigma_max": "x"}, ("sigma_max",)),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 0}, ("0 steps",)),
        ("unet/config.json", {"time_embedding_type": "positional"}, ("time_embedding_type",)),
        ("unet/config.json", {"num_class_embeds": 3}, ("num_class_embeds",)),
        ("unet/config.json", {"out_channels": 6}, ("out_channels",)),
        ("unet/config.json", {"down_block_types": ["No", "No"]}, ("no network of the installed",)),
        ("unet/config.json", {"layers_per_block": 501}, ("layers_per_block = 501", "1,002")),
        ("unet/config.json", {"surprise": 1}, ("no network of the installed", "surprise")),
        ("unet", {"block_out_channels": [2**20, 2**20]}, ("the network takes",)),
    ],
)
def test_what_is_refused(folder, file, fields, words):
    path = folder / file
    edit_json(path / "config.json" if path.is_dir() else path, **fields)
    with refused(path, *words):
        load_checkpoint(folder)


def test_without_the_package_the_line_to_type(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with refused(folder, "pip install 'ddpmbench[diffusers]'"):
        load_checkpoint(folder)


def test_the_average_of_a_folder_is_marked(folder, peer):
    assert load_checkpoint(folder).weights is None
    (folder / "unet").rename(folder / "unet_ema")
    averaged = load_checkpoint(folder)
    assert averaged.weights == "ema"
    assert dataclasses.replace(averaged, weights=None).fingerprint == averaged.fingerprint
