"""Other parameterizations of the same weights: predictions, data ranges, time inputs, schedules.

A wrong parameterization raises no error; it only makes the bound worse. Every candidate is a model
of the same images, and its bound a code length in the same unit, so candidates can be compared
(`sanity_check.scores`).
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ddpmbench.checkpoints.schedules import read_schedule
from ddpmbench.diffusion.model import Checkpoint, TimeInput
from ddpmbench.diffusion.parameterization import Prediction, Process
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError
from ddpmbench.unet.unet import UNet

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
_INTEGER_TIMES = (TimeInput.INDEX, TimeInput.ONE_BASED)
_TIMES = (*_INTEGER_TIMES, TimeInput.FRACTION, TimeInput.RESCALED_1000)
_PREDICTIONS = (Prediction.EPSILON, Prediction.X_START, Prediction.V, Prediction.PREVIOUS_MEAN)
"""Common time inputs and predictions for VP."""
_PREDICTIONS_OF_SCALE = (
    *(Prediction.SCORE, Prediction.VELOCITY, Prediction.EPSILON, Prediction.X_START),
)
_PROCESSES = (Process.VP, Process.VE)
_SAME_LOG_SNR = 1e-4
_MAX_FINAL_SIGNAL = 0.5  # alphas_cumprod at T of a schedule of another length


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
        return self.checkpoint.time_input in _INTEGER_TIMES

    @property
    def largest_time(self) -> float:
        """The largest time that the network is given."""
        last = torch.tensor([self.checkpoint.schedule.num_timesteps])
        return float(self.checkpoint.network_time(last).item())

    @property
    def may_index_a_table(self) -> bool:
        """Whether the time may be the index of an embedding, which is finite."""
        return self.has_integer_times and not isinstance(self.checkpoint.network, UNet)


def alternatives(base: Candidate, channels: int) -> tuple[Candidate, ...]:
    """Candidates that differ from the base in one parameter, without equivalent ones.

    Predictions come first, then data ranges, time inputs and schedules of the same length.
    """
    return (
        *other_predictions(base),
        *_ranges(base, channels),
        *_time_inputs(base),
        *_schedules(base),
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
        _with(base, "schedule", form, schedule=schedule)
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


def at_constant_time(candidate: Candidate, time: int) -> Candidate:
    """The same with one constant network time at all timesteps."""
    return _retimed(candidate, lambda times: torch.full_like(times, time))


def time_at(candidate: Candidate, log_snr: NDArray[np.float64]) -> NDArray[np.float64]:
    """The network's time, counted in timesteps, at given log SNRs; interpolated between timesteps.

    Beyond the ends of the schedule, the nearest timestep counts.
    """
    own = candidate.checkpoint.schedule.log_snr.numpy()
    first = 1 if candidate.checkpoint.time_input is TimeInput.ONE_BASED else 0
    return np.asarray(np.interp(-log_snr, -own, np.arange(len(own)))) + first


def shifted(candidate: Candidate, timesteps: int) -> Candidate:
    """The same with the network's time shifted by `timesteps`; negative for earlier."""
    if candidate.checkpoint.time_input not in _TIMES:
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
    if checkpoint.time_input not in _TIMES:
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
            yield 1, _with(base, "time_input", "one-based", time_input=TimeInput.ONE_BASED)
        case TimeInput.ONE_BASED:
            yield -1, _with(base, "time_input", "index", time_input=TimeInput.INDEX)
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


def _with(base: Candidate, parameter: str, value: str, **changes: object) -> Candidate:
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
            yield _with(base, "prediction", str(prediction), prediction=prediction)


def _ranges(base: Candidate, channels: int) -> Iterator[Candidate]:
    own = base.checkpoint.data_range
    normalized = [(-mean / std, (1 - mean) / std) for mean, std in NORMALIZATIONS.get(channels, ())]
    for ends in (*INTERVALS, *normalized):
        if not np.allclose(ends, (own.low, own.high), rtol=1e-9, atol=1e-3):
            low, high = (round(end, 6) for end in ends)
            other = dataclasses.replace(own, low=low, high=high)
            candidate = _with(base, "data_range", other.option, data_range=other)
            is_average = channels > 1 and ends in normalized
            yield dataclasses.replace(candidate, is_exact=base.is_exact and not is_average)


def _time_inputs(base: Candidate) -> Iterator[Candidate]:
    t = torch.arange(1, base.checkpoint.schedule.num_timesteps + 1)
    own = base.checkpoint.network_time(t).double()
    usual = _TIMES if base.is_preserving else TimeInput
    for time_input in usual:
        other = _with(base, "time_input", str(time_input), time_input=time_input)
        times = other.checkpoint.network_time(t).double()
        if not torch.allclose(times, own, rtol=1e-6, atol=0.0):
            yield other


def _schedules(base: Candidate) -> Iterator[Candidate]:
    own = base.checkpoint.schedule
    if not base.is_preserving:
        return
    for form, full_schedule in common_schedules(own.num_original_timesteps):
        schedule = full_schedule.subset(own.original_timesteps.tolist())
        log_snr, other = own.log_snr, schedule.log_snr
        if not torch.allclose(log_snr, other, rtol=0.0, atol=_SAME_LOG_SNR):
            yield _with(base, "schedule", form, schedule=schedule)


def other_processes(base: Candidate) -> Iterator[Candidate]:
    """Candidates with the same noise levels, but x_t at the scale of another family."""
    own = base.checkpoint.schedule
    for process in _PROCESSES:
        if process is not own.process:
            schedule = dataclasses.replace(own, process=process)
            yield _with(base, "process", str(process), schedule=schedule)
