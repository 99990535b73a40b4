"""A network of the user's own as a checkpoint."""

import hashlib

import torch
from torch import nn

from ddpmbench.inputs.checkpoints.checkpoint import Checkpoint, TimeInput
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
) -> Checkpoint:
    """A trained network as something that can be evaluated.

    Args:
        network: called as network(x_t, time) with x_t (B, C, H, W) float32 of data in [-1, 1]
            and time (B,) float32, or as network(x_t, time, labels) with labels (B,) int64 where
            there are classes; gives (B, C, H, W), or (B, 2C, H, W) where the variance is learned.
        schedule: the schedule it was trained on.
        channels: C; None takes images of any.
        num_classes: classes it is conditioned on.
        prediction: "eps", "x_start", "v" or "previous_mean".
        variance: "fixed_small", "fixed_large", "learned_range" or "learned".
        time_input: what it is given for step t = 1..T: "index" t - 1, "one-based" t, "fraction"
            t / T, "rescaled-1000" (t - 1) 1000 / T.

    Raises:
        ValueError: a name is unknown.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return Checkpoint(
        network=network,
        schedule=schedule,
        prediction=Prediction(prediction),
        variance=Variance(variance),
        time_input=TimeInput(time_input),
        channels=channels,
        num_classes=num_classes,
        family="wrapped",
        source=type(network).__name__,
        sha256=digest.hexdigest(),
    )
