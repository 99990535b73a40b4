"""The decoder at any variance of a model that skips steps, from the few that are kept."""

import numpy as np
import pytest
import torch
from oracles import bin_log_prob

from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.likelihood.decoders import (
    SCALES,
    decoder_column,
    decoder_terms,
    interpolated,
    log_variances,
)
from ddpmbench.likelihood.sub_schedules import can_skip

SCHEDULES = {
    "linear 1000": NoiseSchedule.linear(1000),
    "linear 4000": NoiseSchedule.linear(4000),
    "linear 40": NoiseSchedule.linear(40),
    "cosine 1000": NoiseSchedule.cosine(1000),
    "cosine 4000": NoiseSchedule.cosine(4000),
    "sigmoid 1000": NoiseSchedule.sigmoid(1000),
    "linear 1000, 50 steps": NoiseSchedule.linear(1000).respaced(50),
}


def pixels_and_predictions(error):
    generator = np.random.default_rng(0)
    x_start = generator.integers(0, 256, (3, 1, 8, 8)) / 127.5 - 1
    return x_start, x_start + error * generator.normal(size=x_start.shape)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("clip", [True, False])
def test_the_decoder_of_every_second_step_is_interpolated(name, clip):
    schedule = SCHEDULES[name]
    # Off by half a level, by several standard deviations of the decoder, at 0 and at 255.
    for error in (0.004, 0.03):
        x_start, predicted = pixels_and_predictions(error)
        terms = decoder_terms(
            log_variances(schedule), torch.from_numpy(x_start), torch.from_numpy(predicted)
        )
        kept = [terms[decoder_column(scale, "exact", clip=clip)].numpy() for scale in SCALES]
        second = np.unique(np.geomspace(2, schedule.num_timesteps, 12).round().astype(int))
        variances = [schedule.subset([1, int(t)]).posterior_variance[1].item() for t in second]
        found = interpolated(schedule, np.stack(kept), np.log(variances))
        mean = np.clip(predicted, -1, 1) if clip else predicted
        for variance, values in zip(variances, found, strict=True):
            direct = -bin_log_prob(x_start, mean, np.sqrt(variance)).reshape(3, -1).mean(1)
            np.testing.assert_allclose(values, direct, rtol=0, atol=1e-6)


def test_the_ends_are_the_published_variances():
    schedule = SCHEDULES["linear 1000"]
    nodes = np.exp(log_variances(schedule))
    assert nodes[0] == pytest.approx(schedule.posterior_variance[1].item(), rel=1e-14)
    assert nodes[-1] == pytest.approx(schedule.betas[0].item(), rel=1e-14)
    assert (np.diff(nodes) > 0).all()


def test_a_schedule_whose_beginning_is_too_uneven_is_not_interpolated():
    uneven = NoiseSchedule.from_alphas_cumprod([0.9, 0.899999, 0.5, 0.2])
    assert not can_skip(uneven)
    with pytest.raises(ValueError, match="too far apart"):
        interpolated(uneven, np.ones(len(SCALES)), np.array([-3.0]))
    assert not can_skip(NoiseSchedule.from_betas([0.5]))
    assert not can_skip(NoiseSchedule.linear(5001))
    assert can_skip(SCHEDULES["cosine 4000"])


def test_at_the_nodes_interpolation_is_exact():
    schedule, values = SCHEDULES["linear 1000"], np.linspace(1, 2, len(SCALES)) ** 3
    np.testing.assert_array_equal(interpolated(schedule, values, log_variances(schedule)), values)
