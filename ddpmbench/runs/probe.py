"""The rows that a network is timed on."""

import dataclasses
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ddpmbench.inputs.checkpoints.checkpoint import Checkpoint
from ddpmbench.inputs.image_files import PositionIds
from ddpmbench.inputs.images import ImageSet
from ddpmbench.likelihood.terms import Rows
from ddpmbench.process.noise import normal_noise
from ddpmbench.runs.devices import evaluating_checkpoint, strict_float32


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
    """Rows that a network is timed on, and what strict float32 makes of them.

    Attributes:
        checkpoint: the model, on the device.
        images: that the rows are of.
        device: where it is called.
        rows: those of a whole batch, at steps spread over 1..T.
    """

    checkpoint: Checkpoint
    images: ImageSet
    device: torch.device
    rows: Rows

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, images: ImageSet, device: torch.device, batch_size: int
    ) -> "Probe":
        """Rows of the first images."""
        return cls(
            checkpoint.to(device),
            images,
            device,
            spread_rows(len(images), checkpoint.schedule.num_timesteps, batch_size),
        )

    def of_size(self, batch_size: int) -> "Probe":
        """The same with another number of rows."""
        return Probe.of(self.checkpoint, self.images, self.device, batch_size)

    def inputs(self, batch_size: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """x_t (B, C, H, W), t (B,) and the labels (B,) of so many rows, as terms are made of."""
        num_timesteps = self.checkpoint.schedule.num_timesteps
        rows = spread_rows(len(self.images), num_timesteps, batch_size)
        image, t, draw = (
            torch.from_numpy(values).to(self.device) for values in (rows.image, rows.t, rows.draw)
        )
        diffusion = self.checkpoint.diffusion.to(self.device)
        pixels = torch.from_numpy(np.ascontiguousarray(self.images.pixels[rows.image]))
        x_start = diffusion.data_range.to_model(pixels.to(self.device), diffusion.dtype)
        eps = normal_noise(image, t, draw, shape=tuple(x_start.shape[1:]), seed=0)
        x_t = diffusion.q_sample(x_start, t, eps.to(diffusion.dtype))
        labels = None
        if self.checkpoint.num_classes and self.images.labels is not None:
            labels = torch.from_numpy(self.images.labels[rows.image]).to(self.device)
        return x_t, t, labels

    @torch.inference_mode()
    def eps_of(self, output: Tensor) -> Tensor:
        """(B, C, H, W) the noise that an output for all rows implies, without clipping."""
        x_t, t, _ = self.inputs(len(self.rows))
        return self.checkpoint.diffusion.to(self.device).p_mean_variance(output, x_t, t).pred_eps

    @cached_property
    def strict_eps(self) -> Tensor:
        """(B, C, H, W) the noise that strict float32 predicts for all rows."""
        inputs = self.inputs(len(self.rows))
        checkpoint = self.checkpoint
        with torch.inference_mode(), evaluating_checkpoint(checkpoint), strict_float32():
            return self.eps_of(checkpoint.model_output(*inputs))


def spread_rows(num_images: int, num_timesteps: int, count: int) -> Rows:
    """So many rows, evenly spread over the steps."""
    index = np.arange(count, dtype=np.int64)
    t = 1 + (2 * index + 1) * num_timesteps // (2 * count)
    return Rows(image=index % num_images, t=t, draw=np.zeros_like(index))


def gray_images(shape: tuple[int, ...], count: int, num_classes: int) -> ImageSet:
    """Images (C, H, W) of one level each, where there are no others: time depends on none."""
    levels = np.linspace(0, 255, count).round().astype(np.uint8)
    pixels = np.broadcast_to(levels[:, None, None, None], (count, *shape)).copy()
    labels = np.arange(count) % num_classes if num_classes else None
    return ImageSet(pixels, PositionIds(range(count)), "gray", labels)
