"""The shipped model as if it had been trained otherwise, exactly: its network behind an adapter.

Each is a network that is right under one reading, with the shipped one's own weights inside; what
it is worth there is what the shipped model is worth.
"""

import dataclasses

import numpy as np
import torch
from torch import Tensor, nn

from ddpmbench.diffusion.data_range import DataRange
from ddpmbench.diffusion.model import Checkpoint, TimeInput
from ddpmbench.diffusion.process import Prediction
from ddpmbench.diffusion.schedule import NoiseSchedule


class CountsFrom(nn.Module):
    """A network that is given something else for a step than the one inside."""

    def __init__(self, inner: nn.Module, scale: float, offset: float) -> None:
        super().__init__()
        self.inner, self.scale, self.offset = inner, scale, offset

    def forward(self, x_t: Tensor, time: Tensor) -> Tensor:
        return self.inner(x_t, time.float() * self.scale + self.offset)


class GivesV(nn.Module):
    """A network whose output is v, of one whose output is the noise."""

    def __init__(self, inner: nn.Module, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.inner, self.schedule = inner, schedule

    def forward(self, x_t: Tensor, time: Tensor) -> Tensor:
        kept = self.schedule.alphas_cumprod[time.long()][:, None, None, None]
        eps = self.inner(x_t, time).double()
        return ((eps - (1 - kept).sqrt() * x_t) / kept.sqrt()).float()


class SeesOtherData(nn.Module):
    """A network of another schedule and of other data: divided by `scale`, then moved by `shift`.

    It brings x_t to the ratio of data to noise that the network inside knows, and tells it the
    step, between two if need be, at which it has that ratio.
    """

    def __init__(
        self,
        inner: nn.Module,
        inside: NoiseSchedule,
        outside: NoiseSchedule,
        *,
        scale: float = 1.0,
        shift: float = 0.0,
    ) -> None:
        super().__init__()
        self.inner = inner
        kept = outside.alphas_cumprod
        snr = outside.snr / scale**2
        known = np.interp(
            -snr.log().numpy(), -inside.snr.log().numpy(), np.arange(inside.num_timesteps)
        )
        self.register_buffer("told", torch.from_numpy(known).float())
        # x_t of unit data with as much noise: divided by its noise, times that of the inside.
        noise = (1 / (1 + snr)).sqrt()
        self.register_buffer("gain", (noise / (1 - kept).sqrt()).float())
        self.register_buffer("moved", (kept.sqrt() * shift).float())

    def forward(self, x_t: Tensor, time: Tensor) -> Tensor:
        index = time.long()
        gain, moved = (b[index][:, None, None, None] for b in (self.gain, self.moved))
        return self.inner((x_t - moved) * gain, self.told[index])


def counting_from_one(shipped: Checkpoint) -> Checkpoint:
    """It is given t."""
    network = CountsFrom(shipped.network, 1, -1)
    return dataclasses.replace(shipped, network=network, time_input=TimeInput.ONE_BASED)


def told_fractions(shipped: Checkpoint) -> Checkpoint:
    """It is given t / T."""
    network = CountsFrom(shipped.network, shipped.schedule.num_original_timesteps, -1)
    return dataclasses.replace(shipped, network=network, time_input=TimeInput.FRACTION)


def giving_v(shipped: Checkpoint) -> Checkpoint:
    """Its output is v."""
    network = GivesV(shipped.network, shipped.schedule)
    return dataclasses.replace(shipped, network=network, prediction=Prediction.V)


def of_cosine(shipped: Checkpoint) -> Checkpoint:
    """It is of the cosine schedule."""
    cosine = NoiseSchedule.cosine(shipped.schedule.num_timesteps)
    network = SeesOtherData(shipped.network, shipped.schedule, cosine)
    return dataclasses.replace(shipped, network=network, schedule=cosine)


def in_range(shipped: Checkpoint, low: float, high: float) -> Checkpoint:
    """Its images are on [low, high]."""
    scale, shift = 2 / (high - low), (low + high) / 2
    schedule = shipped.schedule
    network = SeesOtherData(shipped.network, schedule, schedule, scale=scale, shift=shift)
    return dataclasses.replace(shipped, network=network, data_range=DataRange(low, high))


class GivesXStart(GivesV):
    """A network whose output is x_start, and as coarse as such networks are.

    Three times as coarse, its bound would be worse than if its output were read as the noise.
    """

    coarseness = 0.03

    def forward(self, x_t: Tensor, time: Tensor) -> Tensor:
        kept = self.schedule.alphas_cumprod[time.long()][:, None, None, None]
        eps = self.inner(x_t, time).double()
        x_start = (x_t - (1 - kept).sqrt() * eps) / kept.sqrt()
        return (x_start + self.coarseness * torch.sin(1000 * x_start)).float()


def giving_x_start(shipped: Checkpoint) -> Checkpoint:
    """Its output is x_start."""
    network = GivesXStart(shipped.network, shipped.schedule)
    return dataclasses.replace(shipped, network=network, prediction=Prediction.X_START)


class TrainedOtherwise(nn.Module):
    """A network of another schedule, prediction, time input and data range, all at once.

    It finds the signal-to-noise ratio that belongs to the time it is given, takes x_t to be of
    that, and brings it to what the network inside knows. So it is wrong where it is given the wrong
    time, as a trained network is. A time that its schedule does not have is taken for the nearest.
    """

    def __init__(self, shipped: Checkpoint, outside: Checkpoint) -> None:
        super().__init__()
        self.inner, self.prediction = shipped.network, outside.prediction
        data, schedule = outside.data_range, outside.schedule
        self.scale, self.shift = 2 / (data.high - data.low), (data.low + data.high) / 2
        t = torch.arange(1, schedule.num_timesteps + 1)
        self.times = outside.network_time(t).double().numpy()
        self.log_snr = schedule.snr.log().numpy()
        self.known = -shipped.schedule.snr.log().numpy()

    def forward(self, x_t: Tensor, time: Tensor) -> Tensor:
        log_snr = np.interp(time.double().numpy(), self.times, self.log_snr)
        inside = log_snr - 2 * np.log(self.scale)
        told = torch.from_numpy(np.interp(-inside, self.known, np.arange(len(self.known))))
        snr, unit_snr = (
            torch.from_numpy(np.exp(of))[:, None, None, None] for of in (log_snr, inside)
        )
        kept = snr / (1 + snr)
        gain = ((1 + snr) / (1 + unit_snr)).sqrt()
        known = (x_t.double() - kept.sqrt() * self.shift) * gain
        eps = self.inner(known.float(), told.float()).double()
        x_start = (x_t - (1 - kept).sqrt() * eps) / kept.sqrt()
        match self.prediction:
            case Prediction.X_START:
                return x_start.float()
            case Prediction.V:
                return (kept.sqrt() * eps - (1 - kept).sqrt() * x_start).float()
        return eps.float()


def trained(shipped: Checkpoint, **changes: object) -> Checkpoint:
    """The shipped model as if it had been trained with these fields of a checkpoint."""
    outside = dataclasses.replace(shipped, **changes)
    return dataclasses.replace(outside, network=TrainedOtherwise(shipped, outside).eval())
