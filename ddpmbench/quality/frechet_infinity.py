"""What the Frechet distance of infinitely many samples would be."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from ddpmbench.quality.estimate import Estimate
from ddpmbench.quality.frechet import frechet_distance, frechet_distance_of
from ddpmbench.quality.statistics import FeatureGaussian, FeatureStatistics

_QUARTERS = 4
ENOUGH = 2
"""Samples for each feature from which on its error is known."""
_CAUTION = 2.0
"""What is left of a series is taken to be so much larger than the next term that is known."""
LEAST = 2 * _QUARTERS
"""Samples that it takes."""


@dataclasses.dataclass(frozen=True, eq=False)
class FrechetInfinity:
    """The distance against the number of samples, and where it leads.

    Attributes:
        estimate: at infinitely many.
        num_generated: (3,) N, and the size of a half and a quarter.
        distance: (3,) of all samples, the mean of the two halves, and of the four quarters.
    """

    estimate: Estimate
    num_generated: NDArray[np.int64]
    distance: NDArray[np.float64]


def frechet_infinity(
    features: NDArray[np.floating], reference: FeatureGaussian, whole: Estimate, *, seed: int
) -> FrechetInfinity:
    """The line of the distance over 1 / N, at 0.

    The bias of a distance is a constant over N, and then terms of higher order. Halves of the same
    samples have twice the bias and the same mean otherwise, so that a line through both meets 0
    where the bias is gone; its error is that of the distance of all. Quarters tell how far the
    curve is from a line: by twice that the interval is wider. With fewer samples than twice the
    features the curve is too far from a line for its error to be known.

    Args:
        features: (N, D), N >= `LEAST`.
        reference: real images', which counts as known.
        whole: the distance of all of them.
        seed: of their division into quarters.

    Source: Chong & Forsyth 2020, whose many sizes are here the three that cost the least.
    """
    order = np.random.default_rng(seed).permutation(len(features))
    quarters = np.array_split(order, _QUARTERS)
    halves = [np.concatenate(quarters[:2]), np.concatenate(quarters[2:])]
    if len(features) > features.shape[1]:
        parts = [FeatureStatistics.of(features[part]) for part in quarters]
        both = [parts[0].merged(parts[1]), parts[2].merged(parts[3])]
        of_quarters = [frechet_distance(part.gaussian, reference) for part in parts]
        of_halves = [frechet_distance(part.gaussian, reference) for part in both]
    else:
        of_quarters = [frechet_distance_of(features[part], reference) for part in quarters]
        of_halves = [frechet_distance_of(features[part], reference) for part in halves]
    half, quarter = float(np.mean(of_halves)), float(np.mean(of_quarters))
    line = 2 * whole.value - half
    parabola = (8 * whole.value - 6 * half + quarter) / 3
    error = None
    if whole.standard_error is not None and len(features) >= ENOUGH * features.shape[1]:
        error = float(np.hypot(whole.standard_error, _CAUTION * (parabola - line)))
    count = len(features)
    return FrechetInfinity(
        Estimate(line, error, whole.influence),
        np.array([count, count // 2, count // 4]),
        np.array([whole.value, half, quarter]),
    )
