"""Training objectives."""

import contextlib
import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ddpmbench.diffusion.process import GaussianDiffusion
from ddpmbench.likelihood.terms import diffusion_terms
from ddpmbench.train.recipe import Objective

HYBRID_WEIGHT = 0.001
"""lambda of L_hybrid = L_simple + lambda L_vlb (Nichol & Dhariwal 2021, section 3.1)."""


def training_loss(
    objective: Objective,
    diffusion: GaussianDiffusion,
    x_start: Tensor,
    t: Tensor,
    eps: Tensor,
    output: Tensor,
) -> Tensor:
    """The loss of a batch, differentiable in the network's output.

    Args:
        objective: L_simple, L_vlb or L_hybrid.
        diffusion: the process; the network predicts the noise.
        x_start: (B, C, H, W) in [-1, 1].
        t: (B,) timesteps in 1..T, drawn uniformly.
        eps: (B, C, H, W) the noise in x_t.
        output: (B, C, H, W) the network's output; (B, 2C, H, W) where a variance is learned.

    Returns:
        L_simple: mean squared error of the noise; L_vlb: an unbiased estimate of the sum of the
        terms in nats per dimension; L_hybrid: their weighted sum.

    Source: Ho et al. 2020, eqs. 5 and 14; Nichol & Dhariwal 2021, eq. 16.
    """
    channels = x_start.shape[1]
    simple = (eps - output[:, :channels]).square().mean()
    if objective == "simple":
        return simple
    if objective == "hybrid":
        frozen = torch.cat([output[:, :channels].detach(), output[:, channels:]], dim=1)
        bound = _bound_estimate(diffusion, x_start, t, eps, frozen)
        return simple + HYBRID_WEIGHT * bound
    return _bound_estimate(diffusion, x_start, t, eps, output)


def _bound_estimate(
    diffusion: GaussianDiffusion, x_start: Tensor, t: Tensor, eps: Tensor, output: Tensor
) -> Tensor:
    # Clipping would cut the gradient where it matters; the bound is trained without it.
    unclipped = dataclasses.replace(diffusion, clip=False)
    terms = diffusion_terms(unclipped, x_start, t, eps, output)
    return diffusion.schedule.num_timesteps * terms.nats.mean()


def sliced_loss(
    diffusion: GaussianDiffusion, x_t: Tensor, t: Tensor, output: Tensor, probe: Tensor
) -> Tensor:
    r"""Sliced score matching at every noise level, weighted like L_simple.

    With the score :math:`s_\theta = -\epsilon_\theta / s_t` and D dimensions,

    .. math::
        1 + \frac{2 s_t^2}{D} \left( v^T \nabla_x (v^T s_\theta(x_t))
        + \tfrac12 \lVert s_\theta(x_t) \rVert^2 \right)

    Its expectation over the noise and v is that of L_simple, but it needs neither the noise in x_t
    nor the process that added it. It does not depend on the scale of x_t.

    Args:
        diffusion: the process; the network predicts the noise.
        x_t: (B, C, H, W), the input of the output, with gradients.
        t: (B,) timesteps in 1..T, drawn uniformly.
        output: (B, C, H, W) the network's output.
        probe: (B, C, H, W) v, with mean 0 and covariance I.

    Returns:
        The mean over the batch, differentiable in the weights.

    Source: Song, Garg, Shi & Ermon 2019, "Sliced score matching", eq. 8, with the variance
    reduction of its section 3.2.
    """
    (gradient,) = torch.autograd.grad((output * probe).sum(), x_t, create_graph=True)
    noise = diffusion.schedule.one_minus_alphas_cumprod.sqrt().float().to(t.device)[t - 1]
    trace = noise[:, None, None, None] * gradient * probe
    return 1 + (output.square() - 2 * trace).mean()


@contextlib.contextmanager
def twice_differentiable() -> Iterator[None]:
    """Within, attention is computed so that gradients can be differentiated."""
    with sdpa_kernel(SDPBackend.MATH):
        yield
