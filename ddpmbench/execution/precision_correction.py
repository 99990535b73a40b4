"""The terms of a correction: computed in both precisions, kept beside the terms of the run."""

import dataclasses

from ddpmbench.execution.engine import Engine
from ddpmbench.execution.store import num_missing
from ddpmbench.execution.terms import Stores, TermsRun, checked, read_terms
from ddpmbench.likelihood.precision import (
    Correction,
    CorrectionDesign,
    differences,
    estimate_correction,
)
from ddpmbench.unet.precision import Precision


def store_name(precision: Precision | str) -> str:
    """The name of the shards of a correction in this precision."""
    return f"correction-{precision}"


class CorrectionRun:
    """Computes the terms of a correction."""

    def __init__(
        self, run: TermsRun, strict: Engine, design: CorrectionDesign, stores: Stores
    ) -> None:
        """The correction of a run.

        Args:
            run: its network computes in low precision.
            strict: evaluates the same checkpoint in strict float32.
            design: the terms.
            stores: hold the terms of earlier sessions, and receive the others.
        """
        terms_pass = run.terms_pass.calling(strict.model_output)
        self._low, self._strictly, self._design = run, strict.running, design
        self._strict = dataclasses.replace(
            run, terms_pass=terms_pass, precision=strict.choice.precision
        )
        self._low_store = stores(store_name(run.precision))
        self._strict_store = stores(store_name(strict.choice.precision))

    @property
    def num_evaluations(self) -> int:
        """Network evaluations in both precisions."""
        return 2 * len(self._design)

    @property
    def num_missing(self) -> int:
        """How many of them are missing."""
        stores = (self._low_store, self._strict_store)
        return sum(num_missing(store, len(self._design)) for store in stores)

    def compute(self, *, after: int) -> Correction:
        """Compute the missing terms, and reduce all of them to the correction.

        Args:
            after: network evaluations of the run that follow, for the progress.

        Raises:
            InputError: see `TermsRun.compute`.
        """
        size = len(self._design)
        self._low.compute(self._design, self._low_store, after=size + after)
        with self._strictly():
            self._strict.compute(self._design, self._strict_store, before=size, after=after)
        return self._low.ranks.once(self._reduce)

    @property
    def seconds(self) -> float:
        """How long the terms took, interruptions excluded."""
        size = len(self._design)
        return self._low_store.seconds(size) + self._strict_store.seconds(size)

    @property
    def devices(self) -> set[str]:
        """The devices that computed them."""
        size = len(self._design)
        return self._low_store.devices(size) | self._strict_store.devices(size)

    def _reduce(self) -> Correction:
        strict, low = (
            checked(read_terms(store, len(self._design), ("nats",)), self._design)
            for store in (self._strict_store, self._low_store)
        )
        return estimate_correction(self._design, differences(self._design, strict, low))


class OptionalCorrection:
    """A correction, or none where a run computes in strict float32.

    Attributes:
        num_evaluations: in both precisions.
        num_missing: how many of them are missing as the run begins.
    """

    def __init__(self, correction: CorrectionRun | None) -> None:
        self._correction = correction
        self.num_evaluations = 0 if correction is None else correction.num_evaluations
        self.num_missing = 0 if correction is None else correction.num_missing

    def compute(self, *, after: int) -> Correction | None:
        """See `CorrectionRun.compute`."""
        return None if self._correction is None else self._correction.compute(after=after)

    @property
    def seconds(self) -> float:
        """How long the terms took."""
        return 0.0 if self._correction is None else self._correction.seconds

    @property
    def devices(self) -> set[str]:
        """The devices that computed them."""
        return set() if self._correction is None else self._correction.devices
