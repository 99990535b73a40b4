"""The bound as improved-diffusion's `calc_bpd_loop` computes it, or that loop itself.

`PerStepLoop` is NOT the authors' code. It is a plain re-implementation with the same operations, in
the same numbers (a test counts them), to measure their cost where the original is not installed:
coefficients are float64 numpy tables, copied to the device for each look-up; all images of a batch
share a timestep; the decoder term is computed at every timestep and discarded at all but the first;
the mean squared errors are computed along the way. `--improved-diffusion PATH` measures the
authors' class.
"""

import importlib
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpmbench.errors import InputError

BPD = math.log(2.0)
COPIES_A_STEP = 16
"""Tables copied to the device per timestep, besides the timestep itself."""

Network = Callable[[Tensor, Tensor], Tensor]
"""From x_t and the timestep, counted from 0, to the predicted noise."""


class PerStepLoop:
    """The loop for predicted noise, variance "fixed_large", clipping, and the tanh decoder.

    Source: Nichol & Dhariwal 2021, improved_diffusion/gaussian_diffusion.py, `calc_bpd_loop`,
    `_vb_terms_bpd`, `p_mean_variance` and `_extract_into_tensor`.
    """

    label = "re-implementation of improved-diffusion's per-step loop"

    def __init__(self, betas: np.ndarray) -> None:
        """Make the tables from (T,) variances."""
        bar = np.cumprod(1.0 - betas)
        previous = np.append(1.0, bar[:-1])
        variance = betas * (1.0 - previous) / (1.0 - bar)
        self.num_timesteps = len(betas)
        self.signal, self.noise = np.sqrt(bar), np.sqrt(1.0 - bar)
        self.inverse_signal, self.noise_to_signal = np.sqrt(1.0 / bar), np.sqrt(1.0 / bar - 1)
        self.posterior_variance = variance
        self.log_posterior_variance = np.log(np.append(variance[1], variance[1:]))
        self.posterior_x_start = betas * np.sqrt(previous) / (1.0 - bar)
        self.posterior_x_t = (1.0 - previous) * np.sqrt(1.0 - betas) / (1.0 - bar)
        self.model_variance = np.append(variance[1], betas[1:])
        self.log_model_variance = np.log(self.model_variance)

    def calc_bpd_loop(self, network: Network, x_start: Tensor) -> dict[str, Tensor]:
        """The terms of all timesteps, and their sum.

        Args:
            network: the model.
            x_start: (B, C, H, W) in [-1, 1], float32.

        Returns:
            "total_bpd" and "prior_bpd" (B,), "vb", "xstart_mse" and "mse" (B, T), from the last
            timestep to the first; bits per dimension.
        """
        terms, x_start_errors, eps_errors = [], [], []
        for timestep in reversed(range(self.num_timesteps)):
            t = torch.tensor([timestep] * len(x_start), device=x_start.device)
            eps = torch.randn_like(x_start)
            x_t = _at(self.signal, t, x_start) * x_start + _at(self.noise, t, x_start) * eps
            with torch.no_grad():
                term, pred_x_start = self._term(network, x_start, x_t, t)
            terms.append(term)
            x_start_errors.append(_mean((pred_x_start - x_start) ** 2))
            scaled = _at(self.inverse_signal, t, x_t) * x_t - pred_x_start
            eps_errors.append(_mean((scaled / _at(self.noise_to_signal, t, x_t) - eps) ** 2))
        bound = torch.stack(terms, dim=1)
        prior = self._prior(x_start)
        return {
            "total_bpd": bound.sum(dim=1) + prior,
            "prior_bpd": prior,
            "vb": bound,
            "xstart_mse": torch.stack(x_start_errors, dim=1),
            "mse": torch.stack(eps_errors, dim=1),
        }

    def _term(
        self, network: Network, x_start: Tensor, x_t: Tensor, t: Tensor
    ) -> tuple[Tensor, Tensor]:
        true_mean, _, true_log_variance = self._posterior(x_start, x_t, t)
        output = network(x_t, t)
        _at(self.model_variance, t, x_t)  # also looked up by the authors; only samplers use it
        log_variance = _at(self.log_model_variance, t, x_t)
        eps_part = _at(self.noise_to_signal, t, x_t) * output
        pred_x_start = (_at(self.inverse_signal, t, x_t) * x_t - eps_part).clamp(-1, 1)
        mean, _, _ = self._posterior(pred_x_start, x_t, t)
        kl = _mean(_normal_kl(true_mean, true_log_variance, mean, log_variance)) / BPD
        nll = -_discretized_log_likelihood(x_start, mean, 0.5 * log_variance)
        return torch.where(t == 0, _mean(nll) / BPD, kl), pred_x_start

    def _posterior(self, x_start: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean = _at(self.posterior_x_start, t, x_t) * x_start + _at(self.posterior_x_t, t, x_t) * x_t
        variance = _at(self.posterior_variance, t, x_t)
        return mean, variance, _at(self.log_posterior_variance, t, x_t)

    def _prior(self, x_start: Tensor) -> Tensor:
        t = torch.tensor([self.num_timesteps - 1] * len(x_start), device=x_start.device)
        mean = _at(self.signal, t, x_start) * x_start
        log_variance = _at(np.log(self.noise**2), t, x_start)
        zero = torch.zeros((), device=x_start.device)
        return _mean(_normal_kl(mean, log_variance, zero, zero)) / BPD


def improved_diffusion(checkout: Path, betas: np.ndarray):
    """The authors' own class for these variances, from a checkout of improved-diffusion.

    Raises:
        InputError: the checkout lacks it.
    """
    sys.path.insert(0, str(checkout))
    try:
        theirs = importlib.import_module("improved_diffusion.gaussian_diffusion")
    except ImportError as error:
        raise InputError(
            f"--improved-diffusion {checkout}: no improved_diffusion/gaussian_diffusion.py that "
            f"can be imported ({error}); name the folder of a checkout"
        ) from error
    finally:
        sys.path.remove(str(checkout))
    loop = theirs.GaussianDiffusion(
        betas=betas,
        model_mean_type=theirs.ModelMeanType.EPSILON,
        model_var_type=theirs.ModelVarType.FIXED_LARGE,
        loss_type=theirs.LossType.MSE,
    )
    loop.label = "improved-diffusion's calc_bpd_loop"
    return loop


def _at(table: np.ndarray, t: Tensor, like: Tensor) -> Tensor:
    """The entries of a table at (B,) timesteps, in the shape of `like`."""
    values = torch.from_numpy(table).to(device=t.device)[t].float()
    while values.ndim < like.ndim:
        values = values[..., None]
    return values.expand(like.shape)


def _mean(x: Tensor) -> Tensor:
    return x.mean(dim=list(range(1, x.ndim)))


def _normal_kl(mean1: Tensor, log_var1: Tensor, mean2: Tensor, log_var2: Tensor) -> Tensor:
    ratio = torch.exp(log_var1 - log_var2)
    return 0.5 * (-1.0 + log_var2 - log_var1 + ratio + (mean1 - mean2) ** 2 * torch.exp(-log_var2))


def _discretized_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    centered, inverse = x - mean, torch.exp(-log_scale)
    upper = _approximate_cdf(inverse * (centered + 1.0 / 255.0))
    lower = _approximate_cdf(inverse * (centered - 1.0 / 255.0))
    log_upper = torch.log(upper.clamp(min=1e-12))
    log_above = torch.log((1.0 - lower).clamp(min=1e-12))
    log_between = torch.log((upper - lower).clamp(min=1e-12))
    return torch.where(x < -0.999, log_upper, torch.where(x > 0.999, log_above, log_between))


def _approximate_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3))))
