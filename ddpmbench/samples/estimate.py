"""A score with its standard error."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from ddpmbench.records import short_repr

NORMAL = 1.959963984540054
"""Half width of a 95 % interval in standard errors."""

Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class Estimate:
    """A score with its standard error.

    The error is that of drawing the samples anew, the reference held fixed.

    Attributes:
        value: the score.
        standard_error: None if unknown.
        influence: (N,) first-order influence of each sample on the score, with mean 0; None
            where the error does not derive from it.
    """

    value: float
    standard_error: float | None
    influence: Array | None = None

    __repr__ = short_repr

    @property
    def half_width(self) -> float | None:
        """Half width of the 95 % interval; None if unknown."""
        return None if self.standard_error is None else NORMAL * self.standard_error

    @classmethod
    def of_influence(cls, value: float, influence: Array, *, besides: float = 0.0) -> "Estimate":
        r"""An estimate whose error is that of a mean over samples.

        .. math::

            s^2 = \frac{1}{N (N - 1)} \sum_i \psi_i^2 + b^2


        Args:
            value: the score.
            influence: (N,) psi, of each sample.
            besides: b, another standard error, independent of it.
        """
        error = np.hypot(influence.std(ddof=1) / np.sqrt(len(influence)), besides)
        return cls(float(value), float(error), influence)
