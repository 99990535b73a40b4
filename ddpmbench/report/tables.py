"""The bound in bits per dimension: the record of a run of `nll` and its tables."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pandas as pd
from msgspec import Struct
from numpy.typing import NDArray

from ddpmbench.diffusion.data_range import NATS_PER_BIT, UNIT_RANGE, DataRange
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.execution.estimator import SCHEMA as SCHEMA
from ddpmbench.execution.estimator import LikelihoodRun
from ddpmbench.likelihood.bound import Bound
from ddpmbench.likelihood.continuous import ContinuousDifference
from ddpmbench.likelihood.precision import Correction
from ddpmbench.likelihood.rate_distortion import Distortion
from ddpmbench.report.text import counted, is_worse_than_raw_pixels, unpadded

STRICT = "fp32"
"""The precision without a correction."""


class PrecisionCorrection(Struct):
    """`precision_correction` of a run in low precision: what was added to the bound.

    `kl` was added to t = 2..T, `decoder` to t = 1. The half width and the evaluations are included
    in those of the run; the uncorrected bound is that of the terms in low precision.
    """

    bits_per_dim: float
    half_width: float
    num_evaluations: int
    uncorrected_bits_per_dim: float
    kl: float
    decoder: float


class Comparability(Struct, kw_only=True):
    """The part of `summary.json` that states what a bound is of, independent of the network.

    Attributes:
        num_timesteps: T; in continuous time, that of the training.
        num_parts: parts of continuous time that the bound is a sum over; None in discrete time.
    """

    num_images: int
    num_timesteps: int
    num_parts: int | None = None
    num_evaluations: int
    estimator: str
    sampling: dict[str, Any]
    conventions: dict[str, Any]
    checkpoint: dict[str, Any]
    data: dict[str, Any]
    seed: int
    device: str
    precision: str
    engine: str | None = None
    precision_correction: PrecisionCorrection | None = None
    seconds: float
    check: dict[str, Any] | None = None


NO_CORRECTION = PrecisionCorrection(0.0, 0.0, 0, math.nan, 0.0, 0.0)


def in_bits(correction: Correction | None, *, uncorrected: float) -> PrecisionCorrection | None:
    """A correction of a bound in nats per dimension, in bits, if any."""
    if correction is None:
        return None
    return PrecisionCorrection(
        bits_per_dim=correction.nats / NATS_PER_BIT,
        half_width=correction.half_width / NATS_PER_BIT,
        num_evaluations=correction.num_evaluations,
        uncorrected_bits_per_dim=uncorrected / NATS_PER_BIT,
        kl=correction.kl / NATS_PER_BIT,
        decoder=correction.decoder / NATS_PER_BIT,
    )


def widened(half_width: float | None, correction: PrecisionCorrection) -> float | None:
    """A half width in nats as bits, combined with the independent one of the correction."""
    return (
        None if half_width is None else math.hypot(half_width / NATS_PER_BIT, correction.half_width)
    )


def correction_line(summary: Mapping[str, Any]) -> str | None:
    """The correction in one line, if any."""
    correction = summary.get("precision_correction")
    if correction is None:
        return None
    num_terms = correction["num_evaluations"] // 2
    return (
        f"{summary['precision']}, corrected by {correction['bits_per_dim']:+.5f} +- "
        f"{correction['half_width']:.5f} from {counted(num_terms, 'term')} also computed in fp32"
    )


def uncorrected_note(summary: Mapping[str, Any]) -> str | None:
    """The numbers without the correction, in words; None if there is none."""
    if summary.get("precision_correction") is None:
        return None
    return (
        "terms per timestep and image, rate, distortion and other conventions are in "
        f"{summary['precision']}, uncorrected"
    )


CONTINUOUS_COLUMNS = {
    "t": "int64",
    "u": "float64",
    "eps_mse": "float64",
    "eps_mse_at_t": "float64",
}
RATE_COLUMNS = {
    "num_decoded_steps": "int64",
    "rate_bits_per_dim": "float64",
    "rate_standard_error": "float64",
}
RATE_DISTORTION_COLUMNS = {
    "t": "int64",
    **RATE_COLUMNS,
    "distortion_rmse": "float64",
    "distortion_standard_error": "float64",
    "distortion_rmse_of_mean_mse": "float64",
    "psnr": "float64",
}


def summary(
    bound: Bound,
    comparability: Comparability,
    *,
    continuous: Correction | None = None,
    absent: str | None = None,
) -> dict[str, Any]:
    """The object of `summary.json`: the bound in bits per dimension, and its settings.

    Any correction is included in bound, parts and intervals. The bound in continuous time is the
    run's plus the difference.

    Args:
        bound: in nats.
        comparability: its settings.
        continuous: the difference of the bound in continuous time, nats.
        absent: the reason if there is none.
    """
    correction = comparability.precision_correction or NO_CORRECTION
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "bits_per_dim": bound.nats / NATS_PER_BIT + correction.bits_per_dim,
        "half_width": widened(bound.half_width, correction),
        "half_width_population": widened(bound.half_width_population, correction),
        "prior": float(np.mean(bound.prior)) / NATS_PER_BIT,
        "kl": float(np.mean(bound.kl)) / NATS_PER_BIT + correction.kl,
        "decoder": float(np.mean(bound.decoder)) / NATS_PER_BIT + correction.decoder,
        **msgspec.to_builtins(comparability),
    }
    record |= _continuous(record, in_bits(continuous, uncorrected=bound.nats), absent)
    record["worse_than_raw_pixels"] = is_worse_than_raw_pixels(record)
    if (of_images := unpadded(record)) is not None:
        record["unpadded"] = of_images
    return record


def _continuous(
    bound: dict[str, Any], difference: PrecisionCorrection | None, absent: str | None
) -> dict[str, Any]:
    value, half_width, count = None, None, 0
    if difference is not None:
        value = bound["bits_per_dim"] + difference.bits_per_dim
        if bound["half_width"] is not None:
            half_width = math.hypot(bound["half_width"], difference.half_width)
        count = difference.num_evaluations
    return {
        "continuous_bits_per_dim": value,
        "continuous_half_width": half_width,
        "continuous_num_evaluations": count,
        "continuous_absent": absent,
    }


def continuous_frame(difference: ContinuousDifference | None) -> pd.DataFrame | None:
    """One row per term that was evaluated at timestep t and at u, between t - 1 and t."""
    if difference is None:
        return None
    return pd.DataFrame({name: getattr(difference, name) for name in CONTINUOUS_COLUMNS})


def sampling(run: LikelihoodRun, options: dict[str, object]) -> dict[str, object]:
    """The sampling of terms: its options and their outcome."""
    correction = in_bits(run.correction, uncorrected=run.bound.nats) or NO_CORRECTION
    simpler = {
        name: {
            "bits_per_dim": bound.nats / NATS_PER_BIT + correction.bits_per_dim,
            "half_width": widened(bound.half_width, correction),
        }
        for name, bound in run.simpler.items()
    }
    return {**options, **run.counts, **simpler}


PLACE_COLUMNS = ("u", "log_snr")
"""Columns of `per_timestep` in continuous time: the end of a row's part."""
PER_TIMESTEP_COLUMNS = {
    "t": "int64",
    **dict.fromkeys(PLACE_COLUMNS, "float64"),
    "part": "str",
    **dict.fromkeys(("bits_per_dim", "standard_error", "x_start_mse", "eps_mse"), "float64"),
    "num_evaluations": "int64",
}
PER_IMAGE_COLUMNS = {
    "image_id": "str",
    **dict.fromkeys(("prior", "kl", "decoder", "bits_per_dim"), "float64"),
}


def per_timestep(bound: Bound, schedule: NoiseSchedule | None = None) -> pd.DataFrame:
    """One row per timestep t = 1..T; terms in bits per dimension, errors in the model's units.

    The terms of a sampled bound are unbiased and sum to the bound; an error is empty if unknown. In
    continuous time t counts the parts: that of a row ends at timestep `u` of the training, with a
    signal-to-noise ratio of exp `log_snr`, and begins at the end of the previous row's. The first
    row is timestep 1 itself.

    Args:
        bound: of a run, or the difference of two.
        schedule: of the run; None leaves `u` and `log_snr` out.
    """
    num_timesteps = len(bound.term)
    frame = pd.DataFrame(
        {
            "t": np.arange(1, num_timesteps + 1),
            "part": ["decoder"] + ["kl"] * (num_timesteps - 1),
            "bits_per_dim": bound.term / NATS_PER_BIT,
            "standard_error": bound.term_standard_error / NATS_PER_BIT,
            "x_start_mse": bound.x_start_mse,
            "eps_mse": bound.eps_mse,
            "num_evaluations": bound.num_evaluations,
        }
    )
    if schedule is not None and schedule.is_continuous:
        places = (schedule.original_timesteps.numpy(), schedule.snr.log().numpy())
        for i, (name, column) in enumerate(zip(PLACE_COLUMNS, places, strict=True)):
            frame.insert(1 + i, name, column)
    return frame


def rate(bound: Bound) -> pd.DataFrame:
    """One row per timestep t = 1..T: the bits per dimension sent to a receiver that holds x_t.

    `num_decoded_steps` counts its network evaluations, including the one that predicts x_start from
    x_t, like the reverse steps of Ho, Jain & Abbeel 2020, table 4.
    """
    t = np.arange(1, len(bound.term) + 1)
    return pd.DataFrame(
        {
            "t": t,
            "num_decoded_steps": len(t) + 1 - t,
            "rate_bits_per_dim": bound.rate / NATS_PER_BIT,
            "rate_standard_error": bound.rate_standard_error / NATS_PER_BIT,
        }
    )


def rate_distortion(
    bound: Bound, distortion: Distortion, data_range: DataRange = UNIT_RANGE
) -> pd.DataFrame:
    """`rate`, and the distortion of the receiver's image, on 0..255.

    The distortion is the mean of the images' root mean squared errors, and the root of the mean of
    their squared errors, which gives the `psnr`.

    Args:
        bound: of a run.
        distortion: of the same run, in the model's units.
        data_range: of the model.
    """
    levels_a_unit = data_range.levels_a_unit
    root = levels_a_unit * np.sqrt(distortion.mse)
    return rate(bound).assign(
        distortion_rmse=levels_a_unit * distortion.rmse,
        distortion_standard_error=levels_a_unit * distortion.rmse_standard_error,
        distortion_rmse_of_mean_mse=root,
        psnr=20 * np.log10(255 / root),
    )


def per_image(bound: Bound, ids: Sequence[str]) -> pd.DataFrame:
    """One row per image, in bits per dimension.

    For a sampled bound `kl` and `bits_per_dim` are empty: the totals of single images cannot be
    estimated from a few timesteps. So is `decoder` of images that were not sampled.
    """
    images = bound.by_image
    return pd.DataFrame(
        {
            "image_id": list(ids),
            "prior": images.prior / NATS_PER_BIT,
            "kl": images.kl / NATS_PER_BIT,
            "decoder": images.decoder / NATS_PER_BIT,
            "bits_per_dim": images.total / NATS_PER_BIT,
        }
    )


def bits_of_images(per_image: pd.DataFrame) -> tuple[NDArray[np.float64], str]:
    """(N,) the known bits of each image, and their name for a title."""
    whole = per_image.bits_per_dim
    if whole.notna().all():
        return whole.to_numpy(), "Bits"
    return per_image.decoder.to_numpy(), "Bits of the decoder"
