"""The field of the ODE: a network evaluation, and the gradient for its divergence.

The ratio is to the network alone, timed alternately.
"""

import math

import pytest
import torch
from bench import running
from cases import CIFAR10, SHIPPED, Case, cases, eager
from rows import Work, few, measure, paired_ratio, record_ratio

from ddpmbench.diffusion.probability_flow import ProbabilityFlow
from ddpmbench.likelihood.ode import probe_signs

CASES = [
    Case(SHIPPED, "cpu", 32, eager(), quick=True),
    Case(SHIPPED, "cuda", 128, eager(), quick=True),
    *cases(CIFAR10, "cuda", [32, 128], [eager()]),
]


@pytest.mark.cases(CASES)
def test_divergence(benchmark, bench, case):
    inputs, engine = bench.inputs(case.model, case.batch), bench.engine(case).engine
    flow = ProbabilityFlow(bench.checkpoint(case.model), bench.device)
    index = torch.arange(case.batch, device=bench.device)
    signs = probe_signs(index, 0, shape=tuple(inputs.x_t.shape[1:]), seed=0)
    field = flow.field(labels=inputs.labels, probes=signs[None].double())
    u = inputs.x_t.double() * math.sqrt(2)  # sigma = 1, where a^2 = 1/2

    def divergence():
        with engine.running():
            field(0.0, u)

    def network():
        with running(engine):
            engine.model_output(inputs.x_t, inputs.t, inputs.labels)

    work = Work("divergence", case.batch, images=case.batch)
    measure(benchmark, bench, case, work, divergence)
    ratio = paired_ratio(divergence, network, bench.device, rounds=few(bench, case))
    record_ratio(benchmark, "ratio_to_network", ratio)
