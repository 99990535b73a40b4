"""The Frechet distance at 2048 features, beside SciPy's root of the product, in one run.

Run with `pytest benchmarks/ --benchmark-only`; the ratios and errors are in the extra columns of
`--benchmark-json FILE`, and with the threads there are.
"""

import time
import warnings

import numpy as np
import pytest
from scipy import linalg

from ddpmbench.samples.frechet import frechet_distance, leave_one_out
from ddpmbench.samples.statistics import FeatureGaussian, feature_statistics

SIZE = 2048
NUM_REFERENCE = 5000
pytest.importorskip("pytest_benchmark")


def features_of(n, seed, size):
    """With a spectrum that falls as that of Inception's features does, other axes a seed."""
    generator = np.random.default_rng(seed)
    spectrum = np.roll(np.arange(1, size + 1) ** -0.75, seed)
    return (generator.normal(size=(n, size)) * spectrum + 0.01 * seed).astype(np.float32)


def of_sqrtm(one, other):
    """The distance as published code has it, and the seconds that it took."""
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = linalg.sqrtm(one.covariance @ other.covariance)
    shift = np.square(one.mean - other.mean).sum() + one.trace + other.trace
    return float(shift - 2 * np.trace(root).real), time.perf_counter() - begin


@pytest.fixture(scope="module")
def scale(bench):
    """By what all sizes are divided."""
    return 32 if bench.smoke else 1


@pytest.fixture(scope="module")
def reference(scale):
    """Gives a new record each time, so that its factor is computed anew."""
    one = feature_statistics(features_of(NUM_REFERENCE // scale, 1, SIZE // scale))
    return lambda: FeatureGaussian(one.mean, one.covariance)


@pytest.mark.full
@pytest.mark.parametrize("n", [5000, 1000])
def test_distance_against_sqrtm(benchmark, reference, scale, n):
    features, found = features_of(n // scale, 2, SIZE // scale), []

    def measure():
        found.append(frechet_distance(feature_statistics(features), reference()))

    benchmark.pedantic(measure, rounds=3, warmup_rounds=1)
    expected, seconds = of_sqrtm(feature_statistics(features), reference())
    ratio = seconds / benchmark.stats.stats.min
    benchmark.extra_info.update(
        what=f"Frechet distance of {n}",
        sqrtm_seconds=seconds,
        ratio=ratio,
        relative_difference=found[-1] / expected - 1,
    )
    # SciPy's own error is 5e-5 where the features are not of full rank.
    assert found[-1] == pytest.approx(expected, rel=1e-6 if n > SIZE else 1e-3)


@pytest.mark.parametrize("n", [pytest.param(5000, marks=pytest.mark.full), 1000])
def test_interval_against_distance(benchmark, reference, scale, n):
    features, seconds = features_of(n // scale, 2, SIZE // scale), []

    def distance():
        begin = time.perf_counter()
        found = frechet_distance(feature_statistics(features), reference())
        seconds.append(time.perf_counter() - begin)
        return found

    expected = [distance() for _ in range(2)][-1]
    found = benchmark.pedantic(
        lambda: leave_one_out(features, reference()), rounds=2, warmup_rounds=0
    )
    benchmark.extra_info.update(
        what=f"Frechet distance of {n} with its interval",
        distance_seconds=min(seconds),
        ratio=benchmark.stats.stats.min / min(seconds),
        relative_difference=found.distance / expected - 1,
    )
    assert found.distance == pytest.approx(expected, rel=1e-6)
