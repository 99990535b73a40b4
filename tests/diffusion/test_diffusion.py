"""The diffusion process against what Bayes' rule and the published conventions say of it."""

import math

import pytest
import torch

from ddpmbench.diffusion.process import GaussianDiffusion, Prediction, Variance
from ddpmbench.diffusion.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule.linear(60)
STEPS = torch.arange(1, 61)
GENERATOR = torch.Generator().manual_seed(0)
X_START = torch.rand(60, 2, 3, 3, dtype=torch.float64, generator=GENERATOR) * 2 - 1
EPS = torch.randn(60, 2, 3, 3, dtype=torch.float64, generator=GENERATOR)
FIXED = (Variance.FIXED_SMALL, Variance.FIXED_LARGE)
every_prediction = pytest.mark.parametrize("prediction", list(Prediction))


def column(values: torch.Tensor) -> torch.Tensor:
    return values[:, None, None, None]


def process(**kwargs) -> GaussianDiffusion:
    return GaussianDiffusion(SCHEDULE, **kwargs)


X_T = process().q_sample(X_START, STEPS, EPS)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-10) -> bool:
    a, b = torch.broadcast_tensors(a, b)
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance)


def output_for(prediction: Prediction, x_start: torch.Tensor, x_t: torch.Tensor) -> torch.Tensor:
    """What a network must output to say that x_start underlies x_t."""
    signal = column(SCHEDULE.alphas_cumprod.sqrt())
    noise = column((1 - SCHEDULE.alphas_cumprod).sqrt())
    eps = (x_t - signal * x_start) / noise
    return {
        Prediction.EPSILON: eps,
        Prediction.X_START: x_start,
        Prediction.V: signal * eps - noise * x_start,
        Prediction.SCORE: -eps / noise,
        Prediction.VELOCITY: eps - x_start,
        Prediction.EDM: edm(x_start, x_t / signal, noise / signal),
        Prediction.PREVIOUS_MEAN: process().q_posterior_mean_variance(x_start, x_t, STEPS)[0],
    }[prediction]


def edm(x_start: torch.Tensor, noisy: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """F of x_start = c_skip noisy + c_out F, noisy = x_start + sigma eps (Karras et al. 2022)."""
    width = sigma**2 + 0.25
    return (x_start - 0.25 / width * noisy) / (0.5 * sigma / width.sqrt())


def test_the_marginal_is_what_the_chain_of_steps_composes_to():
    one, zero = torch.ones_like(X_START), torch.zeros_like(X_START)
    signal = process().q_sample(one, STEPS, zero)[:, 0, 0, 0]
    noise = process().q_sample(zero, STEPS, one)[:, 0, 0, 0]
    mean, variance = 1.0, 0.0
    for i, beta in enumerate(SCHEDULE.betas.tolist()):
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        assert signal[i].item() == pytest.approx(mean, rel=1e-12)
        assert noise[i].item() ** 2 == pytest.approx(variance, rel=1e-12)
    assert close(X_T, column(signal) * X_START + column(noise) * EPS)


def test_the_posterior_is_bayes_rule():
    # q(x_{t-1} | x_t, x_0) is the product of the normal q(x_{t-1} | x_0) and the likelihood
    # q(x_t | x_{t-1}), a normal in x_{t-1} as well: precisions add, means are weighted by them.
    t = STEPS[1:]
    mean, log_variance = process().q_posterior_mean_variance(X_START[1:], X_T[1:], t)
    previous, alpha = SCHEDULE.alphas_cumprod[:-1], 1 - SCHEDULE.betas[1:]
    prior_precision = column(1 / (1 - previous))
    likelihood_precision = column(alpha / SCHEDULE.betas[1:])
    expected_variance = 1 / (prior_precision + likelihood_precision)
    expected_mean = expected_variance * (
        prior_precision * column(previous.sqrt()) * X_START[1:]
        + likelihood_precision * X_T[1:] / column(alpha.sqrt())
    )
    assert close(mean, expected_mean)
    assert log_variance.shape == (59, 1, 1, 1)
    assert close(log_variance.exp() / expected_variance, torch.ones(()).double())


def test_the_posterior_at_the_first_step_is_the_data_with_the_second_variance():
    mean, log_variance = process().q_posterior_mean_variance(
        X_START[:2], X_T[:2], torch.tensor([1, 2])
    )
    assert close(mean[0], X_START[0], 1e-14)
    assert log_variance[0] == log_variance[1]


@every_prediction
@pytest.mark.parametrize("clip", [True, False])
def test_the_truth_gives_the_posterior_whatever_is_predicted(prediction, clip):
    step = process(prediction=prediction, clip=clip).p_mean_variance(
        output_for(prediction, X_START, X_T), X_T, STEPS
    )
    expected_mean, _ = process().q_posterior_mean_variance(X_START, X_T, STEPS)
    assert close(step.pred_x_start, X_START)
    assert close(step.unclipped_pred_x_start, X_START)
    assert close(step.pred_eps, EPS)
    assert close(step.mean, expected_mean)


@every_prediction
def test_the_clip_acts_on_pred_x_start_before_the_mean_is_formed(prediction):
    wrong = X_START + 0.7 * EPS.flip(0)
    output = output_for(prediction, wrong, X_T)
    clipped = process(prediction=prediction, clip=True).p_mean_variance(output, X_T, STEPS)
    free = process(prediction=prediction, clip=False).p_mean_variance(output, X_T, STEPS)
    assert (wrong.abs() > 1).any()
    assert close(clipped.pred_x_start, wrong.clamp(-1, 1), 1e-9)
    assert close(free.pred_x_start, wrong, 1e-9)
    assert close(free.mean, process().q_posterior_mean_variance(wrong, X_T, STEPS)[0], 1e-9)
    for name in ("unclipped_pred_x_start", "pred_eps", "log_variance"):
        assert torch.equal(getattr(clipped, name), getattr(free, name))
    if prediction is Prediction.PREVIOUS_MEAN:  # as in the authors' code
        assert torch.equal(clipped.mean, output)
        assert torch.equal(free.mean, output)
    else:
        expected, _ = process().q_posterior_mean_variance(wrong.clamp(-1, 1), X_T, STEPS)
        assert close(clipped.mean, expected, 1e-9)
        assert not close(clipped.mean, free.mean, 1e-3)


@pytest.mark.parametrize("variance", FIXED)
def test_fixed_variances_have_the_second_posterior_variance_at_the_first_step(variance):
    step = process(variance=variance).p_mean_variance(EPS, X_T, STEPS)
    table = SCHEDULE.posterior_variance if variance is Variance.FIXED_SMALL else SCHEDULE.betas
    expected = table.clone()
    expected[0] = SCHEDULE.posterior_variance[1]
    assert step.log_variance.shape == (60, 1, 1, 1)
    assert close(step.log_variance, column(expected.log()), 1e-12)


@pytest.mark.parametrize("prediction", [Prediction.EPSILON, Prediction.X_START])
def test_learned_range_runs_from_posterior_variance_to_beta(prediction):
    d = process(prediction=prediction, variance=Variance.LEARNED_RANGE, clip=False)
    small = SCHEDULE.posterior_variance.log()
    small[0] = small[1]
    large = SCHEDULE.betas.log()
    for value, expected in ((-1, small), (1, large), (0, (small + large) / 2)):
        output = torch.cat([EPS, torch.full_like(EPS, value)], dim=1)
        step = d.p_mean_variance(output, X_T, STEPS)
        assert step.log_variance.shape == EPS.shape
        assert close(step.log_variance, column(expected), 1e-12)
        fixed = process(prediction=prediction, clip=False).p_mean_variance(EPS, X_T, STEPS)
        assert torch.equal(step.mean, fixed.mean)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("variance", FIXED)
def test_a_float32_network_is_read_in_float64(clip, variance):
    d = process(variance=variance, clip=clip)
    step = d.p_mean_variance(EPS.float(), X_T, STEPS)
    assert step.mean.dtype == step.log_variance.dtype == torch.float64
    same = d.p_mean_variance(EPS.float().double(), X_T, STEPS)
    assert torch.equal(step.mean, same.mean)


def test_a_schedule_of_one_step_keeps_beta():
    d = GaussianDiffusion(NoiseSchedule.linear(60).respaced(1), variance=Variance.FIXED_SMALL)
    x = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    step = d.p_mean_variance(x, x, torch.tensor([1]))
    assert step.log_variance.item() == pytest.approx(d.schedule.betas[0].log().item())
