"""All scores of samples against one reference, from features alone."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from ddpmbench.quality.estimate import Estimate
from ddpmbench.quality.frechet_infinity import FrechetInfinity, frechet_infinity
from ddpmbench.quality.frechet_jackknife import leave_one_out
from ddpmbench.quality.kernel_distance import kernel_distance
from ddpmbench.quality.precision_recall import NEIGHBORS, PrecisionRecall, precision_recall
from ddpmbench.quality.statistics import FeatureGaussian

_LEAST_NEIGHBORS = NEIGHBORS + 1


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """Scores of samples against one reference; None where the reference does not tell.

    Attributes:
        frechet: the Frechet distance.
        infinity: what it is at infinitely many samples.
        kernel: the kernel distance.
        neighbors: precision, recall and the nearest real images.
    """

    frechet: Estimate
    infinity: FrechetInfinity | None
    kernel: Estimate | None
    neighbors: PrecisionRecall | None


def scores_of(
    features: NDArray[np.floating],
    reference: NDArray[np.floating] | FeatureGaussian,
    *,
    seed: int,
) -> Scores:
    """All scores of (N, D) features.

    Args:
        features: of samples, N >= 2.
        reference: (M, D) features of real images, or their moments alone.
        seed: of the division into parts that extrapolation takes.
    """
    moments = reference
    if not isinstance(moments, FeatureGaussian):
        moments = FeatureGaussian.of(moments)
    whole = leave_one_out(features, moments)
    frechet = whole.estimate
    infinity = None
    if len(features) > 2:
        infinity = frechet_infinity(features, moments, seed=seed, whole=whole)
    if isinstance(reference, FeatureGaussian):
        return Scores(frechet, infinity, None, None)
    neighbors = None
    if min(len(features), len(reference)) >= _LEAST_NEIGHBORS:
        neighbors = precision_recall(features, reference)
    return Scores(frechet, infinity, kernel_distance(features, reference), neighbors)
