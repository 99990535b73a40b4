"""Leaving out each image, from one decomposition, is leaving out each image."""

import numpy as np
import pytest

from ddpmbench.samples.frechet import frechet_distance, leave_one_out
from ddpmbench.samples.statistics import feature_statistics

SIZE = 20


def drawn(n, power, seed):
    return np.random.default_rng(seed).normal(size=(n, SIZE)) * np.arange(1, SIZE + 1) ** power


def assert_left_out(features, reference, tolerance=1e-7):
    found = leave_one_out(features, reference)
    of_all = frechet_distance(feature_statistics(features), reference)
    assert found.distance == pytest.approx(of_all, rel=1e-9, abs=1e-9 * reference.trace)
    expected = [
        frechet_distance(feature_statistics(np.delete(features, i, 0)), reference)
        for i in range(len(features))
    ]
    np.testing.assert_allclose(found.without, expected, atol=tolerance * reference.trace)
    return found


@pytest.mark.parametrize("n", [3, 12, 19, 20, 21, 22, 100])
@pytest.mark.parametrize("m", [10, 500])
def test_it_is_leaving_out_each(n, m):
    found = assert_left_out(drawn(n, -1.0, 0) + 0.2, feature_statistics(drawn(m, -0.7, 1)))
    assert np.ptp(found.without) > 1e-3 * found.distance


@pytest.mark.parametrize("n", [10, 60])
def test_so_it_is_of_features_of_any_rank(n):
    reference = feature_statistics(drawn(500, -0.7, 1))
    features = drawn(n, -1.0, 0)
    outlier = features.copy()
    outlier[0] *= 100
    repeated = np.repeat(features[: n // 2], 2, axis=0)
    dead = features * (np.arange(SIZE) < 5)
    for spoiled in (outlier, repeated, dead):
        assert_left_out(spoiled, reference, tolerance=1e-6 * max(1, np.abs(spoiled).max()))
    still = leave_one_out(np.ones((n, SIZE)), reference)
    np.testing.assert_allclose(still.without, still.distance, rtol=1e-12)
    assert still.estimate.standard_error == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("n", [15, 21, 500])
@pytest.mark.parametrize("spoil", [lambda x: x, lambda x: x * (np.arange(SIZE) < 5)])
def test_features_of_half_the_digits_are_enough(n, spoil):
    reference = feature_statistics(drawn(500, -0.7, 1))
    features = spoil(drawn(n, -1.0, 0) + 1).astype(np.float32)
    found, exact = (leave_one_out(each, reference) for each in (features, features.astype(float)))
    assert found.distance == pytest.approx(exact.distance, rel=1e-12)
    error = exact.estimate.standard_error
    assert found.estimate.standard_error == pytest.approx(error, rel=1e-4)
    assert abs(found.at_infinity - exact.at_infinity) < 1e-3 * error


def test_portions_cannot_matter(monkeypatch):
    features, reference = drawn(50, -1.0, 0), feature_statistics(drawn(500, -0.7, 1))
    whole = leave_one_out(features, reference)
    monkeypatch.setattr("ddpmbench.samples.statistics.CHUNK", 7)
    monkeypatch.setattr("ddpmbench.samples.statistics.chunks.__defaults__", (7,))
    apart = leave_one_out(features, reference)
    np.testing.assert_allclose(apart.without, whole.without, rtol=1e-10)


def test_two_images_have_a_distance_without_an_error():
    found = leave_one_out(drawn(2, -1.0, 0), feature_statistics(drawn(50, -0.7, 1)))
    assert found.distance > 0
    assert found.estimate.standard_error is None
    assert found.estimate.half_width is None


def test_the_end_of_the_line_is_that_of_n_and_of_one_less():
    found = leave_one_out(drawn(30, -1.0, 0), feature_statistics(drawn(500, -0.7, 1)))
    one_over_n, distances = [1 / 30, 1 / 29], [found.distance, found.without.mean()]
    assert found.at_infinity == pytest.approx(np.polyfit(one_over_n, distances, 1)[1], rel=1e-9)
