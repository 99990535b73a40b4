"""Normal distributions: divergence, and the probability of a level."""

import math

import torch
from torch import Tensor
from torch.special import log_ndtr

from ddpmbench.diffusion.data_range import UNIT_RANGE, DataRange

_SMALLEST_CDF = 1e-12
_FAR = 100.0  # in standard deviations


def normal_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL divergence of two diagonal normals, element by element.

    Args:
        mean1: mean of the first distribution, any shape.
        log_variance1: its log variance, broadcastable to `mean1`.
        mean2: mean of the second distribution.
        log_variance2: its log variance.

    Returns:
        KL(N(mean1, exp(log_variance1)) || N(mean2, exp(log_variance2))) in nats.

    Source: Ho, Jain & Abbeel 2020, eq. 5 and appendix A.
    """
    log_ratio = log_variance1 - log_variance2
    # expm1(r) - r loses nothing where the two variances agree.
    return 0.5 * (
        torch.expm1(log_ratio) - log_ratio + (mean1 - mean2).square() * torch.exp(-log_variance2)
    )


def discretized_normal_log_prob(
    x_start: Tensor,
    mean: Tensor,
    log_variance: Tensor,
    *,
    decoder: str = "exact",
    data_range: DataRange = UNIT_RANGE,
) -> Tensor:
    """Log probability of levels under a normal integrated over their bins.

    A bin reaches half way to the next level, 1/255 to each side on [-1, 1] with 256 levels; those
    of the lowest and the highest level are open to the outside.

    Args:
        x_start: levels of the data's range, as `DataRange.to_model` gives them; any shape.
        mean: mean of the normal, the same shape.
        log_variance: its log variance, broadcastable.
        decoder: "exact" takes the normal distribution function in log space and subtracts in the
            smaller tail, so that every value is finite and the levels' probabilities sum to one;
            "tanh" is the approximation of the authors' code with its clamp at 1e-12.
        data_range: where the levels lie, and how many there are.

    Returns:
        Log probabilities in nats, the shape of `x_start`.

    Source: Ho, Jain & Abbeel 2020, eq. 13.
    """
    half_bin = data_range.half_bin
    inverse_scale = torch.exp(-0.5 * log_variance)
    upper = (x_start - mean + half_bin) * inverse_scale
    lower = (x_start - mean - half_bin) * inverse_scale
    is_lowest = x_start < data_range.low + half_bin
    is_highest = x_start > data_range.high - half_bin
    if decoder == "exact":
        return _exact_log_prob(lower, upper, is_lowest, is_highest)
    if decoder == "tanh":
        return _tanh_log_prob(lower, upper, is_lowest, is_highest)
    raise ValueError(f"decoder must be 'exact' or 'tanh', not {decoder!r}")


def _exact_log_prob(lower: Tensor, upper: Tensor, is_lowest: Tensor, is_highest: Tensor) -> Tensor:
    # P(lower < z < upper) = P(-upper < z < -lower): reflect so that both ends lie in the left
    # tail, where the distribution function is small and its logarithm precise.
    reflect = lower + upper > 0
    left = torch.where(reflect, -upper, lower)
    right = torch.where(reflect, -lower, upper)
    # An open end lies so far out that nothing is left to subtract.
    right = torch.where(is_lowest, upper, torch.where(is_highest, -lower, right))
    left = torch.where(is_lowest | is_highest, right.clamp(max=0.0) - _FAR, left)
    log_right: Tensor = log_ndtr(right)
    return log_right + _log1mexp(log_right - log_ndtr(left))


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(-x)) for x > 0 (Maechler 2012)."""
    return torch.where(x < math.log(2.0), torch.log(-torch.expm1(-x)), torch.log1p(-torch.exp(-x)))


def _tanh_log_prob(lower: Tensor, upper: Tensor, is_lowest: Tensor, is_highest: Tensor) -> Tensor:
    cdf_upper, cdf_lower = _tanh_cdf(upper), _tanh_cdf(lower)
    probability = torch.where(
        is_lowest, cdf_upper, torch.where(is_highest, 1.0 - cdf_lower, cdf_upper - cdf_lower)
    )
    return probability.clamp(min=_SMALLEST_CDF).log()


def _tanh_cdf(z: Tensor) -> Tensor:
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * z.pow(3))))
