"""Which rows a question is answered from: the estimators a user can choose, and their options."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.data_range import NATS_PER_BIT
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.errors import InputError
from ddpmbench.execution.finished import FinishedRun
from ddpmbench.execution.likelihood import (
    Goal,
    LikelihoodRun,
    refuse_small_cap,
    run_every_pair,
    run_importance,
)
from ddpmbench.execution.precision_correction import CorrectionRun
from ddpmbench.execution.term_store import TermStore
from ddpmbench.execution.terms import RowsRun
from ddpmbench.likelihood.designs import EveryPairDesign
from ddpmbench.likelihood.precision import CorrectionDesign, num_correction_terms
from ddpmbench.likelihood.stopping import initial_terms
from ddpmbench.likelihood.terms import TermsPass
from ddpmbench.report.tables import SCHEMA
from ddpmbench.unet.precision import Precision

ESTIMATORS = ("importance", "every-pair")
HALF_WIDTH = 0.005
"""Of the interval that importance aims at, bits per dimension."""
DRAWS = 2
"""Noise draws a pair of every-pair."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sampling:
    """An estimator with its options.

    Attributes:
        estimator: one of `ESTIMATORS`.
        draws: of every-pair.
        half_width: of importance, bits per dimension.
        max_evaluations: of importance; None for no limit.
        model: the run whose rows are computed, or None.
    """

    estimator: str
    draws: int = DRAWS
    half_width: float = HALF_WIDTH
    max_evaluations: int | None = None
    model: FinishedRun | None = None

    @classmethod
    def of(
        cls,
        estimator: str,
        *,
        half_width: float | None,
        max_evaluations: int | None,
        terms_of: Path | None,
        draws: int | None,
    ) -> Self:
        """The options that were given, None for those that were not.

        Raises:
            InputError: one has no sense, or does not go with the estimator.
        """
        given = {
            "half_width": half_width,
            "max_evaluations": max_evaluations,
            "terms_of": terms_of,
            "draws": draws,
        }
        own = {"every-pair": {"draws"}, "importance": set(given) - {"draws"}}
        if estimator not in own:
            raise InputError(f"--estimator {estimator}: choose {' or '.join(ESTIMATORS)}")
        for name, value in given.items():
            if value is not None and name not in own[estimator]:
                other = next(kind for kind in ESTIMATORS if kind != estimator)
                raise InputError(
                    f"--{name.replace('_', '-')} {value}: goes with --estimator {other}, "
                    f"not with {estimator}; leave one of them out"
                )
        if draws is not None and draws < 1:
            raise InputError(f"--draws {draws}: at least one draw is needed")
        if half_width is not None and not 0 < half_width < math.inf:
            raise InputError(f"--half-width {half_width}: choose a number above 0, such as 0.005")
        if max_evaluations is not None and max_evaluations < 1:
            raise InputError(f"--max-evaluations {max_evaluations}: choose a number from 1 on")
        return cls(
            estimator,
            draws=DRAWS if draws is None else draws,
            half_width=HALF_WIDTH if half_width is None else half_width,
            max_evaluations=max_evaluations,
            model=None
            if terms_of is None
            else FinishedRun.open(terms_of, option="--terms-of", schema=SCHEMA),
        )

    def check(
        self, checkpoint: Checkpoint, images: ImageSet, *, seed: int, precision: Precision
    ) -> None:
        """Refuse a model and images for which there are no such rows.

        Args:
            checkpoint: the model.
            images: the image set.
            seed: of the rows.
            precision: what the network computes in; less than float32 is corrected, which takes
                network calls of its own.

        Raises:
            InputError: there are too few steps, or the rows are those of other images.
        """
        num_timesteps = checkpoint.schedule.num_timesteps
        if self.estimator == "importance" and num_timesteps < 2:
            raise InputError(
                f"--timesteps {num_timesteps}: too few for --estimator importance; choose "
                "every-pair"
            )
        if self.estimator == "importance":
            refuse_small_cap(
                len(images),
                num_timesteps,
                self.goal,
                with_pilot=self.model is None,
                with_correction=precision is not Precision.FP32,
            )
        if self.model is None:
            return
        summary = self.model.summary
        for option, there, here in (
            ("--num-images", summary["num_images"], len(images)),
            ("--data", summary["data"]["sha256"][:12], images.sha256[:12]),
            ("--timesteps", summary["num_timesteps"], num_timesteps),
            ("--seed", summary["seed"], seed),
        ):
            if there != here:
                raise InputError(
                    f"{option}: the rows of {self.model.path} are for {there}, this run is for "
                    f"{here}; make them alike, or leave out --terms-of"
                )

    @property
    def goal(self) -> Goal:
        """When importance stops."""
        return Goal(self.half_width * NATS_PER_BIT, self.max_evaluations)

    @cached_property
    def density(self) -> NDArray[np.float64] | None:
        """(T - 1,) of the run whose rows are computed."""
        return None if self.model is None else self.model.density()

    @property
    def identity(self) -> dict[str, Any]:
        """What of it determines every row."""
        if self.estimator == "every-pair":
            return {"estimator": self.estimator, "draws": self.draws}
        density = self.density
        rows = None if density is None else hashlib.sha256(density.tobytes()).hexdigest()
        return {"estimator": self.estimator, "terms_of": rows}

    @property
    def settings(self) -> dict[str, Any]:
        """What of it determines how many rows there are."""
        if self.estimator == "every-pair":
            return {}
        return {"half_width_goal": self.half_width, "max_evaluations": self.max_evaluations}

    @property
    def summary(self) -> dict[str, Any]:
        """What of it stands in `summary.json`."""
        return self.settings or {"draws": self.draws}

    def warning(self, summary: Mapping[str, Any]) -> str | None:
        """What to say where the interval of a `summary.json` is wider than was asked for."""
        reached = summary["half_width"]
        if self.estimator == "every-pair" or reached is None:
            return None
        if reached <= self.half_width * (1 + 1e-9):
            return None
        correction = summary["precision_correction"]
        alone = 0.0 if correction is None else correction["half_width"]
        if self.goal.is_hidden_by(alone * NATS_PER_BIT):
            return (
                f"+- {reached:.4f} is wider than +- {self.half_width:g}, because "
                f"what a low precision changes is known to +- {alone:.4f} alone; choose "
                "--precision fp32, which needs no correction"
            )
        if self.max_evaluations is None:
            return None
        return (
            f"+- {reached:.4f} is as narrow as --max-evaluations "
            f"{self.max_evaluations:,} allows, not +- {self.half_width:g}; allow more, and the "
            "same command goes on"
        )

    def least_evaluations(self, num_images: int, num_timesteps: int) -> int:
        """Network calls that are certain, those of a pilot and of a correction left out."""
        if self.estimator == "every-pair":
            return len(EveryPairDesign(num_images, num_timesteps, self.draws))
        return initial_terms(num_images)

    def correction_design(self, terms_pass: TermsPass) -> CorrectionDesign:
        """The rows of a correction; how many depends on what is certain of the run's alone."""
        num_images = len(terms_pass.images)
        num_timesteps = terms_pass.checkpoint.schedule.num_timesteps
        rows = self.least_evaluations(num_images, num_timesteps)
        size = (num_images, num_timesteps)
        return CorrectionDesign(*size, terms_pass.seed, num_correction_terms(rows))

    def run(
        self,
        run: RowsRun,
        store: Callable[[str], TermStore],
        *,
        correction: CorrectionRun | None = None,
    ) -> LikelihoodRun:
        """Compute the rows and reduce them; the rows of each name are kept in its store."""
        if self.estimator == "every-pair":
            images = len(run.terms_pass.images)
            num_timesteps = run.terms_pass.checkpoint.schedule.num_timesteps
            design = EveryPairDesign(images, num_timesteps, self.draws)
            return run_every_pair(run, design, store("terms"), correction=correction)
        return run_importance(
            run,
            store("pilot"),
            store("terms"),
            goal=self.goal,
            density=self.density,
            correction=correction,
        )
