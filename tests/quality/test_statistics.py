"""Moments of features, from parts in any order."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpmbench.quality.statistics import FeatureGaussian, FeatureStatistics


def features(count, dimensions=5, seed=0, offset=100.0):
    return np.random.default_rng(seed).normal(size=(count, dimensions)) + offset


def relative(one, other):
    return np.abs(one - other).max() / np.abs(other).max()


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8))
def test_parts_merged_are_the_whole(lengths):
    x = features(sum(lengths))
    edges = np.cumsum([0, *lengths])
    parts = [FeatureStatistics.of(x[a:b]) for a, b in itertools.pairwise(edges)]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merged(part)
    assert merged.count == len(x)
    assert relative(merged.mean, x.mean(0)) < 5e-15
    if len(x) > 1:
        assert relative(merged.gaussian.covariance, np.cov(x.T)) < 1e-12


def test_a_chunk_at_a_time_is_numpys_covariance():
    x = features(10_000, 20).astype(np.float32)
    found = FeatureStatistics.of(x)
    assert relative(found.gaussian.covariance, np.cov(x.T.astype(np.float64))) < 5e-14


@pytest.mark.parametrize("rank", [0, 2, 6])
def test_the_root_squared_is_the_covariance(rank):
    factor = np.random.default_rng(1).normal(size=(6, rank))
    gaussian = FeatureGaussian(np.zeros(6), factor @ factor.T)
    np.testing.assert_allclose(gaussian.root @ gaussian.root, factor @ factor.T, atol=1e-12)
    np.testing.assert_allclose(gaussian.root, gaussian.root.T, atol=1e-14)
