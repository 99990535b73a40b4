"""The Frechet distance at the size of Inception's features: ours, and the general matrix root.

    pytest benchmarks/test_frechet.py --benchmark-only

The relative difference of the two values stands beside the times, in `extra_info`.
"""

import time

import numpy as np
import pytest
import scipy.linalg

from ddpmbench.quality.frechet import frechet_distance, frechet_distance_of, frechet_estimate
from ddpmbench.quality.frechet_infinity import frechet_infinity
from ddpmbench.quality.statistics import FeatureGaussian, FeatureStatistics

DIMENSIONS = 2048


def features(count, seed):
    """Of a spectrum that falls like that of real features, most of it in few directions."""
    rng = np.random.default_rng(seed)
    scale = 0.5 / np.sqrt(1 + np.arange(DIMENSIONS))
    mixing = rng.normal(size=(DIMENSIONS, DIMENSIONS)) / np.sqrt(DIMENSIONS)
    return ((rng.normal(size=(count, DIMENSIONS)) * scale) @ mixing + 0.4).astype(np.float32)


def by_matrix_root(first, second):
    root = scipy.linalg.sqrtm(first.covariance @ second.covariance)
    shift = first.mean - second.mean
    trace = np.trace(first.covariance + second.covariance) - 2 * np.trace(np.real(root))
    return float(shift @ shift + trace)


def timed(call):
    since = time.perf_counter()
    return call(), time.perf_counter() - since


def fresh(gaussian):
    """Without the root that an earlier call may have kept."""
    return FeatureGaussian(gaussian.mean, gaussian.covariance)


@pytest.fixture(scope="module")
def reference():
    return FeatureStatistics.of(features(6000, 1)).gaussian


def test_full_rank(benchmark, reference):
    samples = FeatureStatistics.of(features(6000, 2)).gaussian
    expected, seconds = timed(lambda: by_matrix_root(samples, reference))
    value = benchmark.pedantic(
        lambda: frechet_distance(samples, fresh(reference)), rounds=3, warmup_rounds=1
    )
    benchmark.extra_info["sqrtm_seconds"] = seconds
    benchmark.extra_info["ratio"] = seconds / benchmark.stats.stats.min
    benchmark.extra_info["relative_difference"] = abs(value / expected - 1)


@pytest.mark.parametrize("count", [250, 1000])
def test_fewer_images_than_features(benchmark, reference, count):
    """The root of the reference is kept from one distance to the next, and not counted."""
    few = features(count, 2)
    samples = FeatureStatistics.of(few).gaussian
    assert reference.root is not None
    expected, seconds = timed(lambda: by_matrix_root(samples, reference))
    value = benchmark.pedantic(
        lambda: frechet_distance_of(few, reference), rounds=3, warmup_rounds=1
    )
    benchmark.extra_info["sqrtm_seconds"] = seconds
    benchmark.extra_info["ratio"] = seconds / benchmark.stats.stats.min
    benchmark.extra_info["relative_difference"] = abs(value / expected - 1)


def test_the_interval(benchmark, reference):
    """What the interval adds to the distance alone, moments included."""
    samples = features(10_000, 2)
    (_, alone) = timed(lambda: frechet_distance_of(samples, fresh(reference)))
    benchmark.pedantic(
        lambda: frechet_estimate(samples, fresh(reference)), rounds=2, warmup_rounds=0
    )
    benchmark.extra_info["distance_alone_seconds"] = alone
    benchmark.extra_info["ratio"] = benchmark.stats.stats.min / alone


def test_infinitely_many(benchmark, reference):
    samples = features(10_000, 2)
    whole = frechet_estimate(samples, reference)
    benchmark.pedantic(
        lambda: frechet_infinity(samples, reference, whole, seed=0), rounds=1, warmup_rounds=0
    )
