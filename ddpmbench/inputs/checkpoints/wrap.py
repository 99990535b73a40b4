"""A network of the user's own as a checkpoint."""

import hashlib

import torch
from torch import nn

from ddpmbench.errors import InputError
from ddpmbench.inputs.checkpoints.checkpoint import Checkpoint, TimeInput
from ddpmbench.inputs.checkpoints.settings import CheckpointSettings
from ddpmbench.process.data_range import UNIT_RANGE, DataRange
from ddpmbench.process.prediction import Prediction, Variance
from ddpmbench.process.schedule import NoiseSchedule


def wrap_network(
    network: nn.Module,
    *,
    schedule: NoiseSchedule,
    channels: int | None = None,
    num_classes: int = 0,
    prediction: str = "eps",
    variance: str = "fixed_large",
    time_input: str = "index",
    data_range: DataRange | tuple[float, float] = UNIT_RANGE,
) -> Checkpoint:
    """A trained network as something that can be evaluated.

    Args:
        network: called as network(x_t, time) with x_t (B, C, H, W) float32 and time (B,), or as
            network(x_t, time, labels) with labels (B,) int64 where there are classes; gives
            (B, C, H, W), or (B, 2C, H, W) where the variance is learned.
        schedule: the schedule it was trained on.
        channels: C; None takes images of any.
        num_classes: classes it is conditioned on.
        prediction: "eps", "x_start", "v" or "previous_mean".
        variance: "fixed_small", "fixed_large", "learned_range" or "learned".
        time_input: what it is given for step t = 1..T: "index" t - 1 or "one-based" t, int64;
            "fraction" t / T or "rescaled-1000" (t - 1) 1000 / T, float32.
        data_range: lowest and highest value of an image, or the record that has the number of
            levels too.

    Raises:
        InputError: it is no torch module, a name is unknown, or the range is none.
    """
    if not isinstance(network, nn.Module):
        raise InputError(f"wrap_network: takes a torch module, not a {type(network).__name__}")
    said = CheckpointSettings(prediction=prediction, variance=variance, time_input=time_input)
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return Checkpoint(
        network=network,
        schedule=schedule,
        prediction=Prediction(str(said.prediction)),
        variance=Variance(str(said.variance)),
        time_input=TimeInput(str(said.time_input)),
        data_range=data_range if isinstance(data_range, DataRange) else DataRange(*data_range),
        channels=channels,
        num_classes=num_classes,
        family="wrapped",
        source=type(network).__name__,
        sha256=digest.hexdigest(),
    )
