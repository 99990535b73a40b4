"""How well a candidate denoises, from a few images at a few steps.

What a network is worth at a signal-to-noise ratio is its eps_mse there, whatever schedule, range
or prediction it is read with. Half the area under eps_mse over the log of that ratio is the code
length in continuous time: no wrong parameterization comes below the one the network was trained
with, however few steps a schedule has. The bound itself is what a run is about: nothing is advised
that does not lower it. But it does not tell which candidate is the right one: a schedule with steps
in better places has a lower bound, even where the network is given another time than it should be.
"""

import dataclasses
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ddpmbench.diffusion.process import Prediction, Variance
from ddpmbench.likelihood.terms import TermTable
from ddpmbench.sanity_check.candidates import Candidate

Array = NDArray[np.float64]

MOST_STEPS = 8
"""Steps that a candidate is judged from."""
SURE = 4.0
"""Standard errors over images that a difference must have."""
_POINTS = 65
_NOTHING_LEARNED = 1.0
"""Most that eps_mse counts in an area: what is worse than predicting nothing is not told apart, so
that a network that predicts x_start, whose noise is far off where there is hardly any, is not
judged by that."""
_LEAST, _MOST = 1e-6, 1e6  # of eps_mse, between which its logarithm is taken
_NO_DATA = -9.0  # of `log_snr`
_HIGH_NOISE = 0.05
_LITTLE_NOISE = 100.0
_SOLVED = 0.1
_PIXELS = 0.95  # of the code that takes each pixel by itself


@dataclasses.dataclass(frozen=True, eq=False)
class Score:
    """The errors of a candidate on N images at S steps.

    Attributes:
        candidate: which.
        steps: (S,) at which.
        log_snr: (S,) of them, falling: the log of the share of data to noise in x_t, in units of
            the data's range, so that it means the same for all ranges.
        eps_mse: (N, S).
        x_start_mse: (N, S), in the model's numbers; clipped if the model clips.
        decoder: (N,) the term at t = 1, nats per dimension.
    """

    candidate: Candidate
    steps: NDArray[np.int64]
    log_snr: Array
    eps_mse: Array
    x_start_mse: Array
    decoder: Array

    @classmethod
    def of(cls, candidate: Candidate, table: TermTable, *, steps: NDArray[np.int64]) -> Self:
        """From the terms of N images at S steps, t = 1 among them, image by image."""
        shape = (-1, len(steps))
        mse = "x_start_mse" if candidate.checkpoint.clip else "x_start_mse_noclip"
        return cls(
            candidate,
            steps,
            log_snr(candidate)[steps - 1],
            table.values["eps_mse"].reshape(shape),
            table.values[mse].reshape(shape),
            table.values["nats"].reshape(shape)[:, 0],
        )

    @property
    def squared_width(self) -> float:
        """Of the data's range."""
        return float(np.exp(2 * self.candidate.checkpoint.data_range.log_width))

    def joined(self, more: "Score") -> "Score":
        """Of the images of both."""
        return dataclasses.replace(
            self,
            eps_mse=np.concatenate([self.eps_mse, more.eps_mse]),
            x_start_mse=np.concatenate([self.x_start_mse, more.x_start_mse]),
            decoder=np.concatenate([self.decoder, more.decoder]),
        )

    def areas(self, low: float, high: float) -> Array:
        """(N,) half the area under each image's eps_mse between two of `log_snr`, nats.

        Source: Kingma, Salimans, Poole & Ho 2021, eq. 17.
        """
        points = np.linspace(low, high, _POINTS)
        values = _interpolated(points, self.log_snr, self.eps_mse)
        return np.asarray(0.5 * np.trapezoid(values.clip(max=_NOTHING_LEARNED), points, axis=1))

    def bounds(self, mean_square: Array) -> Array:
        """(N,) each image's bound, nats per dimension: exact but for the steps in between.

        The error of x_start is interpolated over the log of the signal-to-noise ratio. A learned
        variance is taken for the posterior's.

        Args:
            mean_square: (N,) of the numbers of each image, as the model has them.

        Source: Ho, Jain & Abbeel 2020, eq. 5.
        """
        schedule, variance = self.candidate.checkpoint.schedule, self.candidate.checkpoint.variance
        snr, left = schedule.snr.numpy(), float(schedule.alphas_cumprod[-1])
        mse = _interpolated(log_snr(self.candidate)[1:], self.log_snr, self.x_start_mse)
        weight = (snr[:-1] - snr[1:]) / 2
        constant = 0.0
        if variance is Variance.FIXED_LARGE:
            ratio = (schedule.posterior_variance / schedule.betas).numpy()[1:]
            constant = float(0.5 * (ratio - 1 - np.log(ratio)).sum())
            weight = weight * ratio
        noise = float(schedule.one_minus_alphas_cumprod[-1])
        prior = 0.5 * (left * (mean_square - 1) - np.log(noise))
        return np.asarray(prior + mse @ weight + constant + self.decoder)


def _interpolated(points: Array, log_snr: Array, errors: Array) -> Array:
    """(N, P) errors of (N, S) in between, their logarithm linear in `log_snr`."""
    rows = _log(errors)
    return np.exp([np.interp(points, log_snr[::-1], row[::-1]) for row in rows])


def _log(error: Array) -> Array:
    return np.asarray(np.log(np.clip(np.nan_to_num(error, nan=_MOST), _LEAST, _MOST)))


def log_snr(candidate: Candidate) -> Array:
    """(T,) log of the share of data to noise in x_t, the data in units of its range."""
    own = candidate.checkpoint.schedule.snr.log().numpy()
    return np.asarray(own + 2 * candidate.checkpoint.data_range.log_width)


def steps_of(candidate: Candidate) -> NDArray[np.int64]:
    """Steps from 1 to T - 1, evenly spaced in `log_snr` as far as they are there.

    The last is left out: the time of it under another time input need not exist. So is what has
    hardly any data left, where there is nothing to learn.
    """
    ratios = log_snr(candidate)[: max(1, len(log_snr(candidate)) - 1)]
    wanted = np.linspace(ratios[0], max(ratios[-1], min(_NO_DATA, ratios[0])), MOST_STEPS)
    nearest = [int(np.abs(ratios - value).argmin()) + 1 for value in wanted]
    return np.unique(np.array(nearest, np.int64))


def shared_areas(first: Score, second: Score) -> tuple[Array, Array]:
    """(N,) nats per dimension that either codes each image with, where both have the ratios.

    Where there is none that both have, or only one, nothing is to be told apart: both are 1.
    """
    count = min(len(first.eps_mse), len(second.eps_mse))
    low = max(first.log_snr[-1], second.log_snr[-1])
    high = min(first.log_snr[0], second.log_snr[0])
    if not low < high:
        return np.ones(count), np.ones(count)
    return first.areas(low, high)[:count], second.areas(low, high)[:count]


def furthest_apart(first: Score, second: Score) -> tuple[int, float, float]:
    """The step at which the first is worst beside the second: t, and the eps_mse of both there.

    That of the second is the one it has at the same `log_snr`, or the nearest that it has.
    """
    own, other = (score.eps_mse.mean(0) for score in (first, second))
    nearby = np.interp(first.log_snr, second.log_snr[::-1], _log(other)[::-1])
    i = int((_log(own) - nearby).argmax())
    return int(first.steps[i]), float(own[i]), float(np.exp(nearby[i]))


@dataclasses.dataclass(frozen=True)
class Fault:
    """Something that a trained model does not do.

    Attributes:
        t: the step; None of all of them.
        name: "eps_mse", "x_start_mse" or "nats", which is the code length of all steps.
        value: the mean over images; of x_start_mse in units of the variance of the pixels, of
            nats per dimension.
        limit: what a trained model is below.
        is_sure: whether it is above by more than chance.
    """

    t: int | None
    name: str
    value: float
    limit: float
    is_sure: bool = True


def worst_fault(score: Score, *, spread: float) -> Fault | None:
    """The worst of what a trained model does not do; None if there is nothing.

    Where hardly any of the data is left in x_t, x_t is the noise, and eps_mse must be far below
    1. It is nowhere above 1, which is what predicting 0 gives; but where the network predicts
    x_start, it may be where there is little noise. And there the predicted x_start must be
    nearer than the mean of all pixels. Of a network that predicts the previous mean, which says
    little of either at large t, only that is asked, where there is hardly any noise. And all codes
    are shorter than the best that takes each pixel by itself, as from a normal distribution.

    Args:
        score: of a candidate.
        spread: variance of the pixels, in the model's numbers.
    """
    snr = spread / score.squared_width * np.exp(score.log_snr)
    eps, x_start = score.eps_mse, score.x_start_mse / spread
    prediction = score.candidate.checkpoint.prediction
    is_mean = prediction is Prediction.PREVIOUS_MEAN
    faults = []
    for i, t in enumerate(score.steps.tolist()):
        if snr[i] < _HIGH_NOISE and not is_mean:
            faults.append(_fault(t, "eps_mse", eps[:, i], _SOLVED))
        elif prediction in (Prediction.EPSILON, Prediction.V):
            faults.append(_fault(t, "eps_mse", eps[:, i], 1.0))
        if snr[i] > (_LITTLE_NOISE if is_mean else 1.0):
            faults.append(_fault(t, "x_start_mse", x_start[:, i], 1.0))
    low, high = score.log_snr[-1], score.log_snr[0]
    if low < high and not is_mean:
        # What it is of a normal distribution, from as many steps: as coarse as what it is held to.
        alone = dataclasses.replace(score, eps_mse=(snr / (1 + snr))[None]).areas(low, high)[0]
        faults.append(_fault(None, "nats", score.areas(low, high), _PIXELS * float(alone)))
    found = [fault for fault in faults if not fault.value < fault.limit]
    return max(found, key=_excess, default=None)


def _fault(t: int | None, name: str, values: Array, limit: float) -> Fault:
    value, error = float(values.mean()), standard_error(values)
    is_below = value - SURE * np.nan_to_num(error) < limit
    return Fault(t, name, value, limit, not is_below)


def _excess(fault: Fault) -> tuple[bool, float]:
    return fault.is_sure, float(np.nan_to_num(fault.value / fault.limit, nan=np.inf))


def standard_error(values: Array) -> float:
    """Of the mean of (N,) images; NaN of a single one."""
    if len(values) < 2:
        return float("nan")
    return float(values.std(ddof=1) / np.sqrt(len(values)))
