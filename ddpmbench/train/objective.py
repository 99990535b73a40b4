"""The objectives: L_simple, L_vlb and L_hybrid."""

import dataclasses

import torch
from torch import Tensor

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
        objective: "simple", "vlb" or "hybrid".
        diffusion: the process; the network predicts the noise.
        x_start: (B, C, H, W) in [-1, 1].
        t: (B,) steps in 1..T, drawn uniformly.
        eps: (B, C, H, W) the noise in x_t.
        output: (B, C, H, W) the network's output; (B, 2C, H, W) where a variance is learned.

    Returns:
        L_simple: mean squared error of the noise; L_vlb: an unbiased estimate of the sum of the
        terms in nats per dimension; or their weighted sum.

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
