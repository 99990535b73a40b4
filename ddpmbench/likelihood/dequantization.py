r"""Dequantization: a bound on the probability of an image's levels from a density of x_1.

.. math::
    -\log P(x_0) \le \mathbb E_{q(x_1 \mid x_0)}
    \left[ -\log P(x_0 \mid x_1) + \log q(x_1 \mid x_0) - \log p(x_1) \right]

It holds for every q. `decoder` takes the forward process, and P(x_0 | x_1) is the decoder of the
variational bound. The others stay in the bin of x_0, where P(x_0 | x_1) = 1.
"""

import math
from enum import StrEnum

import torch
from torch import Tensor

from ddpmbench.diffusion.noise import normal_noise, philox_4x32
from ddpmbench.diffusion.process import GaussianDiffusion

_LOG_SQRT_TWO_PI = 0.5 * math.log(2 * math.pi)


class Dequantization(StrEnum):
    """The distribution q(x_1 | x_0)."""

    DECODER = "decoder"
    """The forward process, N(a x_0, s^2); x_0 is decoded as in the variational bound."""
    UNIFORM = "uniform"
    """a x_0 plus uniform noise over the bin (Theis et al. 2016; Song et al. 2021)."""
    TRUNCATED_NORMAL = "truncated-normal"
    """The forward process truncated to the bin (Zheng et al. 2023)."""


def sample_x_1(
    dequantization: Dequantization,
    diffusion: GaussianDiffusion,
    x_start: Tensor,
    image: Tensor,
    *,
    seed: int,
) -> tuple[Tensor, Tensor]:
    r"""A sample of q(x_1 | x_0) and its log density.

    .. math::
        x_1 = a x_0 + s \epsilon, \qquad
        \epsilon \sim \mathcal N(0, 1), \quad
        \mathcal U(-\tau, \tau) \quad \text{or} \quad
        \mathcal N(0, 1) \text{ on } [-\tau, \tau], \qquad \tau = a h / s

    with h half the width of a bin. The noise has the address (image, t = 1, draw 0), so that the
    decoder's x_1 is that of the bound's term at t = 1.

    Args:
        dequantization: the distribution q.
        diffusion: the process, on the device of `x_start`.
        x_start: (B, C, H, W) levels of the data's range.
        image: (B,) int64, indices in the image set.
        seed: of the noise, 0 <= seed < 2^64.

    Returns:
        x_1 (B, C, H, W), and log q (B,) in nats.

    Source: Theis, van den Oord & Bethge 2016; Zheng et al. 2023, "Improved techniques for maximum
    likelihood estimation for diffusion ODEs", section 4.
    """
    shape = tuple(x_start.shape[1:])
    first, draw = torch.ones_like(image), torch.zeros_like(image)
    signal = math.exp(0.5 * float(diffusion.schedule.log_alphas_cumprod[0]))
    noise = math.sqrt(float(diffusion.schedule.one_minus_alphas_cumprod[0]))
    edge = signal * diffusion.data_range.half_bin / noise
    if dequantization is Dequantization.DECODER:
        eps = normal_noise(image, first, draw, shape=shape, seed=seed).to(x_start)
        log_density = -0.5 * eps.square() - _LOG_SQRT_TWO_PI
    else:
        words = noise_words(image, first, draw, shape=shape, seed=seed)
        symmetric = (words.to(x_start.dtype) + 0.5) * 2.0**-31 - 1.0  # uniform on (-1, 1)
        if dequantization is Dequantization.UNIFORM:
            eps = edge * symmetric
            log_density = torch.full_like(eps, -math.log(2 * edge))
        else:
            inside = math.erf(edge / math.sqrt(2))
            eps = (math.sqrt(2) * torch.erfinv(inside * symmetric)).clamp(-edge, edge)
            log_density = -0.5 * eps.square() - _LOG_SQRT_TWO_PI - math.log(inside)
    x_1 = signal * x_start + noise * eps
    return x_1, (log_density - math.log(noise)).flatten(1).sum(1)


def noise_words(
    image: Tensor, t: Tensor, draw: Tensor, *, shape: tuple[int, ...], seed: int
) -> Tensor:
    """(B, C, H, W) int64 words of `normal_noise`, uniform on [0, 2^32), equal on every device."""
    size = math.prod(shape)
    block = torch.arange((size + 3) // 4, device=image.device)
    words = philox_4x32((image[:, None], t[:, None], draw[:, None], block[None, :]), seed)
    return torch.stack(words, dim=-1).flatten(1)[:, :size].reshape(-1, *shape)
