"""The precision of a bound for "auto": the same in all sessions and processes of the run.

A resumed run keeps the precision in its folder. A new one on a CPU uses bf16 where a short test
finds it a third faster, including the correction to strict float32.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddpmbench.checksums import DamageError, read_json
from ddpmbench.diffusion.data_range import NATS_PER_BIT
from ddpmbench.errors import InputError
from ddpmbench.execution.devices import AUTO, has_native_bfloat16, resolve_precision
from ddpmbench.execution.engine import Engine
from ddpmbench.execution.engine_choice import FEW_BATCHES, WORTH_A_TEST, NetworkUse, at_once
from ddpmbench.execution.folder import IDENTITY
from ddpmbench.execution.session import Session
from ddpmbench.execution.timing import timer
from ddpmbench.likelihood.bound import quantile
from ddpmbench.likelihood.precision import CorrectionDesign
from ddpmbench.likelihood.terms import TermIndex, TermsPass, TermTable
from ddpmbench.unet.timed_unet import Precision
from ddpmbench.user_code import described

LEAST_SPEEDUP = 4 / 3
"""Speedup over fp32 that a run in bf16 must reach, including its correction."""
NUM_PAIRS = 7
"""Number of batches in the test, each in both precisions in turn."""
_TOO_SHORT = (
    f"a run of fewer than {FEW_BATCHES} batches, or of less than about {WORTH_A_TEST:.0f} s, is "
    "too short for a test of another"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """A run that may use low precision.

    Attributes:
        terms_pass: evaluates the terms.
        use: network evaluations per process, as far as known.
        correction: the terms of its correction.
        half_width: half width of its target interval, bits per dimension; None where the number of
            terms is given.
        check: raises InputError where the run does not support a precision.
    """

    terms_pass: TermsPass
    use: NetworkUse
    correction: CorrectionDesign
    half_width: float | None
    check: Callable[[Precision], None]

    @property
    def rows(self) -> int:
        """Terms per batch."""
        return self.use.rows(self.terms_pass.device)

    def batch(self, number: int) -> TermIndex:
        """Batch 0 <= number < `NUM_PAIRS` of the test: terms of the correction, evenly spread."""
        spread = np.arange(number, self.rows * NUM_PAIRS, NUM_PAIRS)
        place = spread * len(self.correction) // (self.rows * NUM_PAIRS)
        design = self.correction
        return TermIndex(design.image[place], design.t[place], design.first_draw + place)


def settled_precision(
    name: str, candidate: Candidate, session: Session, *, note: Callable[[str], None]
) -> Precision:
    """The precision that a name stands for, for a run that estimates the bound.

    Args:
        name: a `Precision`, or "auto": that of the run in the folder; in a new run fp16 on CUDA, on
            a CPU bf16 where a test finds it worthwhile, else fp32.
        candidate: the run.
        session: the session of the run; its first process decides.
        note: called with a line that explains "auto", unless the device alone decides.

    Raises:
        InputError: see `resolve_precision`.
    """
    device = session.device

    def decide() -> Precision:
        if name != AUTO:
            return resolve_precision(name, device)
        if (known := _recorded(session.out)) is not None:
            note(f"precision {known}: this run began in it")
            return known
        if device.type != "cpu":
            return resolve_precision(AUTO, device)
        try:
            precision, why = Precision.BF16, _why_low(candidate, session.ranks.count)
        except _KeptError as kept:
            precision, why = Precision.FP32, str(kept)
        note(f"precision {precision}: {why}")
        return precision

    decided = session.ranks.once(decide)
    return resolve_precision(decided if name == AUTO else name, device)


def _recorded(folder: Path | None) -> Precision | None:
    """The precision of the run in a folder; None without a run, or where its record is damaged."""
    try:
        return None if folder is None else Precision(read_json(folder / IDENTITY)["precision"])
    except (DamageError, KeyError, ValueError):
        return None


class _KeptError(Exception):
    """Why a run stays in strict float32."""


def _why_low(candidate: Candidate, num_processes: int) -> str:
    """Why a new run on a CPU uses bfloat16.

    Raises:
        _KeptError: it stays in strict float32.
    """
    low, num_terms = Precision.BF16, len(candidate.correction)
    if not has_native_bfloat16():
        raise _KeptError(f"this CPU has no instructions for {low}")
    if candidate.use.num_evaluations / candidate.rows < FEW_BATCHES:
        raise _KeptError(_TOO_SHORT)
    try:
        candidate.check(low)
    except InputError as error:
        raise _KeptError(f"`max_evaluations` leaves no room for the correction of {low}") from error
    faster, half_width = _tested(candidate)
    goal = math.inf if candidate.half_width is None else candidate.half_width
    if half_width >= goal:
        raise _KeptError(
            f"what {low} changes would be known to +- {half_width:.2g} alone, no less than the "
            f"+- {goal:g} of the whole interval"
        )
    times = speedup(
        faster,
        num_evaluations=candidate.use.num_evaluations * num_processes,
        num_terms=num_terms,
        share=half_width / goal,
    )
    if times < LEAST_SPEEDUP:
        raise _KeptError(
            f"{low} with its correction would be {times:.2f} times as fast here, and is chosen "
            f"from {LEAST_SPEEDUP:.2f} on"
        )
    terms = f"corrected by {num_terms:,} terms in {Precision.FP32}, too"
    return f"{times:.2f} times as fast as {Precision.FP32} here, {terms}"


def speedup(faster: float, *, num_evaluations: int, num_terms: int, share: float) -> float:
    r"""Speedup of a run in low precision over strict float32, including its correction.

    .. math:: \frac{N s_{32}}{N s_{16} / (1 - c^2) + m (s_{16} + s_{32})}

    Args:
        faster: s_32 / s_16, the ratio of the seconds per term.
        num_evaluations: N, in float32.
        num_terms: m, of the correction.
        share: 0 <= c < 1, the half width of the correction over that of the run, which needs more
            terms because of it; 0 where the number of terms is given.
    """
    terms = num_evaluations / (1 - share**2)
    return num_evaluations * faster / (terms + num_terms * (1 + faster))


def _tested(candidate: Candidate) -> tuple[float, float]:
    """Time batches of terms in strict float32 and in bfloat16, in turn.

    Returns:
        The speedup per term of bfloat16, the median of the pairs; and the approximate half width of
        the correction's 95 % interval, bits per dimension.

    Raises:
        _KeptError: the run is too short, or the network does not run in bfloat16.
    """
    num_batches = candidate.use.num_evaluations / candidate.rows
    strictly, low = (_evaluation(candidate, kind) for kind in (Precision.FP32, Precision.BF16))
    for evaluate in (strictly, low):
        evaluate(0)  # warm-up
    ratios, index, difference = [], [], []
    for number in range(NUM_PAIRS):
        seconds, strict = strictly(number)
        if seconds * num_batches < WORTH_A_TEST:
            raise _KeptError(_TOO_SHORT)
        seconds_low, rounded = low(number)
        ratios.append(seconds / seconds_low)
        index.append(strict.index.t)
        difference.append(strict.values["nats"] - rounded.values["nats"])
    half_width = _half_width(
        candidate.correction, np.concatenate(index), np.concatenate(difference)
    )
    return float(np.median(ratios)), half_width / NATS_PER_BIT


def _evaluation(
    candidate: Candidate, precision: Precision
) -> Callable[[int], tuple[float, TermTable]]:
    """A function that returns the seconds and the terms of a batch of the test in a precision.

    Raises:
        _KeptError: the terms are not finite, or the network fails.
    """
    checkpoint, device = candidate.terms_pass.checkpoint, candidate.terms_pass.device
    choice = at_once(checkpoint, device, precision)
    with _kept_if_it_fails(precision):
        engine = Engine(checkpoint, device=device, choice=choice, rows=candidate.rows)
    terms_pass = candidate.terms_pass.calling(engine.model_output)

    def evaluate(number: int) -> tuple[float, TermTable]:
        with _kept_if_it_fails(precision), engine.running():
            seconds, table = timed_terms(terms_pass, candidate.batch(number), precision)
        if not np.isfinite(table.values["nats"] + table.values["eps_mse"]).all():
            raise _KeptError(f"the network's output is not finite in {precision}")
        return seconds, table

    return evaluate


@contextlib.contextmanager
def _kept_if_it_fails(precision: Precision) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a user's network may raise anything
        raise _KeptError(f"the network fails in {precision}: {described(error)}") from error


def timed_terms(
    terms_pass: TermsPass, index: TermIndex, precision: Precision
) -> tuple[float, TermTable]:
    """Seconds that terms take, and the terms; the precision is that of the network."""
    clock = timer(terms_pass.device)
    begin = clock()
    table = terms_pass.terms(index)
    return clock() - begin, table


def _half_width(
    design: CorrectionDesign, t: NDArray[np.int64], difference: NDArray[np.float64]
) -> float:
    """Approximate half width of a correction from some of its terms; without strata, so too wide.

    Args:
        design: the terms of the correction.
        t: (n,) timesteps of the terms.
        difference: (n,) strict float32 minus low precision of the terms, nats per dimension.
    """
    later = t > 1
    weighted = difference[later] / design.density[t[later] - 2]
    sizes = (design.num_decoder_terms, len(design) - design.num_decoder_terms)
    variance = sum(
        float(values.var(ddof=1)) / size
        for values, size in zip((difference[~later], weighted), sizes, strict=True)
        if len(values) > 1
    )
    return quantile(max(len(t) - 1, 1)) * math.sqrt(variance)
