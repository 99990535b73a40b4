"""The correction of a low precision: unbiased, its interval covers, its rows are their own."""

import numpy as np
import pytest

from ddpmbench.likelihood.designs import PILOT_DRAW
from ddpmbench.likelihood.precision import (
    CORRECTION_DRAW,
    FEWEST_TERMS,
    MOST_TERMS,
    CorrectionDesign,
    differences,
    estimate_correction,
    num_correction_terms,
)
from ddpmbench.likelihood.terms import TermTable
from ddpmbench.samples.chain import SAMPLE_DRAW

N, T = 30, 50
SEEDS = range(400)


def rounding(generator):
    """(N, T) mean differences that fall with t and differ between images; t = 1 is the worst."""
    t = np.arange(1, T + 1)
    return -(1 + 0.3 * generator.standard_normal((N, 1))) * 5e-3 / t**1.2


def found(mean, seed, *, num_terms=120, noise=1.0):
    design = CorrectionDesign(N, T, seed, num_terms)
    at = mean[design.image, design.t - 1]
    drawn = np.random.default_rng(seed).standard_normal(len(design))
    return estimate_correction(design, at * (1 + noise * drawn))


def test_it_is_unbiased_for_either_part():
    mean = rounding(np.random.default_rng(1))
    estimates = [found(mean, seed, noise=0.0) for seed in SEEDS]
    for name, truth in (("kl", mean[:, 1:].sum(1).mean()), ("decoder", mean[:, 0].mean())):
        values = np.array([getattr(estimate, name) for estimate in estimates])
        error = values.std(ddof=1) / np.sqrt(len(values))
        assert abs(values.mean() - truth) < 4 * error
        assert error < 0.02 * abs(truth)


def test_every_pair_is_a_row_as_often_as_the_density_says():
    n, num_timesteps, m, repeats = 3, 7, 6, 2000
    count = np.zeros((n, num_timesteps))
    for seed in range(repeats):
        design = CorrectionDesign(n, num_timesteps, seed, m)
        np.add.at(count, (design.image, design.t - 1), 1)
    share = np.append(2, 4 * design.density) / n
    # Of all seeds the counts are sums of independent ones; none varies more than a binomial.
    assert (np.abs(count - repeats * share) < 4 * np.sqrt(repeats * share)).all()


def test_what_follows_the_density_is_found_without_an_error():
    design = CorrectionDesign(N, T, 3, 90)
    difference = np.append(0.25, 0.5 * design.density)[design.t - 1]
    estimate = estimate_correction(design, difference)
    assert estimate.kl == pytest.approx(0.5, abs=1e-12)
    assert estimate.decoder == pytest.approx(0.25, abs=1e-12)
    assert estimate.half_width < 1e-12


@pytest.mark.parametrize("num_terms", [FEWEST_TERMS, 400])
def test_its_interval_covers(num_terms):
    mean = rounding(np.random.default_rng(2))
    truth = mean.sum(1).mean()
    off = [
        abs(one.nats - truth) <= one.half_width
        for one in (found(mean, seed, num_terms=num_terms) for seed in SEEDS)
    ]
    assert 0.92 <= np.mean(off) <= 0.985


@pytest.mark.parametrize(("n", "num_timesteps", "m"), [(7, 40, 100), (1000, 1000, 1000), (1, 2, 6)])
def test_its_rows_are_spread_evenly(n, num_timesteps, m):
    design = CorrectionDesign(n, num_timesteps, 5, m)
    rows = design.index(0, m)
    first = rows.t == 1
    assert first.sum() == design.num_decoder_terms
    assert abs(first.sum() - m / 3) <= 2
    for part in (first, ~first):
        count = np.bincount(rows.image[part], minlength=n)
        assert count.max() - count.min() <= 1
    later = rows.t[~first]
    assert (np.diff(later) >= 0).all()
    edges = np.cumsum(design.density)
    below = np.searchsorted(later, np.arange(2, num_timesteps + 1), side="right")
    assert np.abs(below - edges * len(later)).max() <= 1
    assert edges[-1] == pytest.approx(1, abs=1e-12)


def test_images_are_in_another_order_each_time_and_of_each_part():
    design = CorrectionDesign(40, 30, 0, 120)
    decoder, first, second = design.image.reshape(3, 40)
    for one, other in ((decoder, first), (first, second)):
        assert sorted(one) == sorted(other) == list(range(40))
        assert (one == other).mean() < 0.3


def test_a_model_of_one_step_has_all_rows_there():
    design = CorrectionDesign(5, 1, 0, 12)
    assert (design.t == 1).all()
    estimate = estimate_correction(design, np.linspace(0, 1, 12))
    assert (estimate.kl, estimate.decoder) == (0, pytest.approx(0.5))


def test_no_row_shares_its_noise():
    design = CorrectionDesign(2, 3, 0, 900)
    rows = design.index(0, 900)
    assert len(set(rows.draw)) == 900
    # Replicates count from 0, samples have draws of their own beside theirs.
    assert rows.draw.min() > SAMPLE_DRAW + 1000 > PILOT_DRAW
    assert rows.draw.max() < CORRECTION_DRAW + 2**30 <= 2**32


def test_any_part_of_the_rows_is_the_same_rows():
    design = CorrectionDesign(11, 30, 9, 100)
    for name in ("image", "t", "draw"):
        whole = getattr(design.index(0, 100), name)
        parts = [getattr(design.index(a, a + 7), name) for a in range(0, 100, 7)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_it_is_strict_less_low():
    design = CorrectionDesign(4, 10, 0, 12)
    rows = design.index(0, 12)

    def tables(shift):
        whole = TermTable(rows, {"nats": np.arange(12.0) + shift})
        return [whole[:5], whole[5:]]

    np.testing.assert_allclose(differences(design, tables(0.0), tables(0.5)), -0.5)
    with pytest.raises(ValueError, match="every term"):
        differences(design, tables(0.0), tables(0.5)[:1])


def test_small_runs_have_small_corrections_and_none_has_none():
    sizes = [num_correction_terms(n) for n in (1, 600, 6_000, 20_000, 10**7)]
    assert sizes == [FEWEST_TERMS, FEWEST_TERMS, 300, MOST_TERMS, MOST_TERMS]
    with pytest.raises(ValueError, match="6 terms"):
        CorrectionDesign(10, 10, 0, 5)
