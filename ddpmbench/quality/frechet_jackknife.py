"""The Frechet distance without each image in turn, all from one decomposition.

Leaving out an image takes a matrix of rank one from the covariance. What that takes from the trace
of the root is an integral of log det, and the determinant after a change of rank one is known.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from ddpmbench.quality.estimate import Estimate
from ddpmbench.quality.statistics import (
    FeatureArray,
    FeatureGaussian,
    FeatureStatistics,
    Floats,
    chunks,
    without_rounding,
)

STEP = 0.5
"""Of the integral: its error is exp(-pi^2 / STEP), 3e-9 of what an image takes."""
_BELOW, _ABOVE = 16.0, 5.0
"""How far it goes on either side of what matters; what lies beyond is a geometric series."""
_SMALLEST = float(np.finfo(np.float64).eps)

Squares = Callable[[Floats, slice], Floats]
"""Of vectors about their mean, (B, D), and which rows they are: (B, r) squared coordinates."""


@dataclasses.dataclass(frozen=True, eq=False)
class LeaveOneOut:
    """The distance of N images from a reference, and what it is without each.

    Attributes:
        distance: of all of them.
        without: (N,) of the N - 1 others.
    """

    distance: float
    without: Floats

    @property
    def estimate(self) -> Estimate:
        """The distance; its error is that of drawing N images anew, the reference as it is.

        Its interval is for the mean of the distance of N images, which is above that of the
        distributions. The error is the jackknife's, which holds, a little too large, where N is
        less than the number of features too.

        Source: Efron & Stein 1981.
        """
        n = len(self.without)
        if n < 3:
            return Estimate(self.distance, None)
        influence = (n - 1) * (self.without.mean() - self.without)
        return Estimate.of_influence(self.distance, influence)

    @property
    def at_infinity(self) -> float:
        """Where the line through the distances of N and of N - 1 images, against 1/N, ends."""
        n = len(self.without)
        return n * self.distance - (n - 1) * float(self.without.mean())


def leave_one_out(features: FeatureArray, reference: FeatureGaussian) -> LeaveOneOut:
    """The distance of features from a reference, and what it is without each of them.

    It costs about twice the distance: a decomposition with vectors where that has one without,
    and a product of the features with a square matrix.

    Args:
        features: (N, D), N >= 3.
        reference: held fixed.

    Raises:
        InputError: fewer than two vectors, or a feature that is not finite.

    Source: Quenouille 1956 for the estimate; the matrix determinant lemma for the sums.
    """
    statistics = FeatureStatistics.of(features)
    n, trace = statistics.n, float(np.trace(statistics.covariance))
    shift = statistics.mean - reference.mean
    thin = n < reference.factor.shape[1]
    values, squares = (_thin if thin else _square)(features, statistics, reference)
    root_trace = float(np.sqrt(values).sum())
    distance = float(shift @ shift) + trace + reference.trace - 2 * root_trace
    if n < 3:
        return LeaveOneOut(max(distance, 0.0), np.full(n, np.nan))
    without, row = np.empty(n), 0
    more = (n - 1) / (n - 2)
    for rows in chunks(features):
        centered, here = rows - statistics.mean, slice(row, row + len(rows))
        length = np.einsum("ij,ij->i", centered, centered)
        left = shift @ shift - 2 * (centered @ shift) / (n - 1) + length / (n - 1) ** 2
        left += more * (trace - length * n / (n - 1) ** 2) + reference.trace
        lost = _lost(values, squares(centered, here), root_trace / n)
        left -= 2 * math.sqrt(more) * (root_trace - lost)
        without[here] = left
        row = here.stop
    return LeaveOneOut(max(distance, 0.0), without)


def _square(
    features: FeatureArray, statistics: FeatureStatistics, reference: FeatureGaussian
) -> tuple[Floats, Squares]:
    """Of M = F^T S F, its eigenvalues and what each vector x takes from it.

    That is an outer product, of which the coordinates in the eigenvectors are squared.
    """
    factor = reference.factor
    values, vectors = np.linalg.eigh(factor.T @ statistics.covariance @ factor)
    values = without_rounding(values)
    # Products of the size of the features are most of the cost, and as exact as they are.
    kind = np.result_type(features.dtype, np.float32)
    onto = factor.astype(kind, copy=False) @ vectors.astype(kind, copy=False)
    onto *= math.sqrt(statistics.n) / (statistics.n - 1) * (values > 0)

    def squares(centered: Floats, rows: slice) -> Floats:
        product = centered.astype(kind, copy=False) @ onto
        found: Floats = np.square(product, dtype=np.float64)
        return found

    return values, squares


def _thin(
    features: FeatureArray, statistics: FeatureStatistics, reference: FeatureGaussian
) -> tuple[Floats, Squares]:
    """The same where M, of the rank of the features, is larger than their Gram matrix."""
    n = statistics.n
    product = np.concatenate(
        [(rows - statistics.mean) @ reference.factor for rows in chunks(features)]
    )
    values, vectors = np.linalg.eigh(product @ product.T / (n - 1))
    values = without_rounding(values)
    return values, lambda centered, rows: np.square(vectors[rows]) * (values * (n / (n - 1)))


def _lost(values: Floats, removed: Floats, scale: float) -> Floats:
    """What outer products, each taken alone from a matrix, take from the trace of its root.

    tr M^1/2 = int_0^inf log det(1 + M / s) s^-1/2 ds / (2 pi), with s = exp(2 y).

    Args:
        values: (r,) eigenvalues of M.
        removed: (B, r) squared coordinates of the B vectors in its eigenvectors.
        scale: of a loss; what is lost to rounding is far less.
    """
    if not scale:
        return np.zeros(len(removed))
    top = 0.5 * math.log(values.max()) + _ABOVE
    y = np.arange(top, math.log(scale) - _BELOW, -STEP)
    share = removed @ (1 / (values[:, None] + np.exp(2 * y)))
    terms = -np.log(np.maximum(1 - share, _SMALLEST)) * np.exp(y)
    series = 1 / math.expm1(STEP)
    beyond = (removed.sum(1) * math.exp(-top) + terms[:, -1]) * series
    lost: Floats = (terms.sum(1) + beyond) * (STEP / math.pi)
    return lost
