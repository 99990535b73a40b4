r"""The bound in continuous time: the limit of ever more timesteps between the first and the last.

.. math:: L_\infty = L_T + L_0 + \frac{1}{2 D} \int_1^T
          \mathrm{E} \| x_0 - \hat x_0(x_u, u) \|^2 \; |\mathrm{SNR}'(u)| \, du

The term at t = 2..T is the part of the integral from t - 1 to t, at a random place between them. So
its expectation is the part itself, and whatever makes a bound of terms makes this one, too:
designs, estimators and intervals.

Source: Kingma et al. 2021, eq. 18.
"""

import dataclasses
from functools import cached_property

import torch
from torch import Tensor

from ddpmbench.diffusion.continuous import ContinuousTime
from ddpmbench.diffusion.noise import philox_4x32
from ddpmbench.diffusion.process import GaussianDiffusion, signal_and_noise
from ddpmbench.likelihood.terms import BoundTerms, TermAddress, TermsPass, with_first_terms

_PLACE = 2**32 - 1
"""The block of random numbers of a term that its noise does not reach."""


@dataclasses.dataclass(frozen=True, eq=False)
class Places:
    """Where B terms lie in continuous time.

    Attributes:
        u: (B,) timesteps of the schedule that the network was trained on.
        log_snr: (B,) lambda(u).
        weight: (B,) of the squared error of x_start in the term: half of -dSNR/du, times the
            length of the interval that u is drawn from.
    """

    u: Tensor
    log_snr: Tensor
    weight: Tensor


class PlaceTable:
    """The cubics of `ContinuousTime` on a device."""

    def __init__(self, time: ContinuousTime, device: torch.device, dtype: torch.dtype) -> None:
        knots, cubics = time.cubics
        self._starts = torch.from_numpy(knots[:-1]).to(device, dtype)
        self._lengths = torch.from_numpy(knots[1:] - knots[:-1]).to(device, dtype)
        self._cubics = torch.from_numpy(cubics).to(device, dtype)
        self._first = time.first, float(time.log_snr(time.first))

    def places(self, t: Tensor, fraction: Tensor) -> Places:
        """The places in the intervals that end at t = 2..T; at t = 1 the first timestep itself.

        Args:
            t: (B,) int64 timesteps.
            fraction: (B,) in (0, 1), of the interval.
        """
        interval = (t - 2).clamp(min=0)
        length, (c3, c2, c1, c0) = self._lengths[interval], self._cubics[:, interval]
        within = fraction.to(length.dtype) * length
        is_first = t == 1
        log_snr = ((c3 * within + c2) * within + c1) * within + c0
        slope = (3 * c3 * within + 2 * c2) * within + c1
        u, log_snr_1 = self._first
        log_snr = log_snr.masked_fill(is_first, log_snr_1)
        return Places(
            u=(self._starts[interval] + within).masked_fill(is_first, u),
            log_snr=log_snr,
            weight=-slope * length * log_snr.exp() / 2,
        )


def continuous_terms(
    diffusion: GaussianDiffusion,
    places: Places,
    x_start: Tensor,
    t: Tensor,
    eps: Tensor,
    model_output: Tensor,
    *,
    decoder: str = "exact",
    first: Tensor | None = None,
) -> BoundTerms:
    """The terms of the bound in continuous time from a network's outputs, nats per dimension.

    Args:
        diffusion: the process; its clip is that of the terms.
        places: of the terms.
        x_start: (B, C, H, W).
        t: (B,) int64 timesteps.
        eps: (B, C, H, W) the noise in x.
        model_output: of the network for x at these places.
        decoder: "exact" or "tanh".
        first: (K,) int64, the positions of t = 1; None finds them.

    Raises:
        InputError: the network predicts the mean of x_{t-1}.
    """
    x_start, eps = x_start.to(diffusion.dtype), eps.to(diffusion.dtype)
    x = noisy(x_start, eps, places)
    unclipped, pred_eps = diffusion.prediction_at(model_output, x, places.log_snr)
    x_start_mse = _mean_square(x_start - diffusion.data_range.clamp(unclipped))
    x_start_mse_noclip = _mean_square(x_start - unclipped)
    nats = places.weight * (x_start_mse if diffusion.clip else x_start_mse_noclip)
    if first is None:
        first = (t == 1).nonzero().squeeze(1)
    step = diffusion.p_mean_variance(model_output, x, torch.ones_like(t))
    nats, decoders = with_first_terms(diffusion, step, x_start, first, nats, decoder)
    return BoundTerms(
        nats=nats,
        x_start_mse=x_start_mse,
        x_start_mse_noclip=x_start_mse_noclip,
        eps_mse=_mean_square(eps - pred_eps),
        decoders=decoders,
    )


def noisy(x_start: Tensor, eps: Tensor, places: Places) -> Tensor:
    """(B, C, H, W) x at the places."""
    signal, noise = signal_and_noise(places.log_snr)
    return signal * x_start + noise * eps


def _mean_square(x: Tensor) -> Tensor:
    return x.square().flatten(1).mean(1)


class ContinuousTermsPass(TermsPass):
    """Evaluates the terms of the bound in continuous time."""

    @cached_property
    def _table(self) -> PlaceTable:
        time = ContinuousTime(self.checkpoint.schedule)
        return PlaceTable(time, self.device, self.diffusion.dtype)

    def _terms(
        self, x_start: Tensor, of: TermAddress, eps: Tensor, first: Tensor, labels: Tensor
    ) -> BoundTerms:
        block = torch.full_like(of.t, _PLACE)
        word = philox_4x32((*of, block), self.seed)[0]
        places = self._table.places(of.t, (word.to(self.diffusion.dtype) + 0.5) * 2.0**-32)
        x = noisy(x_start, eps.to(x_start.dtype), places)
        output = self._model_output(x, places.u, labels if len(labels) else None)
        return continuous_terms(
            self.diffusion, places, x_start, of.t, eps, output, decoder=self.decoder, first=first
        )
