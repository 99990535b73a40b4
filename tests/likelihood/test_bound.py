"""The reduction: intervals that cover, and rows that are all there."""

import functools
import itertools

import numpy as np
import pytest

from ddpmbench.likelihood.bound import (
    estimate_bound,
    freedom_of_parts,
    half_width_of,
    quantile,
)
from ddpmbench.likelihood.designs import EveryPairDesign
from ddpmbench.likelihood.terms import VALUE_COLUMNS, TermTable

REPEATS = 2000


def table(design, nats):
    values = dict.fromkeys(VALUE_COLUMNS, np.zeros(len(design)))
    values["nats"] = np.asarray(nats, dtype=float)
    return TermTable(index_of(design), values)


@functools.cache
def index_of(design):
    return design.index(0, len(design))


def synthetic(design, generator, *, image_spread, noise):
    """Terms of known mean 1 a step, images and noise that vary, the noise most at small t."""
    image = image_spread * generator.normal(size=(design.num_images, 1, 1))
    size = (design.num_images, design.num_timesteps, design.draws)
    scale = noise / np.arange(1, design.num_timesteps + 1)[:, None]
    truth = 1 + np.broadcast_to(image, size)
    return truth[:, :, 0].sum(1), (truth + scale * generator.normal(size=size)).ravel()


@pytest.mark.parametrize(("num_images", "draws"), [(1, 2), (2, 2), (8, 2), (3, 4), (40, 2)])
def test_the_interval_for_these_images_covers(num_images, draws):
    design, generator = EveryPairDesign(num_images, 6, draws), np.random.default_rng(0)
    prior, covered = np.zeros(num_images), 0
    for _ in range(REPEATS):
        truth, nats = synthetic(design, generator, image_spread=0.5, noise=1.0)
        bound = estimate_bound(design, prior, [table(design, nats)])
        covered += abs(bound.nats - truth.mean()) <= bound.half_width
    # Satterthwaite's degrees of freedom are estimated from few draws where there are few images;
    # they may then err, but to the wide side.
    assert 0.935 * REPEATS <= covered <= (0.965 if num_images == 40 else 0.995) * REPEATS


@pytest.mark.parametrize("num_images", [4, 16])
def test_two_draws_have_as_many_degrees_of_freedom_as_they_should(num_images):
    """Where all pairs are equally noisy there is one per pair, and the interval is tight."""
    design, generator = EveryPairDesign(num_images, 6, 2), np.random.default_rng(1)
    covered, ratios = 0, []
    for _ in range(REPEATS):
        nats = generator.normal(size=len(design))
        bound = estimate_bound(design, np.zeros(num_images), [table(design, nats)])
        covered += abs(bound.nats) <= bound.half_width
        standard_error = np.sqrt(np.square(bound.term_standard_error).sum())
        ratios.append(bound.half_width / standard_error)
    assert 0.94 * REPEATS <= covered <= 0.96 * REPEATS
    assert np.mean(ratios) == pytest.approx(quantile(6 * num_images), rel=0.015)


def test_one_formula_gives_the_degrees_of_freedom_of_every_estimate():
    """Of every pair and of sampled rows: the pairs, summed as they come, against all at once."""
    design, generator = EveryPairDesign(30, 5, 2), np.random.default_rng(2)
    nats = generator.normal(size=len(design))
    variances = nats.reshape(-1, 2).var(1, ddof=1) / 2 / 30**2
    bound = estimate_bound(design, np.zeros(30), [table(design, nats)])
    freedom = freedom_of_parts(variances, np.full(len(variances), 1))
    assert bound.half_width == pytest.approx(half_width_of(variances.sum(), freedom), rel=1e-3)


@pytest.mark.parametrize("freedom", [1, 2, 9])
def test_degrees_of_freedom_of_a_single_part_are_its_own(freedom):
    assert freedom_of_parts(np.array([3.0]), np.array([freedom])) == pytest.approx(freedom)


@pytest.mark.parametrize("num_images", [2, 5, 40])
@pytest.mark.parametrize("noise", [0.0, 1.5])
def test_the_interval_for_the_population_covers(num_images, noise):
    design, generator = EveryPairDesign(num_images, 6, 2), np.random.default_rng(0)
    covered = 0
    for _ in range(REPEATS):
        # The prior varies with the image, and against the rest of its bound.
        truth, nats = synthetic(design, generator, image_spread=0.5, noise=noise)
        prior = 5.0 - 0.5 * truth
        bound = estimate_bound(design, prior, [table(design, nats)])
        covered += abs(bound.nats - (6.0 + 2.0)) <= bound.half_width_population
    # With noise the interval is never narrower than that for the images, which for few
    # images makes it wider than need be.
    assert 0.93 < covered / REPEATS < (0.97 if num_images == 40 or not noise else 0.995)


def test_the_order_and_the_portions_of_the_tables_do_not_matter():
    design, generator = EveryPairDesign(5, 7, 3), np.random.default_rng(0)
    whole = table(design, generator.normal(size=len(design)))
    expected = estimate_bound(design, np.ones(5), [whole])
    cuts = np.array([0, 3, 30, 33, 90, 105])
    portions = [whole[start:stop] for start, stop in itertools.pairwise(cuts)]
    found = estimate_bound(design, np.ones(5), [portions[i] for i in (4, 0, 3, 1, 2)])
    for name in ("kl", "decoder", "term", "term_standard_error"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-13)
    assert found.half_width == pytest.approx(expected.half_width, rel=1e-12)


@pytest.mark.parametrize(
    "positions",
    [
        range(11),  # one missing
        [*range(12), 11],  # one twice
        [0, *range(11)],  # one twice, another of the same image missing
        [*range(6), 6, 6, *range(8, 12)],
    ],
)
def test_rows_that_are_missing_or_come_twice_are_noticed(positions):
    design = EveryPairDesign(3, 4, 1)
    tables = [table(design, np.ones(12))[p : p + 1] for p in positions]
    with pytest.raises(ValueError, match="exactly once"):
        estimate_bound(design, np.zeros(3), tables)


def test_a_model_without_noise_has_no_interval_for_these_images():
    design = EveryPairDesign(3, 4, 2)
    assert estimate_bound(design, np.zeros(3), [table(design, np.ones(24))]).half_width == 0
