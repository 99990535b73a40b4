"""References that are a mean and a covariance only, as other tools write them."""

import os

import numpy as np
import pytest

from ddpmbench.errors import InputError
from ddpmbench.samples.statistics import is_statistics, read_statistics

D = 5
X = np.random.default_rng(0).normal(size=(40, D))
MU, SIGMA = X.mean(0), np.cov(X.T)


def saved(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    "more", [{}, {"mu_s": np.zeros(3), "sigma_s": np.eye(3)}, {"num_images": 40}]
)
def test_a_mean_and_covariance_are_read(tmp_path, more):
    path = saved(tmp_path / "stats.npz", mu=MU, sigma=SIGMA, **more)
    assert is_statistics(str(path))
    found = read_statistics(path, num_features=D)
    assert np.array_equal(found.mean, MU)
    np.testing.assert_allclose(found.covariance, SIGMA, rtol=1e-15)
    assert found.source == str(path)


def test_the_hash_is_of_the_numbers(tmp_path):
    one, other, third = (
        read_statistics(saved(tmp_path / f"{k}.npz", mu=mu, sigma=SIGMA), num_features=D)
        for k, mu in enumerate((MU, MU, MU + 1e-9))
    )
    assert one.sha256 == other.sha256 != third.sha256


def test_single_precision_is_read(tmp_path):
    path = saved(tmp_path / "s.npz", mu=MU.astype(np.float32), sigma=SIGMA.astype(np.float32))
    assert read_statistics(path, num_features=D).covariance.dtype == np.float64


def test_moments_come_before_the_images_beside_them(tmp_path):
    images = np.zeros((4, 8, 8, 3), np.uint8)
    path = saved(tmp_path / "virtual.npz", arr_0=images, mu=MU, sigma=SIGMA)
    assert is_statistics(str(path))
    statistics = read_statistics(path, num_features=D)
    assert np.array_equal(statistics.mean, MU)
    assert any("arr_0 are not used" in line for line in statistics.notes)
    alone = saved(tmp_path / "alone.npz", mu=MU, sigma=SIGMA)
    assert read_statistics(alone, num_features=D).notes == ()


def test_images_are_no_statistics(tmp_path):
    assert not is_statistics(str(saved(tmp_path / "i.npz", arr_0=np.zeros((2, 4, 4), np.uint8))))
    assert not is_statistics("fashion-mnist:test")
    assert not is_statistics(str(tmp_path))
    (tmp_path / "broken.npz").write_bytes(b"PK")
    assert not is_statistics(str(tmp_path / "broken.npz"))


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
    path = saved(tmp_path / "stats.npz", **arrays)
    with pytest.raises(InputError, match=words) as refusal:
        read_statistics(path, num_features=D)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_paths_are_text_too_and_a_pipe_is_not_waited_for(tmp_path):
    path = saved(tmp_path / "stats.npz", mu=MU, sigma=SIGMA)
    assert np.array_equal(read_statistics(str(path), num_features=D).mean, MU)
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(InputError, match=r"cannot be read .it is a named pipe"):
        read_statistics(tmp_path / "pipe.npz", num_features=D)


@pytest.mark.parametrize("keep", [0, 100, -30])
def test_damaged_files_are_named(tmp_path, keep):
    path = saved(tmp_path / "stats.npz", mu=MU, sigma=SIGMA)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"stats\.npz`: cannot be read"):
        read_statistics(path, num_features=D)
