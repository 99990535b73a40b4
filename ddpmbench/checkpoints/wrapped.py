"""A checkpoint of a module that the user has in memory."""

import contextlib

from torch import nn

from ddpmbench.checkpoints.determinism import not_finite
from ddpmbench.checkpoints.schedule_tables import notes_on
from ddpmbench.checkpoints.schedules import read_schedule
from ddpmbench.checkpoints.settings import CheckpointSettings
from ddpmbench.checkpoints.state_dicts import network_digest
from ddpmbench.diffusion.data_range import UNIT_RANGE, DataRange
from ddpmbench.diffusion.model import WRAPPED, Checkpoint, TimeInput
from ddpmbench.diffusion.process import Prediction, Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError, whole_number
from ddpmbench.records import short_value


def wrap_network(
    network: nn.Module,
    *,
    schedule: NoiseSchedule | str,
    channels: int | None = None,
    num_classes: int = 0,
    null_class: int | None = None,
    prediction: str = "eps",
    variance: str = "fixed_large",
    time_input: str = "index",
    data_range: DataRange | tuple[float, float] = UNIT_RANGE,
) -> Checkpoint:
    """A checkpoint of a trained network that you have in memory.

    The module is not changed: an evaluation on another device computes with a copy, and one on its
    own device leaves its weights and its mode, train or eval, as they were.

    Args:
        network: called as network(x_t, time) with x_t (B, C, H, W) float32 and time (B,), or as
            network(x_t, time, labels) with labels (B,) int64 where there are classes; returns
            (B, C, H, W), or (B, 2C, H, W) where the variance is learned.
        schedule: the noise schedule of its training: a record, or text as `linear:1000`.
        channels: C; None takes images of any.
        num_classes: classes it is conditioned on.
        null_class: the label that stands for none of them.
        prediction: "eps", "x_start", "v" or "previous_mean".
        variance: "fixed_small", "fixed_large", "learned_range" or "learned".
        time_input: its input for timestep t = 1..T: "index" t - 1 or "one-based" t, int64;
            "fraction" t / T or "rescaled-1000" (t - 1) 1000 / T, float32.
        data_range: lowest and highest value of an image, or the record that has the number of
            levels, too.

    Raises:
        InputError: it is no torch module, or its weights are not finite; a name is unknown; the
            range, the schedule or a number is none; `null_class` is given without classes.
    """
    if not isinstance(network, nn.Module):
        raise InputError(f"wrap_network: takes a torch module, not a {type(network).__name__}")
    names = CheckpointSettings(
        prediction=_word(prediction), variance=_word(variance), time_input=_word(time_input)
    )
    if not isinstance(schedule, NoiseSchedule | str):
        raise InputError(
            f"`schedule={short_value(schedule)}`: takes a text as linear:1000, or a NoiseSchedule; "
            "NoiseSchedule.from_betas(betas) makes one of numbers"
        )
    channels = None if channels is None else whole_number("channels", channels, 1)
    num_classes = whole_number("num_classes", num_classes, 0)
    if null_class is not None:
        null_class = whole_number("null_class", null_class, 0)
        if not num_classes:
            raise InputError(
                f"`null_class={null_class}`: is of a network with classes; add `num_classes`, or "
                "leave it out"
            )
    if (name := not_finite(network)) is not None:
        raise InputError(f"wrap_network: {name} holds NaN or infinite weights")
    return Checkpoint(
        network=network,
        schedule=read_schedule(schedule) if isinstance(schedule, str) else schedule,
        prediction=Prediction(str(names.prediction)),
        variance=Variance(str(names.variance)),
        time_input=TimeInput(str(names.time_input)),
        data_range=_range(data_range),
        channels=channels,
        num_classes=num_classes,
        null_class=null_class,
        family=WRAPPED,
        source=type(network).__name__,
        sha256=network_digest(network, "wrap_network"),
        notes=notes_on(schedule) if isinstance(schedule, str) else (),
    )


def _word(value: object) -> str:
    return value if isinstance(value, str) else short_value(value)


def _range(value: object) -> DataRange:
    """A range given by its record or by its two ends."""
    if isinstance(value, DataRange):
        return value
    if isinstance(value, tuple | list) and len(value) == 2:
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            low, high = (
                None if isinstance(end, bool | str | bytes) else float(end) for end in value
            )
            if low is not None and high is not None:
                return DataRange(low, high)
    raise InputError(
        f"`data_range={short_value(value)}`: takes its lowest and its highest value, as in "
        "(-1, 1); DataRange(low, high, levels) has the number of levels, too"
    )
