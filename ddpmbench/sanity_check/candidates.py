"""Candidates: the same weights with another prediction, data range, time input or schedule.

Last come those at other network times: does a network denoise better at another time than that of
its timestep? One that was trained with other times, or with another schedule, does so at some noise
level.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ddpmbench.checkpoints.schedules import read_schedule
from ddpmbench.diffusion.model import Checkpoint, TimeInput
from ddpmbench.diffusion.parameterization import Prediction, Process
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError
from ddpmbench.likelihood.terms import TermIndex
from ddpmbench.sanity_check.scores import (
    INTEGER_TIMES,
    NUM_IMAGES,
    SIGNIFICANT,
    Array,
    Candidate,
    Score,
    Scorer,
    Timesteps,
    mean_over_images,
    standard_error,
    timesteps_of,
)

INTERVALS = ((-1.0, 1.0), (-0.5, 0.5), (0.0, 1.0), (0.0, 255.0))
"""Common data ranges."""
NORMALIZATIONS = {
    1: ((0.1307, 0.3081), (0.2860, 0.3530), (0.1918, 0.3483), (0.1722, 0.3309)),
    3: ((0.4734, 0.2507), (0.4734, 0.2009), (0.4490, 0.2260)),
}
"""Mean and standard deviation of pixels on [0, 1] in common normalizations, by channels.

One channel: MNIST, Fashion-MNIST, KMNIST, EMNIST. Three, averaged over channels because all share
one data range: CIFAR-10 (two in use) and ImageNet.
"""
LENGTHS = (10, 20, 25, 50, 100, 200, 250, 300, 400, 500, 600, 800, 1000, 1500, 2000, 4000)
"""Common numbers of timesteps."""
TIMES = (*INTEGER_TIMES, TimeInput.FRACTION, TimeInput.RESCALED_1000)
"""Common time inputs for VP, which count timesteps."""
_PREDICTIONS = (Prediction.EPSILON, Prediction.X_START, Prediction.V, Prediction.PREVIOUS_MEAN)
_PREDICTIONS_OF_SCALE = (
    *(Prediction.SCORE, Prediction.VELOCITY, Prediction.EPSILON, Prediction.X_START),
)
_PROCESSES = (Process.VP, Process.VE)
_SAME = 1e-4  # of log SNR and of the network's time
_MAX_FINAL_SIGNAL = 0.5  # alphas_cumprod at T of a schedule of another length


def alternatives(base: Candidate, channels: int) -> tuple[Candidate, ...]:
    """Candidates that differ from the base in one parameter, without those that are the base.

    Predictions come first, then data ranges, time inputs and schedules of the same length.
    """
    others = (
        *other_predictions(base),
        *_ranges(base, channels),
        *_time_inputs(base),
        *_schedules(base),
    )
    return tuple(other for other in others if not is_same(other, base))


def is_same(one: Candidate, other: Candidate) -> bool:
    """Whether two candidates with the same weights are one model, under whatever names."""
    first, second = one.checkpoint, other.checkpoint
    log_snr, other_log_snr = first.schedule.log_snr, second.schedule.log_snr
    if len(log_snr) != len(other_log_snr):
        return False
    ends, other_ends = ((own.low, own.high) for own in (first.data_range, second.data_range))
    t = torch.arange(1, len(log_snr) + 1)
    times, other_times = (own.network_time(t).double() for own in (first, second))
    return (
        first.prediction is second.prediction
        and first.schedule.process is second.schedule.process
        and np.allclose(ends, other_ends, rtol=1e-9, atol=1e-3)
        and torch.allclose(log_snr, other_log_snr, rtol=0.0, atol=_SAME)
        and torch.allclose(times, other_times, rtol=_SAME, atol=_SAME)
    )


def other_lengths(base: Candidate) -> tuple[Candidate, ...]:
    """Common schedules of other lengths.

    There are none for a respaced model, for a process other than VP, and for a network whose time
    is a fraction of T, which at a given noise level hardly depends on T.
    """
    own = base.checkpoint.schedule
    total = own.num_original_timesteps
    if own.num_timesteps != total or not (base.is_preserving and base.has_integer_times):
        return ()
    return tuple(
        with_parameter(base, "schedule", form, schedule=schedule)
        for steps in LENGTHS
        if steps != total
        for form, schedule in common_schedules(steps)
        if schedule.alphas_cumprod[-1] < _MAX_FINAL_SIGNAL
    )


@cache
def common_schedules(total: int) -> tuple[tuple[str, NoiseSchedule], ...]:
    """Common schedules of T timesteps, in the form of the `schedule` parameter."""
    scaled = f"{0.1 / total:g}:{20 / total:g}"
    both = ["0.0001:0.02"] if total == 1000 else ["0.0001:0.02", scaled]
    linear = ["linear:1000"] if total == 1000 else [f"linear:{total}:{ends}" for ends in both]
    forms = [*linear, f"linear:{total}:0.0001:0.01", f"cosine:{total}", f"sigmoid:{total}"]
    forms.append(f"scaled-linear:{total}:0.00085:0.012")
    forms += [f"{name}:{total}:{ends}" for ends in both for name in ("geometric", "cosine-betas")]
    schedules = []
    for form in forms:
        with contextlib.suppress(InputError):  # too few timesteps for the form
            schedules.append((form, read_schedule(form)))
    return tuple(schedules)


def with_parameter(base: Candidate, parameter: str, value: str, **changes: object) -> Candidate:
    """The base with one parameter changed; `changes` are the fields of its checkpoint."""
    other_parameters = {name: own for name, own in base.parameters.items() if name != parameter}
    checkpoint = dataclasses.replace(base.checkpoint, **changes)  # type: ignore[arg-type]
    parameters = {**other_parameters, parameter: value}
    return Candidate(parameters, checkpoint, base.is_exact)


def other_predictions(base: Candidate) -> Iterator[Candidate]:
    """The candidate with other predictions of the same network outputs."""
    own = base.checkpoint.prediction
    if own in (Prediction.PREVIOUS_MEAN, Prediction.EDM):
        # At large t the mean tells little about the noise; any other prediction would look better.
        # EDM's preconditioning changes the input of the network as well.
        return
    usual = _PREDICTIONS if base.is_preserving else _PREDICTIONS_OF_SCALE
    for prediction in usual:
        if prediction is not own:
            yield with_parameter(base, "prediction", str(prediction), prediction=prediction)


def _ranges(base: Candidate, channels: int) -> Iterator[Candidate]:
    own = base.checkpoint.data_range
    normalized = [(-mean / std, (1 - mean) / std) for mean, std in NORMALIZATIONS.get(channels, ())]
    for ends in (*INTERVALS, *normalized):
        low, high = (round(end, 6) for end in ends)
        other = dataclasses.replace(own, low=low, high=high)
        candidate = with_parameter(base, "data_range", other.option, data_range=other)
        is_average = channels > 1 and ends in normalized
        yield dataclasses.replace(candidate, is_exact=base.is_exact and not is_average)


def _time_inputs(base: Candidate) -> Iterator[Candidate]:
    for time_input in TIMES if base.is_preserving else TimeInput:
        yield with_parameter(base, "time_input", str(time_input), time_input=time_input)


def _schedules(base: Candidate) -> Iterator[Candidate]:
    own = base.checkpoint.schedule
    if not base.is_preserving:
        return
    for form, full_schedule in common_schedules(own.num_original_timesteps):
        schedule = full_schedule.subset(own.original_timesteps.tolist())
        yield with_parameter(base, "schedule", form, schedule=schedule)


def other_processes(base: Candidate) -> Iterator[Candidate]:
    """Candidates with the same noise levels, but x_t at the scale of another family."""
    own = base.checkpoint.schedule
    for process in _PROCESSES:
        if process is not own.process:
            schedule = dataclasses.replace(own, process=process)
            yield with_parameter(base, "process", str(process), schedule=schedule)


# ---- candidates at other times


def time_at(candidate: Candidate, log_snr: Array) -> Array:
    """The network's time, counted in timesteps, at given log SNRs; interpolated between timesteps.

    Beyond the ends of the schedule, the nearest timestep counts.
    """
    own = candidate.checkpoint.schedule.log_snr.numpy()
    first = 1 if candidate.checkpoint.time_input is TimeInput.ONE_BASED else 0
    return np.asarray(np.interp(-log_snr, -own, np.arange(len(own)))) + first


def shifted(candidate: Candidate, timesteps: int) -> Candidate:
    """The same with the network's time shifted by `timesteps`; negative for earlier."""
    if candidate.checkpoint.time_input not in TIMES:
        return _at_other_timesteps(candidate, lambda t: t + timesteps)
    unit = _time_unit(candidate.checkpoint)
    return _retimed(candidate, lambda time: time + timesteps * unit)


def scaled_time(candidate: Candidate, factor: float) -> Candidate:
    """The same with the network's time scaled by about a factor, above 1 for later.

    It changes by at least one timestep, and stays within the schedule.
    """

    def farther(t: Tensor) -> Tensor:
        other = t * factor
        if candidate.has_integer_times:
            other = other.round()
        return torch.maximum(other, t + 1) if factor > 1 else torch.minimum(other, t - 1)

    checkpoint, unit = candidate.checkpoint, _time_unit(candidate.checkpoint)
    if checkpoint.time_input not in TIMES:
        return _at_other_timesteps(candidate, farther)
    first = 0.0 if checkpoint.time_input in (TimeInput.INDEX, TimeInput.RESCALED_1000) else unit
    last = first + (checkpoint.schedule.num_original_timesteps - 1) * unit

    def change(time: Tensor) -> Tensor:
        other = farther((time.double() - first) / unit + 1)
        return ((other - 1) * unit + first).clamp(first, last).to(time.dtype)

    return _retimed(candidate, change)


def one_timestep_away(base: Candidate) -> Iterator[tuple[int, Candidate]]:
    """Candidates whose network time is one timestep later, 1, or earlier, -1.

    Where no parameter gives that time, their `parameters` are those of the base.
    """
    match base.checkpoint.time_input:
        case TimeInput.INDEX:
            other = TimeInput.ONE_BASED
            yield 1, with_parameter(base, "time_input", str(other), time_input=other)
        case TimeInput.ONE_BASED:
            other = TimeInput.INDEX
            yield -1, with_parameter(base, "time_input", str(other), time_input=other)
        case _:
            yield -1, shifted(base, -1)
            yield 1, shifted(base, 1)


class _Retimed(nn.Module):
    """A network that transforms its time first."""

    def __init__(self, network: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.change = network, change

    def forward(self, x_t: Tensor, time: Tensor, *labels: Tensor) -> Tensor:
        output: Tensor = self.network(x_t, self.change(time), *labels)
        return output


def _retimed(candidate: Candidate, change: Callable[[Tensor], Tensor]) -> Candidate:
    network = _Retimed(candidate.checkpoint.network, change)
    checkpoint = dataclasses.replace(candidate.checkpoint, network=network)
    return dataclasses.replace(candidate, checkpoint=checkpoint)


def _at_other_timesteps(candidate: Candidate, change: Callable[[Tensor], Tensor]) -> Candidate:
    """The same with the network's times of other timesteps, rounded to the schedule's."""
    total = candidate.checkpoint.schedule.num_timesteps
    times = candidate.checkpoint.network_time(torch.arange(1, total + 1))

    def changed(time: Tensor) -> Tensor:
        table = times.to(time.device)
        t = 1 + (table[None] - time[:, None]).abs().argmin(1)
        return table[change(t.double()).round().long().clamp(1, total) - 1]

    return _retimed(candidate, changed)


def _time_unit(checkpoint: Checkpoint) -> float:
    """The difference between the network's times at adjacent timesteps."""
    total = checkpoint.schedule.num_original_timesteps
    units = {TimeInput.FRACTION: 1 / total, TimeInput.RESCALED_1000: 1000 / total}
    return units.get(checkpoint.time_input, 1)


# ---- the time at every noise level


class TimeTest(NamedTuple):
    """How far the time is moved, and what counts as denoising better there."""

    factor: float  # of the network's time; its inverse is tried as well
    min_share: float  # relative decrease of eps_mse
    min_area: float  # decrease of the area, nats per dimension


COARSE = TimeTest(factor=1.15, min_share=0.05, min_area=0.005)
FINE = TimeTest(factor=1.05, min_share=0.002, min_area=0.0)
_FIRST_IMAGES = 4  # images after which a test ends if there is no gain


def is_mistimed(scorer: Scorer, base: Score, test: TimeTest = COARSE) -> bool:
    """Whether at some timestep the network denoises significantly better with another time.

    A network that predicts the previous mean is not tested.
    """
    is_mean = base.candidate.checkpoint.prediction is Prediction.PREVIOUS_MEAN
    if is_mean or len(base.timesteps) < 2:
        return False
    return any(_is_better(scorer, base, test, f) for f in (test.factor, 1 / test.factor))


def _is_better(scorer: Scorer, base: Score, test: TimeTest, factor: float) -> bool:
    """Whether the scaled time is significantly better at any timestep but the first."""
    timesteps, images = base.timesteps[1:], scorer.subset(NUM_IMAGES)
    other = scaled_time(base.candidate, factor)
    # The weight of eps_mse in the area: half the distance of the neighbors, halved.
    weight = np.convolve(-np.diff(base.log_snr), [0.25, 0.25])[1:]
    gains = np.empty((0, len(timesteps)))
    for part in (slice(0, _FIRST_IMAGES), slice(_FIRST_IMAGES, NUM_IMAGES)):
        errors = scorer.eps_mse(other, images[part], timesteps)
        if errors is None:
            return False
        errors = np.nan_to_num(errors, nan=np.inf)
        gains = np.concatenate([gains, base.eps_mse[part, 1:] - errors])
        gain, own = gains.mean(0), base.eps_mse[: len(gains), 1:].mean(0)
        is_better = (gain > test.min_share * own) & (gain * weight > test.min_area)
        if not is_better.any():
            return False
    significant = SIGNIFICANT * np.array([standard_error(column) for column in gains.T])
    return bool((is_better & (gain > significant)).any())


# ---- schedules, which give a noise level other times

_NUM_FINALISTS = 6
_NUM_TIMES = 28  # times at which the network is evaluated to rank schedules
_SAME_TIME = 0.1  # mean difference of log times below which two schedules count as the same


def with_best_times(scorer: Scorer, base: Score, schedules: Sequence[Candidate]) -> list[Candidate]:
    """The few schedules with the best times, by the errors of one image."""
    if not schedules:
        return []
    image, last = scorer.subset(NUM_IMAGES)[:1], max(c.largest_time for c in schedules)
    times, rows = np.unique(np.rint(np.geomspace(1, last, _NUM_TIMES))), []
    for time in times.tolist():
        constant = _retimed(base.candidate, partial(torch.full_like, fill_value=int(time)))
        errors = scorer.eps_mse(constant, image, base.timesteps)
        rows.append(np.ones(len(base.timesteps)) if errors is None else errors[0])
    columns = np.nan_to_num(np.array(rows), nan=1.0).clip(max=1.0).T
    log_snr = _log_snr(base.candidate, base.timesteps)

    def area(candidate: Candidate) -> float:
        own = np.log(time_at(candidate, log_snr).clip(min=1))
        pairs = zip(own, columns, strict=True)
        values = [np.interp(time, np.log(times), errors) for time, errors in pairs]
        return float(np.trapezoid(values, -log_snr))

    return sorted(schedules, key=area)[:_NUM_FINALISTS]


def has_twin(best: Candidate, given: Candidate, channels: int) -> bool:
    """Whether another common schedule gives the network nearly the same times as the best one.

    They are compared at the noise levels of the given candidate.
    """
    own, listed = best.parameters.get("schedule"), other_lengths(given)
    if own is None or not listed or not best.has_integer_times:
        return False
    log_snr = _log_snr(given, timesteps_of(given))
    times = np.log1p(time_at(best, log_snr))
    return any(
        np.abs(np.log1p(time_at(other, log_snr)) - times).mean() < _SAME_TIME
        for other in (*listed, *alternatives(given, channels))
        if other.parameters.get("schedule") not in (None, own)
    )


def _log_snr(candidate: Candidate, timesteps: Timesteps) -> Array:
    return np.asarray(candidate.checkpoint.schedule.log_snr.numpy()[timesteps - 1])


# ---- one timestep off

_OFFSET_NUM_IMAGES = 64
_OFFSET_TIMESTEPS = (2, 3, 4, 6)  # the network may not have been trained at t = 1
_OFFSET_MIN_GAIN = 0.004  # relative decrease of eps_mse
_OFFSET_MIN_LOSS = 0.5  # share of that gain that a second timestep must lose


@dataclasses.dataclass(frozen=True, eq=False)
class TimeOffset:
    """A network time that is one timestep off, judged by eps_mse at the first timesteps.

    Attributes:
        candidate: the candidate with the time one timestep later or earlier.
        is_later: whether the time is later.
        gain: relative decrease of its eps_mse, the mean log ratio over images and timesteps.
        standard_error: standard error of the gain, over images.
        timesteps: the first and the last timestep.
        num_images: images evaluated.
        is_likely: whether the network was likely trained with this time.
    """

    candidate: Candidate
    is_later: bool
    gain: float
    standard_error: float
    timesteps: tuple[int, int]
    num_images: int
    is_likely: bool = False


def one_timestep_off(
    scorer: Scorer, given: Candidate, neighbors: Iterable[tuple[int, Candidate]]
) -> TimeOffset | None:
    """The likely one of the neighbors, see `one_timestep_away`, or the last that was compared."""
    offset = None
    for by, near in neighbors:
        offset = _compared(scorer, given, near, by) or offset
        if offset is not None and offset.is_likely:
            break
    return offset


def _compared(scorer: Scorer, given: Candidate, near: Candidate, by: int) -> TimeOffset | None:
    """A candidate `by` timesteps off, compared on as many images as needed."""
    last = given.checkpoint.schedule.num_timesteps - 2
    timesteps = np.array([t for t in _OFFSET_TIMESTEPS if t <= last], np.int64)
    images, values = scorer.subset(_OFFSET_NUM_IMAGES), np.empty(0)
    if not len(timesteps):
        return None
    for start in range(0, _OFFSET_NUM_IMAGES, NUM_IMAGES):
        part = images[start : start + NUM_IMAGES]
        ratios = _log_ratios(scorer, given, near, timesteps, part)
        if ratios is None:
            return None
        values = np.append(values, ratios)
        gain, error = mean_over_images(values, images)
        if gain < -SIGNIFICANT * error:
            break
    num_images = len(np.unique(images.image[: len(values)]))
    ends = int(timesteps[0]), int(timesteps[-1])
    offset = TimeOffset(near, by > 0, gain, error, ends, num_images)
    if not gain > max(SIGNIFICANT * error, _OFFSET_MIN_GAIN):
        return offset
    # A network that is not fully trained may be slightly better one timestep off, and better still
    # two off; one that was trained one timestep off is worse again.
    back = _log_ratios(scorer, shifted(near, by), near, timesteps, images)
    if back is None:
        return offset
    loss, loss_error = mean_over_images(back, images)
    is_likely = loss > max(_OFFSET_MIN_LOSS * gain, SIGNIFICANT * loss_error)
    return dataclasses.replace(offset, is_likely=is_likely)


def _log_ratios(
    scorer: Scorer, first: Candidate, second: Candidate, timesteps: Timesteps, images: TermIndex
) -> Array | None:
    """(N,) log of the first's eps_mse over the second's, the mean over timesteps."""
    errors = [scorer.eps_mse(c, images, timesteps) for c in (first, second)]
    if errors[0] is None or errors[1] is None:
        return None
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.log(errors[0] / errors[1]).mean(1))
