"""What the check of a checkpoint's reading found: its table, its record and the line it says."""

import dataclasses
from typing import Any

import pandas as pd

from ddpmbench.likelihood.reading_check import CLOSE_STEPS, Compared, ReadingCheck
from ddpmbench.likelihood.reading_scores import Score, furthest_apart
from ddpmbench.process.units import NATS_PER_BIT


@dataclasses.dataclass(frozen=True)
class CheckRecord:
    """`check` of `summary.json`.

    Attributes:
        warning: what to say; None where nothing speaks against the reading.
        likely: the option that is likely meant.
        num_evaluations: network calls of the check, which are none of the run's.
    """

    warning: str | None
    likely: str | None
    num_evaluations: int

    @classmethod
    def of(cls, found: ReadingCheck) -> "CheckRecord":
        """What was found, in short."""
        return cls(_warning(found), found.cause, found.num_evaluations)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return dataclasses.asdict(self)


def check_frame(found: ReadingCheck) -> pd.DataFrame:
    """One row a reading and step, the reading that was asked for first.

    `difference` is what its code is longer by than that of the reading that was asked for, and
    `eps_difference` the same of eps_mse at the first steps, a share, where that was looked at.
    Both have their standard errors, which one image alone does not have. Squared errors of x_start
    are those of images on [0, 1].
    """
    frames = [_rows(found.stated, reading="as asked for")]
    for of in found.others:
        values: dict[str, Any] = {
            "difference": -of.gain / NATS_PER_BIT,
            "standard_error": of.standard_error / NATS_PER_BIT,
        }
        if found.close is not None and found.close.option == of.score.reading.option:
            values["eps_difference"] = -found.close.gain
            values["eps_standard_error"] = found.close.standard_error
        frames.append(_rows(of.score, reading=of.score.reading.option, **values))
    return pd.concat(frames, ignore_index=True)


def _rows(score: Score, *, reading: str, **values: float) -> pd.DataFrame:
    columns = ("difference", "standard_error", "eps_difference", "eps_standard_error")
    return pd.DataFrame(
        {
            "reading": reading,
            "num_images": len(score.eps_mse),
            **{name: values.get(name, float("nan")) for name in columns},
            "t": score.steps,
            "eps_mse": score.eps_mse.mean(0),
            "x_start_mse": score.x_start_mse.mean(0),
        }
    )


def _warning(found: ReadingCheck) -> str | None:
    """One line, that names the option and the numbers; None where there is nothing to say."""
    source, option = found.stated.reading.checkpoint.source, found.cause
    if option is None:
        return None if found.fault is None else _untrained(found, source)
    likely = f"--ckpt {source}: was likely trained to be read with {option}"
    if found.close is not None and found.close.option == option:
        close = found.close
        return (
            f"{likely}: at t = {CLOSE_STEPS[0]}..{CLOSE_STEPS[-1]} of {close.num_looks} images "
            f"eps_mse is {close.gain:.1%} lower so (+- {2 * close.standard_error:.1%}); give that "
            "option, or --no-check if this is meant"
        )
    of = next(of for of in found.others if of.score.reading.option == option)
    t, own, other = furthest_apart(found.stated, of.score)
    return (
        f"{likely}: {len(of.score.eps_mse)} images cost {_bits(of)} bits/dim less so, and eps_mse "
        f"at t = {t} is {_short(own)} as it is read and {_short(other)} so; give that option, or "
        "--no-check if this is meant"
    )


def _untrained(found: ReadingCheck, source: str) -> str:
    fault = found.fault
    assert fault is not None
    if fault.name == "nats":
        found_bits, most = fault.value / NATS_PER_BIT, fault.limit / NATS_PER_BIT
        what = (
            f"images cost {found_bits:.2f} bits/dim, where those of a trained model are below "
            f"{most:.2f}, what they cost pixel by pixel"
        )
    else:
        unit = " of the pixels' variance" if fault.name == "x_start_mse" else ""
        what = (
            f"{fault.name} at t = {fault.t} is {_short(fault.value)}{unit}, where that of a "
            f"trained model is below {fault.limit:g}"
        )
    return (
        f"--ckpt {source}: is read otherwise than it was trained, or its weights are not those of "
        f"a trained model: {what}; no other prediction, time input, schedule or data range alone "
        "mends it"
    )


def _bits(of: Compared) -> str:
    bits, error = of.gain / NATS_PER_BIT, of.standard_error / NATS_PER_BIT
    return f"{bits:.2f} (+- {2 * error:.2f})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2g}"
