"""One row of the results: steady rounds, and the columns that make its time mean something."""

import dataclasses
import math
from collections.abc import Callable

from bench import TOLERANCE, Bench
from cases import Case
from ratios import LEAST_SECONDS, PairedRatio

from ddpmbench.execution.devices import device_name
from ddpmbench.execution.timing import timer

_ROUNDS = range(3, 21)
_SECONDS = 1.5  # for which rounds are measured, where so many are enough


@dataclasses.dataclass(frozen=True)
class Work:
    """What a timed call does.

    Attributes:
        what: in a word.
        calls: network calls, one an image.
        steps: of the chain or the loop, one batch each.
        images: that are ready after it; None if none is.
        num_timesteps: of the model that was sampled or evaluated; None where a step is alone.
    """

    what: str
    calls: int
    steps: int = 1
    images: int | None = None
    num_timesteps: int | None = None


def steady(benchmark, bench: Bench, work: Callable[[], object]) -> float:
    """Time the work in rounds of at least 20 ms, after two calls that warm up.

    Returns:
        The median of what a call takes, seconds.
    """
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


def record(benchmark, bench: Bench, case: Case, work: Work, seconds: float) -> None:
    """Put the columns that every row has beside the times, and fail where the error is too large.

    Args:
        benchmark: pytest-benchmark's fixture, after the measurement.
        bench: the session.
        case: the row.
        work: what was timed.
        seconds: of one such work.
    """
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
    )
    check_error(bench, case)


def few(bench: Bench, case: Case) -> int:
    """How many pairs a ratio is made of."""
    is_slow = bench.device.type == "cpu" and bench.flop(case.model) * case.batch > 2e10
    return 3 if bench.quick or is_slow else 10


def check_error(bench: Bench, case: Case) -> None:
    """Fail a row whose network is further from strict float32 than its precision allows."""
    error, tolerance = bench.engine(case).error, TOLERANCE[case.choice.precision]
    assert error <= tolerance, f"{case}: error {error:.2e} against strict float32 > {tolerance}"


def record_ratio(benchmark, name: str, found: PairedRatio) -> None:
    """A ratio with its interval, and the seconds of either side.

    Args:
        benchmark: pytest-benchmark's fixture.
        name: of the columns.
        found: the ratio.
    """
    benchmark.extra_info.update(
        {
            name: found.ratio,
            f"{name}_low": found.low,
            f"{name}_high": found.high,
            f"{name}_rounds": found.rounds,
            f"{name}_slow_seconds": found.slow_seconds,
            f"{name}_fast_seconds": found.fast_seconds,
        }
    )


def _or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
