"""What diffusers' scheduler makes of the schedule that is written for it."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from peers import DDPMScheduler

from ddpmbench import load_checkpoint
from ddpmbench.checkpoints.diffusers_writer import write_diffusers
from ddpmbench.diffusion.schedule import NoiseSchedule

TRAINED = np.random.default_rng(0).uniform(1e-5, 0.1, 30)
SCHEDULES = {
    "linear": NoiseSchedule.linear(1000),
    "linear of 4,000 steps": NoiseSchedule.linear(4000),
    "linear with other ends": NoiseSchedule.linear(100, beta_start=1e-3, beta_end=0.01),
    "linear with one end": NoiseSchedule.linear(50, beta_start=0.01, beta_end=0.01),
    "scaled_linear": NoiseSchedule.scaled_linear(1000),
    "squaredcos_cap_v2": NoiseSchedule.cosine(300),
    "sigmoid": NoiseSchedule.sigmoid_betas(1000),
    "sigmoid with other ends": NoiseSchedule.sigmoid_betas(77, beta_start=1e-6, beta_end=0.5),
    "trained": NoiseSchedule.from_betas(TRAINED),
    "linear of one step": NoiseSchedule.from_betas([0.3]),
    "trained, sigmoid of Jabri et al.": NoiseSchedule.sigmoid(100),
    "trained, nearly linear": NoiseSchedule.from_betas(
        NoiseSchedule.linear(1000).betas * (1 + 1e-9 * torch.arange(1000))
    ),
    "trained, linear and clipped": NoiseSchedule.from_betas(
        NoiseSchedule.linear(1000).betas.clamp(max=0.019)
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_survives(small_model, tmp_path, name):
    schedule = SCHEDULES[name]
    write_diffusers(tmp_path, dataclasses.replace(small_model, schedule=schedule))
    said = json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())
    found = said["beta_schedule"] if said["trained_betas"] is None else "trained"
    assert found == re.match(r"\w+", name)[0]
    read = load_checkpoint(tmp_path).schedule
    np.testing.assert_allclose(read.betas.numpy(), schedule.betas.numpy(), rtol=2e-12)
    if said["trained_betas"] is not None:
        assert torch.equal(read.betas, schedule.betas)
    theirs = DDPMScheduler.from_pretrained(tmp_path / "scheduler")
    # rounded to float32 on the way, and where 1 - alpha-bar cancels
    np.testing.assert_allclose(theirs.betas.numpy(), schedule.betas.numpy(), rtol=2e-6, atol=5e-8)


def test_the_ends_are_as_somebody_would_have_written_them(small_model, tmp_path):
    for number, (schedule, start, end) in enumerate(
        (
            (NoiseSchedule.scaled_linear(1000), 0.00085, 0.012),
            (NoiseSchedule.sigmoid_betas(1000), 1e-4, 0.02),
            (NoiseSchedule.linear(4000), 2.5e-05, 0.005),
        )
    ):
        folder = tmp_path / str(number)
        write_diffusers(folder, dataclasses.replace(small_model, schedule=schedule))
        said = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        assert (said["beta_start"], said["beta_end"]) == (start, end)
