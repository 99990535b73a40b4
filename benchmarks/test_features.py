"""Feature extraction, of which a run of fid has two: samples and references."""

import pytest
import torch
from rows import steady
from torch.utils.flop_counter import FlopCounterMode

import ddpmbench as db
from ddpmbench.errors import InputError
from ddpmbench.execution.devices import device_name, strict_float32
from ddpmbench.samples.feature_networks import EFFICIENTNET, load_feature_network
from ddpmbench.unet.precision import Precision

BATCH = 64
TOLERANCE = {"cpu": 1e-5, "cuda": 1e-2}  # as a run of fid has them: TF32 where that is the default


def test_features(benchmark, bench):
    try:
        network = load_feature_network(EFFICIENTNET, resize="clean", device=bench.device)
    except InputError as error:
        pytest.skip(str(error))
    batch = 2 if bench.smoke else 16 if bench.quick else BATCH
    pixels = db.load_images("fashion-mnist:test", num_images=batch).pixels
    seconds = steady(benchmark, bench, lambda: network(pixels))
    found = torch.from_numpy(network(pixels).features)
    with strict_float32():
        expected = torch.from_numpy(network(pixels).features)
    error = float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt())
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
