"""What a reduction keeps of an image is a few numbers, however many steps or columns there are."""

import tracemalloc

import numpy as np
import pytest

from ddpmbench.data import pixel_store
from ddpmbench.data.pixel_store import store
from ddpmbench.likelihood.designs import ImportanceDesign
from ddpmbench.likelihood.image_sampling import ImageSample
from ddpmbench.likelihood.importance_estimator import horvitz_thompson, regression_estimate
from ddpmbench.likelihood.regression import FeatureTable, log_bins
from ddpmbench.likelihood.terms import VALUE_COLUMNS, TermTable, image_blocks

T = 60
BATCH = 1000


def importance(num_images, num_replicates):
    density = 1 / np.arange(2, T + 1)
    return ImportanceDesign(
        num_images, T, density / density.sum(), seed=0, num_replicates=num_replicates
    )


def tables(design):
    """The terms of all rows, a batch at a time."""
    for start in range(0, len(design), BATCH):
        rows = design.index(start, start + BATCH)
        nats = (1 + rows.image % 7) / rows.t
        yield TermTable(rows, dict.fromkeys(VALUE_COLUMNS, nats))


def features(design):
    n, bins = design.num_sampled, int(log_bins(T)[-1]) + 1
    parts = (np.ones((s.stop - s.start, bins, 2), np.float32) for s in image_blocks(n))
    return FeatureTable(
        at_terms=1 / design.t,
        bin_sums=store((n, bins, 2), parts, np.float32),
        timestep_means=np.ones((T - 1, 2)),
        root_means=np.ones(T - 1),
        sample=ImageSample.of(design, (np.arange(n, dtype=np.float32) % 11 - 5)[:, None]),
        error_scale=np.ones((2, T - 1)),
    )


def peak(num_images, num_replicates):
    """Of all that goes from addresses to the two estimates, which are there together at last."""
    tracemalloc.start()
    design, prior = importance(num_images, num_replicates), np.zeros(num_images)
    known = features(design)
    bounds = [
        regression_estimate(design, prior, tables(design), known),
        horvitz_thompson(design, prior, tables(design)),
    ]
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert bounds[0].num_replicates == bounds[1].num_replicates == num_replicates
    return found


@pytest.mark.parametrize("num_replicates", [2, 6])
def test_memory_grows_by_a_few_numbers_an_image_and_a_row(monkeypatch, num_replicates):
    monkeypatch.setattr(pixel_store, "IN_MEMORY", 2**16)
    few, many = 10_000, 25_000
    growth = (peak(many, num_replicates) - peak(few, num_replicates)) / (many - few)
    assert growth < 100 + 90 * num_replicates  # bytes; 8 a number


def test_a_design_has_its_addresses_and_no_more():
    def held(num_images):
        tracemalloc.start()
        design = importance(num_images, 2)
        for start in range(0, len(design), BATCH):
            design.index(start, start + BATCH)
        found = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return found

    # Stratum and timestep of each term; the order of the images, and those that are redrawn.
    assert (held(40_000) - held(20_000)) / 20_000 < 8 * (2 * 2 + 1.1) + 1
