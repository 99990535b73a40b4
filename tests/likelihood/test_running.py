"""The bound while rows are coming is rough, but of the right size, and never in the way."""

import math

import numpy as np
import pytest
from mixtures import SyntheticModel

from ddpmbench.likelihood.designs import ImportanceDesign
from ddpmbench.likelihood.estimator import RunningBound, horvitz_thompson


def followed(model, seed, *, portion, num_replicates=4):
    """What is said after every portion, and the estimate from all rows."""
    generator = np.random.default_rng([seed, 3])
    density = model.density(seed, generator)
    design = ImportanceDesign(model.num_images, model.num_timesteps, density, seed, num_replicates)
    table = model.table(design.index(0, len(design)), generator)
    running = RunningBound(design, float(model.prior.mean()))
    parts = (table[i : i + portion] for i in range(0, len(table), portion))
    said = [running.add(part) for part in parts]
    return said, horvitz_thompson(design, model.prior, [table])


@pytest.mark.parametrize("portion", [1, 7, 10_000])
def test_it_ends_at_the_plain_estimate_but_for_the_decoder_s_later_draws(portion):
    said, exact = followed(SyntheticModel(), 0, portion=portion)
    assert said[-1].nats == pytest.approx(exact.nats, abs=0.02)
    once, exact = followed(SyntheticModel(noise=0.0), 0, portion=portion)
    assert once[-1].nats == pytest.approx(exact.nats, rel=1e-12)
    assert once[-1].half_width > exact.half_width


def test_it_is_unbiased_and_no_narrower_than_its_errors_while_rows_come():
    errors, half_widths = [], []
    for seed in range(100):
        model = SyntheticModel(seed=seed)
        said, _ = followed(model, seed, portion=350)
        errors.append([bound.nats - model.truth for bound in said if bound])
        half_widths.append([bound.half_width for bound in said if bound])
    errors, half_widths = np.array(errors), np.array(half_widths)
    assert errors.shape[1] > 2
    assert np.abs(errors.mean(0) / errors.std(0) * 10).max() < 4
    assert ((np.abs(errors) <= half_widths).mean(0) > 0.93).all()


@pytest.mark.parametrize(("num_images", "num_timesteps"), [(1, 2), (1, 30), (2, 2), (3, 40)])
def test_few_rows_are_no_trouble(num_images, num_timesteps):
    said, _ = followed(SyntheticModel(num_images, num_timesteps), 0, portion=1)
    assert said[0] is None
    for bound in filter(None, said):
        assert math.isfinite(bound.nats)
        assert bound.half_width >= 0
