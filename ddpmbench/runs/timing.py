"""Seconds that work takes on a device, and ratios of them.

A device works on after a call returns: every clock here waits for it.
"""

import dataclasses
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch.nn.functional import conv2d

from ddpmbench.runs.devices import strict_float32

LEAST_SECONDS = 0.02
"""What is timed at once takes at least so long."""
_RESAMPLES = 2000


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
    """The median of what a call takes, after one that warms up.

    Args:
        call: the work.
        device: where it is done.
        at_least: seconds that are measured.
    """
    clock = timer(device)
    call()
    found: list[float] = []
    since = clock()
    while not found or clock() - since < at_least:
        begin = clock()
        call()
        found.append(clock() - begin)
    return float(np.median(found))


@dataclasses.dataclass(frozen=True)
class PairedRatio:
    """How many times faster one work is than another, timed in turn.

    Attributes:
        ratio: the median of the ratios of neighbors.
        low: where its 95 % interval begins.
        high: where it ends.
        rounds: pairs.
        slow_seconds: the median of the first.
        fast_seconds: the median of the second.
    """

    ratio: float
    low: float
    high: float
    rounds: int
    slow_seconds: float
    fast_seconds: float


def paired_ratio(
    slow: Callable[[], object],
    fast: Callable[[], object],
    device: torch.device,
    *,
    rounds: int = 10,
) -> PairedRatio:
    """The seconds of one work over those of another, from runs that take turns.

    Whatever else the machine does meets both alike.

    Args:
        slow: the work in the numerator.
        fast: the work in the denominator.
        device: where both are done.
        rounds: pairs; each after one round that warms up.
    """
    clock = timer(device)
    repeats = []
    for work in (slow, fast):
        work()
        begin = clock()
        work()
        repeats.append(max(1, int(np.ceil(LEAST_SECONDS / max(clock() - begin, 1e-9)))))
    seconds = np.empty((rounds, 2))
    for row in range(rounds):
        # Neither is always the first.
        for which in (0, 1) if row % 2 == 0 else (1, 0):
            begin = clock()
            for _ in range(repeats[which]):
                (slow, fast)[which]()
            seconds[row, which] = (clock() - begin) / repeats[which]
    ratios = seconds[:, 0] / seconds[:, 1]
    low, high = _interval_of_median(ratios)
    slow_median, fast_median = np.median(seconds, axis=0)
    return PairedRatio(
        float(np.median(ratios)), low, high, rounds, float(slow_median), float(fast_median)
    )


def _interval_of_median(values: np.ndarray) -> tuple[float, float]:
    """95 %, by the bootstrap."""
    generator = np.random.default_rng(0)
    drawn = generator.choice(values, (_RESAMPLES, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(low), float(high)


def matmul_peak(
    device: torch.device, dtype: torch.dtype, *, size: int | None = None, at_least: float = 0.3
) -> float:
    """FLOP/s of a product of two matrices: what the device does at its best.

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
