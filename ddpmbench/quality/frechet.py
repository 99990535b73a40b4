"""The Frechet distance between Gaussians that have the moments of features."""

import numpy as np
from numpy.typing import NDArray

from ddpmbench.quality.estimate import Estimate
from ddpmbench.quality.statistics import FeatureGaussian, FeatureStatistics

Array = NDArray[np.float64]
_CHUNK = 4096
_NEGLIGIBLE = 1e-12  # of the largest eigenvalue


def frechet_distance(first: FeatureGaussian, second: FeatureGaussian) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S2^1/2 S1 S2^1/2)^1/2).

    The root is of a symmetric matrix: always real, whatever the ranks.

    Args:
        first: of D features.
        second: of as many; its root is kept, so that of several distances it is found once.

    Source: Heusel et al. 2017, eq. 6; Dowson & Landau 1982.
    """
    product = second.root @ first.covariance @ second.root
    values = np.linalg.eigvalsh((product + product.T) / 2)
    return _distance(first, second, float(np.sqrt(np.maximum(values, 0.0)).sum()))


def frechet_distance_of(features: NDArray[np.floating], reference: FeatureGaussian) -> float:
    """The distance of (N, D) features; of fewer features than dimensions by their singular values.

    Args:
        features: N >= 2.
        reference: real images'.
    """
    if len(features) > features.shape[1]:
        return frechet_distance(FeatureStatistics.of(features).gaussian, reference)
    mean, factor = _factor(features)
    values = np.linalg.svd(factor @ reference.root, compute_uv=False)
    # No covariance is made of them: its trace is that of the factor.
    trace = float(np.square(factor).sum())
    return _sum_of_parts(mean, trace, reference, float(values.sum()))


def frechet_estimate(features: NDArray[np.floating], reference: FeatureGaussian) -> Estimate:
    """The distance of (N, D) features and what each of them adds to it.

    The reference counts as known. The interval is for the mean of this distance over other samples
    of as many; how far that is from the distance of infinitely many is not in it. It is wider than
    it need be where there are few samples for their features, or where the distance is hardly more
    than its bias: second-order terms are then taken for error.

    Args:
        features: N >= 2.
        reference: real images'.

    Source: the derivative of the distance by the samples' moments, that is the infinitesimal
    jackknife of Efron 1982.
    """
    count, dimensions = features.shape
    root = reference.root
    if count <= dimensions:
        mean, factor = _factor(features)
        left, values, _ = np.linalg.svd(factor @ root, full_matrices=False)
        trace = float(np.square(factor).sum())
        value = _sum_of_parts(mean, trace, reference, float(values.sum()))
        squares = np.square(factor).sum(1) * (count - 1)
        transported = (count - 1) * np.square(left) @ values
    else:
        gaussian = FeatureStatistics.of(features).gaussian
        mean = gaussian.mean
        product = root @ gaussian.covariance @ root
        eigenvalues, vectors = np.linalg.eigh((product + product.T) / 2)
        eigenvalues = np.maximum(eigenvalues, 0.0)
        value = _distance(gaussian, reference, float(np.sqrt(eigenvalues).sum()))
        kept = eigenvalues > _NEGLIGIBLE * max(eigenvalues.max(), np.finfo(float).tiny)
        half = root @ (vectors[:, kept] / eigenvalues[kept] ** 0.25)
        squares, transported = np.empty(count), np.empty(count)
        for start in range(0, count, _CHUNK):
            rows = features[start : start + _CHUNK].astype(np.float64) - mean
            squares[start : start + len(rows)] = np.square(rows).sum(1)
            transported[start : start + len(rows)] = np.square(rows @ half).sum(1)
    influence = 2 * _along(features, mean, mean - reference.mean) + squares - transported
    return Estimate.of_influence(value, influence - influence.mean())


def _along(features: NDArray[np.floating], mean: Array, shift: Array) -> Array:
    """(N,) how far each lies from the mean in the direction of the shift."""
    chunks = range(0, len(features), _CHUNK)
    return np.concatenate([(features[k : k + _CHUNK].astype(float) - mean) @ shift for k in chunks])


def _factor(features: NDArray[np.floating]) -> tuple[Array, Array]:
    """(D,) mean, and (N, D) what times its transpose is the covariance."""
    rows = features.astype(np.float64)
    mean = rows.mean(0)
    return mean, (rows - mean) / np.sqrt(max(len(rows) - 1, 1))


def _distance(first: FeatureGaussian, second: FeatureGaussian, common: float) -> float:
    return _sum_of_parts(first.mean, float(np.trace(first.covariance)), second, common)


def _sum_of_parts(mean: Array, trace: float, other: FeatureGaussian, common: float) -> float:
    shift = mean - other.mean
    return float(shift @ shift) + trace + float(np.trace(other.covariance)) - 2 * common
