"""Likelihood runs: every pair, or an importance sample that grows until its interval is narrow."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ddpmbench.errors import InputError
from ddpmbench.execution.precision_correction import CorrectionRun, OptionalCorrection
from ddpmbench.execution.term_store import TermStore
from ddpmbench.execution.terms import RowsRun, RunProgress, checked
from ddpmbench.likelihood.bound import BoundEstimate, estimate_bound
from ddpmbench.likelihood.conventions import (
    OtherBounds,
    every_pair_other_bounds,
    importance_other_bounds,
)
from ddpmbench.likelihood.designs import (
    EveryPairDesign,
    ImportanceDesign,
    PilotDesign,
    num_terms,
    proposal_density,
)
from ddpmbench.likelihood.estimator import SampledBound, horvitz_thompson, regression_estimate
from ddpmbench.likelihood.precision import Correction, num_correction_terms
from ddpmbench.likelihood.rate_distortion import (
    Distortion,
    every_pair_distortion,
    importance_distortion,
)
from ddpmbench.likelihood.regression import FeatureTable, GaussianFeatures
from ddpmbench.likelihood.stopping import (
    RoughBound,
    RunningBound,
    initial_replicates,
    initial_terms,
    replicates_needed,
)
from ddpmbench.likelihood.terms import TermTable, columns_of_bound

TABLES = "other conventions"
"""What is being done when all rows are there."""


@dataclasses.dataclass(frozen=True, eq=False)
class LikelihoodRun:
    """What a run found, and what it took.

    Attributes:
        bound: the bound, as its rows have it.
        distortion: of the predictions along the way.
        others: the bounds under other conventions and of models that skip steps.
        num_evaluations: network calls, those of a pilot and of a correction among them.
        seconds: they took, summed over processes, interruptions left out.
        devices: where they were made.
        horvitz_thompson: importance: the bound from the same rows without regression.
        density: importance: (T - 1,) of the steps t = 2..T.
        pilot_evaluations: importance: network calls that went into the density.
        correction: where the rows are in low precision, what is to be added to the bound; all else
            here is as the rows have it.
    """

    bound: BoundEstimate | SampledBound
    distortion: Distortion
    others: OtherBounds
    num_evaluations: int
    seconds: float
    devices: set[str]
    horvitz_thompson: SampledBound | None = None
    density: NDArray[np.float64] | None = None
    pilot_evaluations: int = 0
    correction: Correction | None = None


def run_every_pair(
    run: RowsRun,
    design: EveryPairDesign,
    store: TermStore,
    *,
    correction: CorrectionRun | None = None,
) -> LikelihoodRun:
    """Compute the rows that are missing, and reduce all of them to the bound.

    Args:
        run: computes rows.
        design: which rows.
        store: holds what an earlier sitting computed, and receives the rest.
        correction: computes that of the run's precision; None where there is none.

    Raises:
        InputError: see `RowsRun.compute`.
    """
    length = len(design)
    extra = OptionalCorrection(correction)
    run.listener.start(_count_missing(store, length) + extra.num_missing)
    corrected = extra.compute(after=length)
    run.compute(design, store, whole=design.draws, before=extra.num_evaluations)

    def reduce() -> LikelihoodRun:
        calls = length + extra.num_evaluations
        run.listener.progress(RunProgress(calls, calls, stage=TABLES))
        diffusion, prior = run.terms_pass.diffusion, run.prior()
        columns = columns_of_bound(clip=diffusion.clip)
        tables = checked(store.tables(length, columns), design)
        bound = estimate_bound(design, prior, tables, clip=diffusion.clip)
        again = store.tables(length, columns)
        return LikelihoodRun(
            bound=bound,
            distortion=every_pair_distortion(design, again, clip=diffusion.clip),
            others=every_pair_other_bounds(
                design, prior, partial(store.tables, length), diffusion, run.terms_pass.decoder
            ),
            num_evaluations=length + extra.num_evaluations,
            seconds=store.seconds(length) + extra.seconds,
            devices=store.devices(length) | extra.devices,
            correction=corrected,
        )

    return run.ranks.once(reduce)


_LEAST_SHARE = 0.5  # of a half width, that the rows aim at where the correction's is as wide


@dataclasses.dataclass(frozen=True)
class Goal:
    """When a sampled run has enough rows.

    Attributes:
        half_width: of the 95 % interval for the images, nats per dimension.
        max_evaluations: network calls that must not be exceeded, or None.
    """

    half_width: float
    max_evaluations: int | None = None

    def besides(self, correction: Correction | None) -> "Goal":
        """What is left to reach with the rows of the estimate, the correction being made."""
        if correction is None:
            return self
        wanted = self.half_width**2 - correction.half_width**2
        allowed = self.max_evaluations
        return Goal(
            math.sqrt(max(wanted, (_LEAST_SHARE * self.half_width) ** 2)),
            None if allowed is None else allowed - correction.num_evaluations,
        )

    def is_hidden_by(self, half_width: float) -> bool:
        """Whether the interval of a correction, nats per dimension, alone keeps a run from it."""
        return half_width > math.sqrt(1 - _LEAST_SHARE**2) * self.half_width


def run_importance(
    run: RowsRun,
    pilot_store: TermStore,
    store: TermStore,
    *,
    goal: Goal,
    density: NDArray[np.float64] | None = None,
    correction: CorrectionRun | None = None,
) -> LikelihoodRun:
    """Compute replicates until the interval is as narrow as the goal says.

    What is computed depends on the goal and on the terms alone: rows that an earlier sitting left
    beyond it are not looked at.

    Args:
        run: computes rows.
        pilot_store: holds the rows of the pilot, or receives them.
        store: the same for the rows of the estimate.
        goal: when to stop.
        density: of another run, in place of a pilot.
        correction: computes that of the run's precision; None where there is none. Its interval
            is part of the one that the goal is for.

    Raises:
        InputError: fewer evaluations are allowed than a first look takes; or see
            `RowsRun.compute`.
    """
    terms_pass = run.terms_pass
    num_images, seed = len(terms_pass.images), terms_pass.seed
    num_timesteps = terms_pass.diffusion.schedule.num_timesteps
    pilot = PilotDesign(num_images, num_timesteps, seed)
    pilot_evaluations = len(pilot) if density is None else 0
    num_replicates, first = initial_replicates(num_images), initial_terms(num_images)
    extra = OptionalCorrection(correction)
    refuse_small_cap(
        num_images,
        num_timesteps,
        goal,
        with_pilot=density is None,
        with_correction=correction is not None,
    )
    missing = _count_missing(store, first) + _count_missing(pilot_store, pilot_evaluations)
    run.listener.start(missing + extra.num_missing)
    corrected = extra.compute(after=pilot_evaluations + first)
    goal = goal.besides(corrected)
    allowed = _replicates_allowed(num_images, pilot_evaluations, goal.max_evaluations)
    if density is None:
        run.compute(pilot, pilot_store, before=extra.num_evaluations, after=first)
        density = run.ranks.once(
            lambda: proposal_density(
                pilot, checked(pilot_store.tables(len(pilot), ("nats",)), pilot)
            )
        )
    prior = run.prior() if run.ranks.reports else np.zeros(num_images)
    design = ImportanceDesign(num_images, num_timesteps, density, seed, num_replicates)
    reduction = _Reduction(run, store, prior)
    watch = _corrected(RunningBound(design, prior.mean()).add, corrected)
    for table in store.tables(len(design), ("nats",)) if run.ranks.reports else ():
        watch(table)
    while True:
        run.compute(design, store, watch=watch, before=pilot_evaluations + extra.num_evaluations)
        calls = pilot_evaluations + len(design) + extra.num_evaluations
        run.listener.progress(RunProgress(calls, calls, stage="the estimate"))
        bound = run.ranks.once(partial(reduction.by_regression, design))
        last = RoughBound(bound.nats, bound.half_width).plus(corrected)
        needed = min(replicates_needed(design, bound, goal.half_width), allowed)
        if needed == design.num_replicates:
            break
        design = dataclasses.replace(design, num_replicates=needed)
        watch = partial(_at_last_look, last)
    run.listener.progress(RunProgress(calls, calls, last, stage=TABLES))
    return LikelihoodRun(
        bound=bound,
        distortion=run.ranks.once(partial(reduction.distortion, design)),
        others=run.ranks.once(partial(reduction.others, design)),
        num_evaluations=calls,
        # By one process: every shard is opened, and each process has shards.
        seconds=run.ranks.once(
            lambda: (
                store.seconds(len(design)) + pilot_store.seconds(pilot_evaluations) + extra.seconds
            )
        ),
        devices=run.ranks.once(
            lambda: (
                store.devices(len(design)) | pilot_store.devices(pilot_evaluations) | extra.devices
            )
        ),
        horvitz_thompson=run.ranks.once(partial(reduction.horvitz_thompson, design)),
        density=density,
        pilot_evaluations=pilot_evaluations,
        correction=corrected,
    )


Watch = Callable[[TermTable], RoughBound | None]


def _corrected(watch: Watch, correction: Correction | None) -> Watch:
    def bound(table: TermTable) -> RoughBound | None:
        found = watch(table)
        return None if found is None else found.plus(correction)

    return bound


def _at_last_look(bound: RoughBound, table: TermTable) -> RoughBound:
    return bound


class _Reduction:
    """The estimates from the rows there are; the features are worked out once."""

    def __init__(self, run: RowsRun, store: TermStore, prior: NDArray[np.float64]) -> None:
        self._terms_pass, self._store, self._prior = run.terms_pass, store, prior
        self._clip = run.terms_pass.diffusion.clip
        self._known: tuple[GaussianFeatures, FeatureTable] | None = None

    def by_regression(self, design: ImportanceDesign) -> SampledBound:
        features = self._features(design)
        return regression_estimate(
            design, self._prior, self._tables(design), features, clip=self._clip
        )

    def horvitz_thompson(self, design: ImportanceDesign) -> SampledBound:
        return horvitz_thompson(design, self._prior, self._tables(design), clip=self._clip)

    def distortion(self, design: ImportanceDesign) -> Distortion:
        features = self._features(design)
        return importance_distortion(design, self._tables(design), features, clip=self._clip)

    def others(self, design: ImportanceDesign) -> OtherBounds:
        return importance_other_bounds(
            design,
            self._prior,
            partial(self._store.tables, len(design)),
            self._features(design),
            self._terms_pass.diffusion,
            self._terms_pass.decoder,
        )

    def _tables(self, design: ImportanceDesign) -> Iterator[TermTable]:
        columns = columns_of_bound(clip=self._clip)
        return checked(self._store.tables(len(design), columns), design)

    def _features(self, design: ImportanceDesign) -> FeatureTable:
        pixels = self._terms_pass.images.pixels
        if self._known is None:
            diffusion = self._terms_pass.diffusion
            gaussian = GaussianFeatures.fit(pixels, diffusion.schedule, diffusion.data_range)
            self._known = gaussian, FeatureTable.of(gaussian, pixels, design)
        else:
            gaussian, table = self._known
            self._known = gaussian, table.extended(gaussian, pixels, design)
        return self._known[1]


def _count_missing(store: TermStore, length: int) -> int:
    return sum(stop - start for start, stop in store.missing(length))


def _replicates_allowed(num_images: int, pilot: int, max_evaluations: int | None) -> int:
    if max_evaluations is None:
        return 2**31
    num_replicates = max(0, (max_evaluations - pilot) // num_images)  # more than there can be
    while num_replicates and pilot + num_terms(num_images, num_replicates) > max_evaluations:
        num_replicates -= 1
    return num_replicates


def refuse_small_cap(
    num_images: int,
    num_timesteps: int,
    goal: Goal,
    *,
    with_pilot: bool,
    with_correction: bool = False,
) -> None:
    """Refuse a limit under which no interval can be known.

    Raises:
        InputError: a first look takes more evaluations than are allowed.
    """
    if goal.max_evaluations is None:
        return

    def least(images: int) -> int:
        pilot = len(PilotDesign(images, num_timesteps, 0)) if with_pilot else 0
        rows = initial_terms(images)
        return pilot + rows + (2 * num_correction_terms(rows) if with_correction else 0)

    if goal.max_evaluations < least(num_images):
        fewer = ", take fewer images with --num-images"
        raise InputError(
            f"--max-evaluations {goal.max_evaluations}: {num_images:,} images take "
            f"{least(num_images):,} network calls until an interval is known; allow that many"
            f"{fewer if least(min(num_images, 150)) <= goal.max_evaluations else ''}, or choose "
            "--estimator every-pair"
        )
