"""FID and FID-infinity on Gaussians: their intervals cover what they are for."""

import numpy as np
import pytest
from scipy import stats

from ddpmbench.samples.frechet import frechet_distance, frechet_infinity, leave_one_out
from ddpmbench.samples.statistics import FeatureGaussian, feature_statistics

REPEATS = 300


class Model:
    """Makes features of a Gaussian at a known distance from the reference."""

    def __init__(self, size, power):
        values = np.arange(1, size + 1) ** -power
        axes = np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))[0]
        self.root = 0.8 * (axes * np.sqrt(values)) @ axes.T + 0.3 * np.diag(np.sqrt(values))
        self.mean = 0.3 * np.sqrt(values)
        self.reference = FeatureGaussian(np.zeros(size), np.diag(values))
        distribution = FeatureGaussian(self.mean, self.root @ self.root.T)
        self.distance = frechet_distance(distribution, self.reference)

    def draw(self, n, seed):
        noise = np.random.default_rng([n, seed]).normal(size=(n, len(self.mean)))
        return self.mean + noise @ self.root.T


def covered(found, expected):
    return sum(abs(estimate.value - expected) <= estimate.half_width for estimate in found)


def assert_covers(found, expected):
    # 93 to 97 %, and as much beside it as a right interval strays in so many repeats.
    slack = stats.binom.ppf([0.01, 0.99], len(found), 0.95)
    low, high = min(0.93 * len(found), slack[0]), max(0.97 * len(found), slack[1])
    assert low <= covered(found, expected) <= high


@pytest.mark.parametrize(("size", "power", "n"), [(8, 0.0, 400), (16, 1.0, 400), (16, 0.0, 1000)])
def test_intervals_cover_what_they_are_for(size, power, n):
    model = Model(size, power)
    whole = [leave_one_out(model.draw(n, seed), model.reference) for seed in range(REPEATS)]
    mean = np.mean(
        [
            frechet_distance(feature_statistics(model.draw(n, seed)), model.reference)
            for seed in range(3 * REPEATS)
        ]
    )
    assert_covers([each.estimate for each in whole], mean)
    limit = [
        frechet_infinity(model.draw(n, seed), model.reference, seed=0, whole=each).estimate
        for seed, each in enumerate(whole)
    ]
    assert_covers(limit, model.distance)
    # The distance of N images is above that of the model, by more than all these show by chance.
    spread = np.std([each.distance for each in whole]) / REPEATS**0.5
    assert mean - model.distance > 4 * spread
    assert abs(np.mean([each.value for each in limit]) - model.distance) < 3.5 * spread


@pytest.mark.parametrize(("size", "n"), [(32, 40), (32, 24)])
def test_so_does_that_of_n_images_where_they_are_few_for_their_features(size, n):
    model = Model(size, 1.0)
    found = [leave_one_out(model.draw(n, seed), model.reference) for seed in range(REPEATS)]
    assert_covers([each.estimate for each in found], np.mean([each.distance for each in found]))


def test_where_the_line_is_bent_the_error_says_so():
    model = Model(32, 0.0)
    found = [frechet_infinity(model.draw(40, seed), model.reference, seed=0) for seed in range(50)]
    bias = np.mean([each.estimate.value for each in found]) - model.distance
    spread = np.std([each.estimate.value for each in found])
    assert abs(bias) > 2 * spread
    assert covered([each.estimate for each in found], model.distance) >= 0.93 * 50


def test_the_bias_falls_as_the_square_of_n():
    model, repeats = Model(8, 1.0), 2000
    for n, bias in ((50, 0.01), (200, 0.01 / 4**2)):
        whole = [leave_one_out(model.draw(n, seed), model.reference) for seed in range(repeats)]
        off = np.array([[each.distance, each.at_infinity] for each in whole]) - model.distance
        noise = off.std(0) / repeats**0.5
        # What the distance of n images is off by is far more, and falls as n.
        assert off[:, 0].mean() > 0.1 * 50 / n
        assert abs(off[:, 1].mean()) < bias + 3 * noise[1]


def test_points_are_of_disjoint_parts_and_the_seed_chooses_them():
    model = Model(8, 1.0)
    features = model.draw(402, 0)
    found = frechet_infinity(features, model.reference, seed=1)
    assert [point.num_generated for point in found.points] == [402, 201, 100]
    fids = [point.fid for point in found.points]
    assert fids == sorted(fids)
    same = frechet_infinity(features, model.reference, seed=1)
    other = frechet_infinity(features, model.reference, seed=2)
    assert (same.estimate.value, same.points) == (found.estimate.value, found.points)
    assert other.points[0] == found.points[0]
    assert other.points[1].fid != found.points[1].fid
    whole = frechet_distance(feature_statistics(features), model.reference)
    assert found.points[0].fid == pytest.approx(whole, rel=1e-12)


def test_few_images_have_no_error():
    model = Model(8, 1.0)
    for n in (2, 7):
        found = frechet_infinity(model.draw(n, 0), model.reference, seed=0)
        assert found.estimate.standard_error is None
        assert len(found.points) == 1
