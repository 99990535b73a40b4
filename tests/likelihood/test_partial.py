"""The bound on the images that are left: exact for every pair, unbiased and covered for a warp."""

from functools import partial

import numpy as np
import pytest
from mixtures import SyntheticModel

from ddpmbench.likelihood.bound import estimate_bound
from ddpmbench.likelihood.designs import EveryPair, RotatedWarp, decoder_draws
from ddpmbench.likelihood.estimator import horvitz_thompson
from ddpmbench.likelihood.partial import partial_bound
from ddpmbench.likelihood.rate_distortion import distortion_of_pairs
from ddpmbench.likelihood.terms import Rows

SEEDS = 200
MODEL = SyntheticModel(num_images=150, num_timesteps=60)
EXACT = SyntheticModel(num_images=7, num_timesteps=5)


def without(table, *gaps):
    """The portions of a table around the gaps."""
    edges = [0, *(edge for gap in gaps for edge in gap), len(table)]
    return [table[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True) if b > a]


def full_table(model, design, seed=0):
    return model.table(design.rows(0, len(design)), np.random.default_rng(seed))


# ---- every pair


@pytest.mark.parametrize("draws", [1, 2, 3])
def test_every_pair_is_the_evaluation_of_the_images_that_are_left(draws):
    design = EveryPair(EXACT.num_images, EXACT.num_timesteps, draws)
    table, an_image = full_table(EXACT, design), EXACT.num_timesteps * draws
    # The last pair of image 0 and the first of image 1; one of image 4.
    gaps = ((an_image - draws, an_image + draws), (4 * an_image + draws, 4 * an_image + 2 * draws))
    found = partial_bound(design, EXACT.prior, lambda: without(table, *gaps))
    left = np.array([2, 3, 5, 6])
    assert list(found.image) == list(left)
    assert found.num_rows == len(left) * an_image
    nats = table.values["nats"].reshape(EXACT.num_images, -1, draws)[left]
    total = EXACT.prior[left] + nats.mean(2).sum(1)
    np.testing.assert_allclose(found.bound.total, total, rtol=1e-13)
    np.testing.assert_allclose(found.bound.term, nats.mean((0, 2)), rtol=1e-13)
    np.testing.assert_allclose(found.bound.decoder, nats[:, 0].mean(1), rtol=1e-13)
    mse = table.values["x_start_mse"].reshape(EXACT.num_images, -1, draws)[left]
    np.testing.assert_allclose(found.distortion.rmse, np.sqrt(mse).mean((0, 2)), rtol=1e-13)
    np.testing.assert_allclose(found.distortion.mse, mse.mean((0, 2)), rtol=1e-13)
    if draws == 1:
        assert found.bound.half_width is None
        return
    error = np.sqrt(nats.var(axis=2, ddof=1).sum(0) / draws) / len(left)
    np.testing.assert_allclose(found.bound.term_standard_error, error, rtol=1e-12)


def test_with_every_row_it_is_the_whole_bound():
    design = EveryPair(EXACT.num_images, EXACT.num_timesteps, 2)
    table = full_table(EXACT, design)
    found = partial_bound(design, EXACT.prior, lambda: [table])
    whole = estimate_bound(design, EXACT.prior, [table])
    assert found.bound.nats == whole.nats
    assert found.bound.half_width == whole.half_width
    np.testing.assert_array_equal(found.distortion.rmse, distortion_of_pairs(design, [table]).rmse)


def test_clip_chooses_the_error():
    design = EveryPair(EXACT.num_images, EXACT.num_timesteps, 2)
    table = full_table(EXACT, design)
    table.values["x_start_mse_noclip"] = 4 * table.values["x_start_mse"]
    of = partial(partial_bound, design, EXACT.prior, lambda: [table])
    clipped, raw = of(clip=True), of(clip=False)
    np.testing.assert_allclose(raw.bound.x_start_mse, 4 * clipped.bound.x_start_mse)
    np.testing.assert_allclose(raw.distortion.rmse, 2 * clipped.distortion.rmse)


# ---- a rotated warp


def warp(seed, rotations=2, model=MODEL):
    density = model.density(0, np.random.default_rng(5))
    return RotatedWarp(model.num_images, model.num_timesteps, density, seed, rotations)


def loss(design, seed=0, model=MODEL):
    """What is left without the decoder of images 0..19 and rotation 1 of images 100..129."""
    size, table = design.num_images, full_table(model, design, seed)
    last = len(design) - size
    assert design.rows(last, last + 1).draw == design.rotations - 1
    left = without(table, (0, 20), (last + 100, last + 130))
    return partial_bound(design, model.prior, lambda: left)


@pytest.fixture(scope="module")
def estimates():
    return [loss(warp(seed), seed) for seed in range(SEEDS)]


LEFT = np.r_[20:100, 130:150]


def z_of_mean(errors):
    return np.abs(errors.mean(0)) / (errors.std(axis=0, ddof=1) / np.sqrt(len(errors)))


def test_it_is_of_the_images_all_of_whose_rows_are_left(estimates):
    for found in estimates[:5]:
        np.testing.assert_array_equal(found.image, LEFT)
        assert found.bound.num_evaluations.sum() == found.num_rows
        assert found.bound.prior == MODEL.prior[LEFT].mean()
        assert found.bound.num_evaluations[1:].sum() == 2 * len(LEFT)


def test_it_is_unbiased_for_them_and_its_interval_covers(estimates):
    truth = (MODEL.prior + MODEL.mean.sum(1))[LEFT].mean()
    assert abs(truth - MODEL.truth) > 0.02  # of other images it would be another number
    errors = np.array([found.bound.nats for found in estimates]) - truth
    half_width = np.array([found.bound.half_width for found in estimates])
    assert z_of_mean(errors) < 4
    assert (np.abs(errors) <= half_width).mean() >= 0.93
    # Conservative, but not by much.
    assert half_width.mean() < 1.5 * 1.96 * errors.std()


def test_its_steps_are_unbiased_and_so_is_the_rate(estimates):
    truth = MODEL.mean[LEFT].mean(0)
    terms = np.array([found.bound.term for found in estimates])
    assert z_of_mean(terms - truth).max() < 4.5
    said = np.sqrt(np.mean([found.bound.term_standard_error**2 for found in estimates], axis=0))
    spread = terms.std(axis=0)
    assert (said > 0.85 * spread).all()
    assert said.sum() < 1.5 * spread.sum()
    after = np.append(np.cumsum(truth[:0:-1])[::-1], 0.0)
    errors = np.array([found.bound.rate for found in estimates]) - MODEL.prior[LEFT].mean() - after
    said = np.array([found.bound.rate_standard_error for found in estimates])
    for t in (1, 2, 4, 8, 16, 32):
        assert z_of_mean(errors[:, t - 1]) < 4
        assert (np.abs(errors[:, t - 1]) <= 2 * said[:, t - 1]).mean() >= 0.9
    for found in estimates[:5]:
        assert found.bound.term[1:].sum() == pytest.approx(found.bound.kl, rel=1e-12)


def test_its_distortion_is_the_mean_of_the_rows_of_a_step():
    design = warp(0, 6)
    found = loss(design)
    table = full_table(MODEL, design)
    kept = np.isin(table.rows.image, LEFT)
    count = found.bound.num_evaluations
    often = 2 + int(np.argmax(count[1:]))
    assert count[often - 1] >= 10
    known = 1 + np.flatnonzero(count >= 10)
    assert {1, 2, often} <= set(known)
    for t in known:
        at_step = kept & (table.rows.t == t) & ((t > 1) | (table.rows.draw == 0))
        mse = table.values["x_start_mse"][at_step]
        assert found.distortion.mse[t - 1] == pytest.approx(mse.mean())
        assert found.distortion.rmse[t - 1] == pytest.approx(np.sqrt(mse).mean())
        if t == often:
            error = mse.std(ddof=1) / np.sqrt(len(mse))
            assert found.distortion.mse_standard_error[t - 1] == pytest.approx(error)
    assert (count < 10).any()
    np.testing.assert_array_equal(np.isnan(found.distortion.rmse), count < 10)
    np.testing.assert_array_equal(np.isnan(found.distortion.rmse_standard_error), count < 10)


@pytest.mark.parametrize("rotations", [2, 3, 5])
def test_with_every_row_it_is_the_plain_estimate(rotations):
    design = warp(3, rotations)
    table = full_table(MODEL, design)
    found = partial_bound(design, MODEL.prior, lambda: [table]).bound
    plain = horvitz_thompson(design, MODEL.prior, [table])
    assert found.nats == pytest.approx(plain.nats, rel=1e-12)
    np.testing.assert_allclose(found.term, plain.term, rtol=1e-10)
    np.testing.assert_array_equal(found.num_evaluations, plain.num_evaluations)
    np.testing.assert_array_equal(found.x_start_mse, plain.x_start_mse)
    # Of all images the cells are complete, which the interval of some does not count on.
    assert found.half_width > plain.half_width


def test_all_draws_of_the_decoder_count():
    design = warp(0, 5)
    assert decoder_draws(5) == 3
    found = loss(design)
    assert found.bound.num_evaluations[0] == 3 * len(LEFT) + np.isin(design.redrawn, LEFT).sum()
    table = full_table(MODEL, design)
    first = table.rows.t == 1
    of_image = [table.values["nats"][first & (table.rows.image == n)].mean() for n in LEFT]
    assert found.bound.decoder == pytest.approx(np.mean(of_image))


def test_without_a_second_draw_the_interval_is_not_known():
    design = warp(1)
    again = (design.num_images, design.num_images + len(design.redrawn))
    left = without(full_table(MODEL, design), again)
    found = partial_bound(design, MODEL.prior, lambda: left)
    assert not np.isin(found.image, design.redrawn).any()
    assert np.isnan(found.bound.half_width)
    assert np.isnan(found.distortion.rmse_standard_error[0])
    assert found.bound.half_width_population > 0
    truth = (MODEL.prior + MODEL.mean.sum(1))[found.image].mean()
    assert found.bound.nats == pytest.approx(truth, abs=found.bound.half_width_population)


# ---- both


@pytest.mark.parametrize("design", [EveryPair(7, 5, 2), warp(0, model=EXACT)])
def test_without_a_whole_image_there_is_nothing(design):
    table = full_table(EXACT, design)
    lost = np.isin(table.rows.t, [1, 2])
    rows = Rows(*(getattr(table.rows, name)[~lost] for name in ("image", "t", "draw")))
    left = type(table)(rows, {name: values[~lost] for name, values in table.values.items()})
    assert partial_bound(design, EXACT.prior, lambda: [left]) is None
    assert partial_bound(design, EXACT.prior, lambda: []) is None


def test_portions_do_not_matter():
    design = warp(2)
    left = full_table(MODEL, design)[37:]
    cut = [left[k : k + 37] for k in range(0, len(left), 37)]
    one, many = (partial_bound(design, MODEL.prior, lambda x=x: x).bound for x in ([left], cut))
    assert one.nats == pytest.approx(many.nats, rel=1e-13)
    assert one.half_width == pytest.approx(many.half_width, rel=1e-12)
