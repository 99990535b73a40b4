"""Mean and covariance of features, from parts that can be merged."""

import dataclasses
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_CHUNK = 4096  # rows turned into float64 at a time


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureGaussian:
    """A mean and a covariance, which is all that the Frechet distance asks of features.

    Attributes:
        mean: (D,).
        covariance: (D, D), symmetric, of any rank.
    """

    mean: Array
    covariance: Array

    @cached_property
    def root(self) -> Array:
        """(D, D) the symmetric root of the covariance."""
        values, vectors = np.linalg.eigh(self.covariance)
        root: Array = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
        return root


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """What is known of N features when they are not kept.

    Attributes:
        count: N.
        mean: (D,).
        scatter: (D, D) sum of products of deviations from the mean.
    """

    count: int
    mean: Array
    scatter: Array

    @classmethod
    def of(cls, features: NDArray[np.floating]) -> "FeatureStatistics":
        """Those of (N, D) features, in float64, a chunk at a time."""
        found = None
        for start in range(0, len(features), _CHUNK):
            rows = features[start : start + _CHUNK].astype(np.float64)
            mean = rows.mean(0)
            rows -= mean
            part = cls(len(rows), mean, rows.T @ rows)
            found = part if found is None else found.merged(part)
        if found is None:
            raise ValueError("no features")
        return found

    def merged(self, other: "FeatureStatistics") -> "FeatureStatistics":
        """Those of both together.

        Source: Chan, Golub & LeVeque 1979.
        """
        count = self.count + other.count
        step = other.mean - self.mean
        weight = self.count * other.count / count
        return FeatureStatistics(
            count,
            self.mean + step * (other.count / count),
            self.scatter + other.scatter + weight * np.outer(step, step),
        )

    @property
    def gaussian(self) -> FeatureGaussian:
        """Their mean and unbiased covariance; of one feature that is 0."""
        return FeatureGaussian(self.mean, self.scatter / max(self.count - 1, 1))
