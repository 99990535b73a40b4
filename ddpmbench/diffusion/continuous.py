"""Continuous time: the log SNR between the timesteps that a network was trained on."""

import dataclasses
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import PchipInterpolator

from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError
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

    @cached_property
    def _timesteps(self) -> NDArray[np.float64]:
        return self.schedule.original_timesteps.numpy().astype(np.float64)

    @cached_property
    def _interpolation(self) -> PchipInterpolator:
        return PchipInterpolator(self._timesteps, self.schedule.snr.log().numpy())
