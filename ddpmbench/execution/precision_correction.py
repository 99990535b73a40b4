"""The rows of a correction: computed in both precisions, kept beside the rows of the run."""

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
    """What the rows of a correction in this precision are called."""
    return f"correction-{precision}"


@dataclasses.dataclass(frozen=True, eq=False)
class CorrectionRun:
    """What computes the rows of a correction.

    Attributes:
        design: which rows.
        low: the run that is corrected; inside, its network computes in low precision.
        strict: the same run with a network in strict float32.
        strictly: inside its context, that network does.
        low_store: holds the rows in low precision that there are, and receives the others.
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
            strict: calls the same checkpoint in strict float32.
            design: which rows.
            store: where the rows of a name are kept.
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
        """Network calls in both precisions."""
        return 2 * len(self.design)

    @property
    def num_missing(self) -> int:
        """How many of them are to be made."""
        stores = (self.low_store, self.strict_store)
        return sum(num_missing(store, len(self.design)) for store in stores)

    def compute(self, *, after: int) -> Correction:
        """Make the calls that are missing, and reduce all of them to the correction.

        Args:
            after: how many calls of the run follow, for those who are told how it goes.

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
        """How long the calls took, all interruptions left out."""
        rows = len(self.design)
        return self.low_store.seconds(rows) + self.strict_store.seconds(rows)

    @property
    def devices(self) -> set[str]:
        """Where they were made."""
        rows = len(self.design)
        return self.low_store.devices(rows) | self.strict_store.devices(rows)

    def _reduce(self) -> Correction:
        strict, low = (
            checked(read_terms(store, len(self.design), ("nats",)), self.design)
            for store in (self.strict_store, self.low_store)
        )
        return estimate_correction(self.design, differences(self.design, strict, low))


class OptionalCorrection:
    """A correction, or none where a run computes in strict float32: no calls, nothing found.

    Attributes:
        num_evaluations: network calls in both precisions.
    """

    def __init__(self, correction: CorrectionRun | None) -> None:
        self._correction = correction
        self.num_evaluations = 0 if correction is None else len(correction)

    @property
    def num_missing(self) -> int:
        """How many of them are to be made."""
        return 0 if self._correction is None else self._correction.num_missing

    def compute(self, *, after: int) -> Correction | None:
        """See `CorrectionRun.compute`."""
        return None if self._correction is None else self._correction.compute(after=after)

    @property
    def seconds(self) -> float:
        """How long the calls took."""
        return 0.0 if self._correction is None else self._correction.seconds

    @property
    def devices(self) -> set[str]:
        """Where they were made."""
        return set() if self._correction is None else self._correction.devices
