"""Seconds that work takes on a device, above all a network evaluation.

A device may still be working when a call returns; every clock here waits for it.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import conv2d

from ddpmbench.data.images import ImageSet, PositionIds
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.noise import normal_noise
from ddpmbench.execution.devices import evaluating_checkpoint, strict_float32
from ddpmbench.likelihood.terms import TermIndex

LEAST_SECONDS = 0.3
"""Seconds that a measurement takes at least."""


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def timer(device: torch.device) -> Callable[[], float]:
    """A clock that waits for the device first; pytest-benchmark takes it as `timer`."""

    def now() -> float:
        synchronize(device)
        return time.perf_counter()

    return now


def median_seconds(
    calls: Sequence[Callable[[], object]],
    device: torch.device,
    *,
    at_least: float | None = None,
    rounds: int = 1,
) -> list[float]:
    """The median seconds of each call, after a warm-up.

    The calls are timed in turn, so that a busy machine slows all of them alike.

    Args:
        calls: the work.
        device: the device that does it.
        at_least: seconds to measure; None for `LEAST_SECONDS`.
        rounds: the least number of times that each is measured.
    """
    at_least = LEAST_SECONDS if at_least is None else at_least
    clock = timer(device)
    for call in calls:
        call()
    samples: list[NDArray[np.float64]] = []
    since = clock()
    while len(samples) < rounds or clock() - since < at_least:
        marks = [clock()]
        for call in calls:
            call()
            marks.append(clock())
        samples.append(np.diff(marks))
    medians: list[float] = np.median(samples, axis=0).tolist()
    return medians


def seconds_per_call(
    call: Callable[[], object], device: torch.device, *, at_least: float | None = None
) -> float:
    """The median seconds of a single call; see `median_seconds`."""
    return median_seconds([call], device, at_least=at_least)[0]


def matmul_peak(
    device: torch.device,
    dtype: torch.dtype,
    *,
    size: int | None = None,
    at_least: float | None = None,
) -> float:
    """FLOP/s of a product of two matrices, the fastest work of a device.

    On a CPU, convolutions are measured as well, as they are such products.

    Args:
        device: the device to measure.
        dtype: dtype of the matrices; float32 products are strict.
        size: rows; None for a size that fills the device.
        at_least: seconds to measure; None for `LEAST_SECONDS`.
    """
    size = size or (1024 if device.type == "cpu" else 8192)
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    products: list[tuple[float, Callable[[], object]]] = [(2.0 * size**3, lambda: one @ other)]
    if device.type == "cpu":
        # On some processors the convolution library is far faster, especially where the weights
        # fit into a core's cache.
        fits = size // 4
        pixels = one.reshape(4, fits, -1, 32).contiguous(memory_format=torch.channels_last)
        for width in (1, 3):
            kernel = torch.randn(fits, fits, width, width).to(dtype)
            kernel = kernel.contiguous(memory_format=torch.channels_last)
            call = partial(conv2d, pixels, kernel, padding=width // 2)
            products.append((2.0 * pixels.numel() * fits * width**2, call))
    with torch.inference_mode(), strict_float32():
        return max(
            flop / seconds_per_call(call, device, at_least=at_least) for flop, call in products
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
    """A batch for timing a network, and the noise predicted in strict float32.

    Attributes:
        checkpoint: the model, on the device.
        images: the images of the batch.
        device: where the network is evaluated.
        rows: image, timestep and draw of each element; the timesteps are spread over 1..T.
    """

    checkpoint: Checkpoint
    images: ImageSet
    device: torch.device
    rows: TermIndex

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, images: ImageSet, device: torch.device, batch_size: int
    ) -> "Probe":
        """A batch of the first images."""
        return cls(
            checkpoint.to(device),
            images,
            device,
            spread_rows(len(images), checkpoint.schedule.num_timesteps, batch_size),
        )

    def inputs(self, batch_size: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """x_t (B, C, H, W), t (B,) and labels (B,) of a batch of another size."""
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
        """(B, C, H, W) the noise that an output for the batch implies, without clipping."""
        x_t, t, _ = self.inputs(len(self.rows))
        return self.checkpoint.diffusion.to(self.device).p_mean_variance(output, x_t, t).pred_eps

    @cached_property
    def strict_eps(self) -> Tensor:
        """(B, C, H, W) the noise predicted in strict float32."""
        inputs = self.inputs(len(self.rows))
        checkpoint = self.checkpoint
        with torch.inference_mode(), evaluating_checkpoint(checkpoint), strict_float32():
            return self.eps_of(checkpoint.model_output(*inputs))


def spread_rows(num_images: int, num_timesteps: int, count: int) -> TermIndex:
    """Images, evenly spread timesteps, and the first draw."""
    index = np.arange(count, dtype=np.int64)
    t = 1 + (2 * index + 1) * num_timesteps // (2 * count)
    return TermIndex(image=index % num_images, t=t, draw=np.zeros_like(index))


def gray_images(shape: tuple[int, ...], count: int, num_classes: int) -> ImageSet:
    """Images (C, H, W) of one level each, for timing, which does not depend on the images."""
    levels = np.linspace(0, 255, count).round().astype(np.uint8)
    pixels = np.broadcast_to(levels[:, None, None, None], (count, *shape)).copy()
    labels = np.arange(count) % num_classes if num_classes else None
    return ImageSet(pixels, PositionIds(range(count)), "gray", labels)
