"""What else a checkpoint could be: the same weights under other parameterizations.

A file that does not say how its network was trained is read as an option says, and a wrong option
gives no error, only a bad bound. Each candidate is a model by itself, and its bound a code length
of the same images, whatever schedule, range or prediction it has. So they compare, and the
shortest code belongs to the right one (`likelihood.reading_check`).
"""

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ddpmbench.checkpoints.schedules import read_schedule
from ddpmbench.diffusion.model import Checkpoint, TimeInput
from ddpmbench.diffusion.process import Prediction
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError
from ddpmbench.unet.unet import UNet

INTERVALS = ((-1.0, 1.0), (-0.5, 0.5), (0.0, 1.0), (0.0, 255.0))
"""The ranges that people train in."""
NORMALIZATIONS = {
    1: ((0.1307, 0.3081), (0.2860, 0.3530), (0.1918, 0.3483), (0.1722, 0.3309)),
    3: ((0.4734, 0.2507), (0.4734, 0.2009), (0.4490, 0.2260)),
}
"""Mean and standard deviation of pixels on [0, 1] that people normalize with, by channels.

Of one channel those of MNIST, Fashion-MNIST, KMNIST and EMNIST; of three the means over channels
of what is usual for CIFAR-10, where there are two, and ImageNet: a range is the same for all.
"""
LENGTHS = (10, 20, 25, 50, 100, 200, 250, 300, 400, 500, 600, 800, 1000, 1500, 2000, 4000)
"""Numbers of steps that people train with."""
_WHOLE = (TimeInput.INDEX, TimeInput.ONE_BASED)
_SAME = 1e-4
_MOST_DATA_LEFT = 0.5  # alphas_cumprod at the end of a schedule of another length
_NUDGE = 1.15


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """A checkpoint under one parameterization.

    Attributes:
        options: what it takes on the command line, as `--prediction v`; empty for the stated one.
        checkpoint: the weights under it.
        same_calls: whether its network is given exactly what that of the base is given.
        is_of_time: whether it differs from the base in what the network is given at which noise.
        is_exact: whether a network can have been trained with just this.
    """

    options: tuple[str, ...]
    checkpoint: Checkpoint
    same_calls: bool = False
    is_of_time: bool = False
    is_exact: bool = True

    @property
    def option(self) -> str:
        """Its options in one line; empty for the stated parameterization."""
        return " ".join(self.options)

    @property
    def is_stated(self) -> bool:
        """Whether it is the one that was asked for."""
        return not self.options


def alternatives(base: Candidate, channels: int) -> tuple[Candidate, ...]:
    """Every candidate that differs from another in one thing, and not in name only.

    Predictions come first, then ranges, time inputs and schedules of as many steps.

    Args:
        base: the other.
        channels: of the images.
    """
    return (*_predictions(base), *_ranges(base, channels), *_time_inputs(base), *_schedules(base))


def with_predictions(candidate: Candidate) -> tuple[Candidate, ...]:
    """A candidate, and those of the same network evaluations with another prediction besides."""
    return (candidate, *_predictions(candidate))


def other_lengths(base: Candidate) -> tuple[Candidate, ...]:
    """The usual schedules of other numbers of steps.

    There are none for a respaced model, nor for a network that is given a share of all steps: what
    it is given at some noise hardly depends on their number.
    """
    own = base.checkpoint.schedule
    total = own.num_original_timesteps
    if own.num_timesteps != total or base.checkpoint.time_input not in _WHOLE:
        return ()
    return tuple(
        _with(base, f"--schedule {form}", schedule=schedule, is_of_time=True)
        for steps in LENGTHS
        if steps != total
        for form in schedule_forms(steps)
        if (schedule := _read(form)) is not None and schedule.alphas_cumprod[-1] < _MOST_DATA_LEFT
    )


def largest_time(candidate: Candidate) -> float:
    """The largest number that its network is given for a step."""
    total = torch.tensor([candidate.checkpoint.schedule.num_timesteps])
    return float(candidate.checkpoint.network_time(total).item())


def counts_steps(candidate: Candidate) -> bool:
    """Whether its network is given the number of a step."""
    return candidate.checkpoint.time_input in _WHOLE


def may_look_up(checkpoint: Checkpoint) -> bool:
    """Whether a step may be a position in a table, which has nothing outside."""
    return checkpoint.time_input in _WHOLE and not isinstance(checkpoint.network, UNet)


def always_given(candidate: Candidate, time: int) -> Candidate:
    """The same, but that its network is given one and the same time at every step."""
    return _retimed(candidate, lambda times: torch.full_like(times, time))


def time_at(candidate: Candidate, log_snr: NDArray[np.float64]) -> NDArray[np.float64]:
    """What a network that counts its steps is given at some noise, between two steps if need be.

    Args:
        candidate: its time input is a whole number.
        log_snr: any shape, of its schedule; what it does not have is that of the nearest step.
    """
    own = candidate.checkpoint.schedule.snr.log().numpy()
    first = 1 if candidate.checkpoint.time_input is TimeInput.ONE_BASED else 0
    return np.asarray(np.interp(-log_snr, -own, np.arange(len(own)))) + first


def shifted(candidate: Candidate, steps: int) -> Candidate:
    """The same, but that its network is given the time of a step so many later.

    Args:
        candidate: any.
        steps: of the schedule the network was trained on; negative for earlier.
    """
    unit = _time_unit(candidate.checkpoint)
    return _retimed(candidate, lambda time: time + steps * unit)


def nudged(candidate: Candidate, sign: int) -> Candidate:
    """The same, but that its network is given a time some 15 % later or earlier.

    It is at least a step, and never outside what the schedule has.

    Args:
        candidate: any.
        sign: 1 for later, -1 for earlier.
    """
    checkpoint, unit = candidate.checkpoint, _time_unit(candidate.checkpoint)
    first = 0.0 if checkpoint.time_input in (TimeInput.INDEX, TimeInput.RESCALED_1000) else unit
    last = first + (checkpoint.schedule.num_original_timesteps - 1) * unit

    def change(time: Tensor) -> Tensor:
        step = (time.double() - first) / unit + 1
        other = step * _NUDGE**sign
        if checkpoint.time_input in _WHOLE:
            other = other.round()
        other = torch.maximum(other, step + 1) if sign > 0 else torch.minimum(other, step - 1)
        return ((other - 1) * unit + first).clamp(first, last).to(time.dtype)

    return _retimed(candidate, change)


def one_step_away(base: Candidate) -> Iterator[tuple[int, Candidate]]:
    """Candidates whose network is given the time of one step later, 1, or earlier, -1.

    Where no option gives that time, their `options` are those of the base.
    """
    match base.checkpoint.time_input:
        case TimeInput.INDEX:
            yield 1, _with(base, "--time-input one-based", time_input=TimeInput.ONE_BASED)
        case TimeInput.ONE_BASED:
            yield -1, _with(base, "--time-input index", time_input=TimeInput.INDEX)
        case _:
            yield -1, shifted(base, -1)
            yield 1, shifted(base, 1)


class _Retimed(nn.Module):
    def __init__(self, network: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self._change = network, change

    def forward(self, x_t: Tensor, time: Tensor, *labels: Tensor) -> Tensor:
        output: Tensor = self.network(x_t, self._change(time), *labels)
        return output


def _retimed(candidate: Candidate, change: Callable[[Tensor], Tensor]) -> Candidate:
    checkpoint = candidate.checkpoint
    network = _Retimed(checkpoint.network, change)
    return dataclasses.replace(
        candidate, checkpoint=dataclasses.replace(checkpoint, network=network), same_calls=False
    )


def _time_unit(checkpoint: Checkpoint) -> float:
    """By how much the network's time grows from a step to the next."""
    total = checkpoint.schedule.num_original_timesteps
    units = {TimeInput.FRACTION: 1 / total, TimeInput.RESCALED_1000: 1000 / total}
    return units.get(checkpoint.time_input, 1)


def _with(
    base: Candidate,
    option: str,
    *,
    same_calls: bool = False,
    is_of_time: bool = False,
    **changes: object,
) -> Candidate:
    """The base with one thing changed; its option replaces one of the same name."""
    name = option.split()[0]
    kept = tuple(other for other in base.options if other.split()[0] != name)
    checkpoint = dataclasses.replace(base.checkpoint, **changes)  # type: ignore[arg-type]
    return Candidate((*kept, option), checkpoint, same_calls, is_of_time, base.is_exact)


def _predictions(base: Candidate) -> Iterator[Candidate]:
    own = base.checkpoint.prediction
    if own is Prediction.PREVIOUS_MEAN:
        # Of its noise little is known at large t: whatever it were read as, would look better.
        return
    for prediction in Prediction:
        if prediction is not own:
            option = f"--prediction {prediction}"
            yield _with(base, option, prediction=prediction, same_calls=True)


def _time_inputs(base: Candidate) -> Iterator[Candidate]:
    stated = base.checkpoint
    t = torch.arange(1, stated.schedule.num_timesteps + 1)
    own = stated.network_time(t).double()
    for time_input in TimeInput:
        other = _with(base, f"--time-input {time_input}", time_input=time_input, is_of_time=True)
        times = other.checkpoint.network_time(t).double()
        if not torch.allclose(times, own, rtol=1e-6, atol=0.0):
            yield other


def _schedules(base: Candidate) -> Iterator[Candidate]:
    own = base.checkpoint.schedule
    for form in schedule_forms(own.num_original_timesteps):
        schedule = _read(form)
        if schedule is None:
            continue
        schedule = schedule.subset(own.original_timesteps.tolist())
        log_snr, other = own.snr.log(), schedule.snr.log()
        if not torch.allclose(log_snr, other, rtol=0.0, atol=_SAME):
            yield _with(base, f"--schedule {form}", schedule=schedule, is_of_time=True)


def schedule_forms(total: int) -> Iterator[str]:
    """Those that people train with, of so many steps, as `--schedule` takes them."""
    if total == 1000:
        yield "linear:1000"
    else:
        yield f"linear:{total}:0.0001:0.02"
        yield f"linear:{total}:{0.1 / total:g}:{20 / total:g}"
    yield f"linear:{total}:0.0001:0.01"
    yield f"cosine:{total}"
    yield f"sigmoid:{total}"
    yield f"scaled-linear:{total}:0.00085:0.012"
    yield f"geometric:{total}:0.0001:0.02"
    yield f"cosine-betas:{total}:0.0001:0.02"
    if total != 1000:
        yield f"geometric:{total}:{0.1 / total:g}:{20 / total:g}"
        yield f"cosine-betas:{total}:{0.1 / total:g}:{20 / total:g}"


def _read(form: str) -> NoiseSchedule | None:
    """The schedule of a form; None where there is none of so few steps."""
    try:
        return read_schedule(form)
    except InputError:
        return None


def _ranges(base: Candidate, channels: int) -> Iterator[Candidate]:
    own = base.checkpoint.data_range
    normalized = [(-mean / std, (1 - mean) / std) for mean, std in NORMALIZATIONS.get(channels, ())]
    for low, high in (*INTERVALS, *normalized):
        is_own = all(
            math.isclose(a, b, abs_tol=1e-3) for a, b in ((low, own.low), (high, own.high))
        )
        if not is_own:
            other = dataclasses.replace(own, low=round(low, 6), high=round(high, 6))
            candidate = _with(base, f"--data-range {other.option}", data_range=other)
            is_mean = channels > 1 and (low, high) in normalized
            yield dataclasses.replace(candidate, is_exact=base.is_exact and not is_mean)
