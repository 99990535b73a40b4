"""The bound from sampled rows: unbiased, with intervals that cover, from fewer calls."""

import copy
import dataclasses
import functools
import math
from unittest import mock

import numpy as np
import pytest
import torch
from mixtures import SyntheticModel, calibration, study_of, z_score
from oracles import expected_terms, oracle_checkpoint, oracle_images

from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.likelihood import designs
from ddpmbench.likelihood.bound import cumulative_rate
from ddpmbench.likelihood.designs import ImportanceDesign, PilotDesign, proposal_density
from ddpmbench.likelihood.importance_estimator import (
    RunningBound,
    design_needed,
    horvitz_thompson,
    initial_design,
    initial_replicates,
    regression_estimate,
)
from ddpmbench.likelihood.regression import FeatureTable, GaussianFeatures, predict, predict_each
from ddpmbench.likelihood.sampled_terms import StratumMeans
from ddpmbench.likelihood.terms import TermsPass, concatenate

SEEDS = 300
# Half widths that make the rule add replicates at most seeds, but not at all.
GOALS = {"ht": 0.066, "regression": 0.042}


def sampled(num_images, num_timesteps, num_replicates=2, *, seed=0, num_blocks=None, **model):
    """A model, a design with its proposal, and the terms."""
    model, generator = (
        SyntheticModel(num_images, num_timesteps, **model),
        np.random.default_rng(seed),
    )
    density = model.density(seed, generator)
    design = ImportanceDesign(num_images, num_timesteps, density, seed, num_replicates, num_blocks)
    return model, design, model.table(design.index(0, len(design)), generator)


def estimate(kind, model, design, tables):
    if kind == "ht":
        return horvitz_thompson(design, model.prior, tables)
    features = model.features(design, garbage=kind == "garbage")
    return regression_estimate(design, model.prior, tables, features)


def measure(kind, model, seed, *, goal=None):
    """A whole run: pilot, first replicates, and more while the rule asks for them."""
    (run,) = measure_each([(kind, goal)], model, seed)
    return run


def measure_each(ways, model, seed):
    """Runs of several kinds and goals, which have their pilot and first terms in common."""
    generator = np.random.default_rng([seed, 7])
    density = model.density(seed, generator)
    first = initial_design(model.num_images, model.num_timesteps, density, seed)
    whole = first.blocks == designs.blocks_of(model.num_images)
    first_table = model.table(first.index(0, len(first)), generator)
    for kind, goal in ways:
        assert whole or goal
        design, tables, own = first, [first_table], copy.deepcopy(generator)
        bound = estimate(kind, model, design, tables)
        while goal and len(longer := design_needed(design, bound, goal)) > len(design):
            tables.append(model.table(longer.index(len(design), len(longer)), own))
            design = longer
            bound = estimate(kind, model, design, tables)
        yield design, bound


WAYS = ("ht", None), ("regression", None), ("garbage", None), *GOALS.items()


@functools.cache
def studies(ways=WAYS, *, num_images=200, num_timesteps=100, seeds=SEEDS, block=None):
    """Many runs of each kind and goal; of images in blocks of as many as are given."""
    runs = {way: [] for way in ways}
    with mock.patch.object(designs, "BLOCK_IMAGES", block or designs.BLOCK_IMAGES):
        for seed in range(seeds):
            model = SyntheticModel(num_images, num_timesteps, seed=seed)
            rate = cumulative_rate(model.prior.mean(), model.mean.mean(0))
            deviation = (model.prior + model.mean.sum(1)).std(ddof=1)
            for way, (design, bound) in zip(ways, measure_each(ways, model, seed), strict=True):
                runs[way].append(
                    {
                        "error": bound.nats - model.truth,
                        "population_error": bound.nats - model.population_truth,
                        "half_width": bound.half_width,
                        "half_width_population": bound.half_width_population,
                        "deviation": bound.image_deviation - deviation,
                        "term_error": bound.term - model.mean.mean(0),
                        "term_standard_error": bound.term_standard_error,
                        "rate_error": bound.rate - rate,
                        "rate_standard_error": bound.rate_standard_error,
                        "replicates": design.num_replicates,
                        "sampled": design.num_sampled,
                    }
                )
    return {way: study_of(found) for way, found in runs.items()}


def study(kind, goal=None):
    """Those on all of 200 images."""
    return studies()[kind, goal]


def check_both_intervals(found):
    """The bound is unbiased and covered, by intervals as wide as the errors are."""
    for error, half_width in (
        (found.error, found.half_width),
        (found.population_error, found.half_width_population),
    ):
        assert abs(z_score(error)) < 3
        assert 0.93 <= (np.abs(error) <= half_width).mean() <= 0.97
    assert found.half_width.mean() / 1.96 / found.error.std() == pytest.approx(1, abs=0.1)


RATES = np.array([1, 2, 3, 5, 9, 16, 30, 50, 75, 90]) - 1
"""Timesteps at which the rate's error is looked at."""


def check_rate_errors(found):
    ratio = calibration(found.rate_standard_error[:, :-1], found.rate_error[:, :-1])
    np.testing.assert_allclose(ratio[RATES], 1, atol=0.15)


# ---- unbiased, and covered


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "stops"),
    [("ht", False), ("ht", True), ("regression", False), ("regression", True), ("garbage", False)],
)
def test_the_bound_is_unbiased_and_both_intervals_cover(kind, stops):
    found = study(kind, GOALS[kind] if stops else None)
    check_both_intervals(found)
    if stops:
        assert (found.half_width <= GOALS[kind]).all()
        assert found.replicates.max() > 2


WAYS_OF_BLOCKS = ("ht", 0.12), ("regression", 0.07), ("garbage", 0.13)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "goal"), WAYS_OF_BLOCKS)
def test_a_sample_of_the_images_is_unbiased_and_both_intervals_cover(kind, goal):
    found = studies(WAYS_OF_BLOCKS, num_images=400, seeds=200, block=20)[kind, goal]
    check_both_intervals(found)
    assert (found.half_width <= goal).all()
    assert 80 < np.median(found.sampled) < 320
    assert np.abs(z_score(found.term_error)).max() < 4.5
    ratio = calibration(found.term_standard_error, found.term_error)
    assert ratio.mean() == pytest.approx(1, abs=0.15)
    assert abs(found.deviation.mean()) < 0.05
    if kind == "regression":  # the rates that a run shows
        check_rate_errors(found)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ht", "regression"])
@pytest.mark.parametrize("num_images", [8, 30])
def test_the_intervals_cover_with_few_images(kind, num_images):
    ways = ("ht", 0.05), ("regression", 0.05)
    found = studies(ways, num_images=num_images, num_timesteps=40, seeds=150)[kind, 0.05]
    assert abs(z_score(found.error)) < 3
    # The decoder's noise is known from few draws, of images that differ.
    assert 0.91 <= (np.abs(found.error) <= found.half_width).mean() <= 0.985


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ht", "regression"])
def test_the_interval_covers_where_the_noise_is_all_there_is(kind):
    # With two steps every image is at t = 2 in every replicate.
    found = studies(WAYS[:2], num_timesteps=2)[kind, None]
    assert abs(z_score(found.error)) < 3
    assert 0.93 <= (np.abs(found.error) <= found.half_width).mean() <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ht", "regression"])
def test_the_terms_of_the_steps_are_unbiased_and_know_their_errors(kind):
    found = study(kind)
    assert np.abs(z_score(found.term_error)).max() < 4.5
    ratio = calibration(found.term_standard_error, found.term_error)
    assert ratio.mean() == pytest.approx(1, abs=0.15)
    assert 0.6 < ratio.min() < ratio.max() < 1.8


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ht", "regression"])
def test_the_rate_is_unbiased_and_knows_its_error_at_every_step(kind):
    found = study(kind)
    assert np.abs(z_score(found.rate_error[:, :-1])).max() < 4.5
    assert found.rate_error[:, -1] == pytest.approx(0, abs=1e-12)
    check_rate_errors(found)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ht", "regression"])
def test_the_spread_of_the_images_is_found_without_the_error_of_each(kind):
    found = study(kind)
    assert abs(found.deviation.mean()) < 0.05  # of 0.8; a total's own error is 0.3 to 0.5


@pytest.mark.slow
def test_a_half_width_needs_fewer_calls_the_more_is_known():
    model, goal = SyntheticModel(1000, 300), 0.025
    # Stratified uniform: t = 1 on all, m random images at every other step.
    variance = model.mean[:, 1:].var(0, ddof=1).sum()
    calls = {"uniform": 1000 + 299 * variance / (goal / 1.96) ** 2}
    for kind in ("ht", "regression"):
        pilot = len(PilotDesign(1000, 300, 0))
        runs = [measure(kind, model, seed, goal=goal) for seed in range(5)]
        assert all(bound.half_width <= goal for _, bound in runs)
        calls[kind] = pilot + np.mean([bound.num_evaluations.sum() for _, bound in runs])
    assert calls["regression"] < 0.7 * calls["ht"]
    assert calls["ht"] < 0.3 * calls["uniform"]


# ---- exact laws of one estimate


@pytest.mark.parametrize("kind", ["ht", "regression"])
@pytest.mark.parametrize(
    ("num_images", "num_timesteps", "num_blocks"),
    [(1, 2, 1), (1, 30, 1), (3, 3, 1), (150, 80, 1), (900, 40, 1), (900, 40, 3), (900, 40, 4)],
)
@pytest.mark.parametrize("num_replicates", [2, 3, 5])
def test_the_terms_sum_to_the_bound(kind, num_images, num_timesteps, num_blocks, num_replicates):
    if num_blocks < designs.blocks_of(num_images):
        num_replicates = 2
    model, design, table = sampled(num_images, num_timesteps, num_replicates, num_blocks=num_blocks)
    bound = estimate(kind, model, design, [table])
    assert bound.term.sum() + bound.prior == pytest.approx(bound.nats, rel=1e-10)
    assert bound.nats == pytest.approx(bound.prior + bound.kl + bound.decoder, rel=1e-12)
    assert bound.num_evaluations.sum() == len(design)
    assert (bound.half_width_population is None) == (num_images == 1)
    assert bound.half_width > 0
    there = bound.num_evaluations > 0
    for name in ("x_start_mse", "eps_mse"):
        values = getattr(bound, name)
        assert np.isfinite(values[there | (kind == "regression")]).all()
        assert np.isnan(values[~there]).all() or kind == "regression"
    if kind == "ht":
        assert (bound.term[~there] == 0).all()


def test_portions_and_their_order_do_not_matter():
    model, design, whole = sampled(60, 40, 3)
    cuts = [whole[i : i + 17] for i in range(0, len(whole), 17)]
    for kind in ("ht", "regression"):
        expected = estimate(kind, model, design, [whole])
        found = estimate(kind, model, design, cuts[::-1])
        for field in dataclasses.fields(expected):
            if field.name in ("predictions", "sample"):
                continue
            one, other = getattr(found, field.name), getattr(expected, field.name)
            np.testing.assert_allclose(one, other, rtol=1e-12, err_msg=field.name)


def test_terms_that_the_features_predict_leave_no_error_but_the_noise():
    model, design, table = sampled(2000, 60, noise=0.0)
    features = model.features(design)
    later = table.index.t > 1
    place = (table.index.draw[later], design.position[table.index.image[later]])
    table.values["nats"][later] = 2 * features.at_terms[place]
    bound = regression_estimate(design, model.prior, [table], features)
    exact = 2 * features.timestep_means[:, 0]
    assert bound.half_width < 0.01 * bound.kl  # what is left of it is the shrinkage
    np.testing.assert_allclose(bound.term[1:], exact, rtol=0.05)


def test_a_model_without_differences_has_no_interval():
    _, design, table = sampled(300, 20)
    # Every image the same, and the terms in proportion to the density: every row says the same.
    table.values["nats"][:] = np.where(
        table.index.t == 1, 1.0, 3 * design.density[table.index.t - 2]
    )
    bound = horvitz_thompson(design, np.zeros(300), [table])
    assert bound.nats == pytest.approx(4, rel=1e-12)
    assert bound.half_width < 1e-9


@pytest.mark.parametrize("kind", ["ht", "regression"])
@pytest.mark.parametrize("num_images", [8, 30])
def test_the_interval_of_the_population_contains_the_other(kind, num_images):
    for seed in range(20):
        model, design, table = sampled(num_images, 40, 3, seed=seed)
        # Images that are all alike: what differs is noise.
        alike, noise = model.mean.mean(0)[table.index.t - 1], np.random.default_rng([seed, 1])
        table.values["nats"][:] = alike * (1 + 0.1 * noise.normal(size=len(table)))
        bound = estimate(kind, model, design, [table])
        assert bound.half_width_population >= bound.half_width


def test_the_predictions_for_a_replicate_do_not_know_its_terms():
    (model, design, _), generator = sampled(100, 50, 3), np.random.default_rng(0)
    features, nats = model.features(design), generator.normal(size=(3, 100))
    before = predict(design, nats, features)
    nats[1] += generator.normal(size=100)
    after = predict(design, nats, features)
    for name in ("terms", "totals", "timesteps"):
        one, other = getattr(before, name), getattr(after, name)
        np.testing.assert_allclose(one[1], other[1], rtol=1e-9, atol=1e-12)  # sums round
        for j in (0, 2):
            assert np.abs(one[j] - other[j]).max() > 0.01


def test_terms_of_several_kinds_are_predicted_as_each_alone():
    (model, design, _), generator = sampled(100, 50, 3), np.random.default_rng(0)
    features, nats = model.features(design), generator.exponential(size=(4, 3, 100))
    for together, of_kind in zip(predict_each(design, nats, features), nats, strict=True):
        alone = predict(design, of_kind, features)
        for name, values in vars(alone).items():
            np.testing.assert_allclose(getattr(together, name), values, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("num_images", [37, 703])  # of 703 the blocks differ in size
def test_the_mean_over_the_strata_is_the_mean_over_the_density(num_images):
    _, design, _ = sampled(num_images, 50)
    values = np.random.default_rng(1).normal(size=(49, 2))
    means = StratumMeans(design, values)
    ends, found = np.append(0, np.cumsum(design.density)), means.at(slice(0, num_images))
    for image in range(num_images):
        low, strata = design.stratum[:, image, None], design.num_strata[image]
        high, low = (low + 1) / strata, low / strata
        share = np.clip(np.minimum(ends[1:], high) - np.maximum(ends[:-1], low), 0, None) * strata
        np.testing.assert_allclose(found[:, image], share @ values, rtol=0, atol=1e-11)
    np.testing.assert_allclose(found.mean((0, 1)), design.density @ values, rtol=1e-12)
    of_each = means.of_replicates(slice(5, num_images))
    np.testing.assert_array_equal(of_each, np.stack([found[0, 5:, 0], found[1, 5:, 1]]))


# ---- the rule


def replicates_needed(design, bound, half_width):
    return design_needed(design, bound, half_width).num_replicates


def test_the_rule_asks_for_as_many_replicates_as_the_variance_says():
    model = SyntheticModel(300, 60)
    design, bound = measure("regression", model, 0)
    assert replicates_needed(design, bound, bound.half_width) == 2
    assert replicates_needed(design, bound, 0.99 * bound.half_width) == 3
    assert replicates_needed(design, bound, 0.01 * bound.half_width) == 4  # at most doubled
    long, bound = measure("regression", model, 0, goal=bound.half_width / 3)
    assert 2 * 5 < long.num_replicates < 2 * 20
    with pytest.raises(ValueError, match="positive"):
        replicates_needed(design, bound, 0.0)


def test_the_rule_asks_for_images_first():
    model, generator = SyntheticModel(2000, 60), np.random.default_rng(0)
    density = model.density(0, generator)
    design = initial_design(2000, 60, density, 0)
    assert (design.blocks, design.num_sampled) == (2, 400)
    table = model.table(design.index(0, len(design)), generator)
    bound = estimate("regression", model, design, [table])
    wider = [design_needed(design, bound, scale * bound.half_width) for scale in (1, 0.99, 0.01)]
    assert [of.blocks for of in wider] == [2, 3, 4]
    # Half of the images have half the variance of a quarter, less what is known of these.
    long, at_goal = measure("regression", model, 0, goal=0.5 * bound.half_width)
    assert long.num_replicates == 2
    assert 1000 <= long.num_sampled <= 1800
    whole, bound = measure("regression", model, 0, goal=0.1 * bound.half_width)
    assert whole.num_sampled == 2000
    assert whole.num_replicates > 2
    assert bound.image_variance == 0 < at_goal.image_variance


def test_with_few_images_the_first_look_waits():
    assert [initial_replicates(n) for n in (1, 8, 150, 200, 10_000)] == [400, 50, 3, 2, 2]
    blocks = [initial_design(n, 3, np.array([0.5, 0.5]), 0).blocks for n in (8, 399, 400, 10_000)]
    assert blocks == [1, 1, 2, 5]
    model, design, table = sampled(8, 30)
    bound = estimate("ht", model, design, [table])
    assert replicates_needed(design, bound, 100.0) == initial_replicates(8)


def test_the_noise_of_the_decoder_can_be_brought_down_too():
    model = SyntheticModel(100, 30, noise=0.2)
    _, bound = measure("regression", model, 0, goal=0.02)
    assert bound.half_width <= 0.02  # a single draw of the decoder has 0.05
    assert bound.num_evaluations[0] > 600


@pytest.mark.parametrize("change", ["missing", "twice", "other image", "one replicate"])
def test_rows_that_are_not_those_of_the_design_are_noticed(change):
    model, design, table = sampled(30, 20, 1 if change == "one replicate" else 2)
    if change == "missing":
        table = table[:-1]
    elif change == "twice":
        table = concatenate([table[:-1], table[-2:-1]])
    elif change == "other image":
        table.index.image[:] = np.roll(table.index.image, 1)
    for kind in ("ht", "regression"):
        with pytest.raises(ValueError, match=r"exactly once|another design|one replicate"):
            estimate(kind, model, design, [table])


# ---- the bound while terms still arrive


def followed(num_images=200, num_timesteps=120, *, portion, seed=0, **model):
    """The model, the bound after every portion, and the estimate from all terms."""
    model, design, table = sampled(num_images, num_timesteps, 4, seed=seed, **model)
    running = RunningBound(design, float(model.prior.mean()))
    bounds = [running.add(table[i : i + portion]) for i in range(0, len(table), portion)]
    return model, bounds, horvitz_thompson(design, model.prior, [table])


@pytest.mark.parametrize("portion", [1, 7, 10_000])
def test_it_ends_at_the_plain_estimate_but_for_the_decoder_s_later_draws(portion):
    _, bounds, exact = followed(portion=portion)
    assert bounds[-1].nats == pytest.approx(exact.nats, abs=0.02)
    _, bounds, exact = followed(portion=portion, noise=0.0)
    assert bounds[-1].nats == pytest.approx(exact.nats, rel=1e-12)
    assert bounds[-1].half_width > exact.half_width


def test_it_is_unbiased_and_no_narrower_than_its_errors_while_terms_arrive():
    errors, half_widths = [], []
    for seed in range(100):
        model, bounds, _ = followed(portion=350, seed=seed)
        errors.append([bound.nats - model.truth for bound in bounds if bound])
        half_widths.append([bound.half_width for bound in bounds if bound])
    errors, half_widths = np.array(errors), np.array(half_widths)
    assert errors.shape[1] > 2
    assert np.abs(z_score(errors)).max() < 4
    assert ((np.abs(errors) <= half_widths).mean(0) > 0.93).all()


@pytest.mark.parametrize(("num_images", "num_timesteps"), [(1, 2), (1, 30), (2, 2), (3, 40)])
def test_few_terms_are_no_trouble(num_images, num_timesteps):
    _, bounds, _ = followed(num_images, num_timesteps, portion=1)
    assert bounds[0] is None
    for bound in filter(None, bounds):
        assert math.isfinite(bound.nats)
        assert bound.half_width >= 0


# ---- with a network


@pytest.mark.slow
def test_a_network_is_measured_without_bias():
    images, seeds = oracle_images(12), 60
    checkpoint = oracle_checkpoint(images, NoiseSchedule.linear(24), spread=0.05)
    truth = expected_terms(checkpoint, images, draws=400)
    features = GaussianFeatures.fit(images.pixels, checkpoint.schedule)
    error, covered = {"ht": [], "regression": []}, 0
    for seed in range(seeds):
        network = TermsPass(
            checkpoint, images, seed=seed, decoder="exact", device=torch.device("cpu")
        )
        prior, pilot = network.prior(np.arange(12)), PilotDesign(12, 24, seed)
        density = proposal_density(pilot, [network.terms(pilot.index(0, len(pilot)))])
        design = ImportanceDesign(12, 24, density, seed, initial_replicates(12))
        table = network.terms(design.index(0, len(design)))
        known = FeatureTable.of(features, images.pixels, design)
        for kind, bound in (
            ("ht", horvitz_thompson(design, prior, [table])),
            ("regression", regression_estimate(design, prior, [table], known)),
        ):
            error[kind].append(bound.nats - truth.nats)
            covered += abs(bound.nats - truth.nats) <= bound.half_width
    own = np.sqrt(np.square(truth.standard_error).sum()) / 12
    for errors in error.values():
        deviation = np.hypot(np.std(errors) / np.sqrt(seeds), own)
        assert abs(np.mean(errors)) < 3 * deviation
    assert covered > 0.88 * 2 * seeds
