"""The estimate from every image at every timestep."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from ddpmbench.errors import whole_number
from ddpmbench.execution.estimator import Estimator, LikelihoodRun, reducing, tables_of, terms_of
from ddpmbench.execution.finished_runs import TERMS, FinishedRun, num_steps
from ddpmbench.execution.store import num_missing
from ddpmbench.execution.terms import CorrectionRun, Stores, TermsRun, read_terms
from ddpmbench.likelihood.bound import BoundEstimate, estimate_bound
from ddpmbench.likelihood.conventions import every_pair_other_bounds
from ddpmbench.likelihood.designs import EveryPairDesign
from ddpmbench.likelihood.paired import every_pair_difference
from ddpmbench.likelihood.rate_distortion import every_pair_distortion


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
