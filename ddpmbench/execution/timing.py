"""Seconds that work takes on a device, most of all a call of a network.

A device still works when a call returns: every clock here waits for it.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from ddpmbench.data.arrays import PositionIds
from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.noise import normal_noise
from ddpmbench.errors import InputError
from ddpmbench.execution.devices import evaluating_checkpoint, is_out_of_memory, strict_float32
from ddpmbench.execution.engine import Engine, EngineChoice
from ddpmbench.likelihood.terms import TermIndex
from ddpmbench.unet.precision import Precision


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
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


def seconds_per_call(
    call: Callable[[], object], device: torch.device, *, at_least: float = 0.3
) -> float:
    """The median seconds of a call, after one that warms up.

    Args:
        call: the work.
        device: where it is done.
        at_least: seconds that are measured.
    """
    clock = timer(device)
    call()
    seconds: list[float] = []
    since = clock()
    while not seconds or clock() - since < at_least:
        begin = clock()
        call()
        seconds.append(clock() - begin)
    return float(np.median(seconds))


def matmul_peak(
    device: torch.device, dtype: torch.dtype, *, size: int | None = None, at_least: float = 0.3
) -> float:
    """FLOP/s of a product of two matrices, the fastest work of a device.

    On a CPU also of convolutions, which are such products.

    Args:
        device: which.
        dtype: of the matrices; float32 products are rounded to nothing less.
        size: rows; None for what fills the device.
        at_least: seconds that are measured.
    """
    size = size or (1024 if device.type == "cpu" else 8192)
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    products: list[tuple[float, Callable[[], object]]] = [(2.0 * size**3, lambda: one @ other)]
    if device.type == "cpu":
        # The library of convolutions is far faster on some processors, most of all where what it
        # multiplies by fits into a core's cache.
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
    """A batch that a network is timed on, and its output in strict float32.

    Attributes:
        checkpoint: the model, on the device.
        images: of the batch.
        device: where it is called.
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
    """Images (C, H, W) of one level each, for timing, which depends on no image."""
    levels = np.linspace(0, 255, count).round().astype(np.uint8)
    pixels = np.broadcast_to(levels[:, None, None, None], (count, *shape)).copy()
    labels = np.arange(count) % num_classes if num_classes else None
    return ImageSet(pixels, PositionIds(range(count)), "gray", labels)


_BATCH_STEP = 8


@dataclasses.dataclass(frozen=True)
class CallSpeed:
    """A network called one way, in batches of one size.

    Attributes:
        choice: how.
        batch_size: images a call.
        seconds: an image, the median of several batches.
        first_seconds: of the first call, with preparing and compiling the network.
        eps_error: root mean square of what the predicted noise is off from strict float32, over
            that of the noise; steps spread over 1..T.
    """

    choice: EngineChoice
    batch_size: int
    seconds: float
    first_seconds: float
    eps_error: float

    @property
    def per_second(self) -> float:
        """Network calls, one an image."""
        return 1 / self.seconds


def batch_sizes(largest: int) -> list[int]:
    """From a single image to the largest batch."""
    sizes = [_BATCH_STEP**k for k in range(8)]
    return [*(size for size in sizes if size < largest), largest]


def engine_choices(
    device: torch.device, precisions: Sequence[Precision], *, compiled: bool
) -> list[EngineChoice]:
    """The ways to call a network that are worth a measurement.

    Args:
        device: where.
        precisions: which.
        compiled: whether compiling is tried, too.
    """
    plain = [
        EngineChoice(precision, channels_last)
        for precision in precisions
        for channels_last in (False, True)
    ]
    more = [
        EngineChoice(precision, True, True, cuda_graph)
        for precision in precisions
        for cuda_graph in ((False, True) if device.type == "cuda" else (False,))
        if compiled
    ]
    return plain + more


def call_speeds(
    probe: Probe, choice: EngineChoice, sizes: list[int], *, at_least: float
) -> list[CallSpeed]:
    """Call the network one way in batches of some sizes.

    Args:
        probe: what it is called with.
        choice: how it is called.
        sizes: of the batches.
        at_least: seconds that each is measured.

    Raises:
        InputError: the device cannot do it.
    """
    if not (choice.compiled or choice.cuda_graph):
        return _of_one_engine(probe, choice, sizes, at_least)
    # What is compiled or recorded is so for one size, and fills up smaller batches.
    speeds = []
    for size in sizes:
        own = Probe.of(probe.checkpoint, probe.images, probe.device, size)
        speeds += _of_one_engine(own, choice, [size], at_least)
    return speeds


def _of_one_engine(
    probe: Probe, choice: EngineChoice, sizes: list[int], at_least: float
) -> list[CallSpeed]:
    strict, speeds = probe.strict_eps, []
    clock = timer(probe.device)
    begin = clock()
    rows = len(probe.rows)
    engine = Engine(probe.checkpoint, device=probe.device, choice=choice, rows=rows)
    with torch.inference_mode(), engine.running():
        try:
            output = engine.model_output(*probe.inputs(len(probe.rows)))
        except RuntimeError as failure:
            if is_out_of_memory(failure) or not choice.compiled:
                raise
            reason = str(failure).strip().splitlines()[0]
            raise InputError(
                f"`compiled=True`: this machine cannot compile the network ({reason})"
            ) from failure
        first_seconds = clock() - begin
        difference = probe.eps_of(output) - strict
        error = float(difference.square().mean() / strict.square().mean()) ** 0.5
        for size in sizes:
            call = partial(engine.model_output, *probe.inputs(size))
            seconds = seconds_per_call(call, probe.device, at_least=at_least) / size
            speeds.append(CallSpeed(choice, size, seconds, first_seconds, error))
    return speeds


def fastest_call(calls: Sequence[CallSpeed], precision: Precision) -> CallSpeed:
    """The fastest way of a precision, in its largest batch."""
    own = [call for call in calls if call.choice.precision is precision]
    largest = max(call.batch_size for call in own)
    return min((c for c in own if c.batch_size == largest), key=lambda call: call.seconds)
