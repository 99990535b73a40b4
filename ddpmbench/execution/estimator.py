"""What an estimator of the bound is, and the plain one, which evaluates every pair.

`execution/estimators.py` lists them all.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.errors import whole_number
from ddpmbench.execution.finished_runs import TERMS, FinishedRun, num_steps
from ddpmbench.execution.store import Store, num_missing
from ddpmbench.execution.terms import CorrectionRun, Stores, TermsRun, checked, read_terms
from ddpmbench.execution.worker import RunProgress
from ddpmbench.likelihood.bound import Bound, BoundEstimate, estimate_bound
from ddpmbench.likelihood.continuous import ContinuousDifference
from ddpmbench.likelihood.conventions import OtherBounds, every_pair_other_bounds
from ddpmbench.likelihood.designs import Design, EveryPairDesign
from ddpmbench.likelihood.importance_estimator import RoughBound
from ddpmbench.likelihood.paired import every_pair_difference
from ddpmbench.likelihood.precision import Correction, CorrectionDesign, num_correction_terms
from ddpmbench.likelihood.rate_distortion import Distortion, every_pair_distortion
from ddpmbench.likelihood.terms import TermsPass, TermTable, columns_of_bound
from ddpmbench.unet.timed_unet import Precision

SCHEMA = "ddpmbench.nll/1"
"""Schema of the `summary.json` of a run."""


@dataclasses.dataclass(frozen=True, eq=False)
class LikelihoodRun:
    """The bound of a run, and its cost.

    Attributes:
        bound: from the terms as evaluated, nats per dimension.
        distortion: distortion of the predicted x_start at every timestep.
        others: the bounds under other conventions and of sub-schedules.
        num_terms: number of terms in the store `TERMS`.
        num_evaluations: network evaluations, including those of a pilot and a correction.
        seconds: time of the evaluations, summed over processes, without interruptions.
        devices: the devices that made them.
        counts: counts of the estimator, as in `sampling` of `summary.json`.
        simpler: the bound from the same terms by simpler estimators, by name as in `sampling`.
        tables: the estimator's own tables, by their file names in a run folder.
        files: its other files, by name, and what writes each.
        correction: for terms in low precision, the correction of the bound; the other fields are
            not corrected.
        continuous: the difference of the bound in continuous time, if it was estimated.
    """

    bound: Bound
    distortion: Distortion
    others: OtherBounds
    num_terms: int
    num_evaluations: int
    seconds: float
    devices: set[str]
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    simpler: Mapping[str, Bound] = dataclasses.field(default_factory=dict)
    tables: Mapping[str, pd.DataFrame] = dataclasses.field(default_factory=dict)
    files: Mapping[str, Callable[[Path], None]] = dataclasses.field(default_factory=dict)
    correction: Correction | None = None
    continuous: ContinuousDifference | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Estimator(ABC):
    """An estimator of the bound with its options.

    Attributes:
        name: the name by which a user chooses the estimator.
        counts: the fields of `sampling` in `summary.json` that say how many terms there are; no
            run lacks the first.
        unit: what the first counts.
        paired_by: fields of `sampling` that are equal in two runs that are compared.
        sealed: files of its own in a run folder that hold their checksum.
        about_timesteps: what the page of a run says about the values of single timesteps.
    """

    name: ClassVar[str]
    counts: ClassVar[tuple[str, ...]]
    unit: ClassVar[str]
    paired_by: ClassVar[tuple[str, ...]] = ()
    sealed: ClassVar[tuple[str, ...]] = ()
    about_timesteps: ClassVar[str]

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """The options that determine every term."""

    @property
    def goal(self) -> float | None:
        """The half width at which to stop, bits per dimension; None where no width is a goal."""
        return None

    @property
    def settings(self) -> dict[str, Any]:
        """The options that determine only the number of terms."""
        return {}

    @property
    def summary(self) -> dict[str, Any]:
        """The options as in `sampling` of `summary.json`."""
        return self.settings

    @abstractmethod
    def expected_evaluations(self, num_images: int, num_timesteps: int) -> int:
        """About how many network evaluations a run takes, to tell whether it is long."""

    def usual_evaluations(self, num_images: int, num_timesteps: int) -> int:
        """About how many a run on all images takes, whatever its goal; sizes a correction."""
        return self.expected_evaluations(num_images, num_timesteps)

    @abstractmethod
    def run(self, run: TermsRun, stores: Stores, correction: CorrectionRun) -> LikelihoodRun:
        """Evaluate the missing terms, and reduce all terms to the bound.

        Args:
            run: evaluates terms.
            stores: hold the terms of earlier sessions, and receive the new ones.
            correction: the correction for the run's precision.

        Raises:
            InputError: see `TermsRun.compute`.
        """

    def check(
        self, checkpoint: Checkpoint, images: ImageSet, *, seed: int, precision: Precision
    ) -> None:
        """Refuse a model or images that the estimator cannot handle.

        Args:
            checkpoint: the model.
            images: the image set.
            seed: seed of the noise and the design.
            precision: precision of the network. Below float32, the bound is corrected, which takes
                additional network evaluations.

        Raises:
            InputError: it cannot handle them; the message names the parameter to change.
        """
        return

    def note(self, num_images: int, num_timesteps: int, precision: Precision) -> str | None:
        """A note where another estimator would take fewer network evaluations."""
        return None

    def warning(self, summary: Mapping[str, Any]) -> str | None:
        """A warning where the interval in a `summary.json` is wider than requested."""
        return None

    def correction_design(self, terms_pass: TermsPass) -> CorrectionDesign:
        """The terms of a correction; their number depends only on those of images and timesteps."""
        size = (len(terms_pass.images), terms_pass.checkpoint.schedule.num_timesteps)
        count = num_correction_terms(self.usual_evaluations(*size))
        return CorrectionDesign(*size, terms_pass.seed, count)

    # ---- a finished run

    @staticmethod
    @abstractmethod
    def num_terms(summary: Mapping[str, Any]) -> int:
        """The number of terms of a run, without reconstructing its design."""

    @staticmethod
    def other_terms(summary: Mapping[str, Any]) -> dict[str, int]:
        """The stores of terms that a run needed besides those of its result, and their lengths."""
        return {}

    @staticmethod
    @abstractmethod
    def chance(summary: Mapping[str, Any]) -> str:
        """The sources of error in the interval for the images of a run, in words."""

    @staticmethod
    @abstractmethod
    def difference(
        run: FinishedRun, baseline: FinishedRun, *, prior: float, clip: bool
    ) -> tuple[Bound, float]:
        """The bound of a run minus that of a comparable one.

        Args:
            run: the run.
            baseline: the other.
            prior: the difference of the priors, nats per dimension.
            clip: whether `x_start_mse` is that of the clipped prediction.

        Returns:
            The differences in place of values, nats per dimension, and the share of equal terms.

        Raises:
            InputError: the folder of a run lacks terms, or they are damaged.
        """


def terms_of(run: FinishedRun, design: Design) -> Callable[[int], Iterator[TermTable]]:
    """From a number n to the first n terms of a finished run, verified to be those of a design."""
    store = run.shards(TERMS)
    columns = columns_of_bound(clip=bool(run.summary["conventions"]["clip"]))
    return lambda length: checked(read_terms(store, length, columns), design, where=run.path)


def tables_of(store: Store, design: Design, *, clip: bool) -> Iterator[TermTable]:
    """The terms of a design, with the columns of a bound."""
    return checked(read_terms(store, len(design), columns_of_bound(clip=clip)), design)


def reducing(
    num_evaluations: int, bound: RoughBound | None = None, *, stage: str = "other conventions"
) -> RunProgress:
    """The progress of a run that has evaluated all terms and now reduces them."""
    return RunProgress(num_evaluations, num_evaluations, bound, stage)


# ---- the estimate from every pair


@dataclasses.dataclass(frozen=True, eq=False)
class EveryPair(Estimator):
    """Every image at every timestep.

    Attributes:
        draws: noise draws per image and timestep; from two on, the error due to noise is known.
    """

    name: ClassVar[str] = "every-pair"
    counts: ClassVar[tuple[str, ...]] = ("draws",)
    unit: ClassVar[str] = "draw"
    paired_by: ClassVar[tuple[str, ...]] = ("draws",)
    about_timesteps: ClassVar[str] = (
        "Means over all images, with 95 % intervals from the noise draws."
    )
    draws: int = 2

    def __post_init__(self) -> None:
        """Refuse no draws."""
        object.__setattr__(self, "draws", whole_number("draws", self.draws, 1))

    @property
    def identity(self) -> dict[str, Any]:
        """The options that determine every term."""
        return {"estimator": self.name, "draws": self.draws}

    @property
    def summary(self) -> dict[str, Any]:
        """The options as in `sampling` of `summary.json`."""
        return {"draws": self.draws}

    def expected_evaluations(self, num_images: int, num_timesteps: int) -> int:
        """The number of terms."""
        return num_images * num_timesteps * self.draws

    def run(self, run: TermsRun, stores: Stores, correction: CorrectionRun) -> LikelihoodRun:
        """See `Estimator.run`."""
        terms_pass, store = run.terms_pass, stores(TERMS)
        diffusion = terms_pass.diffusion
        design = EveryPairDesign(
            len(terms_pass.images), diffusion.schedule.num_timesteps, self.draws
        )
        length = len(design)
        num_evaluations = length + correction.num_evaluations
        run.listener.start(num_missing(store, length) + correction.num_missing)
        corrected = correction.estimate(after=length)
        run.compute(design, store, whole=self.draws, before=correction.num_evaluations)

        def reduce() -> LikelihoodRun:
            run.listener.progress(reducing(num_evaluations))
            prior, tables = run.prior(), partial(tables_of, store, design, clip=diffusion.clip)
            return LikelihoodRun(
                bound=estimate_bound(design, prior, tables(), clip=diffusion.clip),
                distortion=every_pair_distortion(design, tables(), clip=diffusion.clip),
                others=every_pair_other_bounds(
                    design, prior, partial(read_terms, store, length), diffusion, terms_pass.decoder
                ),
                num_terms=length,
                num_evaluations=num_evaluations,
                seconds=store.seconds(length) + correction.seconds,
                devices=store.devices(length) | correction.devices,
                correction=corrected,
            )

        return run.ranks.once(reduce)

    @staticmethod
    def design(run: FinishedRun) -> EveryPairDesign:
        """The design of the terms of a run."""
        summary = run.summary
        return EveryPairDesign(
            summary["num_images"], num_steps(summary), summary["sampling"]["draws"]
        )

    @staticmethod
    def num_terms(summary: Mapping[str, Any]) -> int:
        """See `Estimator.num_terms`."""
        return int(summary["num_images"] * num_steps(summary) * summary["sampling"]["draws"])

    @staticmethod
    def chance(summary: Mapping[str, Any]) -> str:
        """See `Estimator.chance`."""
        return "the noise draws"

    @staticmethod
    def difference(
        run: FinishedRun, baseline: FinishedRun, *, prior: float, clip: bool
    ) -> tuple[BoundEstimate, float]:
        """See `Estimator.difference`."""
        design = EveryPair.design(baseline)
        terms = terms_of(run, design), terms_of(baseline, design)
        return every_pair_difference(design, *terms, prior=prior, clip=clip), 1.0
