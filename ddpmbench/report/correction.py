"""What the correction of a low precision is in a result, in bits per dimension, and in words."""

import dataclasses
import math
from typing import Any

from ddpmbench.likelihood.correction import Correction
from ddpmbench.process.units import NATS_PER_BIT
from ddpmbench.report.checks import STRICT
from ddpmbench.runs.likelihood import LikelihoodRun


@dataclasses.dataclass(frozen=True)
class CorrectionInBits:
    """`precision_correction` of `summary.json`; by default one that changes nothing.

    Attributes:
        bits_per_dim: what was added to the bound.
        half_width: of its 95 % interval, which is part of the bound's.
        num_evaluations: network calls it took, in both precisions; part of the run's.
        uncorrected_bits_per_dim: the bound as the rows in low precision have it.
        kl: what of it was added to the steps t = 2..T.
        decoder: what of it was added to t = 1.
    """

    bits_per_dim: float = 0.0
    half_width: float = 0.0
    num_evaluations: int = 0
    uncorrected_bits_per_dim: float = math.nan
    kl: float = 0.0
    decoder: float = 0.0

    @classmethod
    def of(cls, correction: Correction, *, uncorrected: float) -> "CorrectionInBits":
        """A correction of a bound, both in nats per dimension."""
        return cls(
            bits_per_dim=correction.nats / NATS_PER_BIT,
            half_width=correction.half_width / NATS_PER_BIT,
            num_evaluations=correction.num_evaluations,
            uncorrected_bits_per_dim=uncorrected / NATS_PER_BIT,
            kl=correction.kl / NATS_PER_BIT,
            decoder=correction.decoder / NATS_PER_BIT,
        )


def in_bits(run: LikelihoodRun) -> CorrectionInBits | None:
    """The correction of a run; None where its rows are in strict float32."""
    if run.correction is None:
        return None
    return CorrectionInBits.of(run.correction, uncorrected=run.bound.nats)


def widened(half_width: float | None, correction: CorrectionInBits) -> float | None:
    """A half width with that of the correction, which is independent of it."""
    return None if half_width is None else math.hypot(half_width, correction.half_width)


def correction_line(summary: dict[str, Any]) -> str | None:
    """What was corrected, in one line; None where nothing was.

    Args:
        summary: the object of `summary.json`, or one like it.
    """
    of = summary.get("precision_correction")
    if of is None:
        return None
    return (
        f"{summary['precision']}, corrected by {of['bits_per_dim']:+.5f} +- "
        f"{of['half_width']:.5f} from {of['num_evaluations'] // 2:,} rows in fp32 too"
    )


def uncorrected_note(summary: dict[str, Any]) -> str | None:
    """What the correction does not reach, in words; None where there is none."""
    if summary.get("precision_correction") is None:
        return None
    return (
        "steps, rate and distortion, single images and other conventions are "
        f"from the rows in {summary['precision']}, uncorrected"
    )


def compared_note(summary: dict[str, Any]) -> str | None:
    """The same of the `summary.json` of a comparison."""
    precision = summary.get("precision", STRICT)
    if precision == STRICT:
        return None
    return f"{precision}; differences are corrected by rows in fp32 too, those of steps are not"
