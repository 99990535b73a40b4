"""One row of the results: steady rounds, columns, and ratios of alternating runs."""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import torch
from bench import TOLERANCE, Bench
from cases import Case

from ddpmbench.execution.devices import device_name
from ddpmbench.execution.timing import timer

LEAST_SECONDS = 0.02
"""Least seconds of one timed round."""
_RESAMPLES = 2000


_ROUNDS = range(3, 21)
_SECONDS = 1.5  # total seconds of all rounds of a row, if there is a choice


@dataclasses.dataclass(frozen=True)
class Work:
    """The work of a timed call.

    Attributes:
        what: the name of the work.
        calls: network evaluations, one per image.
        steps: steps of the chain or the loop, one batch each.
        images: images finished by it; None if none is.
        num_timesteps: of the model that is sampled or evaluated; None for a single step.
    """

    what: str
    calls: int
    steps: int = 1
    images: int | None = None
    num_timesteps: int | None = None


def steady(benchmark, bench: Bench, work: Callable[[], object]) -> float:
    """Median seconds of the work, in rounds of at least 20 ms after two warm-up calls."""
    clock = timer(bench.device)
    work()
    begin = clock()
    work()
    once = max(clock() - begin, 1e-9)
    iterations = math.ceil(LEAST_SECONDS / once)
    affordable = int(_SECONDS / (once * iterations))
    rounds = _ROUNDS.start if bench.quick else min(max(affordable, 4), _ROUNDS.stop - 1)
    benchmark.pedantic(work, rounds=rounds, iterations=iterations, warmup_rounds=0)
    return float(benchmark.stats.stats.median)


def measure(
    benchmark,
    bench: Bench,
    case: Case,
    work: Work,
    compute: Callable[[], object],
    within: AbstractContextManager[None] | None = None,
) -> float:
    """Time the work of a row, record its columns, and return its median seconds.

    It fails if the network's error is too large. `within` is entered once, around all rounds.
    """
    with within or contextlib.nullcontext():
        seconds = steady(benchmark, bench, compute)
        memory = bench.peak_memory(compute)
    prepared, flop = bench.engine(case), bench.flop(case.model)
    peak = bench.peak(case.choice.precision)
    per_second = work.calls / seconds
    benchmark.group = f"{work.what} {bench.name(case.model)}"
    benchmark.extra_info.update(
        model=bench.name(case.model),
        checkpoint_sha256=bench.checkpoint(case.model).sha256,
        what=work.what,
        batch=case.batch,
        precision=str(case.choice.precision),
        channels_last=case.choice.channels_last,
        compiled=case.choice.compiled,
        cuda_graph=case.choice.cuda_graph,
        device=device_name(bench.device),
        num_timesteps=work.num_timesteps,
        calls=work.calls,
        calls_per_second=per_second,
        images_per_second=None if work.images is None else work.images / seconds,
        ms_per_step=1000 * seconds / work.steps,
        flop_per_call=flop,
        tflops=flop * per_second / 1e12,
        matmul_peak_tflops=_or_none(peak / 1e12),
        share_of_peak=_or_none(flop * per_second / peak),
        eps_error=prepared.error,
        eps_tolerance=TOLERANCE[case.choice.precision],
        peak_memory_bytes=memory,
    )
    check_error(bench, case)
    return seconds


def few(bench: Bench, case: Case) -> int:
    """The number of pairs for a ratio."""
    is_slow = bench.device.type == "cpu" and bench.flop(case.model) * case.batch > 2e10
    return 3 if bench.quick or is_slow else 10


def check_error(bench: Bench, case: Case) -> None:
    """Fail a row whose network differs from strict float32 by more than its precision allows."""
    error, tolerance = bench.engine(case).error, TOLERANCE[case.choice.precision]
    assert error <= tolerance, f"{case}: error {error:.2e} against strict float32 > {tolerance}"


def record_ratio(benchmark, name: str, measured: "PairedRatio") -> None:
    """Record a ratio, its interval and both sides' seconds in columns of this name."""
    columns = {f"{name}_{field}": value for field, value in dataclasses.asdict(measured).items()}
    benchmark.extra_info.update({name: columns.pop(f"{name}_ratio"), **columns})


def _or_none(value: float) -> float | None:
    """The value if finite, since JSON has no NaN."""
    return value if math.isfinite(value) else None


@dataclasses.dataclass(frozen=True)
class PairedRatio:
    """The speed of one work relative to another, timed alternately.

    Attributes:
        ratio: median of the ratios of pairs.
        low: lower end of its 95 % interval.
        high: upper end.
        rounds: pairs.
        slow_seconds: median of the slow work.
        fast_seconds: median of the fast work.
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
    """The seconds of one work over those of another, from alternating runs.

    Other load on the machine affects both alike.

    Args:
        slow: the work in the numerator.
        fast: the work in the denominator.
        device: where both run.
        rounds: number of pairs, after one warm-up round of each.
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
        # Alternate the first.
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
    """95 % interval of the median, by the bootstrap."""
    generator = np.random.default_rng(0)
    drawn = generator.choice(values, (_RESAMPLES, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(low), float(high)
