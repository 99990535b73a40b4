"""Mean and covariance of features: gathered in portions, merged, and as a Gaussian."""

import dataclasses
from collections.abc import Iterator
from functools import cached_property, reduce
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ddpmbench.errors import InputError

Floats = NDArray[np.float64]
FeatureArray = NDArray[np.floating[Any]]
"""(N, D) a row an image."""

CHUNK = 4096
"""Rows made float64 at once."""
_NEGLIGIBLE = 10 * float(np.finfo(np.float64).eps)
"""Eigenvalues below this share of the largest are rounding."""


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """What a Frechet distance needs of N feature vectors, in float64.

    Attributes:
        n: N, 0 allowed.
        mean: (D,).
        scatter: (D, D) sum of the outer products of the vectors about their mean.
    """

    n: int
    mean: Floats
    scatter: Floats

    @classmethod
    def of(cls, features: FeatureArray, chunk: int = CHUNK) -> Self:
        """Gather from (N, D) features, so many rows at once.

        Raises:
            InputError: a feature is not finite.
        """
        empty = cls(0, np.zeros(features.shape[1]), np.zeros((features.shape[1],) * 2))
        return reduce(cls.merged, (cls._of_rows(rows) for rows in chunks(features, chunk)), empty)

    @classmethod
    def _of_rows(cls, rows: Floats) -> Self:
        mean = rows.mean(0)
        if not np.isfinite(mean).all():
            raise InputError("--feature-network: its output is not finite; use another one")
        centered = rows - mean
        return cls(len(rows), mean, centered.T @ centered)

    def merged(self, other: Self) -> Self:
        """The statistics of both sets of vectors together.

        Source: Chan, Golub & LeVeque 1983.
        """
        if not self.n or not other.n:
            return self if self.n else other
        n, shift = self.n + other.n, other.mean - self.mean
        scatter = self.scatter + other.scatter
        scatter += np.outer(shift, shift) * (self.n * other.n / n)
        return type(self)(n, self.mean + shift * (other.n / n), scatter)

    @property
    def covariance(self) -> Floats:
        """(D, D) with N - 1 in the denominator.

        Raises:
            InputError: fewer than two vectors.
        """
        if self.n < 2:
            raise InputError(f"a covariance needs at least 2 images, and there are {self.n}")
        return self.scatter / (self.n - 1)

    def gaussian(self) -> "FeatureGaussian":
        """The normal distribution with this mean and covariance."""
        return FeatureGaussian(self.mean, self.covariance)


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureGaussian:
    """A normal distribution of features.

    Attributes:
        mean: (D,).
        covariance: (D, D), of any rank.
        thin_factor: (D, r) with r < D, its product with its transpose being the covariance; None
            where none is known.
    """

    mean: Floats
    covariance: Floats
    thin_factor: Floats | None = None

    @classmethod
    def of(cls, features: FeatureArray) -> Self:
        """That of (N, D) features; where N < D they are themselves its factor, without rounding.

        Raises:
            InputError: fewer than two vectors, or a feature that is not finite.
        """
        statistics = FeatureStatistics.of(features)
        covariance = statistics.covariance
        if len(features) >= features.shape[1]:
            return cls(statistics.mean, covariance)
        centered = features.astype(np.float64) - statistics.mean
        return cls(statistics.mean, covariance, centered.T / np.sqrt(len(features) - 1))

    @property
    def trace(self) -> float:
        """Of the covariance."""
        return float(np.trace(self.covariance))

    @cached_property
    def factor(self) -> Floats:
        """(D, r) its product with its transpose is the covariance; made once, then kept."""
        if self.thin_factor is not None:
            return self.thin_factor
        try:
            factor: Floats = np.linalg.cholesky(self.covariance).astype(np.float64, copy=False)
            return factor
        except np.linalg.LinAlgError:  # not of full rank
            values, vectors = np.linalg.eigh(self.covariance)
            kept = values > _NEGLIGIBLE * values[-1]
            factor = vectors[:, kept] * np.sqrt(values[kept])
            return factor


def chunks(features: FeatureArray, size: int = CHUNK) -> Iterator[Floats]:
    """The rows in float64, at most so many at once."""
    for start in range(0, len(features), size):
        yield np.asarray(features[start : start + size], np.float64)


def without_rounding(values: Floats) -> Floats:
    """Eigenvalues of a matrix that has none below 0, those that are rounding made 0."""
    floor = _NEGLIGIBLE * max(float(values.max(initial=0.0)), 0.0)
    return np.where(values > floor, values, 0.0)
