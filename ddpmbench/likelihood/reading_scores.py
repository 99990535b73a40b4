"""How well a reading of a checkpoint denoises, from a few images at a few steps.

What a network is worth at a signal-to-noise ratio is its eps_mse there, whatever schedule, range
or prediction it is read with. Half the area under eps_mse over the log of that ratio is the code
length in continuous time: no reading that is wrong comes below the one the network was trained
with, however few steps a schedule has. The bound itself would not do: a schedule with steps in
better places has a lower one, even where the network is told another step than it was trained on.
"""

import dataclasses
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ddpmbench.likelihood.readings import Reading
from ddpmbench.likelihood.terms import TermTable
from ddpmbench.process.prediction import Prediction

Array = NDArray[np.float64]

MOST_STEPS = 8
"""Steps that a reading is judged from."""
_POINTS = 65
_NOTHING_LEARNED = 1.0
"""Most that eps_mse counts in an area: what is worse than predicting nothing is not told apart, so
that a network that predicts x_start, whose noise is far off where there is hardly any, is not
judged by that."""
_LEAST, _MOST = 1e-6, 1e6  # of eps_mse, between which its logarithm is taken
_HIGH_NOISE = 0.05
_LITTLE_NOISE = 100.0
_SOLVED = 0.1
_NOTHING_GAINED = 1.5
_PIXELS = 0.95  # of the code that takes each pixel by itself


@dataclasses.dataclass(frozen=True, eq=False)
class Score:
    """What a reading makes of the images so far.

    Attributes:
        reading: which.
        steps: (S,) at which.
        log_snr: (S,) of them, falling: the log of the share of data to noise in x_t, in units of
            the data's range, so that it means the same for all ranges.
        eps_mse: (N, S).
        x_start_mse: (N, S), on [0, 1].
        num_evaluations: network calls made for it.
    """

    reading: Reading
    steps: NDArray[np.int64]
    log_snr: Array
    eps_mse: Array
    x_start_mse: Array
    num_evaluations: int

    @classmethod
    def of(cls, reading: Reading, table: TermTable, *, steps: NDArray[np.int64]) -> Self:
        """From the terms of every pair of N images and S steps, image by image."""
        shape = (-1, len(steps))
        data = reading.checkpoint.data_range
        return cls(
            reading,
            steps,
            log_snr(reading)[steps - 1],
            table.values["eps_mse"].reshape(shape),
            table.values["x_start_mse"].reshape(shape) / (data.high - data.low) ** 2,
            0 if reading.same_calls else len(table),
        )

    def joined(self, more: "Score") -> "Score":
        """Of the images of both."""
        return dataclasses.replace(
            self,
            eps_mse=np.concatenate([self.eps_mse, more.eps_mse]),
            x_start_mse=np.concatenate([self.x_start_mse, more.x_start_mse]),
            num_evaluations=self.num_evaluations + more.num_evaluations,
        )

    def areas(self, low: float, high: float) -> Array:
        """(N,) half the area under each image's eps_mse between two of `log_snr`, nats.

        Source: Kingma, Salimans, Poole & Ho 2021, eq. 17.
        """
        points = np.linspace(low, high, _POINTS)
        rows = _log(self.eps_mse)
        values = np.exp([np.interp(points, self.log_snr[::-1], row[::-1]) for row in rows])
        return np.asarray(0.5 * np.trapezoid(values.clip(max=_NOTHING_LEARNED), points, axis=1))


def _log(eps_mse: Array) -> Array:
    return np.asarray(np.log(np.clip(np.nan_to_num(eps_mse, nan=_MOST), _LEAST, _MOST)))


def log_snr(reading: Reading) -> Array:
    """(T,) log of the share of data to noise in x_t, the data in units of its range."""
    data = reading.checkpoint.data_range
    own = reading.checkpoint.schedule.snr.log().numpy()
    return np.asarray(own + 2 * np.log(data.high - data.low))


def steps_of(reading: Reading) -> NDArray[np.int64]:
    """Steps from 1 to T - 1, evenly spaced in `log_snr` as far as they are there.

    The last is left out: what a network is told of it under another time input need not exist.
    """
    ratios = log_snr(reading)[: max(1, len(log_snr(reading)) - 1)]
    wanted = np.linspace(ratios[0], ratios[-1], MOST_STEPS)
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
        value: what was found, the mean over images; of x_start_mse in units of the variance of
            the pixels, of nats per dimension.
        limit: what a trained model is below.
    """

    t: int | None
    name: str
    value: float
    limit: float


def worst_fault(score: Score, *, spread: float) -> Fault | None:
    """The worst of what a trained model does not do; None if there is nothing.

    Where hardly any of the data is left in x_t, x_t is the noise, and eps_mse must be far below
    1. It is nowhere clearly above 1, which is what predicting 0 gives; but where the network
    predicts x_start, it may be where there is little noise. And there the predicted x_start must be
    nearer than the mean of all pixels. Of a network that predicts the previous mean, which says
    little of either at large t, only that is asked, where there is hardly any noise. And all codes
    are shorter than the best that takes each pixel by itself, as from a normal distribution.

    Args:
        score: of a reading.
        spread: variance of the pixels, on [0, 1].
    """
    snr = spread * np.exp(score.log_snr)
    eps, x_start = score.eps_mse.mean(0), score.x_start_mse.mean(0) / spread
    prediction = score.reading.checkpoint.prediction
    is_mean = prediction is Prediction.PREVIOUS_MEAN
    found = []
    for i, t in enumerate(score.steps.tolist()):
        if snr[i] < _HIGH_NOISE and not is_mean:
            found.append(Fault(t, "eps_mse", float(eps[i]), _SOLVED))
        elif prediction in (Prediction.EPSILON, Prediction.V):
            found.append(Fault(t, "eps_mse", float(eps[i]), _NOTHING_GAINED))
        if snr[i] > (_LITTLE_NOISE if is_mean else 1.0):
            found.append(Fault(t, "x_start_mse", float(x_start[i]), 1.0))
    low, high = score.log_snr[-1], score.log_snr[0]
    if low < high and not is_mean:
        # What it is of a normal distribution, from as many steps: as coarse as what it is held to.
        alone = dataclasses.replace(score, eps_mse=(snr / (1 + snr))[None]).areas(low, high)[0]
        nats = float(score.areas(low, high).mean())
        found.append(Fault(None, "nats", nats, _PIXELS * float(alone)))
    faults = [fault for fault in found if not fault.value < fault.limit]
    return max(faults, key=_excess, default=None)


def _excess(fault: Fault) -> float:
    return float(np.nan_to_num(fault.value / fault.limit, nan=np.inf))
