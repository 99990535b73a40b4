"""The best denoiser of normal data, trained with any parameterization, and images of such data.

It costs nothing to evaluate, so that the sanity check can be tried on many parameterizations.
"""

import dataclasses

import numpy as np
import torch
from oracles import checkpoint_of
from torch import Tensor, nn

from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.forward_process import log_scale
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.process import Prediction
from ddpmbench.diffusion.schedule import NoiseSchedule

SHAPE = (1, 12, 12)
VARIANCES = np.random.default_rng(3).permutation(np.geomspace(3e-4, 0.12, 144)).reshape(SHAPE)
"""Of each pixel, on [-1, 1]; the mean is 0."""


class NormalDenoiser(nn.Module):
    """Wiener's filter of every pixel, for the noise that belongs to the time that it is given.

    Given a wrong time it is wrong, as a trained network is; a time that its schedule does not have
    is taken for the nearest.
    """

    def __init__(self, trained: Checkpoint) -> None:
        super().__init__()
        data, schedule = trained.data_range, trained.schedule
        half = (data.high - data.low) / 2
        self.mean, self.variance = (data.high + data.low) / 2, torch.from_numpy(VARIANCES) * half**2
        times = trained.network_time(torch.arange(1, schedule.num_timesteps + 1)).numpy()
        order = np.argsort(times)
        self.times, self.log_snr = times[order], schedule.log_snr.numpy()[order]
        self.process, self.prediction = schedule.process, trained.prediction

    def forward(self, x_t: Tensor, time: Tensor) -> Tensor:
        log_snr = torch.from_numpy(np.interp(time.numpy(), self.times, self.log_snr))
        snr, scale = (
            of.exp()[:, None, None, None] for of in (log_snr, log_scale(self.process, log_snr))
        )
        kept = snr / (1 + snr)
        signal, noise = kept.sqrt(), (1 - kept).sqrt()
        share = self.variance / (kept * self.variance + 1 - kept)
        x_t = x_t.double() / scale
        x_start = self.mean + signal * share * (x_t - signal * self.mean)
        eps = (x_t - signal * x_start) / noise
        match self.prediction:
            case Prediction.SCORE:
                return (-eps / (noise * scale)).float()
            case Prediction.X_START:
                return x_start.float()
            case Prediction.V:
                return (signal * eps - noise * x_start).float()
        return eps.float()


def normal_images(count: int, *, seed: int = 0) -> ImageSet:
    """So many 8-bit images of the data."""
    numbers = np.random.default_rng(seed).normal(0, 1, (count, *SHAPE)) * np.sqrt(VARIANCES)
    pixels = np.rint((numbers.clip(-1, 1) + 1) * 127.5).astype(np.uint8)
    return ImageSet(pixels, [str(i) for i in range(count)], "normal data")


def trained_on_normal_data(**changes: object) -> Checkpoint:
    """The best model, with these fields of a checkpoint."""
    fields = {"schedule": NoiseSchedule.linear(1000), "image_size": SHAPE[1]} | changes
    checkpoint = checkpoint_of(nn.Identity(), **fields)
    return dataclasses.replace(checkpoint, network=NormalDenoiser(checkpoint).eval())
