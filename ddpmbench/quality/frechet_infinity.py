"""The Frechet distance of a model rather than of N of its images: FID-infinity."""

import dataclasses
import math

import numpy as np

from ddpmbench.quality.estimate import Estimate
from ddpmbench.quality.frechet import frechet_distance
from ddpmbench.quality.frechet_jackknife import LeaveOneOut, leave_one_out
from ddpmbench.quality.statistics import FeatureArray, FeatureGaussian

LEAST_IMAGES = 8
"""Of which quarters have a covariance."""


@dataclasses.dataclass(frozen=True)
class FrechetPoint:
    """The mean distance of disjoint parts of the images.

    Attributes:
        num_generated: images in a part, the N that the distance is of.
        fid: the mean over the parts.
        standard_error: of that mean; None where it is not known.
    """

    num_generated: int
    fid: float
    standard_error: float | None


@dataclasses.dataclass(frozen=True)
class FrechetInfinity:
    """The distance that ever more images tend to, and how it was come by.

    Attributes:
        estimate: the distance; the error is of drawing the N images anew, the reference as it is.
        points: of all images, of halves and of quarters, the largest N first.
    """

    estimate: Estimate
    points: tuple[FrechetPoint, ...]


def frechet_infinity(
    features: FeatureArray,
    reference: FeatureGaussian,
    *,
    seed: int,
    whole: LeaveOneOut | None = None,
) -> FrechetInfinity:
    """The intercept of the distance against 1/N.

    The line is through N and N - 1 images, each of these left out in turn: of all lines it adds
    least noise, and its bias is of order 1/N^2. Those of N and N / 2, and of N and N / 4, have
    more of that bias, so that how far they end from it tells where the distances lie on no line:
    the farther is part of the error. Simulated, that covers where N is no less than the number of
    features that matter. The points share their images: to first order their errors are alike.

    Args:
        features: (N, D).
        reference: held fixed; the distance is from it, with the bias of its own images if it is
            of few.
        seed: of the division into parts.
        whole: `leave_one_out` of the same, if it is known.

    Raises:
        InputError: fewer than two vectors, or a feature that is not finite.

    Source: Chong & Forsyth 2020, who fit a line to overlapping parts; Quenouille 1956.
    """
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
            frechet_distance(FeatureGaussian.of(features[part]), reference) for part in rows
        ]
        points.append(FrechetPoint(size, float(np.mean(distances)), error))
    limit = whole.at_infinity
    bend = max(abs(_intercept(points[0], point) - limit) for point in points[1:])
    return FrechetInfinity(Estimate(limit, math.hypot(error, bend)), tuple(points))


def _intercept(one: FrechetPoint, other: FrechetPoint) -> float:
    """Where the line through two points against 1/N ends."""
    n, m = one.num_generated, other.num_generated
    return (n * one.fid - m * other.fid) / (n - m)
