"""Candidates: the same weights with another prediction, data range, time input or schedule.

A wrong parameterization raises no error; it only makes the bound worse. Every candidate is a model
of the same images, and its bound a code length in the same unit, so candidates can be compared
(`sanity_check.scores`).
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from functools import cache

import numpy as np
import torch

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
TIMES = (*_INTEGER_TIMES, TimeInput.FRACTION, TimeInput.RESCALED_1000)
"""Common time inputs for VP, which count timesteps."""
_PREDICTIONS = (Prediction.EPSILON, Prediction.X_START, Prediction.V, Prediction.PREVIOUS_MEAN)
_PREDICTIONS_OF_SCALE = (
    *(Prediction.SCORE, Prediction.VELOCITY, Prediction.EPSILON, Prediction.X_START),
)
_PROCESSES = (Process.VP, Process.VE)
_SAME = 1e-4  # of log SNR and of the network's time
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
