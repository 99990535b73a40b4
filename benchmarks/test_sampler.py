"""The sampler: a step in steady state, and whole chains from noise to images."""

import pytest
import torch
from bench import running
from cases import (
    BF16,
    CIFAR10,
    FP16,
    SHIPPED,
    Case,
    cases,
    channels_last,
    compiled,
    eager,
    graphed,
)
from rows import Work, measure
from subjects import shortened

from ddpmbench.samples.samplers import SETTINGS, SamplerChoice

STEPS = [
    Case(SHIPPED, "cpu", 1, eager(), quick=True),
    Case(SHIPPED, "cpu", 1, compiled()),
    *cases(SHIPPED, "cpu", [32], [eager(), channels_last(), compiled(), compiled(BF16)]),
    *cases(CIFAR10, "cpu", [1], [eager(), channels_last()]),
    Case(CIFAR10, "cpu", 8, compiled()),
    Case(SHIPPED, "cuda", 1, eager(), quick=True),
    *cases(CIFAR10, "cuda", [1, 512], [eager(), eager(FP16), compiled(FP16), graphed(FP16)]),
]
CHAINS = [
    Case(SHIPPED, "cpu", 32, eager(), quick=True),
    *cases(SHIPPED, "cpu", [1, 32], [compiled()]),
    Case(SHIPPED, "cuda", 512, eager(), quick=True),
    *cases(CIFAR10, "cuda", [1, 512], [graphed(FP16)]),
]

OTHERS = [
    Case(SHIPPED, "cpu", 32, eager(), quick=True),
    Case(SHIPPED, "cpu", 32, compiled()),
    *cases(CIFAR10, "cuda", [512], [graphed(FP16)]),
]


@pytest.mark.cases(STEPS)
def test_step(benchmark, bench, case):
    slow = bench.device.type == "cpu" and case.model == CIFAR10
    measure_chain(benchmark, bench, case, "sampler step", 2 if slow else 10)


@pytest.mark.cases(CHAINS)
def test_sampler(benchmark, bench, case):
    num_timesteps = 1000 if case.where == "cuda" and case.batch == 1 else 50
    measure_chain(benchmark, bench, case, "sampler", 5 if bench.quick else num_timesteps)


@pytest.mark.parametrize("method", [method for method in SETTINGS if method != "ancestral"])
@pytest.mark.cases(OTHERS)
def test_other_samplers(benchmark, bench, case, method):
    more = {"langevin_steps": 1} if method == "langevin" else {}
    choice = SamplerChoice(method, **more)
    measure_chain(benchmark, bench, case, f"sampler {method}", 4 if bench.quick else 20, choice)


def measure_chain(benchmark, bench, case, name, num_timesteps, choice=SamplerChoice()):  # noqa: B008
    engine = bench.engine(case).engine
    sample = bench.chains(case, num_timesteps, choice)
    model = shortened(bench.checkpoint(case.model), num_timesteps)
    work = Work(
        name,
        calls=case.batch * choice.num_evaluations(model.schedule),
        steps=num_timesteps,
        images=None if name == "sampler step" else case.batch,
        num_timesteps=num_timesteps,
    )
    measure(benchmark, bench, case, work, sample, running(engine))
    with running(engine):
        assert torch.isfinite(sample()).all()
