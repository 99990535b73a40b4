"""A network of the user's own as a checkpoint."""

from torch import nn

from ddpmbench.errors import InputError
from ddpmbench.inputs.checkpoints.checkpoint import Checkpoint, TimeInput
from ddpmbench.inputs.checkpoints.network_digest import network_digest
from ddpmbench.inputs.checkpoints.own_weights import check_finite
from ddpmbench.inputs.checkpoints.schedule_option import read_schedule
from ddpmbench.inputs.checkpoints.settings import CheckpointSettings
from ddpmbench.process.data_range import UNIT_RANGE, DataRange
from ddpmbench.process.prediction import Prediction, Variance
from ddpmbench.process.schedule import NoiseSchedule


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
    """A trained network as something that can be evaluated.

    The module itself is kept: an evaluation moves it to its device and leaves it there, and leaves
    its weights and its mode, train or eval, as they were.

    Args:
        network: called as network(x_t, time) with x_t (B, C, H, W) float32 and time (B,), or as
            network(x_t, time, labels) with labels (B,) int64 where there are classes; gives
            (B, C, H, W), or (B, 2C, H, W) where the variance is learned.
        schedule: the schedule it was trained on: a record or, as `--schedule` takes it, text.
        channels: C; None takes images of any.
        num_classes: classes it is conditioned on.
        null_class: the label that stands for none of them.
        prediction: "eps", "x_start", "v" or "previous_mean".
        variance: "fixed_small", "fixed_large", "learned_range" or "learned".
        time_input: what it is given for step t = 1..T: "index" t - 1 or "one-based" t, int64;
            "fraction" t / T or "rescaled-1000" (t - 1) 1000 / T, float32.
        data_range: lowest and highest value of an image, or the record that has the number of
            levels too.

    Raises:
        InputError: it is no torch module, or one without finite weights; a name is unknown; the
            range or the schedule is none.
    """
    if not isinstance(network, nn.Module):
        raise InputError(f"wrap_network: takes a torch module, not a {type(network).__name__}")
    said = CheckpointSettings(prediction=prediction, variance=variance, time_input=time_input)
    check_finite(network, "wrap_network")
    return Checkpoint(
        network=network,
        schedule=read_schedule(schedule) if isinstance(schedule, str) else schedule,
        prediction=Prediction(str(said.prediction)),
        variance=Variance(str(said.variance)),
        time_input=TimeInput(str(said.time_input)),
        data_range=data_range if isinstance(data_range, DataRange) else DataRange(*data_range),
        channels=channels,
        num_classes=num_classes,
        null_class=null_class,
        family="wrapped",
        source=type(network).__name__,
        sha256=network_digest(network, "wrap_network"),
    )
