"""The bound under the other published conventions, from the same terms.

With a fixed variance a term is a constant plus a weight times the squared error of x_start. So one
evaluation gives all of them: either variance, with and without clipping, and every decoder at
t = 1.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ddpmbench.diffusion.process import GaussianDiffusion, Prediction, Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.likelihood.bound import PairMoments, noise_half_width, pair_moments
from ddpmbench.likelihood.decoders import DECODERS, MODEL_COLUMNS, SCALES, decoder_column
from ddpmbench.likelihood.designs import EveryPairDesign, ImportanceDesign
from ddpmbench.likelihood.importance_estimator import sampled_mean
from ddpmbench.likelihood.regression import FeatureTable, predict_each
from ddpmbench.likelihood.sampled_terms import (
    Contributions,
    TwoWayFit,
    sampled_terms,
    two_way_fit,
)
from ddpmbench.likelihood.sub_schedules import (
    SubScheduleBound,
    SubScheduleCosts,
    TimestepErrors,
    Transitions,
    can_skip,
    every_pair_errors,
    importance_errors,
    sub_schedule_bounds,
)
from ddpmbench.likelihood.terms import TermTable, columns_of_bound

FIXED = (Variance.FIXED_SMALL, Variance.FIXED_LARGE)
Tables = Callable[[list[str]], Iterable[TermTable]]
"""From column names to tables that hold every term once, with at least these columns."""


@dataclasses.dataclass(frozen=True)
class Convention:
    """The choices that can differ between two bounds of one network.

    Attributes:
        variance: of the reverse process.
        clip: whether the predicted x_start is clamped to the data range.
        decoder: "exact" or "tanh" distribution function at t = 1.
        decoder_variance: at t = 1: "posterior" of t = 2, "beta" for beta_1, or "model" where it
            is learned.
    """

    variance: Variance
    clip: bool
    decoder: str
    decoder_variance: str

    @property
    def decoder_column(self) -> str:
        """The column of the decoder term."""
        if self.decoder_variance == "model":
            return MODEL_COLUMNS[self.decoder == "tanh"]
        return decoder_column(self.decoder_variance, self.decoder, clip=self.clip)


@dataclasses.dataclass(frozen=True, eq=False)
class ConventionBound:
    """The bound under a convention, nats per dimension.

    Attributes:
        convention: its convention.
        rate: the prior and the terms at t = 2..T.
        decoder: the term at t = 1.
        half_width: of the 95 % interval for these images; None where it is unknown.
    """

    convention: Convention
    rate: float
    decoder: float
    half_width: float | None

    @property
    def nats(self) -> float:
        """The bound."""
        return self.rate + self.decoder


def clips(diffusion: GaussianDiffusion) -> bool:
    """Whether clipping changes the bound; with a predicted mean it does not."""
    return diffusion.clip and diffusion.prediction is not Prediction.PREVIOUS_MEAN


def published_conventions(diffusion: GaussianDiffusion, decoder: str) -> list[Convention]:
    """The convention of a run, followed by all others that its terms determine.

    Args:
        diffusion: the process of the run.
        decoder: its distribution function.
    """
    decoder_variance = "model" if diffusion.variance.is_learned else "posterior"
    own = Convention(diffusion.variance, clips(diffusion), decoder, decoder_variance)
    conventions = [own]
    if diffusion.variance.is_learned:
        other = "exact" if decoder == "tanh" else "tanh"
        conventions.append(dataclasses.replace(own, decoder=other))
    variances: tuple[Variance, ...] = (Variance.FIXED_LARGE, Variance.FIXED_SMALL)
    clipping: tuple[bool, ...] = (own.clip, not own.clip)
    if diffusion.prediction is Prediction.PREVIOUS_MEAN:
        clipping = (False,)
    if diffusion.schedule.is_continuous:  # the limit has no variance; one clip was evaluated
        variances, clipping = (own.variance,), (own.clip,)
    choices = itertools.product(variances, clipping, ("posterior", "beta"), DECODERS)
    fixed = (Convention(variance, clip, cdf, scale) for variance, clip, scale, cdf in choices)
    return conventions + [convention for convention in fixed if convention != own]


def _every_pair_bound(
    design: EveryPairDesign,
    prior: NDArray[np.float64],
    moments: Mapping[str, PairMoments],
    convention: Convention,
    schedule: NoiseSchedule,
) -> ConventionBound:
    weight, constant = _line(schedule, convention)
    weight = np.append(0.0, weight)
    first, steps = moments[convention.decoder_column], moments[_column(convention, schedule)]
    squares = float(np.square(weight) @ steps.squares) + float(first.squares[0])
    fourth = float(weight**4 @ steps.fourth) + float(first.fourth[0])
    return ConventionBound(
        convention,
        rate=float(prior.mean() + constant.sum() + weight @ steps.mean),
        decoder=float(first.mean[0]),
        half_width=noise_half_width(squares, fourth, design),
    )


def _columns_of(conventions: Iterable[Convention], schedule: NoiseSchedule) -> set[str]:
    """The columns that the bounds need."""
    return {name for c in conventions for name in (c.decoder_column, _column(c, schedule))}


def _column(convention: Convention, schedule: NoiseSchedule) -> str:
    """The column in which the terms at t = 2..T are linear."""
    if convention.variance in FIXED and not schedule.is_continuous:
        return columns_of_bound(clip=convention.clip)[1]
    return "nats"


def _line(
    schedule: NoiseSchedule, convention: Convention
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(T - 1,) weight and constant of the term at t = 2..T."""
    t = np.arange(2, schedule.num_timesteps + 1)
    if _column(convention, schedule) == "nats":
        return np.ones(len(t)), np.zeros(len(t))
    skips = Transitions(schedule)
    transition = convention.variance, t - 1, t
    return skips.weight(*transition), skips.constant(*transition)


@dataclasses.dataclass(frozen=True, eq=False)
class OtherBounds:
    """Further bounds from the terms of a run.

    Attributes:
        conventions: under the published conventions, that of the run first.
        sub_schedules: of models that visit some of the timesteps, with the run's clip and the exact
            decoder; empty where the network predicts the mean of x_{t-1}, which is specific to its
            schedule, or where the schedule does not allow it (`can_skip`).
        best_constant_half_width: of the 95 % interval of the bound with the best constant variance
            minus that with the run's fixed one; None where it is unknown.
    """

    conventions: list[ConventionBound]
    sub_schedules: list[SubScheduleBound]
    best_constant_half_width: float | None = None

    @classmethod
    def of(
        cls,
        conventions: list[ConventionBound],
        costs: SubScheduleCosts,
        *,
        chosen_by: TimestepErrors,
        judged_by: TimestepErrors,
    ) -> Self:
        """The bounds under conventions and of sub-schedules; see `sub_schedule_bounds`."""
        own = conventions[0].convention.variance
        return cls(
            conventions,
            sub_schedule_bounds(costs, chosen_by=chosen_by, judged_by=judged_by),
            costs.difference_half_width(None, own) if own in FIXED else None,
        )


def every_pair_other_bounds(
    design: EveryPairDesign,
    prior: NDArray[np.float64],
    tables: Tables,
    diffusion: GaussianDiffusion,
    decoder: str,
) -> OtherBounds:
    """The other bounds from every pair.

    Args:
        design: of the terms.
        prior: (N,) L_T of each image, nats per dimension.
        tables: gives the terms with the draws of a pair side by side.
        diffusion: the process of the run.
        decoder: its distribution function.
    """
    conventions, schedule = published_conventions(diffusion, decoder), diffusion.schedule
    error, decoders = _skipping_columns(diffusion)
    columns = sorted({*_columns_of(conventions, schedule), error, *decoders})
    moments = pair_moments(design, tables(columns), columns)
    bounds = [_every_pair_bound(design, prior, moments, c, schedule) for c in conventions]
    if not _skips(diffusion):
        return OtherBounds(bounds, [])
    first = [moments[name] for name in decoders]
    noise, errors = every_pair_errors(design, first[0]), every_pair_errors(design, moments[error])
    costs = SubScheduleCosts(
        schedule=schedule,
        prior=float(prior.mean()),
        errors=errors,
        decoder=np.array([column.mean[0] for column in first]),
        decoder_variance=float(noise.spread[0]),
        decoder_over_freedom=float(noise.over_freedom[0]),
    )
    # The only error is that of the noise.
    return OtherBounds.of(bounds, costs, chosen_by=errors, judged_by=errors)


def importance_other_bounds(
    design: ImportanceDesign,
    prior: NDArray[np.float64],
    tables: Tables,
    features: FeatureTable,
    diffusion: GaussianDiffusion,
    decoder: str,
) -> OtherBounds:
    """The other bounds from an importance sample, by regression.

    The bound under a convention equals the estimate of a run under it from the same terms.
    Arguments as in `every_pair_other_bounds`; the features are of the same images and terms.
    """
    conventions, schedule = published_conventions(diffusion, decoder), diffusion.schedule
    sample, (error, skipping_decoders) = features.sample, _skipping_columns(diffusion)
    columns = ("nats", *(columns_of_bound(clip=clip)[1] for clip in (True, False)))
    decoders = sorted({*(c.decoder_column for c in conventions), *skipping_decoders})
    terms = sampled_terms(design, tables([*columns, *decoders]), columns, decoders)
    later = dict(zip(columns, terms.replicates, strict=True))
    estimates = _later_estimates(design, later, features, conventions, schedule)
    bounds = []
    for convention in conventions:
        column = len(columns) + decoders.index(convention.decoder_column)
        estimate = estimates[convention.variance, convention.clip]
        mean = sampled_mean(sample, *estimate, terms, column)
        rate = float(prior.mean()) + mean.kl
        bounds.append(ConventionBound(convention, rate, mean.decoder, mean.half_width))
    if not _skips(diffusion):
        return OtherBounds(bounds, [])
    # Half of the replicates choose the best timesteps, the others estimate their bound.
    middle = design.num_replicates // 2
    errors, chosen_by, judged_by = (
        importance_errors(design, later[error], features, part)
        for part in (slice(None), slice(0, middle), slice(middle, None))
    )
    of_decoder = terms.decoder_error(sample)
    means = [terms.decoder[len(columns) + decoders.index(name)] for name in skipping_decoders]
    costs = SubScheduleCosts(
        schedule=schedule,
        prior=float(prior.mean()),
        errors=errors,
        decoder=np.stack(means) @ sample.weights,
        decoder_variance=of_decoder,
        decoder_over_freedom=of_decoder**2 / max(len(design.redrawn), 1),
    )
    return OtherBounds.of(bounds, costs, chosen_by=chosen_by, judged_by=judged_by)


def _later_estimates(
    design: ImportanceDesign,
    columns: Mapping[str, NDArray[np.float64]],
    features: FeatureTable,
    conventions: Iterable[Convention],
    schedule: NoiseSchedule,
) -> dict[tuple[Variance, bool], tuple[NDArray[np.float64], TwoWayFit]]:
    """The sums over t = 2..T of each image and their fit, by variance and clip.

    Conventions that differ only at t = 1 share them. Columns are (r, M).
    """
    different = {(c.variance, c.clip): c for c in conventions}
    nats = np.empty((len(different), *design.t.shape))
    for convention, values in zip(different.values(), nats, strict=True):
        weight, constant = _line(schedule, convention)
        values[:] = columns[_column(convention, schedule)]
        values *= weight[design.t - 2]
        values += constant[design.t - 2]
    estimates = {}
    fitted = predict_each(design, nats, features)
    for key, values, predictions in zip(different, nats, fitted, strict=True):
        of_images = Contributions(design, values, predictions)
        estimates[key] = of_images.sums, two_way_fit(design, of_images.totals)
    return estimates


def _skips(diffusion: GaussianDiffusion) -> bool:
    is_mean = diffusion.prediction is Prediction.PREVIOUS_MEAN
    return not is_mean and can_skip(diffusion.schedule)


def _skipping_columns(diffusion: GaussianDiffusion) -> tuple[str, list[str]]:
    """The columns of the bounds of sub-schedules: the error of x_start, and the decoders."""
    clip = clips(diffusion)
    decoders = [decoder_column(scale, "exact", clip=clip) for scale in SCALES]
    return columns_of_bound(clip=clip)[1], decoders
