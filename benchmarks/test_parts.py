"""The parts of the time of a likelihood term and of a sampler step.

`part_seconds` are the seconds per image in the network, in the noise, and in all else; they sum to
the total.
"""

import pytest
from bench import running
from cases import CIFAR10, FP16, SHIPPED, cases, channels_last, eager, graphed
from rows import Work, measure
from subjects import images_for

from ddpmbench.execution.speed import (
    FIRST,
    LATER,
    STEP,
    likelihood_work,
    part_seconds,
    step_work,
)
from ddpmbench.execution.timing import Probe
from ddpmbench.samples.samplers import SamplerChoice

ROWS = [
    *cases(SHIPPED, "cpu", [48], [channels_last()], quick=True),
    *cases(CIFAR10, "cpu", [4], [channels_last()]),
    *cases(CIFAR10, "cuda", [256], [eager(), graphed(FP16)], quick=True),
]


@pytest.mark.parametrize("kind", [FIRST, LATER, STEP], ids=["t = 1", "t >= 2", "step"])
@pytest.mark.cases(ROWS)
def test_parts(benchmark, bench, case, kind):
    checkpoint, engine = bench.checkpoint(case.model), bench.engine(case).engine
    probe = Probe.of(checkpoint, images_for(checkpoint, case.batch), bench.device, case.batch)
    if kind == STEP:
        sampler = SamplerChoice().prepare(
            checkpoint, seed=0, device=bench.device, model_output=engine.model_output
        )
        work = step_work(probe, sampler.launched(engine.whole_step))
    else:
        work = likelihood_work(probe, engine, kind)
    measure(benchmark, bench, case, Work(kind, case.batch), work, running(engine))
    least = 0.01 if bench.smoke else 0.1 if bench.quick else 1.0
    with running(engine):
        benchmark.extra_info["part_seconds"] = part_seconds(work, probe, engine, at_least=least)
