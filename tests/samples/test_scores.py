"""Inception score, kernel distance, precision and recall: those of torch-fidelity, with errors."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch

from ddpmbench.samples.precision_recall import nearest_images, precision_recall
from ddpmbench.samples.scores import PROTOCOLS, inception_score, kernel_distance

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


@pytest.mark.parametrize(("samples", "real"), [(1500, 1200), (1000, 2500)])
def test_the_kernel_distance_is_theirs(rng, samples, real):
    x, y = (draw(n, rng, shift=s).astype(np.float64) for n, s in ((samples, 0.3), (real, 0.0)))
    theirs = kid_features_to_metric(torch.from_numpy(x), torch.from_numpy(y), verbose=False)
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


@pytest.mark.parametrize("score", ["kid", "precision", "recall", "inception_score"])
def test_intervals_cover(score):
    rng, repeats = np.random.default_rng(3), 300
    real = draw(300, rng)

    def estimate():
        x = draw(200, rng, shift=0.3)
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
