"""A score and how sure it is."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

NORMAL = 1.959963984540054
"""Standard errors to the half width of a 95 % interval."""

Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class Estimate:
    """A score with its standard error.

    The error is what other samples of the same generator would change, the reference as it is.

    Attributes:
        value: the score.
        standard_error: None where it is not known.
        influence: (N,) what each sample adds to the score, to first order, times N: its mean is 0.
            None where the error does not come from it.
    """

    value: float
    standard_error: float | None
    influence: Array | None = None

    @property
    def half_width(self) -> float | None:
        """Of the 95 % interval."""
        return None if self.standard_error is None else NORMAL * self.standard_error

    @classmethod
    def of_influence(cls, value: float, influence: Array, *, besides: float = 0.0) -> "Estimate":
        """An estimate whose error is that of a mean over samples.

        Args:
            value: the score.
            influence: (N,) of each sample.
            besides: a standard error that is independent of it.
        """
        error = np.hypot(influence.std(ddof=1) / np.sqrt(len(influence)), besides)
        return cls(float(value), float(error), influence)
