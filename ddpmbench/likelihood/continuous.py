r"""The bound in continuous time: the limit of infinitely many timesteps.

.. math:: L_\infty = L_T + L_0 + \frac{1}{2 D} \int_1^T
          \mathrm{E} \| x_0 - \hat x_0(x_u, u) \|^2 \; |\mathrm{SNR}'(u)| \, du

The term at t = 2..T estimates the integral from t - 1 to t, without bias, from one random time in
between. So designs, estimators and intervals are those of the discrete bound.

Source: Kingma et al. 2021, eq. 18.
"""

import copy
import dataclasses
from functools import cached_property
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.continuous import ContinuousTime
from ddpmbench.diffusion.model import Checkpoint, ModelOutput
from ddpmbench.diffusion.noise import philox_4x32
from ddpmbench.diffusion.process import GaussianDiffusion, signal_and_noise
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.likelihood.designs import CONTINUOUS_OF_KL, CONTINUOUS_TIMESTEP
from ddpmbench.likelihood.precision import (
    CONTINUOUS_DRAW,
    Correction,
    CorrectionDesign,
    density_in_log_t,
    differences,
    estimate_correction,
)
from ddpmbench.likelihood.terms import (
    BoundTerms,
    TermAddress,
    TermsPass,
    TermTable,
    prediction_errors,
    with_first_terms,
)

_ROUNDING = 1e-9  # of a timestep; parts are longer
_PLACE = 2**32 - 1
"""Block of a term's random numbers that its noise never uses."""


@dataclasses.dataclass(frozen=True, eq=False)
class Places:
    """The times of B terms in continuous time.

    Attributes:
        u: (B,) timesteps of the schedule that the network was trained on.
        log_snr: (B,) lambda(u).
        weight: (B,) of the squared error of x_start in the term: half of -dSNR/du, times the length
            of the interval u is drawn from.
    """

    u: Tensor
    log_snr: Tensor
    weight: Tensor


class PlaceTable:
    """Places in the parts of continuous time that end at the timesteps of a schedule.

    The schedule is the trained one, or `divided`: no part crosses a trained timestep.
    """

    def __init__(self, schedule: NoiseSchedule, device: torch.device, dtype: torch.dtype) -> None:
        time = ContinuousTime(schedule.trained or schedule)
        knots, cubics = time.cubics
        ends = schedule.original_timesteps.double().numpy()
        cubic = np.searchsorted(knots, ends[:-1] + _ROUNDING, side="right") - 1
        tables = (ends[:-1], np.diff(ends), ends[:-1] - knots[cubic], *cubics[:, cubic])
        self._tables = torch.from_numpy(np.stack(tables)).to(device, dtype)
        self._first = time.first, float(time.log_snr(time.first))

    def places(self, t: Tensor, fraction: Tensor) -> Places:
        """The places in the parts that end at t = 2..T; at t = 1 the first timestep itself.

        Args:
            t: (B,) int64 timesteps.
            fraction: (B,) in (0, 1), of the part.
        """
        start, length, offset, c3, c2, c1, c0 = self._tables[:, (t - 2).clamp(min=0)]
        within = fraction.to(length.dtype) * length
        d = offset + within
        log_snr = ((c3 * d + c2) * d + c1) * d + c0
        slope = (3 * c3 * d + 2 * c2) * d + c1
        u_1, log_snr_1 = self._first
        is_first = t == 1
        log_snr = log_snr.masked_fill(is_first, log_snr_1)
        return Places(
            u=(start + within).masked_fill(is_first, u_1),
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
    """`diffusion_terms` of the bound in continuous time, at given places.

    Raises:
        InputError: the network predicts the mean of x_{t-1}.
    """
    x_start, eps = x_start.to(diffusion.dtype), eps.to(diffusion.dtype)
    x = noisy(x_start, eps, places)
    prediction = diffusion.prediction_at(model_output, x, places.log_snr)
    errors = prediction_errors(diffusion, x_start, eps, *prediction)
    nats = places.weight * (errors.x_start_mse if diffusion.clip else errors.x_start_mse_noclip)
    step = diffusion.p_mean_variance(model_output, x, torch.ones_like(t))
    return with_first_terms(diffusion, step, x_start, t, nats, errors, decoder, first)


def noisy(x_start: Tensor, eps: Tensor, places: Places) -> Tensor:
    """(B, C, H, W) x at the places."""
    signal, noise = signal_and_noise(places.log_snr)
    return signal * x_start + noise * eps


class ContinuousTermsPass(TermsPass):
    """Evaluates the terms of the bound in continuous time.

    The place of a term in its part is a function of its address, or given by the design's
    fractions.
    """

    _fractions: Tensor | None = None

    @classmethod
    def like(cls, other: TermsPass) -> Self:
        """A pass with the same model, images, noise and network, and its own count."""
        return cls(
            other.checkpoint,
            other.images,
            seed=other.seed,
            decoder=other.decoder,
            device=other.device,
            model_output=other.model_output,
        )

    @cached_property
    def _table(self) -> PlaceTable:
        return PlaceTable(self.checkpoint.schedule, self.device, self.diffusion.dtype)

    def at(self, fractions: NDArray[np.float64]) -> Self:
        """The same at given (K,) fractions of parts, for draws from `CONTINUOUS_DRAW` on."""
        other = copy.copy(self)
        other._fractions = torch.from_numpy(fractions).to(self.device, self.diffusion.dtype)
        return other

    def _terms(
        self, x_start: Tensor, address: TermAddress, eps: Tensor, first: Tensor, labels: Tensor
    ) -> BoundTerms:
        places = self._table.places(address.t, self._fraction(address))
        x = noisy(x_start, eps.to(x_start.dtype), places)
        output = self.model_output(x, places.u, labels if len(labels) else None)
        return continuous_terms(
            self.diffusion,
            places,
            x_start,
            address.t,
            eps,
            output,
            decoder=self.decoder,
            first=first,
        )

    def _fraction(self, address: TermAddress) -> Tensor:
        if self._fractions is not None:
            return self._fractions[address.draw - CONTINUOUS_DRAW]
        word = philox_4x32((*address, torch.full_like(address.t, _PLACE)), self.seed)[0]
        return (word.to(self.diffusion.dtype) + 0.5) * 2.0**-32


@dataclasses.dataclass(frozen=True)
class ContinuousDesign(CorrectionDesign):
    """Terms at t = 2..T, evaluated both at the timestep and in continuous time.

    Their mean difference estimates the continuous bound minus the discrete one. It falls about as
    t^-2, and so does the density. Timesteps and places are stratified together.
    """

    first_draw: ClassVar[int] = CONTINUOUS_DRAW
    purposes: ClassVar[tuple[int, int]] = CONTINUOUS_TIMESTEP, CONTINUOUS_OF_KL
    num_decoder_terms: ClassVar[int] = 0

    @cached_property
    def density(self) -> NDArray[np.float64]:
        """(T - 1,) over t = 2..T."""
        of_square = np.arange(2, self.num_timesteps + 1) ** -2.0
        even = density_in_log_t(self.num_timesteps)
        return np.asarray(0.9 * of_square / of_square.sum() + 0.1 * even)

    @cached_property
    def fractions(self) -> NDArray[np.float64]:
        """(m,) position of each term in its part, in (0, 1)."""
        ends = np.append(0.0, np.cumsum(self.density))
        within = (self.strata - ends[self.t - 2]) / self.density[self.t - 2]
        return np.asarray(within.clip(1e-6, 1 - 1e-6))


@dataclasses.dataclass(frozen=True, eq=False)
class ContinuousDifference:
    """The bound in continuous time minus the discrete one, and the m terms it is estimated from.

    Attributes:
        correction: the difference, nats per dimension.
        t: (m,) timestep of each term.
        u: (m,) its place in continuous time, between t - 1 and t.
        eps_mse: (m,) mean squared error of the predicted noise at u.
        eps_mse_at_t: (m,) the same at t, with the same image and noise.
    """

    correction: Correction
    t: NDArray[np.int64]
    u: NDArray[np.float64]
    eps_mse: NDArray[np.float64]
    eps_mse_at_t: NDArray[np.float64]


def estimate_difference(
    design: ContinuousDesign, continuous: TermTable, discrete: TermTable
) -> ContinuousDifference:
    """The difference from the terms of a design, evaluated both ways; see `estimate_correction`."""
    return ContinuousDifference(
        estimate_correction(design, differences(design, [continuous], [discrete])),
        t=design.t,
        u=design.t - 1 + design.fractions,
        eps_mse=continuous.values["eps_mse"],
        eps_mse_at_t=discrete.values["eps_mse"],
    )


NUM_CONTINUOUS_TERMS = 500
"""Terms of a `ContinuousDesign`, each evaluated twice; fixed, so that a run can resume."""


def terms_pass_of(
    checkpoint: Checkpoint,
    images: ImageSet,
    *,
    seed: int,
    decoder: str,
    device: torch.device,
    model_output: ModelOutput | None = None,
) -> TermsPass:
    """The pass that evaluates a model's terms: in continuous time if its schedule is."""
    kind = ContinuousTermsPass if checkpoint.schedule.is_continuous else TermsPass
    return kind(
        checkpoint, images, seed=seed, decoder=decoder, device=device, model_output=model_output
    )
