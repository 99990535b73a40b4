"""95 % intervals from variances that are themselves estimated."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

CONFIDENCE = 0.95


def half_width_of(variance: float, freedom: float) -> float | None:
    r"""Half width of the 95 % interval of an estimate, :math:`t_{0.975, f} \sqrt{V}`.

    Args:
        variance: V, of the estimate; NaN where it is unknown.
        freedom: f, the degrees of freedom of V.

    Returns:
        In the unit of the estimate; None where the variance is unknown.
    """
    if math.isnan(variance):
        return None
    return quantile(freedom) * math.sqrt(variance) if variance else 0.0


def quantile(freedom: float) -> float:
    """Of Student's t: half width of the 95 % interval in standard errors."""
    return float(stdtrit(freedom, 0.5 + CONFIDENCE / 2))


def squares_over_freedom(
    variances: NDArray[np.float64], freedom: NDArray[np.float64 | np.int64]
) -> float:
    r"""How well a sum of estimated variances is known.

    .. math:: S = \sum_i V_i^2 / (f_i + 2)

    Args:
        variances: (n,) V_i, each estimated with f_i degrees of freedom.
        freedom: (n,) f_i.
    """
    return float((np.square(variances) / (freedom + 2)).sum())


def freedom_of_sum(variance: float, over_freedom: float) -> float:
    r"""Degrees of freedom of a sum of estimated variances, at least 1.

    .. math:: f = \frac{(\sum_i V_i)^2}{S} - 2

    Satterthwaite's :math:`(\sum v_i)^2 / \sum (v_i^2 / f_i)` is of the true variances. An estimate
    V_i is v_i times a chi-square over its f_i degrees, so that V_i^2 is (f_i + 2) / f_i v_i^2 on
    average: hence the f_i + 2 in S. Of a single variance the result must be f_i: hence the 2 that
    is subtracted.

    Args:
        variance: sum of V_i.
        over_freedom: S, see `squares_over_freedom`; 0 for infinitely many degrees.

    Source: Satterthwaite 1946.
    """
    if variance == 0:
        return 1.0
    return max(1.0, variance**2 / over_freedom - 2) if over_freedom > 0 else math.inf


def least_freedom_of_sum(variance: float, over_freedom: float) -> float:
    r"""Satterthwaite's degrees of freedom with estimates for the true variances, at least 1.

    .. math:: f = \frac{(\sum_i V_i)^2}{\sum_i V_i^2 / f_i}

    They are too few on average, which makes an interval wider: for sums of a few variances, or of
    dependent ones, for which `freedom_of_sum` may come out too large.

    Args:
        variance: sum of V_i.
        over_freedom: sum of V_i^2 / f_i; 0 for infinitely many degrees.

    Source: Satterthwaite 1946.
    """
    return max(1.0, variance**2 / over_freedom) if over_freedom > 0 else math.inf
