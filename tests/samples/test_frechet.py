"""The Frechet distance: closed forms, any rank, the same from features and from statistics."""

import numpy as np
import pytest
from scipy import linalg

from ddpmbench.samples.frechet import frechet_distance
from ddpmbench.samples.statistics import FeatureGaussian, FeatureStatistics, feature_statistics


def rotation(size, seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def features_of(n, size, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, size)) @ rotation(size, seed) * np.arange(1, size + 1) ** -0.5


@pytest.mark.parametrize("size", [1, 5, 40])
def test_gaussians_that_commute_have_their_closed_form(size):
    generator = np.random.default_rng(1)
    axes, (first, second) = rotation(size, 2), generator.uniform(0, 3, size=(2, size))
    first[0] = 0.0
    means = generator.normal(size=(2, size))
    one = FeatureGaussian(means[0], (axes * first) @ axes.T)
    other = FeatureGaussian(means[1], (axes * second) @ axes.T)
    expected = np.square(means[0] - means[1]).sum()
    expected += np.square(np.sqrt(first) - np.sqrt(second)).sum()
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-7)
    assert frechet_distance(other, one) == pytest.approx(expected, rel=1e-7)


def test_gaussians_that_do_not_commute_have_the_closed_form_of_their_product():
    # In two dimensions tr M^1/2 = (tr M + 2 det(M)^1/2)^1/2.
    first, second = np.array([[2.0, 1.2], [1.2, 1.0]]), np.array([[0.5, -0.3], [-0.3, 3.0]])
    product = first @ second
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    one, other = FeatureGaussian(np.zeros(2), first), FeatureGaussian(np.ones(2), second)
    expected = 2 + np.trace(first + second) - 2 * root
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(30, 300), (300, 30), (30, 25), (300, 400), (30, 30)])
def test_features_and_statistics_give_the_same(n, m):
    one, other = features_of(n, 50, seed=3), features_of(m, 50, seed=4) + 0.1
    statistics = [FeatureStatistics.of(features) for features in (one, other)]
    expected = frechet_distance(*statistics)
    gaussians = [feature_statistics(features) for features in (one, other)]
    assert frechet_distance(*gaussians) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(gaussians[0], statistics[1]) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(statistics[0], gaussians[1]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("n", [20, 50, 200])
def test_a_set_is_at_no_distance_from_itself(n):
    features = features_of(n, 50)
    one, other = feature_statistics(features), FeatureStatistics.of(features)
    for pair in [(one, one), (one, other), (other, one), (other, other)]:
        assert frechet_distance(*pair) == pytest.approx(0, abs=1e-6 * one.trace)


def constant(features):
    return np.ones_like(features)


def duplicated_images(features):
    return np.repeat(features[:4], len(features) // 4, axis=0)


def duplicated_columns(features):
    return np.hstack([features[:, :3]] * 4)


def dead_columns(features):
    return features * (np.arange(features.shape[1]) % 2)


DEGENERATE = [constant, duplicated_images, duplicated_columns, dead_columns]


@pytest.mark.parametrize("spoil", DEGENERATE)
@pytest.mark.parametrize("n", [8, 200])
def test_features_of_any_rank_have_the_distance_of_those_hardly_moved(spoil, n):
    features, reference = spoil(features_of(n, 12)), features_of(300, 12, seed=5) + 0.2
    moved = features + 1e-7 * np.random.default_rng(6).normal(size=features.shape)
    for kind in (feature_statistics, FeatureStatistics.of):
        found = frechet_distance(kind(features), kind(reference))
        assert isinstance(found, float)
        expected = frechet_distance(kind(moved), kind(reference))
        assert found == pytest.approx(expected, rel=1e-5)
        assert frechet_distance(kind(reference), kind(features)) == pytest.approx(found, rel=1e-6)


def test_a_point_is_as_far_as_its_mean_and_the_others_spread():
    features, reference = np.full((20, 6), 2.0), features_of(100, 6)
    of_reference = feature_statistics(reference)
    expected = np.square(2 - of_reference.mean).sum() + of_reference.trace
    found = frechet_distance(feature_statistics(features), of_reference)
    assert found == pytest.approx(expected, rel=1e-7)


def test_the_product_of_covariances_is_not_taken_for_symmetric():
    one, other = (feature_statistics(features_of(200, 8, seed=seed)) for seed in (7, 8))
    product = one.covariance @ other.covariance
    shift = np.square(one.mean - other.mean).sum() + one.trace + other.trace
    expected = shift - 2 * np.trace(linalg.sqrtm(product)).real
    of_wrong = np.sqrt(np.maximum(np.linalg.eigvalsh(product), 0)).sum()
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(one, other) != pytest.approx(shift - 2 * of_wrong, rel=1e-3)


@pytest.mark.filterwarnings("ignore:.*disp.*")
def test_clean_fid_finds_the_same():
    fid = pytest.importorskip("cleanfid.fid")
    one, other = (feature_statistics(features_of(400, 64, seed=seed)) for seed in (9, 10))
    try:
        expected = fid.frechet_distance(one.mean, one.covariance, other.mean, other.covariance)
    except TypeError as error:  # its call of sqrtm is of SciPy before 1.18
        pytest.skip(f"clean-fid's distance does not run here: {error}")
    assert frechet_distance(one, other) == pytest.approx(float(expected), rel=1e-6)
