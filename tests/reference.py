"""A second implementation of the bound's terms: plain, float64, one row at a time.

It shares nothing with the package: its own schedule, its own noise, scipy's normal distribution,
diffusers' network.
"""

import math

import numpy as np
import torch
from scipy import stats


def reference_term(network, x_start, t, eps, *, num_timesteps=1000, variance="fixed_large"):
    """One term in bits/dim: Ho et al. 2020, eqs. 5 and 13, linear schedule, eps, clip.

    Args:
        network: a diffusers UNet2DModel in float64.
        x_start: (C, H, W) float64 array in [-1, 1].
        t: 1..T.
        eps: (C, H, W) float64 array.
    """
    beta = np.linspace(1e-4, 0.02, num_timesteps)
    bar = np.cumprod(1 - beta)

    def posterior_variance(t):
        return beta[t - 1] * (1 - bar[t - 2]) / (1 - bar[t - 1])

    x_t = math.sqrt(bar[t - 1]) * x_start + math.sqrt(1 - bar[t - 1]) * eps
    with torch.no_grad():
        output = network(torch.from_numpy(x_t)[None], t - 1).sample[0].numpy()
    predicted = (x_t - math.sqrt(1 - bar[t - 1]) * output) / math.sqrt(bar[t - 1])
    predicted = np.clip(predicted, -1, 1)
    if t == 1:
        scale = math.sqrt(posterior_variance(2))
        level = np.rint((x_start + 1) * 127.5)
        low = np.where(level == 0, -np.inf, (x_start - 1 / 255 - predicted) / scale)
        high = np.where(level == 255, np.inf, (x_start + 1 / 255 - predicted) / scale)
        flip = low > 0
        low, high = np.where(flip, -high, low), np.where(flip, -low, high)
        return -np.log2(stats.norm.cdf(high) - stats.norm.cdf(low)).mean()
    true = posterior_variance(t)
    model = beta[t - 1] if variance == "fixed_large" else true
    weight = math.sqrt(bar[t - 2]) * beta[t - 1] / (1 - bar[t - 1])
    distance = ((weight * (x_start - predicted)) ** 2).mean()
    nats = 0.5 * (math.log(model / true) + true / model - 1 + distance / model)
    return nats / math.log(2)
