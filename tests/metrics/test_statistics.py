"""Statistics of features: in chunks they are those of all at once; and files that hold them."""

import numpy as np
import pytest

from ddpmbench.errors import InputError
from ddpmbench.metrics import statistics
from ddpmbench.metrics.statistics import (
    FeatureGaussian,
    feature_statistics,
    is_statistics,
    mean_and_covariance,
    read_statistics,
)


@pytest.fixture(scope="module", params=[1.0, 3e4])
def features(request):
    """The second mean is so far from 0 that sums of squares would lose seven digits."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(700, 12)) * np.arange(1, 13) + request.param
    return features.astype(np.float32)


@pytest.mark.parametrize("chunk", [1, 7, 256, 700, 5000])
def test_chunks_cannot_matter(features, monkeypatch, chunk):
    monkeypatch.setattr(statistics, "CHUNK", chunk)
    mean, covariance = mean_and_covariance(features)
    exact = features.astype(np.float64)
    expected = np.cov(exact, rowvar=False)
    assert np.abs(mean - exact.mean(0)).max() <= 4e-15 * np.abs(exact).max()
    rounding = 5e-16 * (700 // min(chunk, 700)) ** 0.5 * (1 if exact.mean() < 100 else 300)
    assert np.linalg.norm(covariance - expected) <= rounding * np.linalg.norm(expected)


def test_a_covariance_needs_two_images(features):
    with pytest.raises(InputError, match="at least 2 images, and there are 1"):
        mean_and_covariance(features[:1])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(features, value):
    spoiled = features.copy()
    spoiled[600, 3] = value
    with pytest.raises(InputError, match="`features`: must be finite"):
        mean_and_covariance(spoiled)


@pytest.mark.parametrize("n", [5, 12, 13, 700])
def test_a_factor_gives_the_covariance(features, n):
    thin = feature_statistics(features[:n])
    for gaussian in (thin, FeatureGaussian(thin.mean, thin.covariance)):
        product = gaussian.factor @ gaussian.factor.T
        size = np.linalg.norm(gaussian.covariance)
        assert np.linalg.norm(product - gaussian.covariance) <= 1e-13 * size
        assert gaussian.factor is gaussian.factor
        assert gaussian.trace == pytest.approx(features[:n].astype(float).var(0, ddof=1).sum())


# ---- files as other tools write them

D = 5
X = np.random.default_rng(0).normal(size=(40, D))
MU, SIGMA = X.mean(0), np.cov(X.T)


def saved(path, **arrays):
    np.savez(path, **{"mu": MU, "sigma": SIGMA, **arrays})
    return path


@pytest.mark.parametrize(
    ("more", "rtol"),
    [
        ({}, 1e-15),
        ({"mu_s": np.zeros(3), "sigma_s": np.eye(3)}, 1e-15),
        ({"num_images": 40}, 1e-15),
        ({"mu": MU.astype(np.float32), "sigma": SIGMA.astype(np.float32)}, 1e-6),
    ],
)
def test_a_mean_and_covariance_are_read(tmp_path, more, rtol):
    path = saved(tmp_path / "stats.npz", **more)
    assert is_statistics(str(path))
    for given in (path, str(path)):
        found = read_statistics(given, num_features=D)
        np.testing.assert_allclose(found.mean, MU, rtol=rtol)
        np.testing.assert_allclose(found.covariance, SIGMA, rtol=rtol)
        assert found.covariance.dtype == np.float64
        assert (found.source, found.notes) == (str(path), ())


def test_the_hash_is_of_the_numbers(tmp_path):
    one, other, third = (
        read_statistics(saved(tmp_path / f"{k}.npz", mu=mu), num_features=D).sha256
        for k, mu in enumerate((MU, MU, MU + 1e-9))
    )
    assert one == other != third


def test_moments_come_before_the_images_beside_them(tmp_path):
    path = saved(tmp_path / "virtual.npz", arr_0=np.zeros((4, 8, 8, 3), np.uint8))
    assert is_statistics(str(path))
    statistics = read_statistics(path, num_features=D)
    assert np.array_equal(statistics.mean, MU)
    assert any("arr_0 are not used" in line for line in statistics.notes)


def test_images_are_no_statistics(tmp_path):
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((2, 4, 4), np.uint8))
    (tmp_path / "broken.npz").write_bytes(b"PK")
    for path in (tmp_path, tmp_path / "images.npz", tmp_path / "broken.npz", "fashion-mnist:test"):
        assert not is_statistics(str(path))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"mu": MU}, "has no sigma"),
        ({"sigma": SIGMA}, "has no mu"),
        ({"mu": MU[:3], "sigma": SIGMA[:3, :3]}, "is of another network"),
        ({"mu": MU, "sigma": SIGMA[:3]}, "mu has shape .* and sigma"),
        ({"mu": MU[None], "sigma": SIGMA}, "mu has shape"),
        ({"mu": MU * np.nan, "sigma": SIGMA}, "mu holds numbers that are not finite"),
        ({"mu": MU, "sigma": SIGMA * np.inf}, "sigma holds numbers"),
        ({"mu": MU, "sigma": SIGMA + np.triu(np.ones((D, D)), 1)}, "sigma is no covariance"),
        ({"mu": MU, "sigma": -SIGMA}, "is no covariance"),
        ({"mu": np.array([object()] * D), "sigma": SIGMA}, "cannot be read"),
        ({"mu": MU.astype(str), "sigma": SIGMA}, "mu is <U"),
    ],
)
def test_what_is_no_mean_and_covariance_is_named(tmp_path, arrays, words):
    np.savez(tmp_path / "stats.npz", **arrays)
    with pytest.raises(InputError, match=words) as refusal:
        read_statistics(tmp_path / "stats.npz", num_features=D)
    assert str(tmp_path / "stats.npz") in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_damaged_files_are_named(tmp_path):
    content = saved(tmp_path / "stats.npz").read_bytes()
    for keep in (0, 100, -30):
        (tmp_path / "stats.npz").write_bytes(content[:keep])
        with pytest.raises(InputError, match=r"stats\.npz`: cannot be read"):
            read_statistics(tmp_path / "stats.npz", num_features=D)
