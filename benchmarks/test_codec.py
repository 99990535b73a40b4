"""The codec: images per second in both directions, and the share of time outside the network.

A chain of a few evenly spaced timesteps is as fast per timestep as one of many.
"""

import copy

import numpy as np
import pytest
import torch
from cases import CIFAR10, SHIPPED, Case, cases, channels_last, eager
from rows import Work, measure
from subjects import images_for

from ddpmbench.codec.chain import Chain, ReverseProcess
from ddpmbench.codec.rans import Coder
from ddpmbench.execution.timing import timer

CASES = [
    Case(SHIPPED, "cpu", 64, channels_last(), quick=True),
    Case(SHIPPED, "cpu", 1, channels_last()),
    Case(SHIPPED, "cuda", 64, eager(), quick=True),
    *cases(CIFAR10, "cuda", [64], [eager()]),
]
TIMESTEPS, LANES = 10, 512


class Measured:
    """A chain that measures the time of its network."""

    def __init__(self, bench, case):
        checkpoint, engine = bench.checkpoint(case.model), bench.engine(case).engine
        clock, self.network_seconds = timer(bench.device), 0.0

        def model_output(*inputs):
            begin = clock()
            output = engine.model_output(*inputs)
            self.network_seconds += clock() - begin
            return output

        schedule = checkpoint.schedule
        steps = schedule.evenly_spaced(min(TIMESTEPS, schedule.num_timesteps))
        respaced = schedule.subset(steps)
        variances = [
            float(respaced.log_decoder_variance.exp()),
            *respaced.posterior_variance[1:].tolist(),
        ]
        process = ReverseProcess(tuple(steps), tuple(variances))
        chain = Chain(checkpoint, process, device=bench.device, model_output=model_output)
        self.engine, self.num_timesteps = engine, len(steps)
        images = images_for(checkpoint, case.batch)
        self.pixels, labels = images.pixels, images.labels
        labels = None if labels is None else torch.from_numpy(labels).to(bench.device)
        words = np.random.default_rng(0).integers(0, 1 << 16, 1 << 22).astype(np.uint16)
        self.filled = Coder(words)
        self.filled.set_lanes(LANES)
        self.coded = copy.deepcopy(self.filled)
        self.labels, self.chain = labels, chain
        with engine.running(), torch.inference_mode():
            chain.encode(self.coded, self.pixels, labels)

    def compress(self):
        with self.engine.running(), torch.inference_mode():
            self.chain.encode(copy.deepcopy(self.filled), self.pixels, self.labels)

    def decompress(self):
        with self.engine.running(), torch.inference_mode():
            shape = self.pixels.shape
            return self.chain.decode(copy.deepcopy(self.coded), shape, self.labels)


@pytest.mark.cases(CASES)
@pytest.mark.parametrize("direction", ["compress", "decompress"])
def test_direction(benchmark, bench, case, direction):
    measured = Measured(bench, case)
    np.testing.assert_array_equal(measured.decompress(), measured.pixels)
    count, steps = len(measured.pixels), measured.num_timesteps
    work = Work(direction, count * steps, steps, images=count, num_timesteps=steps)
    compute = getattr(measured, direction)
    measure(benchmark, bench, case, work, compute)
    measured.network_seconds, clock = 0.0, timer(bench.device)
    begin = clock()
    for _ in range(3):
        compute()
    share = 1 - measured.network_seconds / (clock() - begin)
    benchmark.extra_info["share_outside_network"] = share
