"""Normal distributions: KL divergence, and the probability of a discrete level."""

import math

import torch
from torch import Tensor
from torch.special import log_ndtr

from ddpmbench.diffusion.data_range import UNIT_RANGE, DataRange

_SMALLEST_CDF = 1e-12
_FAR = 100.0  # in standard deviations


def normal_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    r"""KL divergence of two diagonal normals, element by element.

    .. math::
        D_{KL}(\mathcal N(\mu_1, \sigma_1^2) \,\|\, \mathcal N(\mu_2, \sigma_2^2))
        = \frac12 \left( \frac{\sigma_1^2}{\sigma_2^2} - 1 - \log \frac{\sigma_1^2}{\sigma_2^2}
        + \frac{(\mu_1 - \mu_2)^2}{\sigma_2^2} \right)

    Args:
        mean1: mean of the first distribution, any shape.
        log_variance1: its log variance, broadcastable to `mean1`.
        mean2: mean of the second distribution.
        log_variance2: its log variance.

    Returns:
        Nats, the broadcast shape.

    Source: Ho, Jain & Abbeel 2020, eq. 5 and appendix A.
    """
    log_ratio = log_variance1 - log_variance2
    # expm1(r) - r does not cancel where the two variances agree.
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
    r"""Log probability of discrete levels under a normal integrated over their bins.

    .. math::
        \log p(x) = \log \left[ \Phi\left(\frac{x + h - \mu}{\sigma}\right)
        - \Phi\left(\frac{x - h - \mu}{\sigma}\right) \right]

    A bin extends half way to the next level, h = 1/255 on [-1, 1] with 256 levels; the first term
    is 1 at the highest level, the second 0 at the lowest.

    Args:
        x_start: levels of the data's range, as `DataRange.to_model` gives them; any shape.
        mean: mean of the normal, the same shape.
        log_variance: its log variance, broadcastable.
        decoder: "exact" evaluates the normal distribution function in log space, in the smaller
            tail, so that every value is finite and the levels' probabilities sum to one; "tanh" is
            the approximation of the authors' code with its clamp at 1e-12.
        data_range: lowest and highest level, and their number.

    Returns:
        Nats, the shape of `x_start`.

    Raises:
        ValueError: `decoder` is neither.

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
    # An open end lies so far out that there is nothing to subtract.
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
