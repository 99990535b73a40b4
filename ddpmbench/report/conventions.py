"""The bound under other published conventions, and of respaced models, as tables."""

import dataclasses
import math

import numpy as np
import pandas as pd

from ddpmbench.diffusion.data_range import NATS_PER_BIT
from ddpmbench.diffusion.parameterization import Process, Variance
from ddpmbench.likelihood.conventions import Convention, ConventionBound, OtherBounds
from ddpmbench.likelihood.precision import Correction
from ddpmbench.likelihood.sub_schedules import BEST, EVENLY_SPACED, SubScheduleBound

THIS_RUN = "this run"
ALL_STEPS = "all"
BEST_CONSTANT = "best_constant"
"""The best constant variance for these images at every timestep but the first."""
CONTINUOUS_TIME = "continuous time"
RESPACINGS = (1000, 500, 250, 100, 50)
"""Usual numbers of timesteps of respaced models."""
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
    "difference_half_width": "float64",
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

_BETA = "loops over diffusers' DDPMScheduler, whose fixed_large variance at t = 1 is beta_1"
_ANALYTIC = "Bao et al. 2022 (Analytic-DPM), there with variances from training images"
_RESPACED = (
    "Nichol & Dhariwal 2021, section 4, and improved-diffusion's timestep_respacing, there with "
    "the tanh decoder"
)
_CONTINUOUS = (
    "Kingma et al. 2021 (VDM), <= 2.65 on CIFAR-10, there trained in continuous time; this network "
    "was trained at whole timesteps only"
)
_WATSON = "Watson et al. 2021, there chosen on training images"
_USED_BY = {
    (Variance.FIXED_LARGE, "tanh", "posterior"): (
        "Ho et al. 2020, <= 3.75 (L_simple) and <= 3.70 (L) on CIFAR-10 test; improved-diffusion's "
        "image_nll.py by default"
    ),
    (Variance.FIXED_SMALL, "tanh", "posterior"): (
        "improved-diffusion's image_nll.py with sigma_small"
    ),
    (Variance.FIXED_LARGE, "tanh", "beta"): _BETA,
    (Variance.FIXED_LARGE, "exact", "beta"): _BETA,
    (Variance.FIXED_LARGE, "exact", "posterior"): "ddpmbench by default",
    (Variance.LEARNED_RANGE, "tanh", "model"): (
        "Nichol & Dhariwal 2021, <= 2.94 on CIFAR-10 (L_vlb, 4000 steps)"
    ),
}
"""Sources of a variance, a decoder and its variance, all with clip."""


def conventions_frame(
    others: OtherBounds,
    num_timesteps: int,
    *,
    continuous: Correction | None = None,
    is_continuous: bool = False,
    process: Process = Process.VP,
) -> pd.DataFrame:
    """One row per convention, that of the run first; `CONVENTION_COLUMNS`, bits per dimension.

    `rate_bits_per_dim` is the prior and the KL terms, `decoder_bits_per_dim` the term at t = 1;
    they sum to `bits_per_dim`. `difference` is from the run's own bound; for a model that skips
    timesteps, from the model that skips none, estimated in the same way. `difference_half_width`,
    of its 95 % interval for these images, is known for continuous time and, if the run's variance
    is fixed, for the best constant one at all timesteps; both pair the terms. The decoder's
    variance is that of the posterior at t = 2 (or at the second timestep of a model that skips
    some), beta_1, or learned ("model"). `spacing` is "all" where every timestep is visited, "evenly
    spaced", or "best" of all on these images (`likelihood.sub_schedules`).

    Args:
        others: the bounds.
        num_timesteps: T.
        continuous: the difference of the bound in continuous time, nats; None if unknown.
        is_continuous: whether the run itself is in continuous time.
        process: the family of the forward process; the sources of discrete bounds used VP.
    """
    own = others.conventions[0]
    rows = [_of_convention(bound, own.convention, num_timesteps) for bound in others.conventions]
    if is_continuous:
        rows = [{**row, "spacing": CONTINUOUS_TIME, "used_by": ""} for row in rows]
        rows[0]["used_by"] = _CONTINUOUS
    if continuous is not None:
        rows.append(_of_continuous(own, continuous, num_timesteps))
    baselines = [own.nats] * len(rows)
    for bound in others.sub_schedules:
        if _is_published(bound, num_timesteps):
            rows.append(_of_sub_schedule(bound, own.convention, num_timesteps))
            baselines.append(_all_timesteps(others, own, num_timesteps))
    frame = pd.DataFrame(rows)
    frame["difference"] = frame.bits_per_dim - np.array(baselines) / NATS_PER_BIT
    frame["difference_half_width"] = np.nan
    if process is not Process.VP:
        frame.loc[frame.spacing != CONTINUOUS_TIME, "used_by"] = ""
    if continuous is not None:
        is_limit = frame.convention == CONTINUOUS_TIME
        frame.loc[is_limit, "difference_half_width"] = continuous.half_width / NATS_PER_BIT
    is_best = (frame.variance == BEST_CONSTANT) & (frame.spacing == ALL_STEPS)
    frame.loc[is_best, "difference_half_width"] = _bits_or_nan(others.best_constant_half_width)
    return frame.astype(CONVENTION_COLUMNS)[list(CONVENTION_COLUMNS)]


def sub_schedules_frame(others: OtherBounds) -> pd.DataFrame:
    """One row per model that visits some of the timesteps, in bits per dimension.

    `steps` are the timesteps of the best models, separated by blanks; those of
    `NoiseSchedule.evenly_spaced` are left out. The columns are `SUB_SCHEDULE_COLUMNS`.
    """
    rows = [
        {
            "variance": _name(bound.variance),
            "spacing": bound.spacing,
            "num_timesteps": len(bound.steps),
            "bits_per_dim": bound.nats / NATS_PER_BIT,
            "half_width": _bits_or_nan(bound.half_width),
            "steps": " ".join(map(str, bound.steps)) if bound.spacing == BEST else "",
        }
        for bound in others.sub_schedules
    ]
    return pd.DataFrame(rows, columns=list(SUB_SCHEDULE_COLUMNS)).astype(SUB_SCHEDULE_COLUMNS)


def _all_timesteps(others: OtherBounds, own: ConventionBound, num_timesteps: int) -> float:
    """The bound, with the run's variance, that models which skip timesteps are compared to."""
    for bound in others.sub_schedules:
        key = (bound.variance, bound.spacing, len(bound.steps))
        if key == (own.convention.variance, EVENLY_SPACED, num_timesteps):
            return bound.nats
    return own.nats


def _is_published(bound: SubScheduleBound, num_timesteps: int) -> bool:
    length = len(bound.steps)
    if length == num_timesteps:
        # With a fixed variance it is already among the conventions.
        return bound.variance is None and bound.spacing == EVENLY_SPACED
    return length in RESPACINGS


def _of_convention(
    bound: ConventionBound, own: Convention, num_timesteps: int
) -> dict[str, object]:
    convention = bound.convention
    return {
        "convention": _differs(convention, own) or THIS_RUN,
        "variance": str(convention.variance),
        "clip": convention.clip,
        "decoder": convention.decoder,
        "decoder_variance": convention.decoder_variance,
        "num_timesteps": num_timesteps,
        "spacing": ALL_STEPS,
        **_values(bound),
        "used_by": _used_by(convention),
    }


def _of_continuous(
    own: ConventionBound, difference: Correction, num_timesteps: int
) -> dict[str, object]:
    known = own.half_width is not None
    bound = dataclasses.replace(
        own,
        rate=own.rate + difference.nats,
        half_width=math.hypot(own.half_width or 0.0, difference.half_width) if known else None,
    )
    return {
        **_of_convention(bound, own.convention, num_timesteps),
        "convention": CONTINUOUS_TIME,
        "variance": CONTINUOUS_TIME,
        "spacing": CONTINUOUS_TIME,
        "used_by": _CONTINUOUS,
    }


def _of_sub_schedule(
    bound: SubScheduleBound, own: Convention, num_timesteps: int
) -> dict[str, object]:
    length = len(bound.steps)
    is_whole = length == num_timesteps
    how = "" if is_whole else f"{length} timesteps, {bound.spacing}"
    variance = "" if bound.variance is own.variance else _name(bound.variance)
    function = "" if own.decoder == "exact" else "exact decoder"
    source = {BEST: _WATSON, EVENLY_SPACED: _RESPACED}[bound.spacing]
    if bound.variance is None and bound.spacing == EVENLY_SPACED:
        source = _ANALYTIC
    return {
        "convention": ", ".join(part for part in (variance, function, how) if part),
        "variance": _name(bound.variance),
        "clip": own.clip,
        "decoder": "exact",
        "decoder_variance": "posterior",
        "num_timesteps": length,
        "spacing": ALL_STEPS if is_whole else bound.spacing,
        **_values(bound),
        "used_by": source,
    }


def _values(bound: ConventionBound | SubScheduleBound) -> dict[str, float]:
    return {
        "rate_bits_per_dim": bound.rate / NATS_PER_BIT,
        "decoder_bits_per_dim": bound.decoder / NATS_PER_BIT,
        "bits_per_dim": bound.nats / NATS_PER_BIT,
        "half_width": _bits_or_nan(bound.half_width),
    }


def _differs(convention: Convention, own: Convention) -> str:
    """The parts of a convention that differ from the run's, in words."""
    parts = []
    if convention.variance is not own.variance:
        parts.append(str(convention.variance))
    if convention.clip != own.clip:
        parts.append("clip" if convention.clip else "no clip")
    if convention.decoder != own.decoder:
        parts.append(f"{convention.decoder} decoder")
    if convention.decoder_variance == "beta":
        parts.append("decoder variance beta_1")
    elif (convention.variance, convention.decoder_variance) == (own.variance, "posterior") and (
        own.decoder_variance == "model"
    ):
        parts.append("decoder variance of the posterior")
    return ", ".join(parts)


def _used_by(convention: Convention) -> str:
    if not convention.clip:
        return ""
    return _USED_BY.get((convention.variance, convention.decoder, convention.decoder_variance), "")


def _name(variance: Variance | None) -> str:
    return BEST_CONSTANT if variance is None else str(variance)


def _bits_or_nan(nats: float | None) -> float:
    return np.nan if nats is None else nats / NATS_PER_BIT
