"""Scores are those of torch-fidelity, with errors, and compose from features and statistics."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from feature_networks import write_network

import ddpmbench as db
from ddpmbench.metrics import scores
from ddpmbench.metrics.precision_recall import nearest_images, precision_recall
from ddpmbench.metrics.scores import PROTOCOLS, inception_score, kernel_distance

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what its own imports warn of is not ours to mend
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

W = np.random.default_rng(7).normal(size=(8, 20))


def draw(count, rng, *, shift=0.0, spread=1.0, dimensions=8):
    return (spread * rng.normal(size=(count, dimensions)) + shift).astype(np.float32)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def few_subsets(monkeypatch):
    """A kernel distance of fewer subsets, which an error of the choice of subsets is for."""
    monkeypatch.setattr(scores, "SUBSETS", 25)


# ---- against torch-fidelity


def split(count, splits):
    return dataclasses.replace(PROTOCOLS["clean"], inception_splits=splits).splits_of(count)


@pytest.mark.parametrize(("splits", "order"), [(1, "file"), (10, "shuffled"), (3, "file")])
def test_the_inception_score_is_theirs(rng, splits, order):
    logits = 2 * rng.normal(size=(1003, 50))
    theirs = isc_features_to_metric(
        torch.from_numpy(logits), splits=splits, shuffle=order == "shuffled"
    )
    ours = inception_score(logits, split(1003, splits), order=order)
    assert ours.estimate.value == pytest.approx(theirs["inception_score_mean"], rel=1e-10)
    assert np.std(ours.over_splits) == pytest.approx(theirs["inception_score_std"], abs=1e-10)


@pytest.mark.parametrize(("samples", "real", "subsets"), [(600, 450, 100), (1000, 2500, 20)])
def test_the_kernel_distance_is_theirs(rng, monkeypatch, samples, real, subsets):
    monkeypatch.setattr(scores, "SUBSETS", subsets)
    x, y = (draw(n, rng, shift=s).astype(np.float64) for n, s in ((samples, 0.3), (real, 0.0)))
    more = {} if subsets == 100 else {"kid_subsets": subsets}  # theirs, too, are 100
    if real < 1000:
        more["kid_subset_size"] = real
    theirs = kid_features_to_metric(torch.from_numpy(x), torch.from_numpy(y), verbose=False, **more)
    expected = theirs["kernel_inception_distance_mean"]
    assert kernel_distance(x, y).value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("samples", "real"), [(700, 500), (40, 90)])
def test_precision_and_recall_are_theirs(rng, samples, real):
    x, y = draw(samples, rng, shift=0.4), draw(real, rng)
    theirs = prc_features_to_metric(torch.from_numpy(x), torch.from_numpy(y), verbose=False)
    ours = precision_recall(x, y)
    assert ours.precision.value == pytest.approx(theirs["precision"], abs=1e-6)
    assert ours.recall.value == pytest.approx(theirs["recall"], abs=1e-6)


# ---- meaning


def test_equal_classes_score_1_and_certain_ones_their_number():
    certain = 1000.0 * np.eye(10)
    assert inception_score(certain, [0, 10]).estimate.value == pytest.approx(10)
    assert inception_score(np.zeros((30, 10)), [0, 30]).estimate.value == pytest.approx(1)
    found = inception_score(np.zeros((30, 10)), [0, 30]).class_entropy
    np.testing.assert_allclose(found, np.log(10))
    assert inception_score(certain, range(11)).estimate.value == pytest.approx(1)


@pytest.mark.usefixtures("few_subsets")
def test_the_kernel_distance_of_one_distribution_is_0_on_average(rng):
    y = draw(300, rng)
    found = [kernel_distance(draw(300, rng), draw(300, rng)).value for _ in range(30)]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(30)
    assert kernel_distance(draw(300, rng, shift=0.5), y).value > 10 * np.std(found)


def test_a_collapsed_generator_is_precise_and_recalls_little(rng):
    real = draw(400, rng)
    collapsed = real[:5].repeat(80, 0) + draw(400, rng, spread=0.01)
    scattered = draw(400, rng, spread=3.0)
    few, wide, alike = (precision_recall(x, real) for x in (collapsed, scattered, draw(400, rng)))
    assert few.precision.value > 0.95
    assert few.recall.value < 0.1
    assert wide.precision.value < 0.4
    assert wide.recall.value > 0.9
    assert min(alike.precision.value, alike.recall.value) > 0.7


def test_the_nearest_images_are_the_nearest(rng):
    real = draw(70, rng)
    x = np.concatenate([real[[12, 5]], draw(20, rng)])
    distances = np.linalg.norm(x[:, None].astype(float) - real, axis=2)
    index, distance = nearest_images(x, real, 4)
    assert np.array_equal(index, distances.argsort(1)[:, :4])
    np.testing.assert_allclose(distance, np.sort(distances, 1)[:, :4], atol=1e-6)
    found = precision_recall(x, real)
    assert np.array_equal(found.nearest, index[:, 0])
    assert np.array_equal(found.distance, distance[:, 0])
    assert found.nearest[:2].tolist() == [12, 5]
    assert found.distance[:2].max() < 1e-6


def test_chunks_of_the_adm_protocol_are_in_order_and_the_last_is_short(rng):
    logits = 2 * rng.normal(size=(12_000, 8))
    protocol = PROTOCOLS["adm"]
    assert protocol.splits_of(12_000) == [0, 5000, 10_000, 12_000]
    assert protocol.splits_of(4000) == [0, 4000]
    assert protocol.inception_order == "file"
    found = inception_score(logits, protocol.splits_of(12_000), order=protocol.inception_order)
    chunks = [logits[:5000], logits[5000:10_000], logits[10_000:]]
    expected = [inception_score(chunk, [0, len(chunk)]).estimate.value for chunk in chunks]
    np.testing.assert_allclose(found.over_splits, expected, rtol=1e-12)
    assert found.estimate.value == pytest.approx(np.mean(expected))
    with_short = found.estimate.influence[10_000:].std() / found.estimate.influence[:5000].std()
    assert with_short == pytest.approx(2.5, rel=0.1)


# ---- errors


def test_the_error_of_recall_does_not_depend_on_the_order_of_samples():
    rng = np.random.default_rng(5)
    # Ten classes, half of them collapsed, which come in turn.
    index = np.arange(400)
    classes = index % 10
    spread = np.where(classes < 5, 0.05, 1.0)[:, None]
    x = (6.0 * np.eye(10)[classes] + spread * rng.normal(size=(400, 10))).astype(np.float32)
    real = (6.0 * np.eye(10)[classes] + rng.normal(size=(400, 10))).astype(np.float32)
    in_turn = precision_recall(x, real).recall
    shuffled = precision_recall(x[rng.permutation(400)], real).recall
    assert in_turn.value == shuffled.value
    assert in_turn.standard_error < 2.5 * shuffled.standard_error
    assert in_turn.standard_error < 0.05


def test_the_error_of_the_kernel_distance_holds_that_of_its_subsets(rng):
    x, y = draw(20_000, rng, shift=0.3), draw(3000, rng)
    found = kernel_distance(x, y)
    of_samples = found.influence.std(ddof=1) / np.sqrt(20_000)
    assert found.standard_error > 1.05 * of_samples


@pytest.mark.usefixtures("few_subsets")
@pytest.mark.parametrize("score", ["kid", "precision", "recall", "inception_score"])
def test_intervals_cover(score):
    rng, repeats = np.random.default_rng(3), 300
    count = 100 if score == "kid" else 200
    real = draw(count + count // 2, rng)

    def estimate():
        x = draw(count, rng, shift=0.3)
        match score:
            case "kid":
                return kernel_distance(x, real)
            case "inception_score":
                return inception_score(x @ W, [0, 120, 200]).estimate
        return getattr(precision_recall(x, real), score)

    found = [estimate() for _ in range(repeats)]
    values = np.array([one.value for one in found])
    half = np.array([one.half_width for one in found])
    coverage = np.mean(np.abs(values - values.mean()) < half)
    # Of 300 intervals that cover 95 %, 91 to 98.5 % do; that of recall is wider than it must be.
    assert 0.91 <= coverage <= (1.0 if score == "recall" else 0.985)
    assert half.mean() < 1.6 * 1.96 * values.std()


def test_where_there_are_few_samples_the_error_of_recall_is_unknown(rng):
    assert precision_recall(draw(20, rng), draw(50, rng)).recall.standard_error is None
    assert precision_recall(draw(4, rng), draw(4, rng)).recall.value is not None


# ---- public functions

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
