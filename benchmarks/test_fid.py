"""The work of `fid` besides sampling: features, Frechet distance, all outside the networks.

The distance is measured with 2048 features, beside SciPy's root of the product, in one run; ratios
and errors are in the extra columns of `--benchmark-json FILE`.
"""

import contextlib
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from rows import steady
from scipy import linalg
from torch.utils.flop_counter import FlopCounterMode

import ddpmbench as db
from ddpmbench.errors import InputError
from ddpmbench.execution.devices import device_name, strict_float32
from ddpmbench.execution.engine import Engine
from ddpmbench.metrics.feature_networks import EFFICIENTNET, FeatureNetwork, load_feature_network
from ddpmbench.metrics.frechet import frechet_distance, leave_one_out
from ddpmbench.metrics.statistics import FeatureGaussian, feature_statistics
from ddpmbench.unet.timed_unet import Precision

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from feature_networks import write_network

BATCH = 64
TOLERANCE = {"cpu": 1e-5, "cuda": 1e-2}  # as in a run of fid: TF32 where it is the default


def test_features(benchmark, bench):
    try:
        network = load_feature_network(EFFICIENTNET, resize="clean", device=bench.device)
    except InputError as error:
        pytest.skip(str(error))
    batch = 2 if bench.smoke else 16 if bench.quick else BATCH
    pixels = db.load_images("fashion-mnist:test", num_images=batch).pixels
    seconds = steady(benchmark, bench, lambda: network(pixels))
    features = torch.from_numpy(network(pixels).features)
    with strict_float32():
        expected = torch.from_numpy(network(pixels).features)
    error = float((features - expected).square().mean().sqrt() / expected.square().mean().sqrt())
    with FlopCounterMode(display=False) as counter:
        network(pixels[:1])
    flop, peak = counter.get_total_flops(), bench.peak(Precision.FP32)
    benchmark.group = "features"
    benchmark.extra_info.update(
        model=network.name,
        checkpoint_sha256=network.sha256,
        what="features",
        batch=batch,
        precision="fp32",
        device=device_name(bench.device),
        calls=batch,
        calls_per_second=batch / seconds,
        images_per_second=batch / seconds,
        flop_per_call=flop,
        tflops=flop * batch / seconds / 1e12,
        matmul_peak_tflops=peak / 1e12,
        share_of_peak=flop * batch / seconds / peak,
        eps_error=error,
        peak_memory_bytes=bench.peak_memory(lambda: network(pixels)),
    )
    assert flop > 0
    assert error <= TOLERANCE[bench.device.type]


# ---- the Frechet distance

SIZE = 2048
NUM_REFERENCE = 5000


def features_of(n, seed, size):
    """Features with a spectrum like that of Inception's, with other axes for each seed."""
    generator = np.random.default_rng(seed)
    spectrum = np.roll(np.arange(1, size + 1) ** -0.75, seed)
    return (generator.normal(size=(n, size)) * spectrum + 0.01 * seed).astype(np.float32)


def of_sqrtm(one, other):
    """The distance by the published method, and its seconds."""
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = linalg.sqrtm(one.covariance @ other.covariance)
    shift = np.square(one.mean - other.mean).sum() + one.trace + other.trace
    return float(shift - 2 * np.trace(root).real), time.perf_counter() - begin


@pytest.fixture(scope="module")
def scale(bench):
    """The divisor of all sizes."""
    return 32 if bench.smoke else 1


@pytest.fixture(scope="module")
def reference(scale):
    """Return a new record each time, so that its factor is computed again."""
    one = feature_statistics(features_of(NUM_REFERENCE // scale, 1, SIZE // scale))
    return lambda: FeatureGaussian(one.mean, one.covariance)


@pytest.mark.full
@pytest.mark.parametrize("n", [5000, 1000])
def test_distance_against_sqrtm(benchmark, reference, scale, n):
    features, distances = features_of(n // scale, 2, SIZE // scale), []

    def measure():
        distances.append(frechet_distance(feature_statistics(features), reference()))

    benchmark.pedantic(measure, rounds=3, warmup_rounds=1)
    expected, seconds = of_sqrtm(feature_statistics(features), reference())
    ratio = seconds / benchmark.stats.stats.min
    benchmark.extra_info.update(
        what=f"Frechet distance of {n}",
        sqrtm_seconds=seconds,
        ratio=ratio,
        relative_difference=distances[-1] / expected - 1,
    )
    # SciPy's own error is 5e-5 for features without full rank.
    assert distances[-1] == pytest.approx(expected, rel=1e-6 if n > SIZE else 1e-3)


@pytest.mark.parametrize("n", [pytest.param(5000, marks=pytest.mark.full), 1000])
def test_interval_against_distance(benchmark, reference, scale, n):
    features, seconds = features_of(n // scale, 2, SIZE // scale), []

    def distance():
        begin = time.perf_counter()
        distance = frechet_distance(feature_statistics(features), reference())
        seconds.append(time.perf_counter() - begin)
        return distance

    expected = [distance() for _ in range(2)][-1]
    estimate = benchmark.pedantic(
        lambda: leave_one_out(features, reference()), rounds=2, warmup_rounds=0
    )
    benchmark.extra_info.update(
        what=f"Frechet distance of {n} with its interval",
        distance_seconds=min(seconds),
        ratio=benchmark.stats.stats.min / min(seconds),
        relative_difference=estimate.distance / expected - 1,
    )
    assert estimate.distance == pytest.approx(expected, rel=1e-6)


# ---- all outside the networks, which are small: the largest share that a user could meet

NUM_SAMPLES, NUM_TIMESTEPS, NUM_FEATURES = 2000, 20, 64


@contextlib.contextmanager
def timed(kind, name, seconds):
    """Add up the time of a method's calls."""
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
    sizes = (16, 3, 8) if bench.smoke else (NUM_SAMPLES, NUM_TIMESTEPS, NUM_FEATURES)
    num_samples, num_timesteps, num_features = sizes
    monkeypatch.setenv("DDPMBENCH_CACHE", str(tmp_path / "cache"))
    path = write_network(tmp_path / "network.pt", num_features=num_features, num_classes=10)
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
