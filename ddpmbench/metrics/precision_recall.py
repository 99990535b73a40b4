"""Precision and recall by nearest neighbors, and the nearest images."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddpmbench.metrics.statistics import Estimate, Floats, checked_pair
from ddpmbench.records import short_repr

NEIGHBORS = 3
"""k: the radius of an image is the distance to its k-th neighbor."""
_CHUNK = 1024
_GROUPS = 10  # groups of samples, left out in turn


@dataclasses.dataclass(frozen=True, eq=False)
class PrecisionRecall:
    """Precision, recall, and the nearest real image of each sample.

    Attributes:
        precision: the share of samples within the manifold of the real images.
        recall: the share of real images within the manifold of the samples.
        nearest: (N,) int64 index of the nearest real image of each sample.
        distance: (N,) distance of that image.
    """

    precision: Estimate
    recall: Estimate
    nearest: NDArray[np.int64]
    distance: Floats

    __repr__ = short_repr


def precision_recall(features: ArrayLike, reference: ArrayLike) -> PrecisionRecall:
    r"""Improved precision and recall with k = 3 neighbors.

    .. math::

        \mathrm{precision} = \frac{1}{N} \sum_i
            1\left[\exists j: |x_i - y_j| \le r_k(y_j)\right], \qquad
        \mathrm{recall} = \frac{1}{M} \sum_j
            1\left[\exists i: |x_i - y_j| \le r_k(x_i)\right]

    Here r_k is the distance of a vector to its k-th neighbor in its own set.

    Args:
        features: (N, D) of samples x, N >= 2.
        reference: (M, D) of real images y, M >= 2; held fixed.

    Returns:
        Both in 0..1, with standard errors; that of recall is a jackknife over tenths of the
        samples, since each sample changes the radii of others.

    Raises:
        InputError: another shape, or a feature that is not finite.

    Source: Kynkaanniemi et al. 2019, eqs. 1 to 3.
    """
    features, reference = checked_pair(features, reference)
    own, real = _Points(features), _Points(reference)
    real_radius, own_radii = _radii(real), _radii_without_groups(own)
    inside = np.empty(len(own), bool)
    covered = np.zeros((1 + _GROUPS, len(real)), bool)
    nearest, distance = np.empty(len(own), np.int64), np.empty(len(own))
    for rows, squares in own.squares_to(real):
        inside[rows] = (squares <= real_radius).any(1)
        nearest[rows] = squares.argmin(1)
        distance[rows] = np.sqrt(squares.min(1))
        for g, radius in enumerate(own_radii[:, rows]):
            covered[g] |= (squares <= radius[:, None]).any(0)
    precision, recall = float(inside.mean()), covered.mean(1)
    error = None
    if len(own) >= _GROUPS * (NEIGHBORS + 2):
        error = float(np.sqrt((_GROUPS - 1) * recall[1:].var()))
    return PrecisionRecall(
        precision=Estimate.of_influence(precision, inside - precision),
        recall=Estimate(float(recall[0]), error),
        nearest=nearest,
        distance=distance,
    )


def nearest_images(
    features: NDArray[np.floating], reference: NDArray[np.floating], count: int
) -> tuple[NDArray[np.int64], Floats]:
    """Indices of the nearest real images, the nearest first, and their distances.

    Args:
        features: (N, D).
        reference: (M, D).
        count: number of neighbors, at most M.

    Returns:
        (N, count) and (N, count).
    """
    own, real = _Points(features), _Points(reference)
    index = np.empty((len(features), count), np.int64)
    distance = np.empty((len(features), count))
    for rows, squares in own.squares_to(real):
        order = np.argsort(squares, axis=1, kind="stable")[:, :count]
        index[rows] = order
        distance[rows] = np.sqrt(np.take_along_axis(squares, order, 1))
    return index, distance


def _radii(points: "_Points") -> Floats:
    """(N,) squared distance to the k-th neighbor, or to the farthest of fewer."""
    radii = np.empty(len(points))
    place = min(NEIGHBORS, len(points) - 1)
    for rows, squares in points.squares_to(points):
        radii[rows] = np.partition(squares, place, axis=1)[:, place]
    return radii


def _radii_without_groups(points: "_Points") -> Floats:
    """(1 + G, N) radii with all points, then without each group; -1 within that group."""
    count = len(points)
    # Random groups, because samples may be ordered by class.
    group = np.random.default_rng(0).permutation(count) % _GROUPS
    radii = np.empty((1 + _GROUPS, count))
    # Almost surely enough for k neighbors from other groups.
    size = min(count, _GROUPS * (NEIGHBORS + 1))
    for rows, squares in points.squares_to(points):
        order = np.argpartition(squares, size - 1, axis=1)[:, :size]
        near = np.take_along_axis(squares, order, 1)
        sequence = np.argsort(near, axis=1, kind="stable")
        near = np.take_along_axis(near, sequence, 1)
        of_group = group[np.take_along_axis(order, sequence, 1)]
        radii[0, rows] = near[:, min(NEIGHBORS, size - 1)]
        for g in range(_GROUPS):
            # The point itself counts as the first.
            reached = (of_group != g).cumsum(1) > NEIGHBORS
            place = np.where(reached.any(1), reached.argmax(1), size - 1)
            radii[1 + g, rows] = near[np.arange(len(near)), place]
    for g in range(_GROUPS):
        radii[1 + g, group == g] = -1.0
    return radii


class _Points:
    """(N, D) points."""

    def __init__(self, points: NDArray[np.floating]) -> None:
        self._points = points.astype(np.float64)
        self._squares = np.square(self._points).sum(1)

    def __len__(self) -> int:
        return len(self._points)

    def squares_to(self, others: "_Points") -> Iterator[tuple[slice, Floats]]:
        """(B, M) squared distances of B points at a time to M others; 0 of a point to itself."""
        for start in range(0, len(self), _CHUNK):
            rows = slice(start, min(start + _CHUNK, len(self)))
            squares = -2 * (self._points[rows] @ others._points.T)
            squares += self._squares[rows, None]
            squares += others._squares
            np.maximum(squares, 0.0, out=squares)
            if others is self:
                index = np.arange(rows.start, rows.stop)
                squares[index - start, index] = 0.0
            yield rows, squares
