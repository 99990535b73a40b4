"""The kernel distance (KID): the squared maximum mean discrepancy with a cubic kernel."""

import numpy as np
from numpy.typing import NDArray

from ddpmbench.quality.estimate import Estimate

Array = NDArray[np.float64]
SUBSETS, SUBSET_SIZE = 100, 1000
SUBSET_SEED = 2020
"""Of the choice of subsets: that of torch-fidelity."""
_ANCHORS = 2000
_CHUNK = 2048


def kernel_distance(features: NDArray[np.floating], reference: NDArray[np.floating]) -> Estimate:
    """The unbiased estimate, averaged over `SUBSETS` pairs of subsets.

    A subset has `SUBSET_SIZE` images, or all where there are fewer. The error is that of other
    samples, the reference being what it is, and of the choice of subsets.

    Args:
        features: (N, D) of samples, N >= 2.
        reference: (M, D) of real images, M >= 2.

    Source: Binkowski et al. 2018; the subsets of torch-fidelity.
    """
    rng = np.random.RandomState(SUBSET_SEED)
    size = min(SUBSET_SIZE, len(features), len(reference))
    values = np.empty(SUBSETS)
    for k in range(SUBSETS):
        x = features[rng.choice(len(features), size, replace=False)].astype(np.float64)
        y = reference[rng.choice(len(reference), size, replace=False)].astype(np.float64)
        values[k] = _unbiased(x, y)
    of_choice = values.std(ddof=1) / np.sqrt(SUBSETS)
    return Estimate.of_influence(values.mean(), _influence(features, reference), besides=of_choice)


def _unbiased(x: Array, y: Array) -> float:
    size = len(x)
    within = _kernel(x, x), _kernel(y, y)
    alike = sum(float(k.sum() - np.trace(k)) for k in within)
    return alike / (size * (size - 1)) - 2 * float(_kernel(x, y).mean())


def _influence(features: NDArray[np.floating], reference: NDArray[np.floating]) -> Array:
    """(N,) first order: twice what a sample is nearer to other samples than to real images."""
    rng = np.random.RandomState(SUBSET_SEED)
    anchors = _some(features, rng), _some(reference, rng)
    found = np.empty(len(features))
    for start in range(0, len(features), _CHUNK):
        rows = features[start : start + _CHUNK].astype(np.float64)
        to_samples, to_real = (_kernel(rows, anchor).mean(1) for anchor in anchors)
        found[start : start + len(rows)] = 2 * (to_samples - to_real)
    centered: Array = found - found.mean()
    return centered


def _some(features: NDArray[np.floating], rng: np.random.RandomState) -> Array:
    if len(features) <= _ANCHORS:
        return features.astype(np.float64)
    return features[rng.choice(len(features), _ANCHORS, replace=False)].astype(np.float64)


def _kernel(x: Array, y: Array) -> Array:
    kernel: Array = (x @ y.T / x.shape[1] + 1) ** 3
    return kernel
