"""What a quality run spends outside its two networks.

    pytest benchmarks/test_quality_overhead.py --benchmark-only

The networks are small, so that the share is the largest that a user could meet.
"""

import contextlib
import sys
import time
from pathlib import Path

import pytest
import torch

import ddpmbench as db
from ddpmbench.execution.engine import Engine
from ddpmbench.samples.feature_networks import FeatureNetwork, load_feature_network

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from feature_networks import write_network

NUM_SAMPLES, NUM_TIMESTEPS = 2000, 20
SMOKE_SAMPLES, SMOKE_TIMESTEPS = 80, 3


@contextlib.contextmanager
def timed(kind, name, seconds):
    """Adds up what calls of a method take."""
    real = getattr(kind, name)

    def call(*arguments, **options):
        since = time.perf_counter()
        try:
            return real(*arguments, **options)
        finally:
            seconds.append(time.perf_counter() - since)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, name, call)
        yield


@pytest.mark.full
def test_outside_the_networks(benchmark, bench, tmp_path, monkeypatch):
    sizes = (SMOKE_SAMPLES, SMOKE_TIMESTEPS) if bench.smoke else (NUM_SAMPLES, NUM_TIMESTEPS)
    num_samples, num_timesteps = sizes
    monkeypatch.setenv("DDPMBENCH_CACHE", str(tmp_path / "cache"))
    path = write_network(tmp_path / "network.pt", num_features=64, num_classes=10)
    network = load_feature_network(path, resize="clean", device=torch.device("cpu"))
    checkpoint = db.load_checkpoint().respaced(num_timesteps)
    images = db.load_images("fashion-mnist:test", num_images=num_samples)
    settings = db.FidSettings(network, db.PROTOCOLS["clean"], num_samples)
    seconds = []
    with (
        timed(Engine, "model_output", seconds),
        timed(FeatureNetwork, "__call__", seconds),
    ):
        benchmark.pedantic(
            lambda: db.evaluate_fid(checkpoint, [images], settings, out=tmp_path / "run"),
            rounds=1,
        )
    whole = benchmark.stats.stats.min
    benchmark.extra_info["what"] = "outside the networks of fid"
    benchmark.extra_info["seconds_in_networks"] = sum(seconds)
    benchmark.extra_info["share_outside"] = 1 - sum(seconds) / whole
    assert len(seconds) > num_timesteps
