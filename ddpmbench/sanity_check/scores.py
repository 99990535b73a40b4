r"""Scores of candidates: how well each denoises a few images at a few timesteps.

A wrong parameterization raises no error; it only makes the bound worse. Every candidate is a model
of the same images, and its bound a code length in the same unit, so candidates can be compared.
At each noise level the network has an eps_mse, whatever its schedule, data range or prediction.
Half the area under it,

.. math:: \frac{1}{2} \int \mathrm{eps\_mse}(\lambda) \, d\lambda, \quad \lambda = \log \mathrm{SNR}

is the code length in continuous time, nats per dimension (Kingma, Salimans, Poole & Ho 2021, eq.
17). On average no wrong parameterization has a smaller area than the true one, however few
timesteps a schedule has. The bound itself does not tell which parameterization is right: a schedule
with better placed timesteps has a lower bound even where the network's time is wrong. But only
parameterizations that lower the bound are recommended.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.model import Checkpoint, TimeInput
from ddpmbench.diffusion.parameterization import Prediction, Process, Variance
from ddpmbench.likelihood.terms import TermIndex, TermTable
from ddpmbench.unet.unet import UNet

Array = NDArray[np.float64]
Timesteps = NDArray[np.int64]
Evaluate: TypeAlias = "Callable[[Sequence[Candidate], TermIndex], list[TermTable | None]]"
"""Evaluates the same terms for candidates that share the first one's network outputs; None where
its network cannot be evaluated."""

INTEGER_TIMES = (TimeInput.INDEX, TimeInput.ONE_BASED)
"""Time inputs that number the timesteps."""
NUM_IMAGES = 16
"""Images on which a candidate is scored; with fewer there is no check."""
NUM_TIMESTEPS = 8
"""The most timesteps at which a candidate is scored."""
SIGNIFICANT = 4.0
"""Standard errors over images that a difference must exceed."""
MIN_BOUND_GAIN = 0.02
"""Nats per dimension by which a bound must differ."""
_POINTS = 65
_NOTHING_LEARNED = 1.0
"""Cap of eps_mse in an area. Predicting 0 has 1; a network that predicts x_start is far above it
where there is hardly any noise, and is not judged by that."""
_MIN_ERROR, _MAX_ERROR = 1e-6, 1e6  # limits of eps_mse, for its logarithm
_NO_SIGNAL = -9.0  # log SNR
_HIGH_NOISE = 0.05  # SNR
_LOW_NOISE = 100.0  # SNR
_SOLVED = 0.1
_PIXELS_ALONE = 0.95  # share of the code length of independent pixels
_MIN_GAIN = 0.03  # nats per dimension of an area


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """A checkpoint under one parameterization.

    Attributes:
        parameters: differences from the given parameterization, by parameter, in the form of the
            command's options: `{"prediction": "v"}`; empty for the given one.
        checkpoint: the weights under this parameterization.
        is_exact: whether a network can have been trained with exactly this one.
    """

    parameters: Mapping[str, str]
    checkpoint: Checkpoint
    is_exact: bool = True

    @property
    def name(self) -> str:
        """The parameters in one line, `data_range=0,1 prediction=v`; empty for the given one."""
        return " ".join(f"{name}={value}" for name, value in self.parameters.items())

    @property
    def quoted(self) -> str:
        """The same for a message, in which the command replaces parameters by its options."""
        return " ".join(f"`{name}={value}`" for name, value in self.parameters.items())

    @property
    def is_given(self) -> bool:
        """Whether it is the given parameterization."""
        return not self.parameters

    @property
    def time_parameters(self) -> dict[str, str]:
        """The parameters that change the network's time at some noise level."""
        return {k: v for k, v in self.parameters.items() if k in ("time_input", "schedule")}

    @property
    def output_parameters(self) -> frozenset[tuple[str, str]]:
        """The parameters that change the network's outputs: all but the prediction."""
        return frozenset(p for p in self.parameters.items() if p[0] != "prediction")

    @property
    def is_preserving(self) -> bool:
        """Whether the process is VP."""
        return self.checkpoint.schedule.process is Process.VP

    @property
    def has_integer_times(self) -> bool:
        """Whether the network's time is the number of the timestep."""
        return self.checkpoint.time_input in INTEGER_TIMES

    @property
    def largest_time(self) -> float:
        """The largest time that the network is given."""
        last = torch.tensor([self.checkpoint.schedule.num_timesteps])
        return float(self.checkpoint.network_time(last).item())

    @property
    def may_index_a_table(self) -> bool:
        """Whether the time may be the index of an embedding, which is finite."""
        return self.has_integer_times and not isinstance(self.checkpoint.network, UNet)


@dataclasses.dataclass(frozen=True, eq=False)
class Score:
    """The errors of a candidate on N images at S timesteps.

    Attributes:
        candidate: the candidate.
        timesteps: (S,) rising.
        log_snr: (S,) falling: log of the signal-to-noise ratio of x_t, the data in units of their
            range, so that it has the same meaning for all ranges.
        eps_mse: (N, S).
        x_start_mse: (N, S), in the model's numbers; clipped if the model clips.
        decoder: (N,) the term at t = 1, nats per dimension.
    """

    candidate: Candidate
    timesteps: Timesteps
    log_snr: Array
    eps_mse: Array
    x_start_mse: Array
    decoder: Array

    @classmethod
    def from_terms(cls, candidate: Candidate, table: TermTable, timesteps: Timesteps) -> Self:
        """The score from the terms of N images at S timesteps, t = 1 first, image by image."""
        shape = (-1, len(timesteps))
        mse = "x_start_mse" if candidate.checkpoint.clip else "x_start_mse_noclip"
        return cls(
            candidate,
            timesteps,
            log_snr(candidate)[timesteps - 1],
            table.values["eps_mse"].reshape(shape),
            table.values[mse].reshape(shape),
            table.values["nats"].reshape(shape)[:, 0],
        )

    @property
    def num_images(self) -> int:
        """The number of images N."""
        return len(self.eps_mse)

    @property
    def squared_width(self) -> float:
        """The squared width of the data range."""
        return float(np.exp(2 * self.candidate.checkpoint.data_range.log_width))

    def joined(self, more: "Score") -> "Score":
        """The score on the images of both."""
        return dataclasses.replace(
            self,
            eps_mse=np.concatenate([self.eps_mse, more.eps_mse]),
            x_start_mse=np.concatenate([self.x_start_mse, more.x_start_mse]),
            decoder=np.concatenate([self.decoder, more.decoder]),
        )

    def areas(self, low: float, high: float) -> Array:
        """(N,) half the area under eps_mse between two values of `log_snr`, nats per dimension."""
        if (low, high) not in self._areas:
            points = np.linspace(low, high, _POINTS)
            values = _interpolated(points, self.log_snr, self.eps_mse).clip(max=_NOTHING_LEARNED)
            self._areas[low, high] = np.asarray(0.5 * np.trapezoid(values, points, axis=1))
        return self._areas[low, high]

    @cached_property
    def _areas(self) -> dict[tuple[float, float], Array]:
        """Areas by their ends: a score is compared with many others."""
        return {}

    def bounds(self, mean_square: Array) -> Array:
        """(N,) the bound of each image, nats per dimension, exact at these timesteps.

        Between them the error of x_start is interpolated in `log_snr`. A learned variance is
        treated as the posterior's. `mean_square` is (N,), of the numbers of each image in the
        model's range.

        Source: Ho, Jain & Abbeel 2020, eq. 5.
        """
        schedule, variance = self.candidate.checkpoint.schedule, self.candidate.checkpoint.variance
        snr, signal = schedule.snr.numpy(), float(schedule.alphas_cumprod[-1])
        mse = _interpolated(log_snr(self.candidate)[1:], self.log_snr, self.x_start_mse)
        weight = (snr[:-1] - snr[1:]) / 2
        constant = 0.0
        if variance is Variance.FIXED_LARGE:
            log_posterior = schedule.posterior_variance[1:].log()
            ratio = (log_posterior - schedule.log_forward_variance[1:]).exp().numpy()
            constant = float(0.5 * (ratio - 1 - np.log(ratio)).sum())
            weight = weight * ratio
        noise = float(schedule.one_minus_alphas_cumprod[-1])
        log_ratio = np.log(noise) - float(schedule.log_prior_variance)
        mean_term = signal * mean_square * np.exp(-float(schedule.log_prior_variance))
        prior = 0.5 * (np.expm1(log_ratio) - log_ratio + mean_term)
        return np.asarray(prior + mse @ weight + constant + self.decoder)


def _interpolated(points: Array, log_snr: Array, errors: Array) -> Array:
    """(N, P) errors interpolated from (N, S), their logarithm linear in `log_snr`."""
    return np.exp([np.interp(points, log_snr[::-1], row[::-1]) for row in _log(errors)])


def _log(error: Array) -> Array:
    finite = np.nan_to_num(error, nan=_MAX_ERROR)
    return np.asarray(np.log(np.clip(finite, _MIN_ERROR, _MAX_ERROR)))


def log_snr(candidate: Candidate) -> Array:
    """(T,) log of the signal-to-noise ratio of x_t, the data in units of their range."""
    own = candidate.checkpoint.schedule.log_snr.numpy()
    return np.asarray(own + 2 * candidate.checkpoint.data_range.log_width)


def timesteps_of(candidate: Candidate) -> Timesteps:
    """Timesteps from 1 to T - 1, about evenly spaced in `log_snr`.

    T is left out, because another time input may not define its time; so are noise levels with
    hardly any signal, where nothing is learned.
    """
    ratios = log_snr(candidate)[: max(1, len(log_snr(candidate)) - 1)]
    targets = np.linspace(ratios[0], max(ratios[-1], min(_NO_SIGNAL, ratios[0])), NUM_TIMESTEPS)
    nearest = [int(np.abs(ratios - value).argmin()) + 1 for value in targets]
    return np.unique(np.array(nearest, np.int64))


def shared_areas(first: Score, second: Score) -> tuple[Array, Array]:
    """(N,) areas of both over their common noise levels; 1 and 1 where there are none."""
    count = min(first.num_images, second.num_images)
    low = max(first.log_snr[-1], second.log_snr[-1])
    high = min(first.log_snr[0], second.log_snr[0])
    if not low < high:
        return np.ones(count), np.ones(count)
    return first.areas(low, high)[:count], second.areas(low, high)[:count]


def area_gain(first: Score, second: Score) -> float:
    """By how much the area of the second is smaller, the mean over images."""
    return float(np.subtract(*shared_areas(first, second)).mean())


def furthest_apart(first: Score, second: Score) -> tuple[int, float, float]:
    """The timestep where the first is worst relative to the second, and both eps_mse there.

    That of the second is taken at the same `log_snr`, or the nearest.
    """
    own, other = (score.eps_mse.mean(0) for score in (first, second))
    nearby = np.interp(first.log_snr, second.log_snr[::-1], _log(other)[::-1])
    i = int((_log(own) - nearby).argmax())
    return int(first.timesteps[i]), float(own[i]), float(np.exp(nearby[i]))


@dataclasses.dataclass(frozen=True)
class Fault:
    """An error that no trained model has.

    Attributes:
        t: the timestep; None for all of them.
        name: "eps_mse", "x_start_mse" or "nats", the code length over all timesteps.
        value: the mean over images; x_start_mse is in units of the variance of the pixels, the code
            length in nats per dimension.
        limit: a trained model is below it.
        is_significant: whether the value exceeds the limit by more than chance.
    """

    t: int | None
    name: str
    value: float
    limit: float
    is_significant: bool = True


def worst_fault(score: Score, *, spread: float) -> Fault | None:
    """The worst error that no trained model has; None if there is none.

    A trained model satisfies:

    - at high noise eps_mse is far below 1, since x_t is the noise; at any noise level it is below
      1, which predicting 0 has, unless the network predicts x_start;
    - at low noise the predicted x_start is nearer than the mean of all pixels;
    - the code is shorter than the best one of independent normal pixels.

    A network that predicts the previous mean, which tells little about the noise and x_start at
    large t, need only satisfy the second, at the lowest noise. `spread` is the variance of the
    pixels, in the model's numbers.
    """
    snr = spread / score.squared_width * np.exp(score.log_snr)
    x_start = score.x_start_mse / spread
    prediction = score.candidate.checkpoint.prediction
    is_mean = prediction is Prediction.PREVIOUS_MEAN
    faults = []
    for i, t in enumerate(score.timesteps.tolist()):
        if snr[i] < _HIGH_NOISE and not is_mean:
            faults.append(_fault(t, "eps_mse", score.eps_mse[:, i], _SOLVED))
        elif prediction in (Prediction.EPSILON, Prediction.V):
            faults.append(_fault(t, "eps_mse", score.eps_mse[:, i], 1.0))
        if snr[i] > (_LOW_NOISE if is_mean else 1.0):
            faults.append(_fault(t, "x_start_mse", x_start[:, i], 1.0))
    low, high = score.log_snr[-1], score.log_snr[0]
    if low < high and not is_mean:
        # The Wiener filter for independent pixels, on the same grid.
        alone = dataclasses.replace(score, eps_mse=(snr / (1 + snr))[None]).areas(low, high)[0]
        faults.append(_fault(None, "nats", score.areas(low, high), _PIXELS_ALONE * float(alone)))
    exceeding = [fault for fault in faults if not fault.value < fault.limit]
    return max(exceeding, key=_excess, default=None)


def _fault(t: int | None, name: str, values: Array, limit: float) -> Fault:
    value, error = float(values.mean()), standard_error(values)
    is_below = value - SIGNIFICANT * np.nan_to_num(error) < limit
    return Fault(t, name, value, limit, not is_below)


def _excess(fault: Fault) -> tuple[bool, float]:
    return fault.is_significant, float(np.nan_to_num(fault.value / fault.limit, nan=np.inf))


def is_significant(fault: Fault | None) -> bool:
    """Whether there is a fault that exceeds its limit by more than chance."""
    return fault is not None and fault.is_significant


def standard_error(values: Array) -> float:
    """Standard error of the mean over (N,) images; NaN for one image."""
    if len(values) < 2:
        return float("nan")
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def _z_score(values: Array) -> float:
    """The mean in standard errors above 0; NaN for one image."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(values.mean() / np.float64(standard_error(values)))


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """A candidate compared with another, image by image.

    Attributes:
        score: the score of the candidate.
        gain: decrease of the area, the mean over images, nats per dimension.
        standard_error: standard error of the gain; NaN for one image.
        z_score: the gain in standard errors, the larger of two: of the difference, and of the
            difference of logarithms, in which easy and hard images have the same weight.
        bound_gain: decrease of the bound.
        bound_standard_error: standard error of the decrease.
        fault: the fault of the candidate; None if it has none.
    """

    score: Score
    gain: float
    standard_error: float
    z_score: float
    bound_gain: float
    bound_standard_error: float
    fault: Fault | None

    @property
    def num_parameters(self) -> int:
        """The number of parameters that differ from the given parameterization."""
        return len(self.score.candidate.parameters)

    @property
    def has_smaller_area(self) -> bool:
        """Whether its area is smaller by more than chance."""
        is_complete = self.score.num_images == NUM_IMAGES
        return is_complete and self.gain > _MIN_GAIN and self.z_score > SIGNIFICANT

    @property
    def is_improvement(self) -> bool:
        """Whether it lowers the bound as well, and is plausible.

        It is plausible without a significant fault or, with two other parameters, without any.
        """
        has_no_fault = self.fault is None or (
            self.num_parameters == 1 and not self.fault.is_significant
        )
        min_gain = max(MIN_BOUND_GAIN, SIGNIFICANT * self.bound_standard_error)
        return has_no_fault and self.has_smaller_area and self.bound_gain > min_gain


class Scorer:
    """Scores candidates on a few images of a set, and counts the network evaluations.

    Attributes:
        num_evaluations: network evaluations so far.
    """

    def __init__(self, images: ImageSet, evaluate: Evaluate) -> None:
        """Prepare an image set, and a function that evaluates networks on it."""
        self._num_images, self._evaluate = len(images), evaluate
        self._pixels = images.pixels[self.subset(NUM_IMAGES).image]
        # A score is compared with many others.
        self._faults: dict[Score, Fault | None] = {}
        self._bounds: dict[Score, Array] = {}
        self.num_evaluations = 0

    @property
    def channels(self) -> int:
        """The number of channels of the images."""
        return int(self._pixels.shape[1])

    def subset(self, count: int) -> TermIndex:
        """So many images spread over the set, as terms without a timestep.

        A smaller set is repeated with other noise draws. Each 16 images are spread over the set.
        """
        distinct = min(count, self._num_images)
        chosen = np.rint(np.linspace(0, self._num_images - 1, distinct)).astype(np.int64)
        order = np.argsort(np.arange(distinct) % max(1, distinct // NUM_IMAGES), kind="stable")
        draw = np.arange(count) // distinct
        return TermIndex(np.resize(chosen[order], count), np.zeros(count, np.int64), draw)

    def terms(
        self, group: Sequence[Candidate], images: TermIndex, timesteps: Timesteps
    ) -> "list[TermTable | None]":
        """The terms of candidates that share network outputs: each image at each timestep."""
        count = len(timesteps)
        image, draw = (np.repeat(column, count) for column in (images.image, images.draw))
        terms = TermIndex(image, np.tile(timesteps, len(images)), draw)
        tables = self._evaluate(group, terms)
        self.num_evaluations += len(terms) if any(table is not None for table in tables) else 0
        return tables

    def eps_mse(
        self, candidate: Candidate, images: TermIndex, timesteps: Timesteps
    ) -> Array | None:
        """(N, S) errors of a candidate; None where its network cannot be evaluated."""
        (table,) = self.terms([candidate], images, timesteps)
        if table is None:
            return None
        return table.values["eps_mse"].reshape(len(images), len(timesteps))

    def scores(self, group: Sequence[Candidate], images: TermIndex) -> list[Score]:
        """Scores of candidates that share network outputs; none where they cannot be evaluated."""
        timesteps = timesteps_of(group[0])
        tables = self.terms(group, images, timesteps)
        return [
            Score.from_terms(candidate, table, timesteps)
            for candidate, table in zip(group, tables, strict=True)
            if table is not None
        ]

    def fault(self, score: Score) -> Fault | None:
        """The worst fault of a candidate."""
        if score not in self._faults:
            # Images of one constant have no variance.
            half_bin = score.candidate.checkpoint.data_range.half_bin
            spread = max(float(self._numbers(score).var()), half_bin**2)
            self._faults[score] = worst_fault(score, spread=spread)
        return self._faults[score]

    def compared(self, base: Score, other: Score) -> Comparison:
        """The second compared with the first, on the images that both have."""
        before, after = shared_areas(base, other)
        gain, log_ratio = before - after, np.log(before / after)
        bound_gain = self._bound(base)[: len(gain)] - self._bound(other)[: len(gain)]
        return Comparison(
            other,
            gain=float(gain.mean()),
            standard_error=standard_error(gain),
            z_score=max(_z_score(gain), _z_score(log_ratio)),
            bound_gain=float(bound_gain.mean()),
            bound_standard_error=standard_error(bound_gain),
            fault=self.fault(other),
        )

    def _bound(self, score: Score) -> Array:
        if score not in self._bounds:
            mean_square = np.square(self._numbers(score)[: score.num_images]).mean((1, 2, 3))
            self._bounds[score] = score.bounds(mean_square)
        return self._bounds[score]

    def _numbers(self, score: Score) -> Array:
        """(N, C, H, W) images in the model's range."""
        return score.candidate.checkpoint.data_range.array_to_model(self._pixels)


def mean_over_images(values: Array, images: TermIndex) -> tuple[float, float]:
    """Mean over images of (N,) values, and its standard error; draws of an image count as one."""
    _, index = np.unique(images.image[: len(values)], return_inverse=True)
    means = np.bincount(index, values) / np.bincount(index)
    return float(means.mean()), standard_error(means)
