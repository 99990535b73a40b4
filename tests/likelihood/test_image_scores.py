"""A bound for every image: unbiased, its standard error too; what two sets of scores tell."""

import dataclasses

import numpy as np
import pytest
from mixtures import SyntheticModel
from scipy import spatial, stats

from ddpmbench.likelihood import image_scores
from ddpmbench.likelihood.image_scores import (
    PerImageDesign,
    auroc,
    estimate_image_scores,
    mean_difference,
    nearest_distance,
    num_copies,
)

MODEL = SyntheticModel(num_images=40, num_timesteps=60, noise=0.1)
TRUTH = MODEL.prior + MODEL.mean.sum(1)
SEEDS = 400


def design_of(model=MODEL, *, seed=0, evaluations=16, density=None):
    if density is None:
        density = model.density(seed, np.random.default_rng(seed))
    return PerImageDesign(model.num_images, model.num_timesteps, density, seed, evaluations)


def scores_of(design, model=MODEL):
    generator = np.random.default_rng([design.seed, 5])
    table = model.table(design.index(0, len(design)), generator)
    return estimate_image_scores(design, model.prior, [table])


@pytest.fixture(scope="module", params=[4, 9, 24])
def study(request):
    density = MODEL.density(0, np.random.default_rng(0))
    runs = [
        scores_of(design_of(seed=s, evaluations=request.param, density=density))
        for s in range(SEEDS)
    ]
    names = ("total", "variance", "half_width")
    return {name: np.array([getattr(run, name) for run in runs]) for name in names}


def test_the_score_of_every_image_is_unbiased(study):
    error = study["total"].mean(0) - TRUTH
    z = error / (study["total"].std(0, ddof=1) / np.sqrt(SEEDS))
    assert np.abs(z).max() < 4.2
    assert 0.5 < np.square(z).mean() < 1.6


def test_the_standard_error_of_every_image_is_calibrated(study):
    ratio = study["variance"].mean(0) / study["total"].var(0, ddof=1)
    assert ratio.mean() == pytest.approx(1, abs=0.05)
    assert (np.abs(ratio - 1) < 0.45).all()


def test_the_interval_of_the_mean_covers_it(study):
    error = np.abs(study["total"].mean(1) - TRUTH.mean())
    assert 0.92 < (error < study["half_width"]).mean() < 0.985


def test_strata_are_worth_it():
    density = MODEL.density(0, np.random.default_rng(0))
    quiet = dataclasses.replace(MODEL, noise=0.0)
    spread = {
        m: np.mean(
            [
                scores_of(design_of(seed=s, evaluations=m, density=density), quiet).variance
                for s in range(40)
            ]
        )
        for m in (12, 48)
    }
    assert spread[12] / spread[48] > 4**2  # plain sampling has 4


def test_every_timestep_has_its_density():
    density = np.linspace(3, 1, 9) / np.linspace(3, 1, 9).sum()
    t = PerImageDesign(20_000, 10, density, seed=1, evaluations_per_image=7).t
    share = np.bincount(t.ravel(), minlength=11)[2:] / t.size
    assert share == pytest.approx(density, abs=0.005)
    assert ((t >= 2) & (t <= 10)).all()
    edges = np.cumsum(density)
    s = np.arange(t.shape[1])[:, None] / t.shape[1]
    assert (edges[t - 2] >= s - 1e-12).all()  # a term lies in its stratum
    assert (edges[t - 2] - density[t - 2] <= s + 1 / t.shape[1] + 1e-12).all()


@pytest.mark.parametrize("evaluations", [4, 5, 9, 64])
def test_the_terms_of_an_image_are_as_many_and_no_two_have_one_address(evaluations):
    design = design_of(evaluations=evaluations)
    index = design.index(0, len(design))
    assert (np.bincount(index.image) == evaluations).all()
    assert len(set(zip(index.image, index.t, index.draw, strict=True))) == len(design)
    assert (np.bincount(index.image[index.t == 1]) == design.decoder_draws).all()
    assert design.decoder_draws >= 2
    for start, stop in ((0, 3), (5, 5 + evaluations), (len(design) - 2, len(design) + 7)):
        part = design.index(start, stop)
        for name in ("image", "t", "draw"):
            assert np.array_equal(getattr(part, name), getattr(index, name)[start:stop])


def test_an_image_has_its_terms_whatever_the_others_are():
    whole = design_of()
    few = dataclasses.replace(whole, num_images=3)
    assert np.array_equal(few.t, whole.t[:3])
    images = np.unique(whole.t.reshape(MODEL.num_images, -1), axis=0)
    assert len(images) == MODEL.num_images  # and each image its own


def test_terms_of_another_design_are_refused():
    design, other = design_of(seed=0), design_of(seed=1)
    table = MODEL.table(other.index(0, len(other)), np.random.default_rng(0))
    with pytest.raises(ValueError, match="another design"):
        estimate_image_scores(design, MODEL.prior, [table])
    some = MODEL.table(design.index(0, 20), np.random.default_rng(0))
    with pytest.raises(ValueError, match="every term"):
        estimate_image_scores(design, MODEL.prior, [some])
    with pytest.raises(ValueError, match="at least 4"):
        design_of(evaluations=3)


def test_the_difference_of_means_is_welchs():
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=30), generator.normal(0.6, 3, size=12)
    ours, theirs = mean_difference(first, second), stats.ttest_ind(second, first, equal_var=False)
    interval = theirs.confidence_interval(0.95)
    assert ours.p_value == pytest.approx(theirs.pvalue, rel=1e-9)
    assert ours.difference - ours.half_width == pytest.approx(interval.low)
    assert ours.difference + ours.half_width == pytest.approx(interval.high)
    assert mean_difference(first[:1], second).p_value is None
    assert mean_difference(first, first).difference == 0


def test_the_auroc_is_the_share_of_pairs_in_order():
    generator = np.random.default_rng(1)
    first, second = generator.integers(0, 9, 25), generator.integers(2, 12, 18)
    pairs = np.sign(second[:, None] - first[None, :])
    assert auroc(first, second).value == pytest.approx(((pairs + 1) / 2).mean())
    statistic = stats.mannwhitneyu(second, first).statistic
    assert auroc(first, second).value == pytest.approx(statistic / (25 * 18))
    mirrored = auroc(second, first)
    assert 1 - auroc(first, second).lower == pytest.approx(mirrored.upper)


def test_the_interval_of_an_auroc_covers_it():
    generator = np.random.default_rng(2)
    for shift in (0.0, 0.8, 2.0):
        truth = stats.norm.cdf(shift / np.sqrt(2))
        areas = [
            auroc(generator.normal(size=40), generator.normal(shift, size=60)) for _ in range(600)
        ]
        covered = np.mean([area.lower <= truth <= area.upper for area in areas])
        assert 0.925 < covered < 0.985, shift


def test_perfectly_separated_sets_still_have_an_interval():
    area = auroc(np.arange(10.0), 100 + np.arange(12.0))
    assert (area.value, area.upper) == (1, 1)
    assert 0.7 < area.lower < 0.95
    assert auroc(np.arange(9.0), np.arange(9.0)).value == 0.5


def random_images(count, seed, shape=(3, 4, 5)):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


@pytest.mark.parametrize("chunk", [2**23, 8 * 60 * 4])  # all at once, and few at a time
def test_the_nearest_image_is_the_nearest_of_all(monkeypatch, chunk):
    monkeypatch.setattr(image_scores, "_BLOCK_BYTES", chunk)
    monkeypatch.setattr("ddpmbench.likelihood.regression.CHUNK_BYTES", chunk)
    first, second = random_images(23, 0), random_images(17, 1)
    second[3], first[5] = first[7], first[9]  # a copy in each set
    vectors = [of.reshape(len(of), -1).astype(float) for of in (first, second)]
    between = [spatial.distance.cdist(of, vectors[0]) / np.sqrt(60) for of in vectors]
    np.fill_diagonal(between[0], np.inf)
    within = nearest_distance(first, first, leave_one_out=True)
    across = nearest_distance(second, first)
    assert within == pytest.approx(between[0].min(1), rel=1e-12)
    assert across == pytest.approx(between[1].min(1), rel=1e-12)
    assert np.flatnonzero(within == 0).tolist() == [5, 9]
    assert np.flatnonzero(across == 0).tolist() == [3]
    assert num_copies(second, first) == 1
    assert num_copies(first, first) == 23
    assert num_copies(first, second) == 1


def test_of_many_images_some_are_asked_evenly(monkeypatch):
    monkeypatch.setattr(image_scores, "MOST_NEIGHBORS", 10)
    images = random_images(30, 2)
    asked = np.flatnonzero(nearest_distance(images, images) == 0)
    assert asked.tolist() == list(range(0, 30, 3))
    assert (nearest_distance(images, images, leave_one_out=True) > 0).all()


def test_one_image_has_no_other():
    one = random_images(1, 3)
    assert np.isnan(nearest_distance(one, one, leave_one_out=True)).all()
    assert nearest_distance(one, one).tolist() == [0]


def test_images_of_one_population_are_as_near_to_a_set_as_those_in_it():
    areas = []
    for seed in range(60):
        pixels = random_images(240, seed, (1, 3, 3))
        first, second = pixels[:120], pixels[120:]
        distances = (
            nearest_distance(first, first, leave_one_out=True),
            nearest_distance(second, first),
        )
        areas.append(auroc(*distances))
    assert np.mean([area.value for area in areas]) == pytest.approx(0.5, abs=0.015)
    assert np.mean([area.lower <= 0.5 <= area.upper for area in areas]) > 0.8
