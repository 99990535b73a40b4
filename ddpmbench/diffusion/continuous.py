"""Continuous time: the log SNR between the timesteps that a network was trained on."""

import dataclasses
import math
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import PchipInterpolator

from ddpmbench.diffusion.schedule import MAX_TIMESTEPS, NoiseSchedule
from ddpmbench.errors import InputError, whole_number
from ddpmbench.records import short_repr


@dataclasses.dataclass(frozen=True, eq=False)
class ContinuousTime:
    r"""The log signal-to-noise ratio at fractional timesteps.

    .. math::
        \lambda(u) = \log \frac{\bar\alpha(u)}{1 - \bar\alpha(u)}, \qquad u \in [1, T]

    It is that of the schedule at its timesteps, and a monotone cubic between them. u counts as t
    does, in timesteps of the schedule that the network was trained on.

    Attributes:
        schedule: of at least two timesteps.

    Raises:
        InputError: there is a single timestep.

    Source: Fritsch & Carlson 1980 for the interpolation; Kingma et al. 2021 for log SNR as time.
    """

    schedule: NoiseSchedule

    __repr__ = short_repr

    def __post_init__(self) -> None:
        """Refuse a schedule with nothing between its timesteps."""
        if self.schedule.num_timesteps < 2:
            raise InputError(
                "continuous time lies between timesteps, and this model visits one; take more"
            )

    @property
    def first(self) -> float:
        """The lowest u, of the timestep next to the data."""
        return float(self._timesteps[0])

    @property
    def last(self) -> float:
        """The highest u."""
        return float(self._timesteps[-1])

    def log_snr(self, u: ArrayLike) -> NDArray[np.float64]:
        """The log SNR at timesteps in [first, last]."""
        return np.asarray(self._interpolation(u))

    def slope(self, u: ArrayLike) -> NDArray[np.float64]:
        """The derivative of the log SNR by u; negative, or 0 in isolated points."""
        return np.asarray(self._interpolation(u, nu=1))

    def timestep(self, log_snr: ArrayLike) -> NDArray[np.float64]:
        """The timestep u at which the log SNR has a value between those of first and last."""
        values = np.atleast_1d(np.asarray(log_snr, dtype=np.float64))
        ends = self.log_snr([self.last, self.first])
        inside = np.clip(values, *ends)  # an end may be missed by rounding
        roots = [self._interpolation.solve(value, extrapolate=False) for value in inside]
        u = np.array(
            [
                root[0] if len(root) else (self.first if value > ends.mean() else self.last)
                for root, value in zip(roots, inside, strict=True)
            ]
        )
        return u.reshape(np.shape(log_snr))

    @property
    def cubics(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(K,) the timesteps of the schedule, and (4, K - 1) the cubic between each and the next.

        From timestep k on the log SNR is c[0] d^3 + c[1] d^2 + c[2] d + c[3] at a distance d.
        """
        return self._timesteps, np.asarray(self._interpolation.c)

    @cached_property
    def _timesteps(self) -> NDArray[np.float64]:
        return self.schedule.original_timesteps.numpy().astype(np.float64)

    @cached_property
    def _interpolation(self) -> PchipInterpolator:
        return PchipInterpolator(self._timesteps, self.schedule.snr.log().numpy())


def refined(schedule: NoiseSchedule, num_timesteps: int) -> NoiseSchedule:
    r"""The schedule with more timesteps, evenly spaced from its first to its last.

    .. math:: \bar\alpha'_k = \bar\alpha(u_k), \qquad u_k = 1 + (k - 1) \frac{T - 1}{K - 1}

    The network is evaluated at fractional timesteps. The decoder keeps its variance.

    Args:
        schedule: as the network was trained, of at least two timesteps.
        num_timesteps: K, more than T.

    Raises:
        InputError: the schedule is respaced, has one timestep, or as many as asked for.
    """
    total = schedule.num_timesteps
    if total != schedule.num_original_timesteps:
        raise InputError(
            f"`timesteps={num_timesteps}`: the model visits {total} of "
            f"{schedule.num_original_timesteps} timesteps already; refine the one that visits all"
        )
    num_timesteps = whole_number("timesteps", num_timesteps, total + 1, MAX_TIMESTEPS)
    u = np.linspace(1, total, num_timesteps)
    log_alphas_cumprod = -np.logaddexp(0, -ContinuousTime(schedule).log_snr(u))
    betas = -np.expm1(np.diff(log_alphas_cumprod, prepend=0.0))
    return dataclasses.replace(
        schedule,
        betas=torch.from_numpy(betas),
        name=f"{schedule.name}, {num_timesteps} for {total} timesteps",
        original_timesteps=torch.from_numpy(u),
        decoder_variance=math.exp(schedule.log_decoder_variance),
    )
