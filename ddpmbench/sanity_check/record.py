"""What the sanity check of a checkpoint arrived at: its table, its record and its line."""

import dataclasses
from typing import Any

import pandas as pd

from ddpmbench.diffusion.data_range import NATS_PER_BIT
from ddpmbench.sanity_check.check import CLOSE_STEPS, NUM_IMAGES, Compared, Outcome, SanityCheck
from ddpmbench.sanity_check.scores import Fault, Score, furthest_apart


@dataclasses.dataclass(frozen=True)
class CheckRecord:
    """`check` of `summary.json`.

    Attributes:
        warning: one line; None where nothing surely speaks against the stated parameterization.
        likely: the options that the network was likely trained with; None if there are none.
        num_evaluations: network evaluations of the check, which do not count towards the run.
        outcome: in a word, one of `Outcome`; None in a record of before there was one.
        better: the options that surely lower the bound, likely or not; None if there are none.
    """

    warning: str | None
    likely: str | None
    num_evaluations: int
    outcome: str | None = None
    better: str | None = None

    @classmethod
    def of(cls, check: SanityCheck) -> "CheckRecord":
        """What it arrived at, in short."""
        better = None if check.named is None else check.named.score.candidate.option
        return cls(
            _warning(check),
            check.cause,
            check.num_evaluations,
            str(check.outcome),
            better or check.cause,
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return dataclasses.asdict(self)


def check_frame(check: SanityCheck) -> pd.DataFrame:
    """One row a candidate and step, the stated parameterization first; none of too few images.

    `difference` is by how much half the area under its eps_mse over the log of the signal-to-noise
    ratio is larger than that of the stated one, in bits, `bound_difference` by how much its bound
    is higher, in bits/dim, as far as these steps tell, and `eps_difference` the same of eps_mse at
    the first steps, a share, where that was evaluated. They have their standard errors over images,
    which one image alone does not have. Squared errors of x_start are those of images on [0, 1].
    """
    if check.stated is None:
        return _rows([])
    rows: list[_Row] = [("as asked for", check.stated, {})]
    for of in check.others:
        values = {
            "difference": -of.gain / NATS_PER_BIT,
            "standard_error": of.standard_error / NATS_PER_BIT,
            "bound_difference": -of.bound_gain / NATS_PER_BIT,
            "bound_standard_error": of.bound_standard_error / NATS_PER_BIT,
        }
        rows.append((of.score.candidate.option, of.score, values))
    if (close := check.close) is not None:
        option = close.candidate.option or "a step away"
        values = {"eps_difference": -close.gain, "eps_standard_error": close.standard_error}
        rows.append((option, None, values))
    return _rows(rows)


_Row = tuple[str, Score | None, dict[str, float]]
_DIFFERENCES = (
    *("difference", "standard_error", "bound_difference", "bound_standard_error"),
    *("eps_difference", "eps_standard_error"),
)


def _rows(rows: list[_Row]) -> pd.DataFrame:
    nan = float("nan")
    columns = ("reading", "num_images", *_DIFFERENCES, "t", "eps_mse", "x_start_mse")
    table = []
    for name, score, values in rows:
        differences = [values.get(column, nan) for column in _DIFFERENCES]
        if score is None:
            table.append((name, 0, *differences, 0, nan, nan))
            continue
        x_start = score.x_start_mse.mean(0) / score.squared_width
        for t, eps, x in zip(score.steps, score.eps_mse.mean(0), x_start, strict=True):
            table.append((name, len(score.eps_mse), *differences, int(t), float(eps), float(x)))
    return pd.DataFrame(table, columns=list(columns))


def note(record: CheckRecord) -> str | None:
    """What to say where there is no warning; None where there is one."""
    if record.warning is not None:
        return None
    calls = f"{record.num_evaluations:,} of them: "
    match record.outcome:
        case Outcome.TOO_FEW_IMAGES:
            return f"the sanity check takes {NUM_IMAGES} images or more: nothing was checked"
        case Outcome.UNDECIDED:
            return calls + (
                "the sanity check could not tell: something is unusual for a trained model, but "
                "not surely wrong (check.csv has the numbers)"
            )
    return calls + "nothing speaks against its parameterization"


def _warning(check: SanityCheck) -> str | None:
    """One line, that names the option and the numbers; None where there is nothing sure."""
    stated = check.stated
    if stated is None or check.outcome in (Outcome.PASSED, Outcome.UNDECIDED):
        return None
    begin = f"--ckpt {stated.candidate.checkpoint.source}: "
    named = check.named
    if named is not None:
        t, own, other = furthest_apart(stated, named.score)
        option = named.score.candidate.option
        numbers = (
            f"on {len(named.score.eps_mse)} images its bound is about {_bits(named)} bits/dim "
            f"lower so, and eps_mse at t = {t} is {_short(own)} as it is read and {_short(other)} "
            "so"
        )
        if check.outcome is Outcome.LIKELY:
            which = "that option" if len(named.score.candidate.options) == 1 else "these options"
            return (
                f"{begin}was likely trained with {option}: {numbers}; give {which}, or --no-check "
                "if this is meant"
            )
        return f"{begin}reads better with {option}, {_perhaps(named)}: {numbers}"
    if check.outcome is Outcome.FAULT and check.fault is not None:
        return (
            f"{begin}is read otherwise than it was trained, or its weights are not those of a "
            f"trained model: {_what(check.fault)}; no usual prediction, time input, schedule or "
            "data range mends it"
        )
    assert check.close is not None
    close = check.close
    numbers = (
        f"at t = {CLOSE_STEPS[0]}..{CLOSE_STEPS[-1]} of {close.num_images} images eps_mse is "
        f"{close.gain:.1%} lower so (+- {2 * close.standard_error:.1%})"
    )
    if check.outcome is Outcome.LIKELY:
        return (
            f"{begin}was likely trained with {close.candidate.option}: {numbers}; give that "
            "option, or --no-check if this is meant"
        )
    return (
        f"{begin}reads better if it is given the time of {_STEP[close.is_later]}, perhaps since "
        f"its schedule has an entry more, for no noise: {numbers}"
    )


_STEP = {True: "the next step", False: "the step before"}


def _perhaps(named: Compared) -> str:
    candidate = named.score.candidate
    if not candidate.is_exact:
        return "perhaps since its data were normalized by a mean and a deviation of each channel"
    if any(option.startswith("--schedule") for option in candidate.options):
        return "perhaps a schedule that is not listed"
    return "but is perhaps read otherwise than it was trained in other ways, too"


def _what(fault: Fault) -> str:
    if fault.name == "nats":
        value, most = fault.value / NATS_PER_BIT, fault.limit / NATS_PER_BIT
        return (
            f"half the area under eps_mse over log SNR is {value:.2f} bits, where that of a "
            f"trained model is below {most:.2f}, that of pixels one by one"
        )
    unit = " of the pixels' variance" if fault.name == "x_start_mse" else ""
    return (
        f"{fault.name} at t = {fault.t} is {_short(fault.value)}{unit}, where that of a trained "
        f"model is below {fault.limit:g}"
    )


def _bits(of: Compared) -> str:
    bits, error = of.bound_gain / NATS_PER_BIT, of.bound_standard_error / NATS_PER_BIT
    return f"{bits:.2f} (+- {2 * error:.2f})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2g}"
