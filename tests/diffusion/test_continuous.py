"""The log SNR between the timesteps."""

import numpy as np
import pytest
import torch

from ddpmbench.diffusion.continuous import ContinuousTime, refined
from ddpmbench.diffusion.process import GaussianDiffusion, Prediction, Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError

SCHEDULES = {
    "linear": NoiseSchedule.linear(1000),
    "cosine": NoiseSchedule.cosine(100),
    "respaced": NoiseSchedule.linear(1000).respaced(7),
    "two timesteps": NoiseSchedule.linear(2, beta_start=0.1, beta_end=0.2),
}
of_schedules = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


@of_schedules
def test_it_is_the_schedule_s_at_its_timesteps_and_falls_between(schedule):
    time = ContinuousTime(schedule)
    steps = schedule.original_timesteps.numpy()
    np.testing.assert_allclose(time.log_snr(steps), schedule.snr.log(), rtol=1e-12)
    u = np.linspace(time.first, time.last, 1001)
    assert (np.diff(time.log_snr(u)) < 0).all()


@of_schedules
def test_a_timestep_is_found_by_its_log_snr(schedule):
    time = ContinuousTime(schedule)
    u = np.linspace(time.first, time.last, 101)
    np.testing.assert_allclose(time.timestep(time.log_snr(u)), u, rtol=1e-9)
    assert time.timestep(float(time.log_snr(u[3]))) == pytest.approx(u[3])


@of_schedules
def test_the_cubics_are_the_log_snr(schedule):
    time, (knots, cubics) = ContinuousTime(schedule), ContinuousTime(schedule).cubics
    for start, stop, cubic in zip(knots[:-1], knots[1:], cubics.T, strict=True):
        u = np.linspace(start, stop, 9)
        np.testing.assert_allclose(np.polyval(cubic, u - start), time.log_snr(u), atol=1e-12)


def test_a_single_timestep_has_nothing_between():
    with pytest.raises(InputError, match="visits one"):
        ContinuousTime(NoiseSchedule.linear(100).respaced(1))


def test_a_refined_schedule_goes_through_the_trained_timesteps():
    coarse = NoiseSchedule.linear(101)
    fine = refined(coarse, 401)
    assert fine.num_timesteps == 401
    assert fine.num_original_timesteps == 101
    torch.testing.assert_close(fine.original_timesteps[::4], torch.arange(1.0, 102).double())
    torch.testing.assert_close(fine.alphas_cumprod[::4], coarse.alphas_cumprod)


@pytest.mark.parametrize("variance", [Variance.FIXED_SMALL, Variance.FIXED_LARGE])
def test_the_decoder_of_a_refined_schedule_is_that_of_the_trained_one(variance):
    coarse = NoiseSchedule.linear(100)
    x, t = torch.randn(2, 1, 3, 3).double(), torch.tensor([1, 1])
    steps = [
        GaussianDiffusion(schedule, Prediction.EPSILON, variance).p_mean_variance(x / 2, x, t)
        for schedule in (coarse, refined(coarse, 1000))
    ]
    torch.testing.assert_close(steps[0].mean, steps[1].mean)
    torch.testing.assert_close(steps[0].log_variance, steps[1].log_variance)


@pytest.mark.parametrize(
    ("schedule", "count", "words"),
    [
        (NoiseSchedule.linear(1000).respaced(10), 20, "visits 10 timesteps"),
        (NoiseSchedule.linear(1000), 10**7, "timesteps=10000000"),
    ],
)
def test_what_cannot_be_refined_is_refused(schedule, count, words):
    with pytest.raises(InputError, match=words):
        refined(schedule, count)


@pytest.mark.parametrize(
    "prediction", [Prediction.EPSILON, Prediction.X_START, Prediction.V, Prediction.EDM]
)
@pytest.mark.parametrize("variance", [Variance.FIXED_SMALL, Variance.LEARNED_RANGE])
def test_a_prediction_at_a_timestep_is_that_of_the_timestep(prediction, variance):
    schedule = NoiseSchedule.cosine(50)
    diffusion = GaussianDiffusion(schedule, prediction, variance)
    t = torch.tensor([1, 17, 50])
    x, output = torch.randn(2, 3, 2, 4, 4).double()
    if variance.is_learned:
        output = torch.cat([output, output], dim=1)
    step = diffusion.p_mean_variance(output, x, t)
    x_start, eps = diffusion.prediction_at(output, x, schedule.snr.log()[t - 1])
    torch.testing.assert_close(x_start, step.unclipped_pred_x_start)
    torch.testing.assert_close(eps, step.pred_eps)


def test_a_predicted_mean_has_no_prediction_between():
    diffusion = GaussianDiffusion(NoiseSchedule.cosine(50), Prediction.PREVIOUS_MEAN)
    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(InputError, match="previous_mean"):
        diffusion.prediction_at(x, x, torch.zeros(1))
