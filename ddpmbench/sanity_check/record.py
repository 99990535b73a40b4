"""The result of the sanity check, its record in `summary.json`, its table and its line."""

import dataclasses
from enum import StrEnum
from typing import Any

import pandas as pd

from ddpmbench.diffusion.data_range import NATS_PER_BIT
from ddpmbench.sanity_check.candidates import Candidate
from ddpmbench.sanity_check.scores import NUM_IMAGES, Comparison, Fault, Score, furthest_apart


class Outcome(StrEnum):
    """The outcome of the sanity check."""

    PASSED = "passed"
    """Nothing speaks against the given parameterization."""
    LIKELY = "likely"
    """The network was likely trained with another one."""
    BETTER = "better"
    """Another one is better, but likely not the one the network was trained with."""
    FAULT = "fault"
    """It has an error that no trained model has, and no candidate mends it."""
    UNDECIDED = "undecided"
    """Something speaks against it, but not significantly."""
    TOO_FEW_IMAGES = "too few images"
    """There were fewer than `NUM_IMAGES`."""


@dataclasses.dataclass(frozen=True, eq=False)
class TimeMismatch:
    """A noise level at which the network denoises better with another time.

    Attributes:
        t: the timestep.
        is_later: whether the better time is a later one.
        gain: share by which eps_mse is lower with it.
    """

    t: int
    is_later: bool
    gain: float


@dataclasses.dataclass(frozen=True, eq=False)
class TimeOffset:
    """The network's time one timestep off, judged by eps_mse at the first timesteps.

    Attributes:
        candidate: with the time one timestep later or earlier.
        is_later: which of them.
        gain: share by which its eps_mse is lower, the mean logarithm over images and timesteps.
        standard_error: of that, over images.
        timesteps: the first and the last of them.
        num_images: evaluated.
        is_likely: whether the network was trained with it.
    """

    candidate: Candidate
    is_later: bool
    gain: float
    standard_error: float
    timesteps: tuple[int, int]
    num_images: int
    is_likely: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class SanityCheck:
    """The result of the sanity check.

    Attributes:
        outcome: in a word.
        given: the score of the given parameterization; None with too few images.
        fault: its error that no trained model has; None if it has none.
        mismatch: its largest mismatch of time; None if there is no significant one, or a fault.
        others: the candidates whose network could be evaluated.
        best: the one to recommend; None if there is none.
        offset: the comparison of times one timestep off, where it was made.
        num_evaluations: network evaluations.
    """

    outcome: Outcome
    given: Score | None = None
    fault: Fault | None = None
    mismatch: TimeMismatch | None = None
    others: tuple[Comparison, ...] = ()
    best: Comparison | None = None
    offset: TimeOffset | None = None
    num_evaluations: int = 0

    @property
    def candidate(self) -> Candidate | None:
        """The one that lowers the bound, likely or not; None if there is none."""
        if self.best is not None:
            return self.best.score.candidate
        if self.offset is not None and self.offset.is_likely:
            return self.offset.candidate
        return None

    @property
    def better(self) -> str | None:
        """The parameters of that candidate; None if there are none."""
        return (self.candidate.name or None) if self.candidate is not None else None

    @property
    def likely(self) -> str | None:
        """The parameters that the network was likely trained with; None if there are none."""
        return self.better if self.outcome is Outcome.LIKELY else None


@dataclasses.dataclass(frozen=True)
class CheckRecord:
    """`check` of `summary.json`.

    Attributes:
        warning: one line; None where nothing significant speaks against the parameterization.
        likely: the parameters that the network was likely trained with, `prediction=v`; None if
            there are none.
        num_evaluations: network evaluations of the check, which do not count towards the run.
        outcome: one of `Outcome`.
        better: the parameters that lower the bound, likely or not; None if there are none.
    """

    warning: str | None
    likely: str | None
    num_evaluations: int
    outcome: str
    better: str | None

    @classmethod
    def of(cls, check: SanityCheck) -> "CheckRecord":
        """The record of a result."""
        outcome = str(check.outcome)
        return cls(_warning(check), check.likely, check.num_evaluations, outcome, check.better)

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON holds it."""
        return dataclasses.asdict(self)


_DIFFERENCES = (
    *("difference", "standard_error", "bound_difference", "bound_standard_error"),
    *("eps_difference", "eps_standard_error"),
)


def check_frame(check: SanityCheck) -> pd.DataFrame:
    """One row a candidate and timestep, the given parameterization first.

    `difference` is by how much the area is larger than that of the given one, in bits,
    `bound_difference` by how much the bound is higher, in bits/dim, as estimated from these
    timesteps, and `eps_difference` the share by which eps_mse is higher at the first timesteps,
    where that was evaluated. Standard errors are over images; one image has none. `x_start_mse` is
    that of images on [0, 1].
    """
    columns = ("parameterization", "num_images", *_DIFFERENCES, "t", "eps_mse", "x_start_mse")
    rows: list[dict[str, object]] = []

    def add(name: str, score: Score, **differences: float) -> None:
        errors = score.eps_mse.mean(0), score.x_start_mse.mean(0) / score.squared_width
        for t, eps, x_start in zip(score.timesteps, *errors, strict=True):
            values = {"t": int(t), "eps_mse": float(eps), "x_start_mse": float(x_start)}
            rows.append(
                {"parameterization": name, "num_images": score.num_images, **differences, **values}
            )

    if check.given is not None:
        add("as given", check.given)
    for other in check.others:
        add(
            other.score.candidate.name,
            other.score,
            difference=-other.gain / NATS_PER_BIT,
            standard_error=other.standard_error / NATS_PER_BIT,
            bound_difference=-other.bound_gain / NATS_PER_BIT,
            bound_standard_error=other.bound_standard_error / NATS_PER_BIT,
        )
    if (offset := check.offset) is not None:
        rows.append(
            {
                "parameterization": offset.candidate.name or "one timestep off",
                "num_images": 0,
                "eps_difference": -offset.gain,
                "eps_standard_error": offset.standard_error,
                "t": 0,
            }
        )
    return pd.DataFrame(rows, columns=list(columns))


def note(record: CheckRecord) -> str | None:
    """The line where there is no warning; None where there is one."""
    if record.warning is not None:
        return None
    evaluations = f"sanity check, {record.num_evaluations:,} network evaluations: "
    match record.outcome:
        case Outcome.TOO_FEW_IMAGES:
            return f"the sanity check takes {NUM_IMAGES} images or more: nothing was checked"
        case Outcome.UNDECIDED:
            return evaluations + (
                "undecided; something is unusual for a trained model, but not significantly "
                "(see check.csv)"
            )
    return evaluations + "nothing speaks against the parameterization"


def _warning(check: SanityCheck) -> str | None:
    """One line with the parameters and the numbers; None where nothing is significant."""
    if check.given is None or check.outcome in (Outcome.PASSED, Outcome.UNDECIDED):
        return None
    begin = f"`ckpt={check.given.candidate.checkpoint.source}`: "
    if check.outcome is Outcome.FAULT and check.fault is not None:
        return (
            f"{begin}the parameterization is wrong, or the weights are not those of a trained "
            f"model: {_fault(check.fault)}; no common prediction, time input, schedule or data "
            "range mends it"
        )
    candidate = check.candidate
    assert candidate is not None
    if check.outcome is Outcome.LIKELY:
        return (
            f"{begin}was likely trained with {candidate.quoted}: {_numbers(check)}; give "
            f"{'it' if len(candidate.parameters) == 1 else 'them'}, or `check=False` to keep what "
            "was given"
        )
    return f"{begin}is better with {_remedy(check)}: {_numbers(check)}"


def _remedy(check: SanityCheck) -> str:
    """A candidate that is better but likely not right, and a guess why."""
    if check.best is None:
        assert check.offset is not None
        which = "next" if check.offset.is_later else "previous"
        return f"the time of the {which} timestep, perhaps since its schedule has one more entry"
    candidate = check.best.score.candidate
    if not candidate.is_exact:
        why = "perhaps since its data were normalized by channel"
    elif "schedule" in candidate.parameters:
        why = "perhaps a schedule that is not listed"
    else:
        why = "but another parameter may be wrong, too"
    return f"{candidate.quoted}, {why}"


def _numbers(check: SanityCheck) -> str:
    """The evidence for the candidate."""
    if check.best is not None:
        assert check.given is not None
        t, own, other = furthest_apart(check.given, check.best.score)
        bits = check.best.bound_gain / NATS_PER_BIT
        error = check.best.bound_standard_error / NATS_PER_BIT
        return (
            f"on {check.best.score.num_images} images its bound is about {bits:.2f} "
            f"(+- {2 * error:.2f}) bits/dim lower, and eps_mse at t = {t} is {_short(other)} "
            f"instead of {_short(own)}"
        )
    assert check.offset is not None
    first, last = check.offset.timesteps
    return (
        f"at t = {first}..{last} of {check.offset.num_images} images eps_mse is "
        f"{check.offset.gain:.1%} lower (+- {2 * check.offset.standard_error:.1%})"
    )


def _fault(fault: Fault) -> str:
    if fault.name == "nats":
        value, limit = fault.value / NATS_PER_BIT, fault.limit / NATS_PER_BIT
        return (
            f"half the area under eps_mse over log SNR is {value:.2f} bits, that of a trained "
            f"model below {limit:.2f}, that of independent pixels"
        )
    unit = " of the pixels' variance" if fault.name == "x_start_mse" else ""
    return (
        f"{fault.name} at t = {fault.t} is {_short(fault.value)}{unit}, that of a trained model "
        f"below {fault.limit:g}"
    )


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2g}"
