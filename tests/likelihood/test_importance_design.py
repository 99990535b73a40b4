"""The importance design: every image at every timestep with its probability, evenly spread."""

import dataclasses

import numpy as np
import pytest
from mixtures import SyntheticModel
from scipy import stats

from ddpmbench.likelihood import terms
from ddpmbench.likelihood.designs import (
    PILOT_DRAW,
    PILOT_IMAGES,
    ImportanceDesign,
    PilotDesign,
    blocks_of,
    decoder_draws,
    proposal_density,
)
from ddpmbench.likelihood.terms import VALUE_COLUMNS, TermTable


def falling(num_timesteps):
    density = 1 / np.arange(2, num_timesteps + 1) ** 1.5
    return density / density.sum()


def addresses(rows):
    return list(zip(rows.image.tolist(), rows.t.tolist(), rows.draw.tolist(), strict=True))


def importance(num_images=50, num_timesteps=20, *, seed=0, num_replicates=2, num_blocks=None):
    density = falling(num_timesteps)
    return ImportanceDesign(num_images, num_timesteps, density, seed, num_replicates, num_blocks)


def pilot_table(pilot, nats):
    values = {name: np.full(len(pilot), np.nan) for name in VALUE_COLUMNS}
    values["nats"] = np.asarray(nats, dtype=float).ravel()
    return TermTable(pilot.index(0, len(pilot)), values)


# ---- the pilot


@pytest.mark.parametrize(("num_images", "num_timesteps"), [(1, 2), (3, 5), (500, 1000), (9, 4000)])
def test_the_pilot_is_small_and_shares_no_noise_with_an_estimate(num_images, num_timesteps):
    pilot = PilotDesign(num_images, num_timesteps, seed=3)
    rows = pilot.index(0, len(pilot))
    assert len(pilot) <= 400
    assert len(set(addresses(rows))) == len(pilot)
    assert rows.image.max() < num_images
    assert (rows.t.min(), rows.t.max()) == (2, num_timesteps)
    assert len(np.unique(rows.image)) == min(num_images, PILOT_IMAGES)
    density = np.full(num_timesteps - 1, 1 / (num_timesteps - 1))
    design = ImportanceDesign(num_images, num_timesteps, density, 3, 4)
    assert design.index(0, len(design)).draw.max() < PILOT_DRAW == rows.draw.min()


def test_the_seed_chooses_the_images_of_the_pilot():
    chosen = {tuple(PilotDesign(100, 10, seed).image.tolist()) for seed in range(20)}
    assert len(chosen) == 20
    share = np.bincount(np.concatenate([PilotDesign(20, 9, s).image for s in range(500)])) / 500
    assert np.abs(share - PILOT_IMAGES / 20).max() < 0.1


def test_the_density_follows_the_standard_deviations():
    model = SyntheticModel(2000, 1000, noise=0.0)
    exact = model.mean[:, 1:].std(0) * np.arange(2, 1001) ** 0.15
    exact /= exact.sum()
    # The variance of an estimate from rows of a density, over that of the best density, if the
    # regression leaves of the deviations what it is taken to.
    excess = []
    for seed in range(20):
        density = model.density(seed, np.random.default_rng(seed))
        assert density.sum() == pytest.approx(1, rel=1e-12)
        assert density.min() > 0.9e-5
        excess.append((exact**2 / density).sum() - 1)
    assert np.mean(excess) < 0.05


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-300, 1e300])
def test_images_that_agree_do_not_kill_a_step(value):
    pilot = PilotDesign(20, 50, 0)
    density = proposal_density(pilot, [pilot_table(pilot, np.full(len(pilot), value))])
    late = np.arange(2, 51) ** (0.15 if value else 0.0)
    np.testing.assert_allclose(density, late / late.sum(), rtol=0.02)


def test_a_single_image_is_sampled_where_its_terms_are():
    pilot = PilotDesign(1, 60, 0)
    density = proposal_density(pilot, [pilot_table(pilot, 1 / pilot.t)])
    np.testing.assert_allclose(density, 1 / np.arange(2, 61) / (1 / np.arange(2, 61)).sum(), 0.02)
    two = PilotDesign(1, 2, 0)
    assert proposal_density(two, [pilot_table(two, [0.3])]).tolist() == [1.0]


def test_a_step_without_variance_keeps_the_floor():
    pilot = PilotDesign(20, 1000, 0)
    nats = np.where(pilot.t < 100, np.arange(len(pilot.image))[:, None] / pilot.t**3, 0.0)
    density = proposal_density(pilot, [pilot_table(pilot, nats)])
    assert density.min() == pytest.approx(1e-5, rel=0.02)


def test_terms_that_are_not_finite_or_not_there_are_refused():
    pilot = PilotDesign(5, 9, 0)
    nats = np.ones(len(pilot))
    with pytest.raises(ValueError, match="finite"):
        proposal_density(pilot, [pilot_table(pilot, nats)[1:]])
    nats[3] = np.nan
    with pytest.raises(ValueError, match="finite"):
        proposal_density(pilot, [pilot_table(pilot, nats)])


# ---- the rows


@pytest.mark.parametrize(("num_images", "num_timesteps"), [(1, 2), (7, 3), (100, 40), (900, 1000)])
@pytest.mark.parametrize("num_replicates", [1, 2, 5])
def test_every_image_comes_once_a_replicate_and_the_decoder_first(
    num_images, num_timesteps, num_replicates
):
    design = importance(num_images, num_timesteps, num_replicates=num_replicates)
    rows = design.index(0, len(design))
    assert len(rows) == len(design) == len(set(addresses(rows)))
    np.testing.assert_array_equal(np.sort(design.image), np.arange(num_images))
    of_block = np.diff(design.block_ends)[0]
    np.testing.assert_array_equal(rows.image[:of_block], design.image[:of_block])
    assert (rows.t[:of_block] == 1).all()
    assert (rows.draw[:of_block] == 0).all()
    for j in range(num_replicates):
        of_replicate = (rows.t > 1) & (rows.draw == j)
        np.testing.assert_array_equal(rows.image[of_replicate], design.image)
        np.testing.assert_array_equal(rows.t[of_replicate], design.t[j])
    draws = np.bincount(rows.image[rows.t == 1])
    redrawn = min(num_images, max(64, -(-num_images // 10)))
    assert (draws - decoder_draws(num_replicates)).sum() == redrawn == len(design.redrawn)
    assert set(np.unique(draws - decoder_draws(num_replicates))) <= {0, 1}


def test_portions_do_not_matter():
    design = importance(77, 30, num_replicates=4)
    whole = addresses(design.index(0, len(design)))
    for size in (1, 13, 200):
        starts = range(0, len(design), size)
        parts = [addresses(design.index(s, min(s + size, len(design)))) for s in starts]
        assert [row for part in parts for row in part] == whole


def test_portions_of_replicates_do_not_matter(monkeypatch):
    whole = importance(num_replicates=7)
    for block_terms in (60, 150):  # one replicate at once, or three
        monkeypatch.setattr(terms, "BLOCK_TERMS", block_terms)
        design = importance(num_replicates=7)
        assert np.array_equal(design.stratum, whole.stratum)
        assert np.array_equal(design.t, whole.t)


def test_more_replicates_change_no_earlier_row():
    short = importance(40, 25, num_replicates=2)
    for num_replicates in (3, 4, 7):
        long = dataclasses.replace(short, num_replicates=num_replicates)
        assert len(long) > len(short)
        assert addresses(long.index(0, len(short))) == addresses(short.index(0, len(short)))
        short = long


def test_more_images_change_no_earlier_row():
    whole = importance(1234, 25, num_replicates=3)
    assert blocks_of(1234) == 6
    every = addresses(whole.index(0, len(whole)))
    assert len(set(every)) == len(every)
    for blocks in range(1, 7):
        design = importance(1234, 25, num_blocks=blocks)
        assert addresses(design.index(0, len(design))) == every[: len(design)]
        assert len(set(design.image)) == design.num_sampled == 1234 * blocks // 6
        np.testing.assert_array_equal(design.position[design.image], np.arange(len(design.image)))
        assert (design.position < 0).sum() == 1234 - design.num_sampled
        redrawn = set(design.redrawn)
        assert redrawn <= set(design.image)
        assert len(redrawn) == 124 * blocks // 6  # a tenth


def test_every_image_is_in_each_block_as_often():
    blocks = [importance(400, 5, seed=seed, num_blocks=1).image for seed in range(1000)]
    counts = np.bincount(np.concatenate(blocks), minlength=400)
    assert stats.chisquare(counts).pvalue > 1e-4
    pairs = np.mean([np.isin([0, 1], of).all() for of in blocks])
    assert pairs == pytest.approx(200 * 199 / 400 / 399, abs=4.5 * np.sqrt(0.1875 / 1000))


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_each_replicate_is_stratified(seed):
    for num_images, num_timesteps in ((1000, 200), (333, 7), (20, 1000)):
        design = importance(num_images, num_timesteps, seed=seed, num_replicates=3)
        share = np.cumsum(design.density)
        for t in design.t:
            for block in np.split(t, design.block_ends[1:-1]):
                below = np.cumsum(np.bincount(block - 2, minlength=num_timesteps - 1))
                assert np.abs(below - len(block) * share).max() < 1 + 1e-9


@pytest.mark.parametrize("over", ["seeds", "num_replicates"])
def test_an_image_is_at_each_step_with_the_probability_of_the_density(over):
    num_images, num_timesteps, repeats = 4, 9, 2000
    if over == "seeds":
        t = np.stack([importance(num_images, num_timesteps, seed=s).t[1] for s in range(repeats)])
    else:
        t = importance(num_images, num_timesteps, num_replicates=repeats).t
    expected = repeats * falling(num_timesteps)
    for of_image in t.T:
        counts = np.bincount(of_image - 2, minlength=num_timesteps - 1)
        assert stats.chisquare(counts, expected).pvalue > 1e-4
    # And within a stratum the step is uniform in the density, not at its middle.
    assert len(np.unique(t)) == num_timesteps - 1


def test_replicates_images_and_seeds_are_independent():
    strata = importance(2000, 50, num_replicates=3).stratum
    other = importance(2000, 50, seed=1).stratum
    pairs = [(strata[0], strata[1]), (strata[1], strata[2]), (strata[0], other[0])]
    pairs += [(strata[0], np.arange(2000)), (strata[0, 1:], strata[0, :-1])]
    for left, right in pairs:
        assert abs(np.corrcoef(left, right)[0, 1]) < 4.5 / np.sqrt(2000)


@pytest.mark.parametrize(
    ("num_images", "density", "num_replicates"),
    [(0, [0.5, 0.5], 2), (3, [1.0], 2), (3, [1.0, 0.0], 2), (3, [0.5, 0.4], 2), (3, [0.5, 0.5], 0)],
)
def test_what_is_no_design_is_refused(num_images, density, num_replicates):
    with pytest.raises(ValueError, match=r"needs an image|density must|one replicate"):
        ImportanceDesign(num_images, 3, np.array(density), 0, num_replicates)
    for num_blocks, replicates in ((0, 2), (6, 2), (4, 3), (4, 1)):
        with pytest.raises(ValueError, match="there are 5 blocks"):
            ImportanceDesign(1000, 3, np.array([0.5, 0.5]), 0, replicates, num_blocks)
    with pytest.raises(ValueError, match="two timesteps"):
        PilotDesign(3, 1, 0)


def test_the_last_bits_of_the_pilot_s_terms_do_not_move_the_density():
    model, pilot = SyntheticModel(200, 120), PilotDesign(200, 120, 0)
    table = model.table(pilot.index(0, len(pilot)), np.random.default_rng(0))
    density = proposal_density(pilot, [table])
    for seed in range(5):
        relative = 1e-7 * np.random.default_rng(seed).normal(size=len(table))
        other = TermTable(table.index, {"nats": table.values["nats"] * (1 + relative)})
        np.testing.assert_array_equal(proposal_density(pilot, [other]), density)
    other = TermTable(table.index, {"nats": table.values["nats"] ** 1.1})
    assert np.abs(proposal_density(pilot, [other]) / density - 1).max() > 0.01
