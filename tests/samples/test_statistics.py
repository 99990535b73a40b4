"""Statistics of features: in portions and merged, they are those of all at once."""

import numpy as np
import pytest

from ddpmbench.errors import InputError
from ddpmbench.samples.statistics import FeatureStatistics, feature_statistics

MEANS = (1.0, 3e4)
"""The latter so far from 0 that sums of squares would lose seven digits."""


@pytest.fixture(scope="module", params=MEANS)
def features(request):
    generator = np.random.default_rng(0)
    features = generator.normal(size=(700, 12)) * np.arange(1, 13) + request.param
    return features.astype(np.float32)


def assert_close(found, features, portions):
    exact = features.astype(np.float64)
    expected = np.cov(exact, rowvar=False)
    assert found.n == len(features)
    assert np.abs(found.mean - exact.mean(0)).max() <= 4e-15 * np.abs(exact).max()
    lost = 5e-16 * portions**0.5 * (1 if exact.mean() < 100 else 300)
    assert np.linalg.norm(found.covariance - expected) <= lost * np.linalg.norm(expected)


@pytest.mark.parametrize("chunk", [1, 7, 256, 700, 5000])
def test_portions_cannot_matter(features, chunk):
    assert_close(FeatureStatistics.of(features, chunk), features, 700 // min(chunk, 700))


@pytest.mark.parametrize("at", [[0], [1, 1, 699], [100, 350, 351], [700]])
def test_shards_merge_to_the_whole(features, at):
    shards = [FeatureStatistics.of(part) for part in np.split(features, at)]
    merged = shards[0]
    for shard in shards[1:]:
        merged = merged.merged(shard)
    assert_close(merged, features, len(shards))


def test_a_covariance_needs_two_images(features):
    with pytest.raises(InputError, match="at least 2 images, and there are 1"):
        _ = FeatureStatistics.of(features[:1]).covariance


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(features, value):
    spoiled = features.copy()
    spoiled[600, 3] = value
    with pytest.raises(InputError, match="not finite"):
        FeatureStatistics.of(spoiled, chunk=50)


@pytest.mark.parametrize("n", [5, 12, 13, 700])
def test_a_factor_gives_the_covariance(features, n):
    for gaussian in (
        feature_statistics(features[:n]),
        FeatureStatistics.of(features[:n]).gaussian(),
    ):
        product = gaussian.factor @ gaussian.factor.T
        size = np.linalg.norm(gaussian.covariance)
        assert np.linalg.norm(product - gaussian.covariance) <= 1e-13 * size
        assert gaussian.factor is gaussian.factor
        assert gaussian.trace == pytest.approx(features[:n].astype(float).var(0, ddof=1).sum())
