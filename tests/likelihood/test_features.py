"""What is known without the network: exact where the data are Gaussian, finite everywhere."""

import dataclasses
import tracemalloc
from unittest import mock

import numpy as np
import pytest
import torch
from mixtures import feature_table, standardized
from oracles import gaussian_denoiser, oracle_images, scaled_schedule
from scipy import fft

from ddpmbench.diffusion.data_range import DataRange
from ddpmbench.diffusion.process import GaussianDiffusion
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.likelihood import regression, terms
from ddpmbench.likelihood.designs import ImportanceDesign
from ddpmbench.likelihood.image_sampling import ImageSample
from ddpmbench.likelihood.regression import (
    FeatureTable,
    GaussianFeatures,
    code_length,
    image_features,
    log_bins,
    predict,
    standardized_features,
)
from ddpmbench.likelihood.terms import bound_terms


def uniform_design(num_images, num_timesteps, num_replicates=2):
    density = np.full(num_timesteps - 1, 1 / (num_timesteps - 1))
    return ImportanceDesign(num_images, num_timesteps, density, 0, num_replicates)


@pytest.mark.parametrize("schedule", [NoiseSchedule.linear(40), NoiseSchedule.cosine(200)])
def test_the_terms_are_those_of_the_linear_denoiser_of_gaussian_data(schedule):
    images, variance = oracle_images(3, shape=(2, 4, 4)), np.array([0.05, 0.4])
    spread = torch.from_numpy(variance)[:, None, None].expand(2, 4, 4)
    of_data = GaussianFeatures(
        np.zeros((2, 4, 4)), np.eye(2), np.repeat([0, 1], 16), variance, schedule
    )
    network = gaussian_denoiser(spread, schedule, variance="fixed_small")
    diffusion = GaussianDiffusion(schedule)
    steps = torch.arange(2, schedule.num_timesteps + 1)
    expected = np.zeros((3, len(steps)))
    for n, pixels in enumerate(images.pixels):
        x_start = torch.from_numpy(pixels / 127.5 - 1).expand(len(steps), 2, 4, 4)
        # The denoiser works on each pixel alone, so that noise of +-1 has the right expectation.
        for sign in (1, -1):
            eps = sign * torch.ones_like(x_start)
            output = network(diffusion.q_sample(x_start, steps, eps), (steps - 1).float())
            found = bound_terms(
                schedule, x_start, steps, eps, output, variance="fixed_small", clip=False
            )
            expected[n] += found.nats.numpy() / 2
    np.testing.assert_allclose(of_data.divergence(images.pixels), expected, rtol=1e-8)


def test_the_terms_are_those_of_the_wiener_filter_of_a_fitted_spectrum():
    schedule, images = NoiseSchedule.linear(30), oracle_images(40, shape=(3, 4, 5))
    fitted = GaussianFeatures.fit(images.pixels, schedule)
    x = images.pixels.reshape(40, -1) / 127.5 - 1
    rows, columns = fft.dct(np.eye(4), norm="ortho"), fft.dct(np.eye(5), norm="ortho")
    basis = np.kron(fitted.color, np.kron(rows, columns))  # (D, D), a coefficient a column
    np.testing.assert_allclose(basis.T @ basis, np.eye(60), atol=1e-12)
    np.testing.assert_allclose(fitted.mean.ravel(), x.mean(0), atol=1e-12)
    spectrum = ((x - x.mean(0)) @ basis).var(0)
    np.testing.assert_allclose(fitted.spectrum[fitted.level], spectrum, rtol=1e-3)
    covariance = basis @ np.diag(fitted.spectrum[fitted.level]) @ basis.T
    got = fitted.divergence(images.pixels)
    for t in (2, 9, 30):
        ab, previous = (float(schedule.alphas_cumprod[i]) for i in (t - 1, t - 2))
        weight = (previous / (1 - previous) - ab / (1 - ab)) / 2
        wiener = np.sqrt(ab) * covariance @ np.linalg.inv(ab * covariance + (1 - ab) * np.eye(60))
        bias = (x - x.mean(0)) @ (np.eye(60) - np.sqrt(ab) * wiener).T
        noise = (1 - ab) * np.square(wiener).sum()
        expected = weight * (np.square(bias).sum(1) + noise) / 60
        np.testing.assert_allclose(got[:, t - 2], expected, rtol=1e-8)


@pytest.mark.parametrize("levels", [256, 8])
def test_the_features_do_not_depend_on_the_range_of_the_data(levels):
    images, schedule = oracle_images(20, shape=(3, 4, 4)), NoiseSchedule.cosine(30)
    plain, of = DataRange(levels=levels), DataRange(-3, 1, levels)
    expected = GaussianFeatures.fit(images.pixels, schedule, plain)
    found = GaussianFeatures.fit(images.pixels, scaled_schedule(schedule, of), of)
    np.testing.assert_allclose(
        found.divergence(images.pixels), expected.divergence(images.pixels), rtol=1e-9
    )
    table = FeatureTable.of(found, images.pixels, uniform_design(20, 30))
    reduced = image_features(images.pixels // (256 // levels))
    np.testing.assert_allclose(table.sample.features[:, :-1], standardized(reduced), atol=1e-5)


def test_the_colors_are_decorrelated():
    generator = np.random.default_rng(0)
    gray = generator.integers(40, 200, (30, 1, 8, 8))
    pixels = np.clip(gray + generator.integers(-3, 4, (30, 3, 8, 8)), 0, 255).astype(np.uint8)
    fitted = GaussianFeatures.fit(pixels, NoiseSchedule.cosine(10))
    variance = fitted.spectrum[fitted.level].reshape(3, -1).sum(1)
    assert variance.max() > 0.99 * variance.sum()  # one color carries nearly everything


def test_a_spectrum_of_few_levels_keeps_its_energy(monkeypatch):
    images, schedule = oracle_images(20, shape=(3, 6, 6)), NoiseSchedule.linear(50)
    full = GaussianFeatures.fit(images.pixels, schedule)
    monkeypatch.setattr(regression, "LEVELS", 20)
    coarse = GaussianFeatures.fit(images.pixels, schedule)
    assert len(coarse.spectrum) == 20
    total = [f.spectrum[f.level].sum() for f in (full, coarse)]
    assert total[0] == pytest.approx(total[1], rel=1e-12)
    ratio = coarse.divergence(images.pixels) / full.divergence(images.pixels)
    np.testing.assert_allclose(ratio, 1, atol=0.05)


@pytest.mark.parametrize("value", [0, 128, 255])
@pytest.mark.parametrize("num_images", [1, 3])
def test_images_that_are_all_the_same_have_finite_features(value, num_images):
    pixels = np.full((num_images, 1, 5, 5), value, dtype=np.uint8)
    fitted = GaussianFeatures.fit(pixels, NoiseSchedule.linear(1000))
    g = fitted.divergence(pixels)
    assert (g > 0).all()
    assert np.isfinite(np.log(g)).all()
    assert np.isfinite(standardized_features(fitted, pixels)).all()


def test_portions_do_not_matter(monkeypatch):
    images, schedule = oracle_images(50, shape=(3, 4, 4)), NoiseSchedule.linear(60)
    design = uniform_design(50, 60)

    def table():
        return FeatureTable.of(GaussianFeatures.fit(images.pixels, schedule), images.pixels, design)

    whole = table()
    nats = np.random.default_rng(0).exponential(size=design.t.shape)
    predictions = predict(design, nats, whole)
    monkeypatch.setattr(regression, "CHUNK_BYTES", 7 * 8 * 256)
    monkeypatch.setattr(terms, "BLOCK_TERMS", 7)
    assert_close(table(), whole)
    assert_close(predict(design, nats, whole), predictions)


def assert_close(found, expected):
    """Two records of arrays agree, as well as the precision of each array allows."""
    for field in dataclasses.fields(expected):
        values = getattr(expected, field.name)
        if isinstance(values, ImageSample):
            assert_close(getattr(found, field.name), values)
            continue
        rtol = 2e-7 if np.asarray(values).dtype == np.float32 else 1e-9
        np.testing.assert_allclose(getattr(found, field.name), values, rtol=rtol)


def test_memory_is_modest():
    def peak(num_images, num_timesteps):
        images = oracle_images(num_images, shape=(1, 8, 8))
        design = uniform_design(num_images, num_timesteps)
        nats = np.ones(design.t.shape)
        fitted = GaussianFeatures.fit(images.pixels, NoiseSchedule.linear(num_timesteps))
        tracemalloc.start()
        predict(design, nats, FeatureTable.of(fitted, images.pixels, design))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    with mock.patch.object(regression, "CHUNK_BYTES", 2**18):
        # Bytes an image; 23 features in float32 of all images, and of those in the sample.
        assert (peak(16_000, 200) - peak(8_000, 200)) / 8_000 < 400 + 2 * 23 * 4
        # Nor are the terms of all images at all steps ever there together.
        assert peak(1000, 2000) - peak(10, 2000) < 10 * regression.CHUNK_BYTES


def test_rounded_sums_are_as_good_as_exact_ones():
    images, schedule = oracle_images(500, shape=(1, 6, 6)), NoiseSchedule.linear(300)
    fitted, design = GaussianFeatures.fit(images.pixels, schedule), uniform_design(500, 300)
    table = FeatureTable.of(fitted, images.pixels, design)
    of_images = standardized_features(fitted, images.pixels)
    exact = feature_table(design, fitted.divergence(images.pixels), of_images)
    assert table.bin_sums.dtype == np.float32
    generator = np.random.default_rng(0)
    nats = exact.at_terms * generator.uniform(0.5, 2, exact.at_terms.shape)
    found, expected = predict(design, nats, table), predict(design, nats, exact)
    np.testing.assert_allclose(found.terms, expected.terms, rtol=1e-9)
    # Predictions of totals go through 0, and the terms that are summed do not.
    np.testing.assert_allclose(found.totals, expected.totals, rtol=1e-7, atol=1e-7)
    # As often too large as too small: the mean is far better still.
    np.testing.assert_allclose(found.totals.mean(1), expected.totals.mean(1), rtol=2e-9)


def test_the_table_holds_the_features_at_the_rows_and_their_sums():
    images, schedule = oracle_images(30, shape=(1, 6, 6)), NoiseSchedule.linear(100)
    fitted, design = GaussianFeatures.fit(images.pixels, schedule), uniform_design(30, 100)
    table = FeatureTable.of(fitted, images.pixels, design)
    dense = feature_table(
        design, fitted.divergence(images.pixels), standardized_features(fitted, images.pixels)
    )
    np.testing.assert_array_equal(table.sample.features, dense.sample.features)
    for name in ("at_terms", "timestep_means"):
        np.testing.assert_allclose(getattr(table, name), getattr(dense, name), rtol=1e-10)
    np.testing.assert_allclose(table.bin_sums, dense.bin_sums, rtol=1e-7)
    more = dataclasses.replace(design, num_replicates=5)
    extended = table.extended(fitted, images.pixels, more)
    fresh = FeatureTable.of(fitted, images.pixels, more)
    np.testing.assert_allclose(extended.at_terms, fresh.at_terms, rtol=1e-12)
    assert extended.extended(fitted, images.pixels, more) is extended
    # G over the weight is the denoiser's error of x_start; times the signal-to-noise ratio, of eps.
    weight, snr = fitted.weight, schedule.snr.numpy()[1:]
    np.testing.assert_allclose(table.error_scale, [1 / weight, snr / weight])


@pytest.mark.parametrize("num_timesteps", [2, 3, 10, 1000, 4000])
def test_the_bins_are_in_order_and_none_is_empty(num_timesteps):
    bins = log_bins(num_timesteps)
    assert len(bins) == num_timesteps - 1
    assert bins[0] == 0
    assert set(np.diff(bins).tolist()) <= {0, 1}
    assert bins[-1] < 30


def test_what_compresses_badly_has_a_long_code():
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (1, 3, 64, 64), dtype=np.uint8)
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8) * 3, (1, 3, 64, 64))
    mild = (ramp + generator.integers(0, 4, ramp.shape)).astype(np.uint8)
    flat = np.zeros_like(noise)
    lengths = [code_length(x)[0] for x in (flat, ramp, mild, noise)]
    assert lengths == sorted(lengths)
    assert lengths[0] == 0
    assert 0.97 * np.log(256) < lengths[3] <= np.log(256)
    together = code_length(np.concatenate([flat, ramp, mild, noise]))
    np.testing.assert_array_equal(together, lengths)  # each image by itself


def test_the_features_of_an_image_are_shares_of_what_can_be_counted():
    pixels = np.zeros((1, 1, 6, 6), dtype=np.uint8)
    pixels[0, 0, :, 3:] = 255  # an edge between two flat halves
    found = image_features(pixels)[0]
    variation, ends, differences, deviations = found[1], found[2:6], found[6:14], found[14:]
    assert variation == pytest.approx(6 * 255 / 60)
    np.testing.assert_allclose(ends, [0.5, 0, 0, 0.5])
    np.testing.assert_allclose(differences, [54 / 60, 0, 0, 0, 0, 0, 0, 0])  # the others are 255
    np.testing.assert_allclose(deviations, [4 / 6, 0, 0, 0, 0, 0, 0, 0])
    pixels[0, 0, 0, 0] = 3  # with two neighbors, in four windows
    found = image_features(pixels)[0]
    np.testing.assert_allclose(found[6:9], [52 / 60, 0, 0])
    assert found[9] == pytest.approx(2 / 60)
    deviation = np.array([4, 2, 2, 1]) / 9
    deviation = 3 * np.sqrt(deviation * (1 - deviation))
    expected = [np.mean((deviation > low) & (deviation <= low + 1)) * 4 / 36 for low in (0, 1)]
    np.testing.assert_allclose(found[15:17], expected)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 7), (1, 2, 2)])
def test_small_images_have_features_too(shape):
    pixels = np.random.default_rng(0).integers(0, 256, (5, *shape), dtype=np.uint8)
    found = image_features(pixels)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(image_features(pixels[2:3]), found[2:3])
