"""Models whose bound is known: the package must give it, and the oracles must be what they say.

The laws that mistakes are planted against are in `test_mutations`.
"""

import math

import numpy as np
import pytest
import torch
from laws import check_gaussian_entropy, evaluate
from oracles import (
    MixtureDenoiser,
    exact_alphas_cumprod,
    expected_terms,
    gaussian_denoiser,
    oracle_checkpoint,
    oracle_images,
    unit_range,
)

from ddpmbench.diffusion.process import Prediction
from ddpmbench.diffusion.schedule import NoiseSchedule


@pytest.mark.parametrize("num_timesteps", [1000, 4000])
def test_the_bound_on_gaussian_data_is_their_entropy(num_timesteps):
    check_gaussian_entropy(num_timesteps)


def test_intervals_cover():
    images = oracle_images(3, shape=(1, 2, 2))
    checkpoint = oracle_checkpoint(images, NoiseSchedule.linear(24), spread=0.05)
    truth = expected_terms(checkpoint, images, draws=4000)
    truth_error = math.sqrt(np.square(truth.standard_error).sum()) / len(images)
    num_replicates, inside = 150, 0
    for seed in range(num_replicates):
        result = evaluate(checkpoint, images, draws=3, seed=seed)
        assert result.half_width > 5 * truth_error
        inside += abs(result.nats - truth.nats) < result.half_width
    # Binomial with p = 0.95: 142.5 +- 2.7.
    assert inside / num_replicates > 0.95 - 4 * math.sqrt(0.95 * 0.05 / num_replicates)
    assert inside < num_replicates


# ---- the oracles themselves


def test_the_denoiser_is_the_posterior_mean_and_variance_of_draws():
    # Rejection: of draws of (x_start, x_t) those whose x_t falls near a point.
    schedule, index = NoiseSchedule.linear(40), 12
    means = torch.tensor([-0.8, 0.1, 0.6]).double().reshape(3, 1, 1, 1)
    network = MixtureDenoiser(means, schedule, spread=0.02)
    ab = float(schedule.alphas_cumprod[index])
    rng = np.random.default_rng(0)
    n = 4_000_000
    x_start = rng.choice(means.flatten().numpy(), n) + math.sqrt(0.02) * rng.standard_normal(n)
    x_t = math.sqrt(ab) * x_start + math.sqrt(1 - ab) * rng.standard_normal(n)
    for point in (-0.9, -0.2, 0.5):
        near = x_start[np.abs(x_t - point) < 0.01]
        mean, variance = network.posterior(
            torch.full((1, 1, 1, 1), point), torch.tensor([ab], dtype=torch.float64)
        )
        error = near.std() / math.sqrt(len(near))
        assert abs(near.mean() - mean.item()) < 4 * error + 1e-3
        assert near.var() == pytest.approx(variance.item(), rel=0.03)


def test_a_finite_set_is_recognized_at_little_noise_and_averaged_at_much():
    images = oracle_images(4)
    x = unit_range(images)
    network = oracle_checkpoint(images).network
    near, _ = network.posterior(x, torch.full((4,), 0.999))
    far, _ = network.posterior(x, torch.full((4,), 1e-12))
    torch.testing.assert_close(near, x)
    torch.testing.assert_close(far, x.mean(0).expand_as(x), atol=1e-4, rtol=0)


def test_labels_leave_only_the_images_of_their_class():
    images = oracle_images(6, num_classes=2)
    network = oracle_checkpoint(images).network
    x = torch.zeros(2, 1, 4, 4)
    mean, _ = network.posterior(x, torch.full((2,), 1e-12), torch.tensor([0, 1]))
    expected = torch.stack([unit_range(images)[c::2].mean(0) for c in (0, 1)])
    torch.testing.assert_close(mean, expected, atol=1e-4, rtol=0)


def test_the_gaussian_denoiser_is_wiener_s():
    schedule = NoiseSchedule.linear(40)
    spread = torch.tensor([0.1, 0.5, 2.0]).reshape(1, 1, 3).double()
    network = gaussian_denoiser(spread, schedule, variance="fixed_small")
    x = torch.ones(1, 1, 1, 3).double()
    ab = exact_alphas_cumprod(schedule)[20]
    wiener = math.sqrt(ab) * spread / (ab * spread + 1 - ab)
    mean, variance = network.posterior(x, torch.tensor([ab]))
    torch.testing.assert_close(mean[0], wiener)
    torch.testing.assert_close(variance[0], spread * (1 - ab) / (ab * spread + 1 - ab))


@pytest.mark.parametrize("prediction", list(Prediction))
def test_an_oracle_keeps_the_dtype_and_shape_of_a_network(prediction):
    images = oracle_images(3, shape=(3, 4, 4))
    for variance, channels in (("fixed_small", 3), ("learned_range", 6)):
        checkpoint = oracle_checkpoint(images, prediction=prediction, variance=variance)
        output = checkpoint.network(torch.zeros(2, 3, 4, 4), torch.tensor([0.0, 49.0]), None)
        assert output.dtype == torch.float32
        assert output.shape == (2, channels, 4, 4)
        assert output.isfinite().all()
