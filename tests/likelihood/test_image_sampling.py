"""A sample of the images stands for all of them, without bias and with a known error."""

import itertools

import numpy as np
import pytest

from ddpmbench.likelihood.designs import ImportanceDesign
from ddpmbench.likelihood.image_sampling import ImageSample


def standardized(x):
    return ((x - x.mean(0)) / x.std(0)).astype(np.float32)


def sample_of(order, features, *, size, blocks):
    """The first blocks of the images in an order."""
    ends = np.arange(blocks + 1) * size
    return ImageSample(len(order), ends, features[order[: ends[-1]]]), order[: ends[-1]]


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_the_mean_over_all_samples_is_the_mean_over_all_images(kept):
    # Two images a block: every way to divide six among three blocks in order.
    generator = np.random.default_rng(0)
    y, features = generator.normal(size=6), standardized(generator.normal(size=(6, 2)))
    found = []
    for order in itertools.permutations(range(6)):
        sample, images = sample_of(np.array(order), features, size=2, blocks=kept)
        assert sample.weights.sum() == pytest.approx(1, rel=1e-6)
        found.append(sample.weights @ y[images])
    # The features are of mean 0 but for the rounding of float32.
    assert np.mean(found) == pytest.approx(y.mean(), abs=1e-7)
    assert (np.std(found) > 0.01) == (kept < 3)


def test_without_features_and_with_all_images_the_weights_are_alike():
    features = standardized(np.random.default_rng(0).normal(size=(12, 3)))
    order = np.arange(12)
    whole, _ = sample_of(order, features, size=3, blocks=4)
    np.testing.assert_allclose(whole.weights, 1 / 12, rtol=1e-12)
    assert whole.variance(np.arange(12.0), 0.0) == 0.0
    part, _ = sample_of(order, features[:, :0], size=3, blocks=3)
    np.testing.assert_allclose(part.weights, 1 / 9, rtol=1e-12)
    spread = np.arange(9.0).var(ddof=1)
    # Each value is compared to the mean of the other blocks.
    assert part.variance(np.arange(9.0), 0.0) > 0.25 * spread / 9


def test_what_the_features_tell_is_no_error():
    generator = np.random.default_rng(0)
    features = standardized(generator.normal(size=(4000, 3)))
    y = 5 + features @ [1.0, -2.0, 0.5]
    sample, images = sample_of(generator.permutation(4000), features, size=200, blocks=5)
    plain = y[images].mean() - y.mean()
    assert abs(sample.weights @ y[images] - y.mean()) < 0.02 * abs(plain)
    assert sample.residuals(y[images]).var() < 1e-3 * y.var()


@pytest.mark.parametrize("columns", [0, 5])
def test_the_variance_is_that_of_the_errors(columns):
    generator = np.random.default_rng(1)
    features = standardized(generator.normal(size=(600, 5)))
    y = features @ generator.normal(size=5) + generator.normal(size=600)
    errors, variances = [], []
    for _ in range(400):
        order = generator.permutation(600)
        sample, images = sample_of(order, features[:, :columns], size=30, blocks=8)
        # Values with errors of their own, of a known variance.
        noisy = y[images] + 0.5 * generator.normal(size=len(images))
        own = 0.25 * np.square(sample.weights).sum()
        errors.append(sample.weights @ noisy - y.mean())
        variances.append(own + sample.variance(noisy, own))
    assert abs(np.mean(errors)) < 3.5 * np.std(errors) / 20
    assert np.mean(variances) == pytest.approx(np.var(errors), rel=0.2)


def test_the_sample_is_that_of_the_design():
    density = np.full(9, 1 / 9)
    design = ImportanceDesign(1000, 10, density, 0, 2, 3)
    sample = ImageSample.of(design)
    assert sample.num_sampled == 600
    assert sample.unseen == pytest.approx(0.4)
    assert sample.first(2).num_sampled == 400
