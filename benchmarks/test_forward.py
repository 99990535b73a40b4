"""The network alone, by batch, precision and engine.

Every row but the eager float32 one has its ratio to that one, timed alternately; a compiled row
also has the seconds of compiling, and the number of evaluations that earn them back.
"""

import pytest
from bench import running
from cases import (
    BF16,
    CIFAR10,
    FP16,
    FP32,
    SHIPPED,
    TF32,
    Case,
    cases,
    channels_last,
    compiled,
    eager,
    graphed,
)
from rows import Work, few, measure, paired_ratio, record_ratio

CASES = [
    Case(SHIPPED, "cpu", 32, eager(), quick=True),
    Case(SHIPPED, "cpu", 32, compiled(), quick=True),
    *cases(SHIPPED, "cpu", [1], [eager(), channels_last(), compiled()]),
    *cases(SHIPPED, "cpu", [32], [channels_last(), eager(BF16), compiled(BF16)]),
    *cases(CIFAR10, "cpu", [1], [eager(), channels_last()]),
    *cases(CIFAR10, "cpu", [8], [eager(), channels_last(), eager(BF16)]),
    *cases(CIFAR10, "cpu", [8], [compiled(), compiled(BF16)]),
    Case(SHIPPED, "cuda", 128, eager(), quick=True),
    *cases(SHIPPED, "cuda", [1, 512], [eager(), eager(FP16), compiled(FP16), graphed(FP16)]),
    *cases(CIFAR10, "cuda", [1, 32, 128, 512], [eager(), eager(TF32), eager(BF16), eager(FP16)]),
    *cases(CIFAR10, "cuda", [128, 512], [channels_last(), channels_last(FP16)]),
    *cases(CIFAR10, "cuda", [128], [compiled(FP32), compiled(TF32), compiled(BF16)]),
    *cases(CIFAR10, "cuda", [1, 128, 512], [compiled(FP16), graphed(FP16)]),
]


@pytest.mark.cases(CASES)
def test_forward(benchmark, bench, case):
    inputs, engine = bench.inputs(case.model, case.batch), bench.engine(case).engine

    def call():
        return engine.model_output(inputs.x_t, inputs.t, inputs.labels)

    work = Work("forward", case.batch, images=case.batch)
    measure(benchmark, bench, case, work, call, running(engine))
    if case.choice != eager():
        compare_with_eager(benchmark, bench, case, call)


def compare_with_eager(benchmark, bench, case, call):
    """The ratio to the eager network in float32, and the cost and gain of compiling.

    The gain is relative to the same precision without compilation.
    """
    inputs = bench.inputs(case.model, case.batch)

    def calls(choice):
        other = Case(case.model, case.where, case.batch, choice)
        engine = bench.engine(other).engine

        def call_other():
            with running(engine):
                engine.model_output(inputs.x_t, inputs.t, inputs.labels)

        return call_other

    def fast():
        with running(bench.engine(case).engine):
            call()

    rounds = few(bench, case)
    ratio = paired_ratio(calls(eager()), fast, bench.device, rounds=rounds)
    record_ratio(benchmark, "ratio_to_eager", ratio)
    if not case.choice.compiled:
        return
    plain = channels_last(case.choice.precision)
    gain = paired_ratio(calls(plain), fast, bench.device, rounds=rounds)
    record_ratio(benchmark, "ratio_to_uncompiled", gain)
    compile_seconds = max(bench.engine(case).first_seconds - gain.fast_seconds, 0.0)
    saved = (gain.slow_seconds - gain.fast_seconds) / case.batch
    benchmark.extra_info.update(
        compile_seconds=compile_seconds,
        break_even_calls=compile_seconds / saved if saved > 0 else None,
    )
