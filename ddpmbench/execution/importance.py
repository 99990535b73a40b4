"""Stratified importance sampling over timesteps, the default estimator of the bound."""

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ddpmbench.checksums import reading
from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.data_range import NATS_PER_BIT
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.errors import InputError, positive_number, whole_number
from ddpmbench.execution.estimator import (
    SCHEMA,
    Estimator,
    EveryPair,
    LikelihoodRun,
    reducing,
    tables_of,
    terms_of,
)
from ddpmbench.execution.finished_runs import (
    DENSITY,
    PILOT,
    PREDICTIONS,
    SUMMARY,
    TERMS,
    FinishedRun,
    density_frame,
    num_steps,
    write_predictions,
)
from ddpmbench.execution.store import Store, num_missing
from ddpmbench.execution.terms import CorrectionRun, Stores, TermsRun, checked, read_terms
from ddpmbench.likelihood.conventions import OtherBounds, importance_other_bounds
from ddpmbench.likelihood.designs import (
    ImportanceDesign,
    PilotDesign,
    blocks_of,
    num_terms,
    proposal_density,
)
from ddpmbench.likelihood.importance_estimator import (
    RoughBound,
    RunningBound,
    SampledBound,
    design_needed,
    horvitz_thompson,
    initial_blocks,
    initial_design,
    initial_replicates,
    initial_terms,
    longer_designs,
    regression_estimate,
)
from ddpmbench.likelihood.paired import (
    ImportanceTerms,
    importance_difference,
    share_of_same_terms,
)
from ddpmbench.likelihood.precision import Correction, num_correction_terms
from ddpmbench.likelihood.rate_distortion import Distortion, importance_distortion
from ddpmbench.likelihood.regression import FeatureTable, GaussianFeatures, standardized_features
from ddpmbench.likelihood.terms import TermsPass, TermTable
from ddpmbench.unet.timed_unet import Precision

HALF_WIDTH = 0.005
"""Default half width of the bound, bits/dim."""
_LEAST_SHARE = 0.5
"""The terms aim for at least this share of the half width, however wide a correction's is."""


TERM_HALF_WIDTH, IMAGE_HALF_WIDTH = 0.42, 0.23
"""Half widths in bits/dim, measured for the default model on its 10,000 images (other models
differ): of a bound from r replicates of M images, times sqrt(r M); and due to the choice of M
images from a much larger set, times sqrt(M)."""


def expected_size(num_images: int, half_width: float) -> tuple[int, int]:
    """About how many replicates and blocks of images are needed for a half width.

    Args:
        num_images: N.
        half_width: half width of the bound's interval for these images, bits per dimension.
    """
    blocks, replicates = initial_blocks(num_images), initial_replicates(num_images)
    most = blocks_of(num_images)

    def is_enough() -> bool:
        sampled = num_images * blocks // most
        image_variance = IMAGE_HALF_WIDTH**2 * (1 / sampled - 1 / num_images)
        return image_variance + TERM_HALF_WIDTH**2 / (replicates * sampled) <= half_width**2

    while blocks < most and not is_enough():
        blocks += 1
    if blocks == most:
        enough = math.ceil((TERM_HALF_WIDTH / half_width) ** 2 / num_images)
        replicates = max(replicates, enough)
    return replicates, blocks


@dataclasses.dataclass(frozen=True, eq=False)
class Importance(Estimator):
    """Stratified importance sampling over timesteps, with a regression estimator.

    It evaluates the decoder term of each image in a random sample, and in each replicate one more
    term per image, at a timestep drawn from a proposal density (`ImportanceDesign`). Images are
    added, and then replicates, until the interval is narrow enough. The terms used depend on the
    options and on earlier terms alone: additional terms of an earlier session are not read.

    Attributes:
        half_width: half width of the 95 % interval for the images at which to stop, bits per
            dimension; None for that of the run `terms_of`, or else 0.005.
        max_evaluations: the most network evaluations; None for no limit.
        terms_of: the folder of a run on the same images, whose proposal density replaces that of a
            pilot, so that the terms are the same; there are at least as many if `half_width` is
            no wider.
    """

    name: ClassVar[str] = "importance"
    counts: ClassVar[tuple[str, ...]] = (
        "num_replicates",
        "num_sampled_images",
        "num_blocks",
        "pilot_evaluations",
    )
    unit: ClassVar[str] = "replicate"
    sealed: ClassVar[tuple[str, ...]] = (PREDICTIONS,)
    about_timesteps: ClassVar[str] = (
        "Each value comes from the few images evaluated at that timestep: unbiased, but noisy, and "
        "possibly negative. Rely on sums over timesteps."
    )
    half_width: float | None = None
    max_evaluations: int | None = None
    terms_of: Path | None = None

    def __post_init__(self) -> None:
        """Check the options."""
        if self.half_width is not None:
            given = positive_number("half_width", self.half_width)
            object.__setattr__(self, "half_width", given)
        if self.max_evaluations is not None:
            most = whole_number("max_evaluations", self.max_evaluations, 1)
            object.__setattr__(self, "max_evaluations", most)
        _ = self._other_run

    @cached_property
    def _other_run(self) -> FinishedRun | None:
        if self.terms_of is None:
            return None
        return FinishedRun.open(self.terms_of, option="`terms_of`", schema=SCHEMA)

    @cached_property
    def _density(self) -> NDArray[np.float64] | None:
        return None if self._other_run is None else self._other_run.density()

    @cached_property
    def goal(self) -> float:
        """The half width at which to stop, bits per dimension."""
        if self.half_width is not None:
            return self.half_width
        if self._other_run is None or self._density is None:
            return HALF_WIDTH
        with reading(self._other_run.path / SUMMARY):
            return float(self._other_run.summary["sampling"]["half_width_goal"])

    @property
    def identity(self) -> dict[str, Any]:
        """The options that determine every term."""
        density = self._density
        known = None if density is None else hashlib.sha256(density.tobytes()).hexdigest()
        return {"estimator": self.name, "terms_of": known}

    @property
    def settings(self) -> dict[str, Any]:
        """The options that determine only the number of terms."""
        return {"half_width_goal": self.goal, "max_evaluations": self.max_evaluations}

    def expected_evaluations(self, num_images: int, num_timesteps: int) -> int:
        """About how many the half width takes, up to the limit."""
        about = num_terms(num_images, *expected_size(num_images, self.goal))
        return min(about, self.max_evaluations or about)

    def usual_evaluations(self, num_images: int, num_timesteps: int) -> int:
        """About how many a narrow interval takes on all images."""
        return num_terms(num_images, initial_replicates(num_images))

    def check(
        self, checkpoint: Checkpoint, images: ImageSet, *, seed: int, precision: Precision
    ) -> None:
        """See `Estimator.check`."""
        num_timesteps = checkpoint.schedule.num_timesteps
        if num_timesteps < 2:
            raise InputError(
                f"`timesteps={num_timesteps}`: too few for `estimator={self.name}`; choose "
                f"{EveryPair.name}"
            )
        self._refuse_small_limit(len(images), num_timesteps, precision)
        if self._other_run is None:
            return
        summary = self._other_run.summary
        with reading(self._other_run.path / SUMMARY):
            compared = (
                ("num_images", summary["num_images"], len(images)),
                ("data", summary["data"]["sha256"][:12], images.sha256[:12]),
                ("timesteps", num_steps(summary), num_timesteps),
                ("seed", summary["seed"], seed),
            )
        for parameter, theirs, ours in compared:
            if theirs != ours:
                raise InputError(
                    f"`{parameter}`: the terms of {self._other_run.path} are for {theirs}, this "
                    f"run is for {ours}; make them alike, or leave out `terms_of`"
                )

    def _refuse_small_limit(
        self, num_images: int, num_timesteps: int, precision: Precision
    ) -> None:
        """Refuse a limit too low for a first interval."""
        least = self._until_interval(num_images, num_timesteps, precision)
        if self.max_evaluations is None or self.max_evaluations >= least:
            return
        few = self._until_interval(min(num_images, 150), num_timesteps, precision)
        remedies = ["allow that many"]
        if few <= self.max_evaluations:
            remedies.append("take fewer images with `num_images`")
        every_pair = EveryPair().expected_evaluations(num_images, num_timesteps)
        if every_pair <= least:
            remedies.append(f"choose `estimator={EveryPair.name}`, which takes {every_pair:,}")
        raise InputError(
            f"`max_evaluations={self.max_evaluations}`: {num_images:,} images take {least:,} "
            f"network evaluations until an interval is known; {' or '.join(remedies)}"
        )

    def _until_interval(self, num_images: int, num_timesteps: int, precision: Precision) -> int:
        """All network evaluations up to the first interval."""
        pilot = len(PilotDesign(num_images, num_timesteps, 0)) if self.terms_of is None else 0
        terms = initial_terms(num_images)
        if precision is Precision.FP32:
            return pilot + terms
        usual = self.usual_evaluations(num_images, num_timesteps)
        return pilot + terms + 2 * num_correction_terms(usual)

    def note(self, num_images: int, num_timesteps: int, precision: Precision) -> str | None:
        """A note where evaluating every pair takes fewer than the first interval."""
        least = self._until_interval(num_images, num_timesteps, precision)
        every_pair = EveryPair().expected_evaluations(num_images, num_timesteps)
        if least <= every_pair:
            return None
        return (
            f"importance sampling takes at least {least:,} network evaluations here, every pair of "
            f"image and timestep {every_pair:,}; choose `estimator={EveryPair.name}`"
        )

    def warning(self, summary: Mapping[str, Any]) -> str | None:
        """A warning where the interval in a `summary.json` is wider than requested."""
        reached, correction = summary["half_width"], summary["precision_correction"]
        if reached is None or reached <= self.goal * (1 + 1e-9):
            return None
        alone = 0.0 if correction is None else correction["half_width"]
        if alone > math.sqrt(1 - _LEAST_SHARE**2) * self.goal:
            return (
                f"+- {reached:.4f} is wider than +- {self.goal:g}, because "
                f"what a low precision changes is known to +- {alone:.4f} alone; choose "
                "`precision=fp32`, which needs no correction"
            )
        if self.max_evaluations is None:
            return None
        return (
            f"+- {reached:.4f} is as narrow as `max_evaluations={self.max_evaluations:,}` allows, "
            f"not +- {self.goal:g}; allow more, and the same command goes on"
        )

    def run(self, run: TermsRun, stores: Stores, correction: CorrectionRun) -> LikelihoodRun:
        """See `Estimator.run`. The target interval includes that of a correction."""
        terms_pass, store, pilot_store = run.terms_pass, stores(TERMS), stores(PILOT)
        num_images, seed = len(terms_pass.images), terms_pass.seed
        num_timesteps = terms_pass.diffusion.schedule.num_timesteps
        pilot, density = PilotDesign(num_images, num_timesteps, seed), self._density
        pilot_evaluations = len(pilot) if density is None else 0
        initial = initial_terms(num_images)
        self._refuse_small_limit(num_images, num_timesteps, run.precision)
        missing = num_missing(store, initial) + num_missing(pilot_store, pilot_evaluations)
        run.listener.start(missing + correction.num_missing)
        corrected = correction.estimate(after=pilot_evaluations + initial)
        before = pilot_evaluations + correction.num_evaluations
        if density is None:
            run.compute(pilot, pilot_store, before=correction.num_evaluations, after=initial)
            density = run.ranks.once(lambda: pilot_density(pilot, pilot_store))
        prior = run.prior() if run.ranks.reports else np.zeros(num_images)
        design = self._first_design(num_images, num_timesteps, density, seed, before)
        half_width = self._half_width_of_terms(corrected)
        reduction = _ImportanceReduction(terms_pass, store, prior)
        running = RunningBound(design, prior.mean())
        last: RoughBound | None = None

        def watch(table: TermTable) -> RoughBound | None:
            if last is not None:
                return last
            bound = running.add(table)
            return None if bound is None else bound.plus(corrected)

        for table in read_terms(store, len(design), ("nats",)) if run.ranks.reports else ():
            watch(table)
        while True:
            run.compute(design, store, watch=watch, before=before)
            num_evaluations = before + len(design)
            run.listener.progress(reducing(num_evaluations, stage="the estimate"))
            bound = run.ranks.once(partial(reduction.by_regression, design))
            last = RoughBound(bound.nats, bound.half_width).plus(corrected)
            needed = self._allowed(design, design_needed(design, bound, half_width), before)
            if len(needed) == len(design):
                break
            design = needed
        run.listener.progress(reducing(num_evaluations, last))

        def reduce() -> LikelihoodRun:
            sizes = {store: len(design), pilot_store: pilot_evaluations}
            return LikelihoodRun(
                bound=bound,
                distortion=reduction.distortion(design),
                others=reduction.others(design),
                num_terms=len(design),
                num_evaluations=num_evaluations,
                seconds=correction.seconds + sum(s.seconds(size) for s, size in sizes.items()),
                devices=correction.devices.union(*(s.devices(n) for s, n in sizes.items())),
                counts={
                    "num_sampled_images": design.num_sampled,
                    "num_blocks": design.blocks,
                    "num_replicates": design.num_replicates,
                    "pilot_evaluations": pilot_evaluations,
                },
                simpler={"horvitz_thompson": reduction.horvitz_thompson(design)},
                tables={DENSITY: density_frame(density)},
                files={
                    PREDICTIONS: partial(
                        write_predictions, predictions=bound.predictions, sample=bound.sample
                    )
                },
                correction=corrected,
            )

        return run.ranks.once(reduce)

    def _half_width_of_terms(self, correction: Correction | None) -> float:
        """The half width that the terms must reach, given a correction; nats per dimension."""
        half_width = self.goal * NATS_PER_BIT
        if correction is None:
            return half_width
        left = half_width**2 - correction.half_width**2
        return math.sqrt(max(left, (_LEAST_SHARE * half_width) ** 2))

    def _first_design(
        self,
        num_images: int,
        num_timesteps: int,
        density: NDArray[np.float64],
        seed: int,
        before: int,
    ) -> ImportanceDesign:
        """The terms before the first interval: those of the other run unless its goal is narrower.

        A difference is estimated from the terms that both runs have.
        """
        design = initial_design(num_images, num_timesteps, density, seed)
        other = self._other_run
        if other is None or other.summary["sampling"]["half_width_goal"] < self.goal:
            return design
        theirs = self.design(other)
        most = math.inf if self.max_evaluations is None else self.max_evaluations - before
        return theirs if len(design) < len(theirs) <= most else design

    def _allowed(
        self, design: ImportanceDesign, needed: ImportanceDesign, before: int
    ) -> ImportanceDesign:
        """The longest design within the limit, up to `needed`, after `before` evaluations."""
        if self.max_evaluations is None:
            return needed
        left = self.max_evaluations - before
        most = min(left, len(needed))
        longer = [candidate for candidate in longer_designs(design) if len(candidate) <= most]
        return longer[-1] if longer else design

    @staticmethod
    def design(run: FinishedRun) -> ImportanceDesign:
        """The design of the terms of a run.

        Raises:
            InputError: the folder lacks the proposal density, or it is damaged.
        """
        summary, sampling = run.summary, run.summary["sampling"]
        return ImportanceDesign(
            summary["num_images"],
            num_steps(summary),
            run.density(),
            summary["seed"],
            sampling["num_replicates"],
            sampling.get("num_blocks"),
        )

    @staticmethod
    def num_terms(summary: Mapping[str, Any]) -> int:
        """See `Estimator.num_terms`."""
        sampling = summary["sampling"]
        counts = sampling["num_replicates"], sampling.get("num_blocks")
        return num_terms(summary["num_images"], *counts)

    @staticmethod
    def other_terms(summary: Mapping[str, Any]) -> dict[str, int]:
        """See `Estimator.other_terms`."""
        return {PILOT: summary["sampling"].get("pilot_evaluations", 0)}

    @staticmethod
    def chance(summary: Mapping[str, Any]) -> str:
        """See `Estimator.chance`."""
        num_images = summary["num_images"]
        if summary["sampling"].get("num_sampled_images", num_images) < num_images:
            return "the noise draws, and the choice of timesteps and of the images evaluated"
        return "the noise draws and the choice of timesteps"

    @staticmethod
    def difference(
        run: FinishedRun, baseline: FinishedRun, *, prior: float, clip: bool
    ) -> tuple[SampledBound, float]:
        """See `Estimator.difference`."""
        ours, theirs = map(_stored, (run, baseline))
        bound = importance_difference(ours, theirs, prior=prior, clip=clip)
        return bound, share_of_same_terms(ours.design, theirs.design)


def _stored(run: FinishedRun) -> ImportanceTerms:
    design = Importance.design(run)
    return ImportanceTerms(design, terms_of(run, design), *run.predictions(design))


class _ImportanceReduction:
    """The estimates from the terms of a design; features are computed once."""

    def __init__(self, terms_pass: TermsPass, store: Store, prior: NDArray[np.float64]) -> None:
        self._terms_pass, self._store, self._prior = terms_pass, store, prior
        self._clip = terms_pass.diffusion.clip
        self._known: tuple[int, FeatureTable] | None = None

    def by_regression(self, design: ImportanceDesign) -> SampledBound:
        features, tables = self._features(design), self._tables(design)
        return regression_estimate(design, self._prior, tables, features, clip=self._clip)

    def horvitz_thompson(self, design: ImportanceDesign) -> SampledBound:
        return horvitz_thompson(design, self._prior, self._tables(design), clip=self._clip)

    def distortion(self, design: ImportanceDesign) -> Distortion:
        features, tables = self._features(design), self._tables(design)
        return importance_distortion(design, tables, features, clip=self._clip)

    def others(self, design: ImportanceDesign) -> OtherBounds:
        return importance_other_bounds(
            design,
            self._prior,
            partial(read_terms, self._store, len(design)),
            self._features(design),
            self._terms_pass.diffusion,
            self._terms_pass.decoder,
        )

    def _tables(self, design: ImportanceDesign) -> Iterator[TermTable]:
        return tables_of(self._store, design, clip=self._clip)

    @cached_property
    def _gaussian(self) -> GaussianFeatures:
        diffusion = self._terms_pass.diffusion
        return GaussianFeatures.fit(
            self._terms_pass.images.pixels, diffusion.schedule, diffusion.data_range
        )

    @cached_property
    def _image_features(self) -> NDArray[np.float32]:
        return standardized_features(self._gaussian, self._terms_pass.images.pixels)

    def _features(self, design: ImportanceDesign) -> FeatureTable:
        pixels = self._terms_pass.images.pixels
        if self._known is None or self._known[0] != design.blocks:
            table = FeatureTable.of(self._gaussian, pixels, design, self._image_features)
        else:
            table = self._known[1].extended(self._gaussian, pixels, design)
        self._known = design.blocks, table
        return table


def pilot_density(pilot: PilotDesign, store: Store) -> NDArray[np.float64]:
    """The proposal density from the terms of a pilot; see `proposal_density`."""
    return proposal_density(pilot, checked(read_terms(store, len(pilot), ("nats",)), pilot))
