"""All that the rows of a run say beside its own bound: other conventions, other schedules."""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from ddpmbench.likelihood.conventions import (
    ConventionBound,
    clips,
    columns_of,
    conventions_of_pairs,
    conventions_of_warp,
    published_conventions,
)
from ddpmbench.likelihood.decoders import SCALES, decoder_column
from ddpmbench.likelihood.design import EveryPair
from ddpmbench.likelihood.pair_sums import PairSums
from ddpmbench.likelihood.regression import FeatureTable
from ddpmbench.likelihood.sampled_rows import X_START, sampled_rows
from ddpmbench.likelihood.step_errors import errors_of_pairs, errors_of_warp
from ddpmbench.likelihood.sub_schedules import (
    StepCosts,
    SubScheduleBound,
    can_skip,
    sub_schedule_bounds,
)
from ddpmbench.likelihood.terms import TermTable, columns_of_bound
from ddpmbench.likelihood.warp import RotatedWarp
from ddpmbench.process.diffusion import GaussianDiffusion
from ddpmbench.process.prediction import Prediction

Tables = Callable[[list[str]], Iterable[TermTable]]
"""The terms of every row, with these columns at least; each time from the beginning."""


@dataclasses.dataclass(frozen=True, eq=False)
class OtherBounds:
    """Bounds from the same rows as a run's own.

    Attributes:
        conventions: of the same model under the published conventions, that of the run first.
        sub_schedules: of the models that visit some of the steps, under the run's clip and the
            exact decoder; none where the network predicts the previous mean, which is that of its
            own schedule, or where the schedule does not allow it (`can_skip`).
    """

    conventions: list[ConventionBound]
    sub_schedules: list[SubScheduleBound]


def other_bounds_of_pairs(
    design: EveryPair,
    prior: NDArray[np.float64],
    tables: Tables,
    diffusion: GaussianDiffusion,
    decoder: str,
) -> OtherBounds:
    """What every pair says.

    Args:
        design: the rows that were computed.
        prior: (N,) L_T of each image, nats per dimension.
        tables: gives the terms of every row once, with the draws of a pair side by side.
        diffusion: the process of the run.
        decoder: its distribution function.
    """
    conventions = published_conventions(diffusion, decoder)
    error, decoders = _skipping(diffusion)
    columns = sorted({*columns_of(conventions), error, *decoders})
    sums = PairSums(design, tables(columns), columns)
    found = conventions_of_pairs(design, prior, sums, conventions, diffusion.schedule)
    if not _skips(diffusion):
        return OtherBounds(found, [])
    first = [sums.of(name) for name in decoders]
    noise, errors = errors_of_pairs(design, first[0]), errors_of_pairs(design, sums.of(error))
    costs = StepCosts(
        schedule=diffusion.schedule,
        prior=float(prior.mean()),
        errors=errors,
        decoder=np.array([of.mean[0] for of in first]),
        decoder_variance=float(noise.spread[0]),
        decoder_doubt=float(noise.doubt[0]),
    )
    # Of every pair the errors are known but for the noise.
    of_best = sub_schedule_bounds(costs, chosen_by=errors, judged_by=errors)
    return OtherBounds(found, of_best)


def other_bounds_of_warp(
    design: RotatedWarp,
    prior: NDArray[np.float64],
    tables: Tables,
    features: FeatureTable,
    diffusion: GaussianDiffusion,
    decoder: str,
) -> OtherBounds:
    """What the rows of a rotated warp say.

    Args:
        design: the rows that were computed.
        prior: (N,) L_T of each image, nats per dimension.
        tables: gives the terms of every row once.
        features: of the same images and rows.
        diffusion: the process of the run.
        decoder: its distribution function.
    """
    conventions = published_conventions(diffusion, decoder)
    either = (name for clip in (True, False) for name in columns_of_bound(clip=clip))
    columns = sorted({*columns_of(conventions), *either})
    found = conventions_of_warp(
        design, prior, lambda: tables(columns), features, conventions, diffusion.schedule
    )
    if not _skips(diffusion):
        return OtherBounds(found, [])
    _, decoders = _skipping(diffusion)
    clip = clips(diffusion)
    rows = sampled_rows(design, tables(list(columns_of_bound(clip=clip))), clip=clip)
    # The best steps are chosen by half of the rotations, and their bound is from the others.
    middle = design.rotations // 2
    errors, chosen_by, judged_by = (
        errors_of_warp(design, rows.rotations[X_START], features, part)
        for part in (slice(None), slice(0, middle), slice(middle, None))
    )
    costs = StepCosts(
        schedule=diffusion.schedule,
        prior=float(prior.mean()),
        errors=errors,
        decoder=_decoder_means(design.num_images, tables(decoders), decoders),
        decoder_variance=rows.decoder_variance,
        decoder_doubt=rows.decoder_variance**2 / max(len(design.redrawn), 1),
    )
    of_best = sub_schedule_bounds(costs, chosen_by=chosen_by, judged_by=judged_by)
    return OtherBounds(found, of_best)


def _skips(diffusion: GaussianDiffusion) -> bool:
    own = diffusion.prediction is Prediction.PREVIOUS_MEAN
    return not own and can_skip(diffusion.schedule)


def _skipping(diffusion: GaussianDiffusion) -> tuple[str, list[str]]:
    """The columns that the bounds of models that skip steps are made of."""
    clip = clips(diffusion)
    decoders = [decoder_column(scale, "exact", clip=clip) for scale in SCALES]
    return columns_of_bound(clip=clip)[1], decoders


def _decoder_means(
    num_images: int, tables: Iterable[TermTable], columns: list[str]
) -> NDArray[np.float64]:
    """Means over the images of the means over their draws at t = 1."""
    sums, count = np.zeros((len(columns), num_images)), np.zeros(num_images)
    for table in tables:
        first = table.rows.t == 1
        image = table.rows.image[first]
        count += np.bincount(image, minlength=num_images)
        for total, name in zip(sums, columns, strict=True):
            total += np.bincount(image, table.values[name][first], num_images)
    return np.asarray((sums / count).mean(1))
