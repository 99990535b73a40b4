"""Features, statistics and metrics compose as public functions."""

import numpy as np
import pytest
import torch
from feature_networks import write_network

import ddpmbench as db

METRICS = (db.kernel_distance, db.precision_recall)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = write_network(tmp_path_factory.mktemp("n") / "n.pt", num_features=6, num_classes=4)
    return db.load_feature_network(path)


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (30, 1, 8, 8), np.uint8)


@pytest.mark.parametrize("batch_size", [1, 7, 30, 64])
def test_batches_cannot_matter(network, pixels, batch_size):
    whole = network(pixels)
    for images in (pixels, list(pixels), db.load_images(pixels[:, 0])):
        found = db.image_features(network, images, batch_size=batch_size)
        np.testing.assert_allclose(found.features, whole.features, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.logits, whole.logits, rtol=1e-5, atol=1e-6)


def test_images_become_scores(network, pixels, tmp_path):
    samples, real = (db.image_features(network, part) for part in (pixels[:12], pixels[12:]))
    first, second = map(db.feature_statistics, (samples.features, real.features))
    distance = db.frechet_distance(first, second)
    np.savez(tmp_path / "real.npz", mu=second.mean, sigma=second.covariance)
    of_file = db.read_statistics(tmp_path / "real.npz", num_features=6)
    assert db.frechet_distance(first, of_file) == pytest.approx(distance, rel=1e-6)
    assert db.frechet_infinity(samples.features, second).points[0].fid == pytest.approx(distance)
    score = db.inception_score(samples.logits)
    assert score.over_splits.tolist() == [score.estimate.value]
    assert score.estimate.value >= 1
    for metric in METRICS:
        assert metric(samples.features, real.features) is not None


def test_tensors_and_half_precision_are_taken():
    x, y = (torch.randn(20, 3, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    assert db.kernel_distance(x, y).value == db.kernel_distance(x.numpy(), y.numpy()).value
    half = db.feature_statistics(x.half())
    assert half.mean.dtype == np.float64
    assert db.frechet_distance(half, db.feature_statistics(x)) < 1e-4


@pytest.mark.parametrize("shape", [(5,), (1, 3), (0, 3), (5, 0), (2, 3, 4)])
def test_other_shapes_are_refused(shape):
    good, bad = np.ones((5, 3)), np.ones(shape)
    with pytest.raises(db.InputError, match=r"^`features`: must be numbers of shape \(N, D\)"):
        db.feature_statistics(bad)
    with pytest.raises(db.InputError, match=r"^`logits`"):
        db.inception_score(bad)
    for metric in METRICS:
        with pytest.raises(db.InputError, match=r"^`features`"):
            metric(bad, good)
        with pytest.raises(db.InputError, match=r"^`reference`: .* \(N, 3\)"):
            metric(good, bad)


def test_values_that_are_no_numbers_are_refused():
    good = np.random.default_rng(0).normal(size=(5, 3))
    for bad in (np.full((5, 3), np.nan), np.full((5, 3), "1")):
        for call in (
            lambda bad=bad: db.feature_statistics(bad),
            lambda bad=bad: db.inception_score(bad),
            lambda bad=bad: db.kernel_distance(good, bad),
            lambda bad=bad: db.precision_recall(bad, good),
        ):
            with pytest.raises(db.InputError, match=r"^`"):
                call()
    other = db.feature_statistics(np.random.default_rng(0).normal(size=(5, 4)))
    with pytest.raises(db.InputError, match=r"^`second`: has 4 features and `first` 3"):
        db.frechet_distance(db.feature_statistics(good), other)
    for edges in ([0, 4], [1, 5], [0, 3, 3, 5], [5]):
        with pytest.raises(db.InputError, match=r"^`edges`"):
            db.inception_score(good, edges)
