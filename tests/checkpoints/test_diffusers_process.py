"""The reverse step that a folder of diffusers implies is that of its own scheduler."""

import itertools

import pytest
import torch
from peers import SMALL_UNET, DDPMScheduler, diffusers_unet, save_pipeline

from ddpmbench import load_checkpoint

PREDICTIONS = ("epsilon", "sample", "v_prediction")
SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "learned_range")
STEPS = (2, 3, 40, 777, 1000)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A class-conditional model without, and one with, an output for the variance."""
    paths = {}
    for learned in (False, True):
        settings = SMALL_UNET | {"num_class_embeds": 5, "out_channels": 6 if learned else 3}
        paths[learned] = tmp_path_factory.mktemp("model")
        save_pipeline(paths[learned], diffusers_unet(settings))
    return paths


def reverse_step(scheduler, output, x_t, t, noise, monkeypatch):
    """x_{t-1} as diffusers has it; its tables in float64, because in float32 they cancel."""
    scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas.double(), 0)
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *shape, **given: noise
    )
    return scheduler.step(output, t - 1, x_t).prev_sample


@pytest.mark.parametrize(
    ("number", "prediction", "variance", "clip"),
    [
        (number, *case)
        for number, case in enumerate(itertools.product(PREDICTIONS, VARIANCES, (True, False)))
    ],
)
def test_the_reverse_step(folders, monkeypatch, number, prediction, variance, clip):
    # the schedule enters by its betas alone, so each is with some of the others
    schedule = SCHEDULES[(number + number // 8) % len(SCHEDULES)]
    scheduler = DDPMScheduler(
        prediction_type=prediction,
        beta_schedule=schedule,
        variance_type=variance,
        clip_sample=clip,
    )
    folder = folders[variance == "learned_range"]
    scheduler.save_pretrained(folder / "scheduler")
    checkpoint = load_checkpoint(folder)
    scheduler.betas = checkpoint.schedule.betas  # which are theirs: test_diffusers.py
    generator = torch.Generator().manual_seed(0)
    x_t, noise = torch.randn(2, 1, 3, 8, 8, generator=generator, dtype=torch.float64)
    for t in STEPS:
        steps = torch.tensor([t])
        output = checkpoint.model_output(x_t, steps, torch.tensor([4])).detach().double()
        theirs = reverse_step(scheduler, output, x_t, t, noise, monkeypatch)
        step = checkpoint.diffusion.p_mean_variance(output, x_t, steps)
        ours = step.mean + (0.5 * step.log_variance).exp() * noise
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)
        assert clip == bool((step.pred_x_start.abs() <= 1).all())


def test_what_a_class_changes_is_what_it_changes_there(folders):
    checkpoint = load_checkpoint(folders[False])
    peer = diffusers_unet(SMALL_UNET | {"num_class_embeds": 5})
    x_t = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels, t = torch.arange(5), torch.tensor([1, 2, 30, 400, 1000])
    with torch.no_grad():
        theirs = peer(x_t, t - 1, class_labels=labels).sample
        ours = checkpoint.model_output(x_t, t, labels)
        other = checkpoint.model_output(x_t, t, labels.flip(0))
    scale = float(theirs.abs().max())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * scale)
    assert (other - theirs).abs().amax((1, 2, 3))[[0, 1, 3, 4]].min() > 1e-3 * scale
