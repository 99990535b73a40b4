"""The Frechet distance, its jackknife from one decomposition, and its limit at infinite N.

Leaving out an image subtracts a rank-one matrix from the covariance. The change of the trace of the
root is an integral of log det, with an integrand in closed form by the matrix determinant lemma.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from ddpmbench.errors import InputError, instance_of
from ddpmbench.metrics.statistics import (
    Estimate,
    FeatureArray,
    FeatureGaussian,
    Floats,
    checked_features,
    chunks,
    feature_statistics,
    mean_and_covariance,
    without_rounding,
)
from ddpmbench.records import short_repr

_STATISTICS = "`feature_statistics` makes one of features"


def frechet_distance(first: FeatureGaussian, second: FeatureGaussian) -> float:
    r"""The squared Frechet distance of two normal distributions; FID in Inception's features.

    .. math::

        d^2 = |\mu_1 - \mu_2|^2
            + \mathrm{tr}\left(\Sigma_1 + \Sigma_2 - 2 (\Sigma_1 \Sigma_2)^{1/2}\right)

    Statistics of N < D features cost an N x N eigendecomposition. The second distribution's factor
    is cached for its next distance, so pass the reference second.

    Args:
        first: from `feature_statistics` or `read_statistics`, (D,) and (D, D).
        second: the same for the reference.

    Returns:
        The distance in squared units of the features, at least 0.

    Raises:
        InputError: one is of another type, or the two differ in D.

    Source: Heusel et al. 2017, equation 6; Dowson & Landau 1982.
    """
    for name, value in (("first", first), ("second", second)):
        instance_of(name, value, FeatureGaussian, _STATISTICS)
    if first.mean.shape != second.mean.shape:
        raise InputError(
            f"`second`: has {len(second.mean)} features and `first` {len(first.mean)}; they are of "
            "different feature networks"
        )
    shift = first.mean - second.mean
    distance = float(shift @ shift) + first.trace + second.trace - 2 * _root_trace(first, second)
    return max(distance, 0.0)


def _root_trace(one: FeatureGaussian, other: FeatureGaussian) -> float:
    if other.thin_factor is not None and one.thin_factor is None:
        one, other = other, one
    if other.thin_factor is not None:
        product = one.factor.T @ other.factor
        matrix = product @ product.T if len(product) < len(product.T) else product.T @ product
    elif one.thin_factor is not None:
        matrix = one.thin_factor.T @ other.covariance @ one.thin_factor
    else:
        matrix = other.factor.T @ one.covariance @ other.factor
    values: Floats = np.linalg.eigvalsh(matrix).astype(np.float64, copy=False)
    return float(np.sqrt(without_rounding(values)).sum())


STEP = 0.5
"""Step of the integral. Its relative error is exp(-pi^2 / STEP), 3e-9."""
_BELOW, _ABOVE = 16.0, 5.0
"""Range of the integral below and above its peak; beyond it a geometric series."""
_SMALLEST = float(np.finfo(np.float64).eps)

Squares = Callable[[Floats, slice], Floats]
"""From (B, D) centered vectors and their indices to (B, r) squared coordinates."""


@dataclasses.dataclass(frozen=True, eq=False)
class LeaveOneOut:
    """The distance of N images from a reference, with and without each image.

    Attributes:
        distance: of all N images.
        without: (N,) distance of the N - 1 others.
    """

    distance: float
    without: Floats

    @property
    def estimate(self) -> Estimate:
        """The distance with its jackknife error over the samples, the reference held fixed.

        The interval is for the expected distance of N images, which exceeds that of the
        distributions. If N is below the number of features, the error is slightly too large.

        Source: Efron & Stein 1981.
        """
        n = len(self.without)
        if n < 3:
            return Estimate(self.distance, None)
        influence = (n - 1) * (self.without.mean() - self.without)
        return Estimate.of_influence(self.distance, influence)

    @property
    def at_infinity(self) -> float:
        """Intercept of the line through the distances of N and N - 1 images against 1/N."""
        n = len(self.without)
        return n * self.distance - (n - 1) * float(self.without.mean())


def leave_one_out(features: FeatureArray, reference: FeatureGaussian) -> LeaveOneOut:
    """The distance of features from a reference, with and without each image.

    It costs about twice the distance: the decomposition needs eigenvectors, and the features are
    multiplied by a square matrix.

    Args:
        features: (N, D), N >= 3.
        reference: held fixed.

    Raises:
        InputError: fewer than two vectors, or a feature that is not finite.

    Source: Quenouille 1956 for the estimate; the matrix determinant lemma for the sums.
    """
    n, own = len(features), FeatureGaussian(*mean_and_covariance(features))
    shift, trace = own.mean - reference.mean, own.trace
    thin = n < reference.factor.shape[1]
    values, squares = (_thin if thin else _square)(features, own, reference)
    root_trace = float(np.sqrt(values).sum())
    distance = float(shift @ shift) + trace + reference.trace - 2 * root_trace
    if n < 3:
        return LeaveOneOut(max(distance, 0.0), np.full(n, np.nan))
    without, row = np.empty(n), 0
    more = (n - 1) / (n - 2)
    for rows in chunks(features):
        centered, here = rows - own.mean, slice(row, row + len(rows))
        length = np.einsum("ij,ij->i", centered, centered)
        left = shift @ shift - 2 * (centered @ shift) / (n - 1) + length / (n - 1) ** 2
        left += more * (trace - length * n / (n - 1) ** 2) + reference.trace
        decrease = _decrease(values, squares(centered, here), root_trace / n)
        left -= 2 * math.sqrt(more) * (root_trace - decrease)
        without[here] = left
        row = here.stop
    return LeaveOneOut(max(distance, 0.0), without)


def _square(
    features: FeatureArray, own: FeatureGaussian, reference: FeatureGaussian
) -> tuple[Floats, Squares]:
    """Eigenvalues of M = F^T S F, and the vectors' squared coordinates in its eigenvectors."""
    factor = reference.factor
    values, vectors = np.linalg.eigh(factor.T @ own.covariance @ factor)
    values = without_rounding(values)
    # Products of the size of the features dominate the cost, and have their precision.
    kind = np.result_type(features.dtype, np.float32)
    onto = factor.astype(kind, copy=False) @ vectors.astype(kind, copy=False)
    onto *= math.sqrt(len(features)) / (len(features) - 1) * (values > 0)

    def squares(centered: Floats, rows: slice) -> Floats:
        product = centered.astype(kind, copy=False) @ onto
        coordinates: Floats = np.square(product, dtype=np.float64)
        return coordinates

    return values, squares


def _thin(
    features: FeatureArray, own: FeatureGaussian, reference: FeatureGaussian
) -> tuple[Floats, Squares]:
    """The same by the Gram matrix of the features, which is smaller than M."""
    n = len(features)
    product = np.concatenate([(rows - own.mean) @ reference.factor for rows in chunks(features)])
    values, vectors = np.linalg.eigh(product @ product.T / (n - 1))
    values = without_rounding(values)
    return values, lambda centered, rows: np.square(vectors[rows]) * (values * (n / (n - 1)))


def _decrease(values: Floats, removed: Floats, scale: float) -> Floats:
    """Decrease of the trace of a matrix root when one outer product is subtracted.

    tr M^1/2 = int_0^inf log det(1 + M / s) s^-1/2 ds / (2 pi), with s = exp(2 y).

    Args:
        values: (r,) eigenvalues of M.
        removed: (B, r) squared coordinates of the B vectors in its eigenvectors.
        scale: typical size of the decrease.
    """
    if not scale:
        return np.zeros(len(removed))
    top = 0.5 * math.log(values.max()) + _ABOVE
    y = np.arange(top, math.log(scale) - _BELOW, -STEP)
    share = removed @ (1 / (values[:, None] + np.exp(2 * y)))
    terms = -np.log(np.maximum(1 - share, _SMALLEST)) * np.exp(y)
    series = 1 / math.expm1(STEP)
    beyond = (removed.sum(1) * math.exp(-top) + terms[:, -1]) * series
    decrease: Floats = (terms.sum(1) + beyond) * (STEP / math.pi)
    return decrease


LEAST_IMAGES = 8
"""Least samples, so that quarters have a covariance."""


@dataclasses.dataclass(frozen=True)
class FrechetPoint:
    """The mean distance of disjoint parts of the samples.

    Attributes:
        num_generated: samples in a part.
        fid: the mean over the parts.
        standard_error: of that mean; None if unknown.
    """

    num_generated: int
    fid: float
    standard_error: float | None


@dataclasses.dataclass(frozen=True)
class FrechetInfinity:
    """The distance extrapolated to infinitely many samples.

    Attributes:
        estimate: the distance, its error over the samples, the reference held fixed.
        points: for all samples, halves and quarters, the largest N first.
    """

    estimate: Estimate
    points: tuple[FrechetPoint, ...]

    __repr__ = short_repr


def frechet_infinity(
    features: FeatureArray,
    reference: FeatureGaussian,
    *,
    seed: int = 0,
    whole: LeaveOneOut | None = None,
) -> FrechetInfinity:
    r"""The Frechet distance extrapolated to infinitely many samples: FID-infinity.

    .. math::

        d_\infty = N d_N - (N - 1) \frac{1}{N} \sum_i d_{N - 1}^{(i)}

    It is the intercept of the line through the distances of N and of N - 1 images, each image left
    out in turn, against 1/N. Of all such lines this one adds the least noise, with a bias of order
    1/N^2. The lines through N and N / 2 and through N and N / 4 have a larger bias; the distance of
    their intercepts from d measures the curvature, and the larger one is part of the error. In
    simulations the interval covers if N is at least the number of relevant features. The points
    share their images, so to first order their errors are equal.

    Args:
        features: (N, D).
        reference: held fixed; a reference of few images adds its own bias.
        seed: of the division into parts.
        whole: `leave_one_out` of the same features, if computed already.

    Raises:
        InputError: fewer than two vectors, or a feature that is not finite.

    Source: Chong & Forsyth 2020, who fit a line to overlapping parts; Quenouille 1956.
    """
    instance_of("reference", reference, FeatureGaussian, _STATISTICS)
    features = checked_features("features", features, dimensions=len(reference.mean))
    whole = leave_one_out(features, reference) if whole is None else whole
    n, error = len(features), whole.estimate.standard_error
    points = [FrechetPoint(n, whole.distance, error)]
    if n < LEAST_IMAGES or error is None:
        return FrechetInfinity(Estimate(whole.at_infinity if n > 2 else np.nan, None), (points[0],))
    order = np.random.default_rng(seed).permutation(n)
    for parts in (2, 4):
        size = n // parts
        rows = np.sort(order[: parts * size].reshape(parts, size))
        distances = [
            frechet_distance(feature_statistics(features[part]), reference) for part in rows
        ]
        points.append(FrechetPoint(size, float(np.mean(distances)), error))
    limit = whole.at_infinity
    bend = max(abs(_intercept(points[0], point) - limit) for point in points[1:])
    return FrechetInfinity(Estimate(limit, math.hypot(error, bend)), tuple(points))


def _intercept(one: FrechetPoint, other: FrechetPoint) -> float:
    """Intercept of the line through two points against 1/N."""
    n, m = one.num_generated, other.num_generated
    return (n * one.fid - m * other.fid) / (n - m)
