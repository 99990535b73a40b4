"""The Frechet distance of two Gaussians.

The trace of (S1 S2)^1/2 is the sum of the singular values of F1^T F2, with S = F F^T, and of the
roots of the eigenvalues of F2^T S1 F2. Neither is ever complex, whatever the ranks.
"""

import numpy as np

from ddpmbench.quality.statistics import (
    FeatureGaussian,
    FeatureStatistics,
    Floats,
    without_rounding,
)


def frechet_distance(
    first: FeatureGaussian | FeatureStatistics, second: FeatureGaussian | FeatureStatistics
) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2), at least 0.

    Where a Gaussian is `FeatureGaussian.of` fewer features than there are dimensions, only a
    matrix of that many rows is decomposed. The second one's factor is kept for its next distance.

    Args:
        first: one.
        second: the other, such as a reference.

    Raises:
        InputError: statistics of fewer than two vectors.

    Source: Heusel et al. 2017, equation 6; Dowson & Landau 1982.
    """
    one, other = _gaussian(first), _gaussian(second)
    shift = one.mean - other.mean
    distance = float(shift @ shift) + one.trace + other.trace - 2 * _root_trace(one, other)
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


def _gaussian(given: FeatureGaussian | FeatureStatistics) -> FeatureGaussian:
    return given.gaussian() if isinstance(given, FeatureStatistics) else given
