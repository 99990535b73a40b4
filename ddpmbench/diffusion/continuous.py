"""Continuous time: the log SNR between the timesteps that a network was trained on."""

import dataclasses
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ddpmbench.diffusion.named_schedules import MAX_TIMESTEPS
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError, whole_number
from ddpmbench.records import short_repr

if TYPE_CHECKING:
    from scipy.interpolate import PchipInterpolator


@dataclasses.dataclass(frozen=True, eq=False)
class ContinuousTime:
    r"""The log signal-to-noise ratio at fractional timesteps.

    .. math::
        \lambda(u) = \log \frac{\bar\alpha(u)}{1 - \bar\alpha(u)}, \qquad u \in [1, T]

    It equals the schedule's at its timesteps and is a monotone cubic between them. u, like t,
    counts timesteps of the schedule that the network was trained on.

    Attributes:
        schedule: of at least two timesteps.

    Raises:
        InputError: the schedule has a single timestep.

    Source: Fritsch & Carlson 1980 for the interpolation; Kingma et al. 2021 for log SNR as time.
    """

    schedule: NoiseSchedule

    __repr__ = short_repr

    def __post_init__(self) -> None:
        """Refuse a schedule of a single timestep."""
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

    def log_snr_at(self, u: Tensor) -> Tensor:
        """`log_snr` for tensors on any device, any shape."""
        knots, cubics = (torch.from_numpy(table).to(u) for table in self.cubics)
        cubic = torch.searchsorted(knots, u, right=True).sub(1).clamp(0, len(knots) - 2)
        d = u - knots[cubic]
        c3, c2, c1, c0 = cubics[:, cubic]
        result: Tensor = ((c3 * d + c2) * d + c1) * d + c0
        return result

    def timestep(self, log_snr: ArrayLike) -> NDArray[np.float64]:
        """The timestep u with a given log SNR, between those of `first` and `last`."""
        values = np.atleast_1d(np.asarray(log_snr, dtype=np.float64))
        ends = self.log_snr([self.last, self.first])
        inside = np.clip(values, *ends)  # rounding may exceed an end
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
        """(K,) the timesteps of the schedule, and (4, K - 1) the cubics from each to the next.

        At distance d from timestep k the log SNR is c[0] d^3 + c[1] d^2 + c[2] d + c[3].
        """
        return self._timesteps, np.asarray(self._interpolation.c)

    @cached_property
    def _timesteps(self) -> NDArray[np.float64]:
        return self.schedule.original_timesteps.numpy().astype(np.float64)

    @cached_property
    def _interpolation(self) -> "PchipInterpolator":
        from scipy.interpolate import PchipInterpolator  # slow to import

        return PchipInterpolator(self._timesteps, self.schedule.log_snr.numpy())


MEAN_PART = 0.1
"""Longest average part between two timesteps, in log SNR."""


def with_timesteps(schedule: NoiseSchedule, num_timesteps: int) -> NoiseSchedule:
    """The schedule with K evenly spaced timesteps: `respaced`, or `refined` for more than T.

    Raises:
        InputError: the number is invalid, or the schedule cannot have so many.
    """
    num_timesteps = whole_number("timesteps", num_timesteps, 1, MAX_TIMESTEPS)
    if num_timesteps > schedule.num_timesteps:
        return refined(schedule, num_timesteps)
    return schedule.respaced(num_timesteps)


def refined(schedule: NoiseSchedule, num_timesteps: int) -> NoiseSchedule:
    r"""The schedule with more timesteps, evenly spaced from its first to its last.

    .. math:: \bar\alpha'_k = \bar\alpha(u_k), \qquad u_k = 1 + (k - 1) \frac{T - 1}{K - 1}

    The network is evaluated at fractional timesteps; the decoder's variance does not change.

    Args:
        schedule: as the network was trained, of at least two timesteps.
        num_timesteps: K, more than T.

    Raises:
        InputError: the schedule is respaced, or has one timestep; or K is too large.
    """
    total = schedule.num_timesteps
    num_timesteps = whole_number("timesteps", num_timesteps, total + 1, MAX_TIMESTEPS)
    time = _of_trained(schedule, f"`timesteps={num_timesteps}`")
    u = np.linspace(1, total, num_timesteps)
    return _between(time, u, f"{schedule.name}, {num_timesteps} for {total} timesteps")


def divided(schedule: NoiseSchedule) -> NoiseSchedule:
    """Continuous time from the first to the last timestep, in parts.

    A part ends at every timestep. Between two timesteps all parts have the same length, on average
    at most `MEAN_PART`, so that the integrand varies little within a part.

    Args:
        schedule: as the network was trained, of at least two timesteps.

    Raises:
        InputError: the schedule is respaced, or has one timestep.
    """
    time = _of_trained(schedule, "`timesteps=continuous`")
    lengths = -np.diff(time.log_snr(np.arange(1, schedule.num_timesteps + 1)))
    counts = np.ceil(lengths / MEAN_PART).astype(np.int64)
    parts = [t + np.arange(count) / count for t, count in enumerate(counts, start=1)]
    u = np.concatenate([*parts, [schedule.num_timesteps]])
    continuous = _between(time, u, f"{schedule.name}, continuous time")
    return dataclasses.replace(continuous, is_continuous=True)


def _of_trained(schedule: NoiseSchedule, option: str) -> ContinuousTime:
    if schedule.num_timesteps != schedule.num_original_timesteps or schedule.trained is not None:
        raise InputError(
            f"{option}: the model visits {schedule.num_timesteps} timesteps, "
            f"not the {schedule.num_original_timesteps} that it was trained on; take the model "
            "that visits those"
        )
    return ContinuousTime(schedule)


def _between(time: ContinuousTime, u: NDArray[np.float64], name: str) -> NoiseSchedule:
    """The schedule that visits these timesteps, including the first and the last."""
    log_alphas_cumprod = -np.logaddexp(0, -time.log_snr(u))
    return dataclasses.replace(
        time.schedule,
        betas=torch.from_numpy(-np.expm1(np.diff(log_alphas_cumprod, prepend=0.0))),
        name=name,
        original_timesteps=torch.from_numpy(u),
        trained=time.schedule,
    )
