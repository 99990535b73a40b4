"""The bound under the other published conventions, and of models that skip steps, as tables."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ddpmbench.diffusion.data_range import NATS_PER_BIT, UNIT_RANGE, DataRange
from ddpmbench.diffusion.process import Variance
from ddpmbench.execution.likelihood import LikelihoodRun
from ddpmbench.likelihood.bound import BoundEstimate
from ddpmbench.likelihood.conventions import Convention, ConventionBound, OtherBounds
from ddpmbench.likelihood.estimator import SampledBound
from ddpmbench.likelihood.precision import Correction
from ddpmbench.likelihood.rate_distortion import Distortion
from ddpmbench.likelihood.sub_schedules import BEST, EVENLY_SPACED, SubScheduleBound
from ddpmbench.report.schema import STRICT
from ddpmbench.report.text import is_worse_than_raw_pixels, unpadded


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
        f"{of['half_width']:.5f} from {of['num_evaluations'] // 2:,} terms also computed in fp32"
    )


def uncorrected_note(summary: dict[str, Any]) -> str | None:
    """What the correction does not reach, in words; None where there is none."""
    if summary.get("precision_correction") is None:
        return None
    return (
        "terms per timestep and image, rate, distortion and other conventions are in "
        f"{summary['precision']}, uncorrected"
    )


def compared_note(summary: dict[str, Any]) -> str | None:
    """The same of the `summary.json` of a comparison."""
    precision = summary.get("precision", STRICT)
    if precision == STRICT:
        return None
    return f"{precision}; differences are corrected to fp32, those per timestep are not"


SCHEMA = "ddpmbench.nll/1"
RATE_DISTORTION_COLUMNS = {
    "t": "int64",
    "num_decoded_steps": "int64",
    "rate_bits_per_dim": "float64",
    "rate_standard_error": "float64",
    "distortion_rmse": "float64",
    "distortion_standard_error": "float64",
    "distortion_rmse_of_mean_mse": "float64",
    "psnr": "float64",
}


@dataclasses.dataclass(frozen=True)
class Comparability:
    """What makes a number comparable: the part of the summary that no network enters.

    The fields are those of `summary.json`, in its order.
    """

    num_images: int
    num_timesteps: int
    num_evaluations: int
    estimator: str
    sampling: dict[str, object]
    conventions: dict[str, object]
    checkpoint: dict[str, object]
    data: dict[str, object]
    seed: int
    device: str
    precision: str
    engine: str
    precision_correction: CorrectionInBits | None
    seconds: float
    check: dict[str, object] | None = None


def summary(bound: BoundEstimate | SampledBound, comparability: Comparability) -> dict[str, Any]:
    """The object of `summary.json`: the bound in bits per dimension, and what it is of.

    Where there is a correction, bound, parts and intervals have it.
    """
    correction = comparability.precision_correction or CorrectionInBits()
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "bits_per_dim": bound.nats / NATS_PER_BIT + correction.bits_per_dim,
        "half_width": widened(_bits(bound.half_width), correction),
        "half_width_population": widened(_bits(bound.half_width_population), correction),
        "prior": float(np.mean(bound.prior)) / NATS_PER_BIT,
        "kl": float(np.mean(bound.kl)) / NATS_PER_BIT + correction.kl,
        "decoder": float(np.mean(bound.decoder)) / NATS_PER_BIT + correction.decoder,
        **dataclasses.asdict(comparability),
    }
    record["worse_than_raw_pixels"] = is_worse_than_raw_pixels(record)
    if (of_images := unpadded(record)) is not None:
        record["unpadded"] = of_images
    return record


def sampling(run: LikelihoodRun, options: dict[str, object]) -> dict[str, object]:
    """Which rows there are: the options that say so and what became of them."""
    if not isinstance(run.bound, SampledBound) or run.horvitz_thompson is None:
        return options
    plain, correction = run.horvitz_thompson, in_bits(run) or CorrectionInBits()
    return {
        **options,
        "num_replicates": run.bound.num_replicates,
        "pilot_evaluations": run.pilot_evaluations,
        "horvitz_thompson": {
            "bits_per_dim": plain.nats / NATS_PER_BIT + correction.bits_per_dim,
            "half_width": widened(_bits(plain.half_width), correction),
        },
    }


def per_timestep(bound: BoundEstimate | SampledBound) -> pd.DataFrame:
    """One row a step t = 1..T; terms in bits per dimension, errors in the model's numbers.

    Of a sampled bound every term is unbiased and they sum to the bound; an error is empty where
    it cannot be told.
    """
    num_timesteps = len(bound.term)
    return pd.DataFrame(
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


def rate(bound: BoundEstimate | SampledBound) -> pd.DataFrame:
    """One row a step t = 1..T: what a receiver that holds x_t has been sent, bits per dimension.

    `num_decoded_steps` counts its network calls, the one that predicts x_start from x_t among
    them, as the reverse steps of Ho, Jain & Abbeel 2020, table 4, do.
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
    bound: BoundEstimate | SampledBound,
    distortion: Distortion,
    data_range: DataRange = UNIT_RANGE,
) -> pd.DataFrame:
    """`rate`, and the distortion of what the receiver shows, on 0..255.

    It is the mean of the images' root mean squared errors, and the root of the mean of their
    squared errors, from which the `psnr` is.

    Args:
        bound: of a run.
        distortion: of the same run, in the numbers that its model has.
        data_range: which those are.
    """
    levels_a_unit = data_range.levels_a_unit
    root = levels_a_unit * np.sqrt(distortion.mse)
    return rate(bound).assign(
        distortion_rmse=levels_a_unit * distortion.rmse,
        distortion_standard_error=levels_a_unit * distortion.rmse_standard_error,
        distortion_rmse_of_mean_mse=root,
        psnr=20 * np.log10(255 / root),
    )


def per_image(bound: BoundEstimate | SampledBound, ids: Sequence[str]) -> pd.DataFrame:
    """One row an image, in bits per dimension.

    Of a sampled bound `kl` and `bits_per_dim` are empty: the totals of single images cannot be
    told from a few of their steps.
    """
    if isinstance(bound, SampledBound):
        unknown = np.full(len(ids), np.nan)
        prior, kl, decoder, total = bound.image_prior, unknown, bound.image_decoder, unknown
    else:
        prior, kl, decoder, total = bound.prior, bound.kl, bound.decoder, bound.total
    return pd.DataFrame(
        {
            "image_id": list(ids),
            "prior": prior / NATS_PER_BIT,
            "kl": kl / NATS_PER_BIT,
            "decoder": decoder / NATS_PER_BIT,
            "bits_per_dim": total / NATS_PER_BIT,
        }
    )


def _bits(nats: float | None) -> float | None:
    return None if nats is None else nats / NATS_PER_BIT


THIS_RUN = "this run"
ALL_STEPS = "all"
BEST_CONSTANT = "best_constant"
"""The variance that is the best constant at every step but the first, for these images."""
RESPACINGS = (1000, 500, 250, 100, 50)
"""The numbers of steps that people respace to."""
CONVENTION_COLUMNS = {
    "convention": "str",
    "variance": "str",
    "clip": "bool",
    "decoder": "str",
    "decoder_variance": "str",
    "num_timesteps": "int64",
    "spacing": "str",
    "rate_bits_per_dim": "float64",
    "decoder_bits_per_dim": "float64",
    "bits_per_dim": "float64",
    "half_width": "float64",
    "difference": "float64",
    "used_by": "str",
}
SUB_SCHEDULE_COLUMNS = {
    "variance": "str",
    "spacing": "str",
    "num_timesteps": "int64",
    "bits_per_dim": "float64",
    "half_width": "float64",
    "steps": "str",
}

_AUTHORS = (
    "Ho et al. 2020, <= 3.75 (L_simple) and <= 3.70 (L) on CIFAR-10 test; improved-diffusion's "
    "image_nll.py by default"
)
_SIGMA_SMALL = "improved-diffusion's image_nll.py with sigma_small"
_LEARNED = "Nichol & Dhariwal 2021, <= 2.94 on CIFAR-10 (L_vlb, 4000 steps)"
_BETA = "loops over diffusers' DDPMScheduler, whose fixed_large variance at t = 1 is beta_1"
_ANALYTIC = "Bao et al. 2022 (Analytic-DPM), there with variances from training images"
_RESPACED = (
    "Nichol & Dhariwal 2021, section 4, and improved-diffusion's timestep_respacing, there with "
    "the tanh decoder"
)
_WATSON = "Watson et al. 2021, there chosen on training images"
_USED_BY = {
    (Variance.FIXED_LARGE, "tanh", "posterior"): _AUTHORS,
    (Variance.FIXED_SMALL, "tanh", "posterior"): _SIGMA_SMALL,
    (Variance.FIXED_LARGE, "tanh", "beta"): _BETA,
    (Variance.FIXED_LARGE, "exact", "beta"): _BETA,
    (Variance.FIXED_LARGE, "exact", "posterior"): "ddpmbench by default",
    (Variance.LEARNED_RANGE, "tanh", "model"): _LEARNED,
}


def conventions_frame(others: OtherBounds, num_timesteps: int) -> pd.DataFrame:
    """One row a convention, that of the run first; in bits per dimension.

    `rate_bits_per_dim` is the prior and the steps, `decoder_bits_per_dim` the term at t = 1; they
    sum to `bits_per_dim`. `difference` is that from the run's own bound; of models that skip steps
    it is from the model that skips none, estimated alike. A decoder's variance is
    the posterior's at t = 2, beta_1, or learned ("model"); of a model that skips steps it is the
    posterior's at its own second step. `spacing` is "all" where every step is visited, "evenly
    spaced", or "best" of all on these images (`likelihood.sub_schedules`).

    Args:
        others: the bounds.
        num_timesteps: T.

    Returns:
        A frame with `CONVENTION_COLUMNS`.
    """
    own = others.conventions[0]
    first = _all_steps(others, own, num_timesteps)
    rows = [_of_convention(found, own.convention, num_timesteps) for found in others.conventions]
    rows += [
        _of_sub_schedule(found, own.convention, num_timesteps) | {"from": first}
        for found in others.sub_schedules
        if _is_published(found, num_timesteps)
    ]
    frame = pd.DataFrame(rows)
    baseline = frame["from"].fillna(own.nats) if "from" in frame else own.nats
    frame["difference"] = frame.bits_per_dim - baseline / NATS_PER_BIT
    return frame.astype(CONVENTION_COLUMNS)[list(CONVENTION_COLUMNS)]


def sub_schedules_frame(others: OtherBounds) -> pd.DataFrame:
    """One row a model that visits some of the steps, in bits per dimension.

    `steps` are those of the best ones, a blank between two; those of `NoiseSchedule.evenly_spaced`
    are left out.

    Returns:
        A frame with `SUB_SCHEDULE_COLUMNS`; it has no rows where there are no such models.
    """
    rows = [
        {
            "variance": _name(found.variance),
            "spacing": found.spacing,
            "num_timesteps": len(found.steps),
            "bits_per_dim": found.nats / NATS_PER_BIT,
            "half_width": _bits_or_nan(found.half_width),
            "steps": " ".join(map(str, found.steps)) if found.spacing == BEST else "",
        }
        for found in others.sub_schedules
    ]
    return pd.DataFrame(rows, columns=list(SUB_SCHEDULE_COLUMNS)).astype(SUB_SCHEDULE_COLUMNS)


def _all_steps(others: OtherBounds, own: ConventionBound, num_timesteps: int) -> float:
    """What the bounds of models that skip steps differ from: that of the run's own variance."""
    for found in others.sub_schedules:
        of = (found.variance, found.spacing, len(found.steps))
        if of == (own.convention.variance, EVENLY_SPACED, num_timesteps):
            return found.nats
    return own.nats


def _is_published(found: SubScheduleBound, num_timesteps: int) -> bool:
    length = len(found.steps)
    if length == num_timesteps:
        # With a fixed variance that is among the conventions already.
        return found.variance is None and found.spacing == EVENLY_SPACED
    return length in RESPACINGS


def _of_convention(
    found: ConventionBound, own: Convention, num_timesteps: int
) -> dict[str, object]:
    convention = found.convention
    return {
        "convention": _differs(convention, own) or THIS_RUN,
        "variance": str(convention.variance),
        "clip": convention.clip,
        "decoder": convention.decoder,
        "decoder_variance": convention.decoder_variance,
        "num_timesteps": num_timesteps,
        "spacing": ALL_STEPS,
        **_values(found),
        "used_by": _used_by(convention),
    }


def _of_sub_schedule(
    found: SubScheduleBound, own: Convention, num_timesteps: int
) -> dict[str, object]:
    length = len(found.steps)
    is_whole = length == num_timesteps
    how = "" if is_whole else f"{length} steps, {found.spacing}"
    what = "" if found.variance is own.variance else _name(found.variance)
    function = "" if own.decoder == "exact" else "exact decoder"
    source = {BEST: _WATSON, EVENLY_SPACED: _RESPACED}[found.spacing]
    if found.variance is None and found.spacing == EVENLY_SPACED:
        source = _ANALYTIC
    return {
        "convention": ", ".join(part for part in (what, function, how) if part),
        "variance": _name(found.variance),
        "clip": own.clip,
        "decoder": "exact",
        "decoder_variance": "posterior",
        "num_timesteps": length,
        "spacing": ALL_STEPS if is_whole else found.spacing,
        **_values(found),
        "used_by": source,
    }


def _values(found: ConventionBound | SubScheduleBound) -> dict[str, float]:
    return {
        "rate_bits_per_dim": found.rate / NATS_PER_BIT,
        "decoder_bits_per_dim": found.decoder / NATS_PER_BIT,
        "bits_per_dim": found.nats / NATS_PER_BIT,
        "half_width": _bits_or_nan(found.half_width),
    }


def _differs(convention: Convention, own: Convention) -> str:
    """What of a convention is not that of the run, in words."""
    parts = []
    if convention.variance is not own.variance:
        parts.append(str(convention.variance))
    if convention.clip != own.clip:
        parts.append("clip" if convention.clip else "no clip")
    if convention.decoder != own.decoder:
        parts.append(f"{convention.decoder} decoder")
    if convention.decoder_variance == "beta":
        parts.append("decoder variance beta_1")
    return ", ".join(parts)


def _used_by(convention: Convention) -> str:
    if not convention.clip:
        return ""
    key = (convention.variance, convention.decoder, convention.decoder_variance)
    return _USED_BY.get(key, "")


def _name(variance: Variance | None) -> str:
    return BEST_CONSTANT if variance is None else str(variance)


def _bits_or_nan(nats: float | None) -> float:
    return np.nan if nats is None else nats / NATS_PER_BIT
