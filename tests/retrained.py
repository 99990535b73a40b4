"""The shipped model as if it had been trained with other parameters: its network in an adapter.

Under the other parameterization its outputs are those of the shipped model, and so is its bound in
continuous time.
"""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.process import Prediction
from ddpmbench.execution.worker import BatchSize
from ddpmbench.sanity_check.check import SanityCheck
from ddpmbench.sanity_check.run import check_parameterization


class Adapter(nn.Module):
    """A network of another schedule, prediction, time input and data range.

    It takes x_t to have the signal-to-noise ratio that belongs to the time it is given, so that it
    is wrong at a wrong time, as a trained network is. Times beyond its schedule count as the
    nearest.
    """

    coarseness = 0.03
    """Amplitude of an error of x_start where that is predicted: such networks are coarse at low
    noise. Three times as coarse, the bound is worse than if x_start were read as the noise."""

    def __init__(self, inner: Checkpoint, outer: Checkpoint) -> None:
        super().__init__()
        self.network, self.prediction = inner.network, outer.prediction
        data, schedule = outer.data_range, outer.schedule
        self.scale, self.shift = 2 / (data.high - data.low), (data.low + data.high) / 2
        t = torch.arange(1, schedule.num_timesteps + 1)
        self.times = outer.network_time(t).double().numpy()
        self.log_snr = schedule.snr.log().numpy()
        self.inner_log_snr = inner.schedule.snr.log().numpy()

    def forward(self, x_t: Tensor, time: Tensor) -> Tensor:
        outer = np.interp(time.double().numpy(), self.times, self.log_snr)
        inner = outer - 2 * np.log(self.scale)
        index = np.interp(-inner, -self.inner_log_snr, np.arange(len(self.inner_log_snr)))
        snr, inner_snr = (
            torch.from_numpy(np.exp(of))[:, None, None, None] for of in (outer, inner)
        )
        signal, noise = (snr / (1 + snr)).sqrt(), (1 / (1 + snr)).sqrt()
        gain = ((1 + snr) / (1 + inner_snr)).sqrt()
        inner_x_t = (x_t.double() - signal * self.shift) * gain
        eps = self.network(inner_x_t.float(), torch.from_numpy(index).float()).double()
        x_start = (x_t - noise * eps) / signal
        match self.prediction:
            case Prediction.X_START:
                return (x_start + self.coarseness * torch.sin(1000 * x_start)).float()
            case Prediction.V:
                return (signal * eps - noise * x_start).float()
        return eps.float()


def trained(shipped: Checkpoint, **changes: object) -> Checkpoint:
    """The shipped model as if it had been trained with these fields of a checkpoint."""
    outer = dataclasses.replace(shipped, **changes)
    return dataclasses.replace(outer, network=Adapter(shipped, outer).eval())


class Shifted(nn.Module):
    """A network whose time is so much later."""

    def __init__(self, network: nn.Module, by: float) -> None:
        super().__init__()
        self.network, self.by = network, by

    def forward(self, x_t: Tensor, time: Tensor) -> Tensor:
        return self.network(x_t, time.float() + self.by)


def remembering(checkpoint: Checkpoint) -> Checkpoint:
    """The same, but its network evaluates no input twice."""
    evaluate, known = checkpoint.network.forward, {}

    def forward(x_t: Tensor, time: Tensor) -> Tensor:
        inputs = torch.cat([x_t.flatten(1), time[:, None].to(x_t.dtype)], 1).numpy()
        keys = [hashlib.blake2b(of.tobytes(), digest_size=16).digest() for of in inputs]
        new = [row for row, key in enumerate(keys) if key not in known]
        if new:
            outputs = evaluate(x_t[new], time[new])
            known.update(zip((keys[row] for row in new), outputs, strict=True))
        return torch.stack([known[key] for key in keys])

    checkpoint.network.forward = forward
    return checkpoint


def checked(
    checkpoint: Checkpoint, images: ImageSet, *, seed: int = 0, batch_size: int | None = None
) -> SanityCheck:
    """The sanity check on a CPU."""
    device, shape = torch.device("cpu"), images.pixels.shape[1:]
    batch = BatchSize(batch_size, device=device, image_shape=shape, warn=pytest.fail)
    return check_parameterization(checkpoint, images, seed=seed, device=device, batch=batch)
