"""The Frechet distance: closed forms, any rank; its jackknife; and its limit at infinite N."""

import numpy as np
import pytest
from scipy import linalg, stats

from ddpmbench.errors import InputError
from ddpmbench.metrics.frechet import frechet_distance, frechet_infinity, leave_one_out
from ddpmbench.metrics.statistics import FeatureGaussian, feature_statistics, mean_and_covariance


def rotation(size, seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def features_of(n, size, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, size)) @ rotation(size, seed) * np.arange(1, size + 1) ** -0.5


def without_factor(features):
    return FeatureGaussian(*mean_and_covariance(features))


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
    statistics = [without_factor(features) for features in (one, other)]
    expected = frechet_distance(*statistics)
    gaussians = [feature_statistics(features) for features in (one, other)]
    assert frechet_distance(*gaussians) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(gaussians[0], statistics[1]) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(statistics[0], gaussians[1]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("n", [20, 50, 200])
def test_a_set_is_at_no_distance_from_itself(n):
    features = features_of(n, 50)
    one, other = feature_statistics(features), without_factor(features)
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
    for kind in (feature_statistics, without_factor):
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


# ---- leaving out each image, from one decomposition

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
    monkeypatch.setattr("ddpmbench.metrics.statistics.CHUNK", 7)
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


# ---- the limit; intervals on Gaussians cover what they are for

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


def test_features_in_the_place_of_their_statistics_are_refused():
    features = features_of(20, 5)
    for call in (
        lambda: frechet_distance(feature_statistics(features), features),
        lambda: frechet_distance(features, feature_statistics(features)),
        lambda: frechet_infinity(features, features),
    ):
        with pytest.raises(InputError, match="`feature_statistics` makes one"):
            call()
