"""95 % intervals from variances that are themselves estimated."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

CONFIDENCE = 0.95


def half_width_of(variance: float, freedom: float) -> float | None:
    """Half width of the 95 % interval of a sum of independent parts; None where it is unknown.

    Args:
        variance: of the sum; NaN where it cannot be known.
        freedom: degrees of freedom with which it is estimated.
    """
    if math.isnan(variance):
        return None
    return quantile(freedom) * math.sqrt(variance) if variance else 0.0


def squares_over_freedom(
    variances: NDArray[np.float64], freedom: NDArray[np.float64 | np.int64]
) -> float:
    """Sum of V_i^2 / (f_i + 2): how well a sum of estimated variances V_i is known.

    Args:
        variances: (n,) V_i, each estimated with f_i degrees of freedom.
        freedom: (n,) f_i.
    """
    return float((np.square(variances) / (freedom + 2)).sum())


def freedom_of_sum(variance: float, over_freedom: float) -> float:
    """Degrees of freedom of a sum of estimated variances: (sum V_i)^2 / S - 2, at least 1.

    Satterthwaite's are (sum v_i)^2 / sum (v_i^2 / f_i) of the true variances v_i. The estimate V_i
    is v_i times a chi-square over its f_i degrees, so that V_i^2 is (f_i + 2) / f_i v_i^2 on
    average, which is three times v_i^2 with two draws. What is estimated for a single part must be
    f_i: hence the 2 that is subtracted.

    Args:
        variance: sum of V_i.
        over_freedom: S; see `squares_over_freedom`. Infinitely many degrees where it is 0.

    Source: Satterthwaite 1946.
    """
    if variance == 0:
        return 1.0
    return max(1.0, variance**2 / over_freedom - 2) if over_freedom > 0 else math.inf


def least_freedom_of_sum(variance: float, over_freedom: float) -> float:
    """Satterthwaite's degrees of freedom with estimates in the place of the variances, at least 1.

    On average they are too few, which is the wide side: for sums of so few parts, or of parts so
    little independent, that `freedom_of_sum` may come out too large.

    Args:
        variance: sum of V_i.
        over_freedom: sum of V_i^2 / f_i. Infinitely many degrees where it is 0.

    Source: Satterthwaite 1946.
    """
    return max(1.0, variance**2 / over_freedom) if over_freedom > 0 else math.inf


def quantile(freedom: float) -> float:
    """Of Student's t: half widths of the 95 % interval in standard errors."""
    return float(stdtrit(freedom, 0.5 + CONFIDENCE / 2))
