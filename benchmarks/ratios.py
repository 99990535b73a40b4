"""Ratios of the time of two works, with intervals."""

import dataclasses
from collections.abc import Callable

import numpy as np
import torch

from ddpmbench.execution.timing import timer

LEAST_SECONDS = 0.02
"""What is timed at once takes at least so long."""
_RESAMPLES = 2000


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
