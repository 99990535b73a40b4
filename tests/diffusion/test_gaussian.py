"""Normal distributions: against torch.distributions, and as a distribution over 256 levels."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from torch.distributions import Normal, kl_divergence

from ddpmbench.diffusion.data_range import UNIT_RANGE, DataRange
from ddpmbench.diffusion.gaussian import discretized_normal_log_prob, normal_kl

HALF_BIN = UNIT_RANGE.half_bin
LEVELS = UNIT_RANGE.to_model(torch.arange(256, dtype=torch.uint8))
many_examples = settings(deadline=None, max_examples=200)

means = st.floats(-3, 3)
far_means = st.floats(-1e3, 1e3)
log_variances = st.floats(-40, 10)


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def level_log_probs(mean: float, log_variance: float, **decoder: str) -> torch.Tensor:
    means = torch.full((256,), mean, dtype=torch.float64)
    return discretized_normal_log_prob(LEVELS, means, scalar(log_variance), **decoder)


ranges = st.builds(
    lambda low, width, levels: DataRange(low, low + width, levels),
    st.floats(-3, 3),
    st.sampled_from([0.1, 1.0, 2.0, 255.0]),
    st.integers(2, 256),
)


@many_examples
@given(ranges, st.floats(-1, 2), st.floats(-8, 8), st.sampled_from(["exact", "tanh"]))
def test_the_probabilities_of_the_levels_of_any_range_sum_to_one(of, place, log_ratio, decoder):
    width = of.high - of.low
    level = of.low + width * torch.arange(of.levels, dtype=torch.float64) / (of.levels - 1)
    mean = torch.full_like(level, of.low + place * width)
    log_variance = scalar(2 * (math.log(width / of.levels) + log_ratio))
    found = discretized_normal_log_prob(
        level, mean, log_variance, decoder=decoder, data_range=of
    ).exp()
    # The tanh's cumulative probabilities are clamped at 1e-12 each.
    assert found.sum().item() == pytest.approx(1.0, abs=1e-9)
    if decoder == "exact":
        # Half way between two levels one bin ends and the next begins.
        ends = ((level[1:] + level[:-1]) / 2 - mean[1:]) / (log_variance / 2).exp()
        np.testing.assert_allclose(found.cumsum(0)[:-1], norm.cdf(ends), atol=1e-9)


@many_examples
@given(means, st.floats(-12, 3), means, st.floats(-12, 3))
def test_normal_kl_is_that_of_torch(mean1, log_variance1, mean2, log_variance2):
    mean1, log_variance1, mean2, log_variance2 = map(
        scalar, (mean1, log_variance1, mean2, log_variance2)
    )
    expected = kl_divergence(
        Normal(mean1, (log_variance1 / 2).exp()), Normal(mean2, (log_variance2 / 2).exp())
    )
    got = normal_kl(mean1, log_variance1, mean2, log_variance2)
    assert torch.allclose(got, expected, rtol=1e-11, atol=1e-12)
    assert got >= -1e-15


def test_normal_kl_loses_nothing_where_the_variances_almost_agree():
    ratio = torch.logspace(-7, -3, 20, dtype=torch.float64)
    got = normal_kl(scalar(0), ratio, scalar(0), scalar(0))
    assert torch.allclose(got, ratio.square() / 4 + ratio**3 / 12, rtol=2e-6, atol=0)


@many_examples
@given(far_means | means, log_variances)
@example(-1e3, -40.0)
@example(1e3, 10.0)
@example(1.0, -40.0)
def test_probabilities_of_the_256_levels_are_finite_and_sum_to_one(mean, log_variance):
    log_prob = level_log_probs(mean, log_variance)
    assert (log_prob <= 0).all()
    assert log_prob.isfinite().all()
    # An edge is a number near 1 and has its rounding, which counts in units of the scale.
    rounding = 1e-12 + 2e-16 * math.exp(-log_variance / 2)
    assert log_prob.exp().sum() == pytest.approx(1.0, abs=rounding)


def test_a_far_tail_has_the_probability_that_mills_ratio_gives():
    # 100 standard deviations out, where a probability would be 0 in float64.
    log_prob = discretized_normal_log_prob(LEVELS[128:129], scalar(1.0)[None], scalar(-9.2103))
    z = (1.0 - LEVELS[128] - HALF_BIN).item() / math.exp(-9.2103 / 2)
    assert log_prob.item() == pytest.approx(norm.logsf(z), rel=1e-9)
    assert log_prob < -4000


@pytest.mark.parametrize("level", [1, 77, 128, 254])
@pytest.mark.parametrize("log_variance", [-9.8, -6.0, -2.0])
def test_an_inner_level_has_the_mass_of_its_bin(level, log_variance):
    x, mean, scale = LEVELS[level].item(), 0.1, math.exp(log_variance / 2)
    near, far = abs(x - mean) - HALF_BIN, abs(x - mean) + HALF_BIN  # the left tail has the digits
    log_near, log_far = (norm.logsf(distance, scale=scale) for distance in (near, far))
    expected = log_near + math.log(-math.expm1(log_far - log_near))
    got = discretized_normal_log_prob(scalar(x)[None], scalar(mean)[None], scalar(log_variance))
    assert got.item() == pytest.approx(expected, rel=1e-9)


def test_the_ends_are_open_to_the_outside():
    scale = math.exp(-3.0)
    for level, mean, expected in (
        (0, -1.2, norm.cdf(-1 + HALF_BIN, -1.2, scale)),
        (255, 1.2, norm.sf(1 - HALF_BIN, 1.2, scale)),
    ):
        got = discretized_normal_log_prob(LEVELS[level][None], scalar(mean)[None], scalar(-6.0))
        assert got.exp().item() == pytest.approx(expected, rel=1e-12)


@given(st.floats(-1.2, 1.2), st.floats(-9, 2))
def test_the_tanh_decoder_approximates_the_exact_one(mean, log_variance):
    # The tanh distribution function is within 1.8e-4 of the normal one.
    exact = level_log_probs(mean, log_variance, decoder="exact")
    tanh = level_log_probs(mean, log_variance, decoder="tanh")
    assert (exact.exp() - tanh.exp()).abs().max() < 4e-4
    near = exact > math.log(0.01)
    assert torch.allclose(exact[near], tanh[near], atol=0.04)


def test_the_tanh_decoder_has_the_authors_floor():
    got = discretized_normal_log_prob(LEVELS[:1], scalar(1.0)[None], scalar(-9.8), decoder="tanh")
    assert got.item() == pytest.approx(math.log(1e-12))


def test_an_unknown_decoder_is_refused():
    with pytest.raises(ValueError, match="'exact' or 'tanh'"):
        discretized_normal_log_prob(LEVELS, LEVELS, scalar(0), decoder="logistic")
