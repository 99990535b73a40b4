"""Distortion: unbiased, with errors that are the noise's and the rows', and known where it ends."""

import dataclasses
import functools

import numpy as np
import pytest
from mixtures import SyntheticModel

from ddpmbench.likelihood.designs import EveryPairDesign, ImportanceDesign
from ddpmbench.likelihood.rate_distortion import (
    Distortion,
    RatioLine,
    every_pair_distortion,
    importance_distortion,
)

T = 120
SEEDS = 150
GRID = np.array([1, 2, 3, 5, 8, 13, 20, 32, 50, 80, 100, 120]) - 1
NOCLIP = 1.7
"""What the unclipped error is to the clipped one, by our choice."""


def table_of(model, rows, generator):
    """The terms of rows, with another error where the prediction is not clipped."""
    table = model.table(rows, generator)
    noclip = NOCLIP * table.values["x_start_mse"]
    return dataclasses.replace(table, values={**table.values, "x_start_mse_noclip": noclip})


def truth(model):
    """(2, T) mean root and mean of the squared errors, expected over the noise."""
    mse = model.mean * np.arange(1, model.num_timesteps + 1) / 50
    # The root of 1 + noise z is 1 - noise^2 / 8 in the mean.
    return np.stack([np.sqrt(mse).mean(0) * (1 - model.noise**2 / 8), mse.mean(0)])


def means(distortion):
    return np.stack([distortion.rmse, distortion.mse])


def standard_errors(distortion):
    return np.stack([distortion.rmse_standard_error, distortion.mse_standard_error])


# ---- every pair


def of_pairs(model, design, seed, **options):
    table = table_of(model, design.index(0, len(design)), np.random.default_rng([seed, 7]))
    return table, every_pair_distortion(design, [table], **options)


@pytest.mark.parametrize("draws", [1, 3])
def test_every_pair_is_the_mean_whatever_the_portions_and_their_order(draws):
    model = SyntheticModel(7, 20)
    design = EveryPairDesign(7, 20, draws)
    table, found = of_pairs(model, design, 0)
    mse = table.values["x_start_mse"]
    for t in range(1, 21):
        of_step = mse[table.index.t == t]
        assert found.rmse[t - 1] == pytest.approx(np.sqrt(of_step).mean(), rel=1e-12)
        assert found.mse[t - 1] == pytest.approx(of_step.mean(), rel=1e-12)
    pairs = np.random.default_rng(0).permutation(len(design) // draws)
    portions = [
        table[(some[:, None] * draws + np.arange(draws)).ravel()]
        for some in np.array_split(pairs, 9)
    ]
    again = every_pair_distortion(design, portions)
    np.testing.assert_allclose(means(again), means(found), rtol=1e-12)
    np.testing.assert_allclose(standard_errors(again), standard_errors(found), rtol=1e-9)
    assert np.isnan(standard_errors(found)).all() == (draws == 1)


@pytest.mark.parametrize("draws", [2, 4])
def test_the_error_of_every_pair_is_the_noise_s(draws):
    # Images differ by 35 %, which is no part of it: these images are all there are.
    model = SyntheticModel(10, 20, noise=0.1)
    design = EveryPairDesign(10, 20, draws)
    found = [of_pairs(model, design, seed)[1] for seed in range(SEEDS)]
    errors = np.stack([means(each) for each in found]) - truth(model)
    reported = np.stack([standard_errors(each) for each in found])
    # 150 seeds at 20 steps of independent noise; each number is good to 1 / sqrt(3000).
    spread = np.sqrt(np.square(errors).mean(0))
    assert np.abs((errors.mean(0) / spread).mean(1)).max() < 4 / np.sqrt(SEEDS * 20)
    ratio = np.square(spread).sum(1) / np.square(reported).mean(0).sum(1)
    assert np.sqrt(ratio) == pytest.approx([1, 1], rel=0.08)


# ---- rows of an importance sample


def of_importance(model, seed, *, num_replicates=2, **options):
    generator = np.random.default_rng([seed, 7])
    size = (model.num_images, model.num_timesteps)
    design = ImportanceDesign(*size, model.density(seed, generator), seed, num_replicates)
    table = table_of(model, design.index(0, len(design)), generator)
    return importance_distortion(design, [table], model.features(design), **options)


@functools.cache
def study():
    """(seeds, 2, grid) errors and standard errors, each seed with images of its own."""
    models = [SyntheticModel(200, T, seed=seed) for seed in range(SEEDS)]
    found = [of_importance(model, model.seed) for model in models]
    errors = [means(each) - truth(model) for each, model in zip(found, models, strict=True)]
    reported = [standard_errors(each) for each in found]
    return np.stack(errors)[..., GRID], np.stack(reported)[..., GRID]


def test_importance_is_unbiased():
    errors, _ = study()
    bias = errors.mean(0) / np.sqrt(np.square(errors).mean(0))
    assert np.abs(bias).max() < 3.5 / np.sqrt(SEEDS)
    assert np.abs(bias.mean(1)).max() < 0.06  # of a standard error, over the grid


def test_the_error_of_importance_is_the_reported_one():
    errors, reported = study()
    ratio = np.sqrt(np.square(errors).mean(0) / np.square(reported).mean(0))
    np.testing.assert_allclose(ratio, 1, atol=0.25)
    assert ratio.mean(1) == pytest.approx([1, 1], abs=0.08)


def test_importance_knows_more_than_the_linear_denoiser():
    # That is off by a fifth of the logarithm; and the rows are 400 of 24,000.
    errors, _ = study()
    exact = truth(SyntheticModel(200, T))[:, GRID]
    assert (np.sqrt(np.square(errors).mean(0)) / exact)[:, 1:].max() < 0.06


def test_at_the_first_step_every_image_has_a_row():
    # So that images do not enter the error, only the noise of one draw each.
    model = SyntheticModel(200, T)
    found = of_importance(model, 0)
    exact = truth(model)[:, 0]
    noise = model.noise * exact[1] / np.sqrt(model.num_images)
    assert found.mse[0] == pytest.approx(exact[1], abs=4 * noise)
    assert found.mse_standard_error[0] == pytest.approx(noise, rel=0.35)
    assert found.rmse[0] == pytest.approx(exact[0], abs=4 * noise / exact[0] / 2)


def test_the_portions_and_their_order_do_not_matter():
    model = SyntheticModel(40, T)
    generator = np.random.default_rng(0)
    design = ImportanceDesign(40, T, model.density(0, generator), 0, 4)
    table = table_of(model, design.index(0, len(design)), generator)
    features = model.features(design)
    whole = importance_distortion(design, [table], features)
    portions = [table[at] for at in np.array_split(generator.permutation(len(design)), 7)]
    again = importance_distortion(design, portions, features)
    np.testing.assert_allclose(means(again), means(whole), rtol=1e-9)
    np.testing.assert_allclose(standard_errors(again), standard_errors(whole), rtol=1e-6)


@pytest.mark.parametrize(
    ("num_images", "num_timesteps", "num_replicates"),
    [(1, 1000, 1), (1, 120, 2), (3, 120, 2), (1, 2, 1), (6, 2, 2), (1, 4, 5)],
)
def test_where_rows_are_too_few_it_is_unknown(num_images, num_timesteps, num_replicates):
    model = SyntheticModel(num_images, num_timesteps)
    found = of_importance(model, 0, num_replicates=num_replicates)
    for mean, error in zip(means(found), standard_errors(found), strict=True):
        assert np.isfinite([mean[0], error[0]]).all()
        assert (mean[np.isfinite(mean)] > 0).all()
        assert (error[np.isfinite(error)] > 0).all()
        # Nothing is said without an error.
        np.testing.assert_array_equal(np.isnan(mean), np.isnan(error))
    # Of a single row for many steps most are out of reach, and an error takes two.
    rows = num_images * num_replicates
    assert np.isnan(found.rmse).any() == (rows == 1 or rows < 7 < num_timesteps)
    if rows == 1:
        assert np.isnan(standard_errors(found)[:, 1:]).all()


@pytest.mark.parametrize("kind", ["pairs", "importance"])
def test_each_clip_setting_has_its_own_errors(kind):
    def found(clip):
        model = SyntheticModel(40, 30)
        if kind == "importance":
            return of_importance(model, 0, clip=clip)
        return of_pairs(model, EveryPairDesign(40, 30, 2), 0, clip=clip)[1]

    clipped, unclipped = found(True), found(False)
    for name in (field.name for field in dataclasses.fields(Distortion)):
        factor = np.sqrt(NOCLIP) if name.startswith("rmse") else NOCLIP
        np.testing.assert_allclose(getattr(unclipped, name), factor * getattr(clipped, name))


def test_the_root_of_the_mean_is_no_less_than_the_mean_of_roots():
    for seed in range(20):
        found = of_importance(SyntheticModel(20, T), seed, num_replicates=2)
        known = np.isfinite(found.rmse)
        assert (found.rmse[known] <= np.sqrt(found.mse[known]) * (1 + 1e-12)).all()


def test_the_end_of_a_line_through_few_rows_does_not_leave_their_level():
    # Errors that fall along the window: a line through them ends near 0, or below.
    count, x = np.ones(6), np.ones(6)
    for last in (0.05, 0.0):
        y = np.append(np.linspace(2.0, 0.4, 5), last)
        window = slice(0, 6)
        line = RatioLine.of(np.stack([count, y, x]), 5, window)
        assert len(line.powers) == 1
        assert line.weights @ y == pytest.approx(y.mean())
    gentle = np.linspace(1.2, 1.0, 6)
    assert len(RatioLine.of(np.stack([count, gentle, x]), 5, window).powers) == 2
