"""What else a checkpoint could be: the same weights read under one other convention each.

A file that does not say how its network was trained is read as an option says, and a wrong option
gives no error, only a bad bound. Each reading is a model by itself, and its bound a code length of
the same images, whatever schedule, range or prediction it has. So they compare, and the shortest
code tells the right one (`likelihood.reading_check`).
"""

import dataclasses
from collections.abc import Iterator

import torch
from torch import nn

from ddpmbench.errors import InputError
from ddpmbench.inputs.checkpoints.checkpoint import Checkpoint, TimeInput
from ddpmbench.inputs.checkpoints.schedule_option import read_schedule
from ddpmbench.network.unet import UNet
from ddpmbench.process.prediction import Prediction

INTERVALS = ((-1.0, 1.0), (-0.5, 0.5), (0.0, 1.0), (0.0, 255.0))
"""The ranges that people train in."""
_WHOLE = (TimeInput.INDEX, TimeInput.ONE_BASED)
_SAME = 1e-4


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """A checkpoint as it may be meant.

    Attributes:
        option: what it would take on the command line, as `--prediction v`; empty for the reading
            that was asked for.
        checkpoint: the weights under it.
        same_calls: whether its network is given exactly what that of the reading that was asked
            for is given.
    """

    option: str
    checkpoint: Checkpoint
    same_calls: bool = False

    @property
    def is_stated(self) -> bool:
        """Whether it is the one that was asked for."""
        return not self.option


def alternatives(stated: Checkpoint) -> tuple[Reading, ...]:
    """Every other reading that differs in one thing, and not in name only.

    Predictions come first, then time inputs, schedules of as many steps and ranges.
    """
    return (
        *_predictions(stated),
        *_time_inputs(stated),
        *_schedules(stated),
        *_ranges(stated),
    )


def shifted(reading: Reading, by: int) -> Reading:
    """The same reading, but that its network is told a step so many later.

    Args:
        reading: with a whole number for a step.
        by: steps of the schedule the network was trained on.
    """
    checkpoint = reading.checkpoint
    network = _Shifted(checkpoint.network, by)
    return dataclasses.replace(
        reading, checkpoint=dataclasses.replace(checkpoint, network=network), same_calls=False
    )


def is_a_step_away(stated: Checkpoint, other: Checkpoint) -> bool:
    """Whether two readings differ by one step in what the network is told, and in nothing else."""
    kinds = (stated.time_input, other.time_input)
    return kinds[0] is not kinds[1] and all(kind in _WHOLE for kind in kinds)


class _Shifted(nn.Module):
    def __init__(self, network: nn.Module, by: int) -> None:
        super().__init__()
        self.network, self._by = network, by

    def forward(self, x_t: torch.Tensor, time: torch.Tensor, *labels: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.network(x_t, time + self._by, *labels)
        return output


def _predictions(stated: Checkpoint) -> Iterator[Reading]:
    if stated.prediction is Prediction.PREVIOUS_MEAN:
        # Of its noise little is known at large t: whatever it were read as, would look better.
        return
    for prediction in Prediction:
        if prediction is not stated.prediction:
            read = dataclasses.replace(stated, prediction=prediction)
            yield Reading(f"--prediction {prediction}", read, same_calls=True)


def _time_inputs(stated: Checkpoint) -> Iterator[Reading]:
    t = torch.arange(1, stated.schedule.num_timesteps + 1)
    own = stated.network_time(t).double()
    for time_input in TimeInput:
        read = dataclasses.replace(stated, time_input=time_input)
        times = read.network_time(t).double()
        if torch.allclose(times, own, rtol=1e-6, atol=0.0):
            continue
        if _may_be_looked_up(stated) and times.max() > stated.schedule.num_original_timesteps:
            continue
        yield Reading(f"--time-input {time_input}", read)


def _may_be_looked_up(stated: Checkpoint) -> bool:
    """Whether a step may be a position in a table, of which nothing outside must be asked for.

    On a GPU that ends the process, and cannot be caught.
    """
    return stated.time_input in _WHOLE and not isinstance(stated.network, UNet)


def _schedules(stated: Checkpoint) -> Iterator[Reading]:
    own = stated.schedule
    for form in _schedule_forms(own.num_original_timesteps):
        try:
            schedule = read_schedule(form).subset(own.original_timesteps.tolist())
        except InputError:  # a schedule of so few steps there is not
            continue
        log_snr, other = own.snr.log(), schedule.snr.log()
        if not torch.allclose(log_snr, other, rtol=0.0, atol=_SAME):
            yield Reading(f"--schedule {form}", dataclasses.replace(stated, schedule=schedule))


def _schedule_forms(total: int) -> Iterator[str]:
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


def _ranges(stated: Checkpoint) -> Iterator[Reading]:
    own = stated.data_range
    for low, high in INTERVALS:
        if (low, high) != (own.low, own.high):
            read = dataclasses.replace(own, low=low, high=high)
            yield Reading(
                f"--data-range {read.option}", dataclasses.replace(stated, data_range=read)
            )
