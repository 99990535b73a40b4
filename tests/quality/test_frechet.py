"""The Frechet distance: closed forms, every rank, and an interval that covers."""

import warnings

import numpy as np
import pytest
import scipy.linalg

from ddpmbench.quality.frechet import frechet_distance, frechet_distance_of, frechet_estimate
from ddpmbench.quality.frechet_infinity import LEAST, frechet_infinity
from ddpmbench.quality.statistics import FeatureGaussian, FeatureStatistics

RNG = np.random.default_rng(0)


def gaussian(dimensions, seed, *, shift=0.2):
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(dimensions, dimensions)) / np.sqrt(dimensions)
    covariance = factor * np.exp(-3 * np.arange(dimensions) / dimensions) @ factor.T
    covariance = (covariance + covariance.T) / 2 + 0.05 * np.eye(dimensions)
    return FeatureGaussian(shift * rng.normal(size=dimensions), covariance)


def draw(of, count, rng):
    factor = np.linalg.cholesky(of.covariance)
    return rng.normal(size=(count, len(of.mean))) @ factor.T + of.mean


def by_definition(first, second):
    """With the general root of the product, which is what the formula says."""
    root = scipy.linalg.sqrtm(first.covariance @ second.covariance).real
    shift = first.mean - second.mean
    return shift @ shift + np.trace(first.covariance + second.covariance - 2 * root)


# ---- values


def test_of_commuting_gaussians_it_is_that_of_their_deviations():
    first = FeatureGaussian(np.array([1.0, 2.0, 0.0]), np.diag([4.0, 9.0, 0.0]))
    second = FeatureGaussian(np.array([0.0, 2.0, 0.0]), np.diag([1.0, 1.0, 16.0]))
    assert frechet_distance(first, second) == pytest.approx(1 + 1 + 4 + 16, rel=1e-12)


@pytest.mark.parametrize("dimensions", [1, 2, 30])
def test_it_is_what_the_formula_says(dimensions):
    first, second = gaussian(dimensions, 1), gaussian(dimensions, 2)
    expected = by_definition(first, second)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("count", [5, 20, 200])
def test_features_with_more_and_fewer_images_than_dimensions(count):
    x = draw(gaussian(20, 1), count, np.random.default_rng(3)).astype(np.float32)
    reference = gaussian(20, 2)
    of_moments = frechet_distance(FeatureStatistics.of(x).gaussian, reference)
    assert frechet_distance_of(x, reference) == pytest.approx(of_moments, rel=1e-7)
    assert frechet_estimate(x, reference).value == pytest.approx(of_moments, rel=1e-7)


def test_it_is_clean_fids_where_the_covariances_have_full_rank():
    fid = pytest.importorskip("cleanfid.fid")
    first, second = gaussian(40, 5), gaussian(40, 6)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # sqrtm(disp=False) is to go
            theirs = fid.frechet_distance(
                first.mean, first.covariance, second.mean, second.covariance
            )
    except TypeError as error:
        pytest.skip(f"this scipy has no sqrtm(disp=False) any more: {error}")
    assert frechet_distance(first, second) == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize(
    "x",
    [
        np.ones((10, 8)),
        np.zeros((2, 8)),
        np.repeat(RNG.normal(size=(1, 8)), 30, 0),
        np.repeat(RNG.normal(size=(3, 8)), 10, 0),
        RNG.normal(size=(30, 1)) * np.ones((1, 8)),
        RNG.normal(size=(2, 8)) * 1e6,
        RNG.normal(size=(30, 8)) * 1e-12,
    ],
    ids=["constant", "zero", "one image", "three images", "rank 1", "huge", "tiny"],
)
def test_no_features_make_it_fail(x):
    other = np.random.default_rng(9).normal(size=(40, 8))
    for first, second in ((x, other), (other, x), (x, x)):
        reference = FeatureStatistics.of(second).gaussian
        estimate = frechet_estimate(first, reference)
        scale = np.trace(reference.covariance) + np.square(first).sum(1).mean()
        assert np.isfinite([estimate.value, estimate.standard_error]).all()
        assert estimate.value >= -1e-7 * scale
        assert frechet_distance_of(first, reference) == pytest.approx(
            estimate.value, rel=1e-6, abs=1e-7 * scale + 1e-20
        )
    own = frechet_distance_of(x, FeatureStatistics.of(x).gaussian)
    assert abs(own) <= 1e-6 * np.square(x).sum(1).mean()


# ---- what is known of it


def test_an_influence_is_what_leaving_an_image_out_changes():
    x = draw(gaussian(4, 1), 200, np.random.default_rng(2))
    reference = gaussian(4, 2)
    whole = frechet_estimate(x, reference)
    left_out = [frechet_distance_of(np.delete(x, i, 0), reference) for i in range(200)]
    jackknife = 199 * (whole.value - np.array(left_out))
    assert np.corrcoef(jackknife, whole.influence)[0, 1] > 0.999
    assert np.std(jackknife) == pytest.approx(np.std(whole.influence), rel=0.03)


@pytest.mark.parametrize(("dimensions", "count"), [(8, 600), (16, 500), (24, 80), (24, 50)])
def test_intervals_cover(dimensions, count):
    truth, reference = gaussian(dimensions, 11), gaussian(dimensions, 12, shift=0.0)
    closed = frechet_distance(truth, reference)
    rng, repeats = np.random.default_rng(4), 300
    found, infinite = [], []
    for seed in range(repeats):
        x = draw(truth, count, rng)
        found.append(frechet_estimate(x, reference))
        infinite.append(frechet_infinity(x, reference, found[-1], seed=seed).estimate)
    values = np.array([estimate.value for estimate in found])
    half = np.array([estimate.half_width for estimate in found])
    # Of 300 intervals that cover 95 %, 91 to 98.5 % do.
    assert 0.91 <= np.mean(np.abs(values - values.mean()) < half) <= 0.985
    wide = np.array([estimate.half_width for estimate in infinite])
    error = np.array([estimate.value for estimate in infinite]) - closed
    coverage = np.mean(np.abs(error) < wide)
    assert coverage >= 0.91
    if count >= 10 * dimensions:
        assert coverage <= 0.985
        assert wide.mean() < 1.1 * half.mean()
        assert abs(error.mean()) < 0.2 * error.std()
    assert values.mean() - closed > 3 * abs(error.mean())  # the bias that it is there for


def test_with_few_samples_for_their_features_no_error_is_claimed():
    truth, reference = gaussian(24, 11), gaussian(24, 12)
    for count, is_known in ((47, False), (48, True), (20, False)):
        x = draw(truth, count, np.random.default_rng(0))
        whole = frechet_estimate(x, reference)
        found = frechet_infinity(x, reference, whole, seed=0).estimate
        assert whole.standard_error > 0
        assert (found.standard_error is not None) == is_known


def test_the_error_falls_as_the_root_of_the_number():
    truth, reference = gaussian(6, 1), gaussian(6, 2)
    rng = np.random.default_rng(0)
    errors = [frechet_estimate(draw(truth, n, rng), reference).standard_error for n in (500, 8000)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.15)


def test_extrapolation_shows_its_points_and_depends_on_its_seed():
    x, reference = draw(gaussian(6, 1), 101, np.random.default_rng(0)), gaussian(6, 2)
    whole = frechet_estimate(x, reference)
    found = frechet_infinity(x, reference, whole, seed=0)
    assert found.num_generated.tolist() == [101, 50, 25]
    assert found.distance[0] == whole.value
    assert found.estimate.value == pytest.approx(2 * whole.value - found.distance[1])
    again, other = (frechet_infinity(x, reference, whole, seed=seed) for seed in (0, 1))
    assert again.estimate.value == found.estimate.value != other.estimate.value
    few = x[:LEAST]
    least = frechet_infinity(few, reference, frechet_estimate(few, reference), seed=0)
    assert np.isfinite(least.estimate.value)
