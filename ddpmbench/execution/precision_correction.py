"""The terms of a correction: computed in both precisions, kept beside the terms of the run."""

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager

from ddpmbench.execution.engine import Engine
from ddpmbench.execution.store import Store, num_missing
from ddpmbench.execution.terms import TermsRun, checked, read_terms
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


@dataclasses.dataclass(frozen=True, eq=False)
class CorrectionRun:
    """Computes the terms of a correction.

    Attributes:
        design: the terms.
        low: the run that is corrected; inside, its network computes in low precision.
        strict: the same run with a network in strict float32.
        strictly: inside its context, that network does.
        low_store: holds the terms in low precision of earlier sessions, and receives the others.
        strict_store: the same in strict float32.
    """

    design: CorrectionDesign
    low: TermsRun
    strict: TermsRun
    strictly: Callable[[], AbstractContextManager[None]]
    low_store: Store
    strict_store: Store

    @classmethod
    def of(
        cls,
        run: TermsRun,
        strict: Engine,
        design: CorrectionDesign,
        store: Callable[[str], Store],
    ) -> "CorrectionRun":
        """The correction of a run.

        Args:
            run: its network computes in low precision.
            strict: evaluates the same checkpoint in strict float32.
            design: the terms.
            store: returns the store of a name.
        """
        return cls(
            design=design,
            low=run,
            strict=dataclasses.replace(
                run,
                terms_pass=run.terms_pass.calling(strict.model_output),
                precision=strict.choice.precision,
            ),
            strictly=strict.running,
            low_store=store(store_name(run.precision)),
            strict_store=store(store_name(strict.choice.precision)),
        )

    def __len__(self) -> int:
        """Network evaluations in both precisions."""
        return 2 * len(self.design)

    @property
    def num_missing(self) -> int:
        """How many of them are missing."""
        stores = (self.low_store, self.strict_store)
        return sum(num_missing(store, len(self.design)) for store in stores)

    def compute(self, *, after: int) -> Correction:
        """Compute the missing terms, and reduce all of them to the correction.

        Args:
            after: network evaluations of the run that follow, for the progress.

        Raises:
            InputError: see `TermsRun.compute`.
        """
        rows = len(self.design)
        self.low.compute(self.design, self.low_store, after=rows + after)
        with self.strictly():
            self.strict.compute(self.design, self.strict_store, before=rows, after=after)
        return self.low.ranks.once(self._reduce)

    @property
    def seconds(self) -> float:
        """How long the terms took, interruptions excluded."""
        rows = len(self.design)
        return self.low_store.seconds(rows) + self.strict_store.seconds(rows)

    @property
    def devices(self) -> set[str]:
        """The devices that computed them."""
        rows = len(self.design)
        return self.low_store.devices(rows) | self.strict_store.devices(rows)

    def _reduce(self) -> Correction:
        strict, low = (
            checked(read_terms(store, len(self.design), ("nats",)), self.design)
            for store in (self.strict_store, self.low_store)
        )
        return estimate_correction(self.design, differences(self.design, strict, low))


class OptionalCorrection:
    """A correction, or none where a run computes in strict float32.

    Attributes:
        num_evaluations: in both precisions.
    """

    def __init__(self, correction: CorrectionRun | None) -> None:
        self._correction = correction
        self.num_evaluations = 0 if correction is None else len(correction)

    @property
    def num_missing(self) -> int:
        """How many of them are missing."""
        return 0 if self._correction is None else self._correction.num_missing

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
