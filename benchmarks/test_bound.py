"""The bound: the terms of every pair, and the cost of an interval of a given width."""

import math

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
)
from rows import Work, measure
from subjects import fits_shipped_images, images_for

import ddpmbench as db
from ddpmbench.execution.devices import device_name
from ddpmbench.likelihood.designs import EveryPairDesign
from ddpmbench.likelihood.terms import TermsPass

NUM_IMAGES = 10_000
EVERY_PAIR = [
    Case(SHIPPED, "cpu", 32, eager(), quick=True),
    *cases(SHIPPED, "cpu", [32], [channels_last(), eager(BF16), compiled(), compiled(BF16)]),
    *cases(CIFAR10, "cpu", [8], [eager(), channels_last(), eager(BF16), compiled()]),
    Case(SHIPPED, "cuda", 128, eager(), quick=True),
    *cases(CIFAR10, "cuda", [128], [eager(), compiled(FP32), compiled(TF32), compiled(FP16)]),
    *cases(CIFAR10, "cuda", [512], [eager(FP16), compiled(FP16)]),
]


@pytest.mark.cases(EVERY_PAIR)
def test_every_pair(benchmark, bench, case):
    checkpoint, engine = bench.checkpoint(case.model), bench.engine(case).engine
    images = images_for(checkpoint, 64)
    design = EveryPairDesign(len(images), checkpoint.schedule.num_timesteps, 1)
    terms_pass = TermsPass(
        checkpoint,
        images,
        seed=0,
        decoder="exact",
        device=bench.device,
        model_output=engine.model_output,
    )
    num_batches = 1 if bench.device.type == "cpu" and case.model == CIFAR10 else 8
    # Spread over the design, including its beginning, with t = 1.
    starts = [i * len(design) // num_batches for i in range(num_batches)]
    batches = [design.index(start, start + case.batch) for start in starts]

    def compute():
        return [terms_pass.terms(index) for index in batches]

    num_evaluations = case.batch * num_batches
    work = Work("every pair", num_evaluations, steps=num_batches)
    seconds = measure(benchmark, bench, case, work, compute, running(engine))
    before = terms_pass.num_evaluations
    with running(engine):
        assert all(math.isfinite(table.values["nats"].sum()) for table in compute())
    assert terms_pass.num_evaluations - before == num_evaluations
    hours = NUM_IMAGES * design.num_timesteps * seconds / num_evaluations / 3600
    benchmark.extra_info["about_hours_of_10000_images"] = hours


@pytest.mark.parametrize(
    ("num_images", "half_width"),
    [
        (100, 0.05),
        pytest.param(1000, 0.02, marks=pytest.mark.full),
        *(
            pytest.param(n, half_width, marks=[pytest.mark.full, pytest.mark.larger])
            for n, half_width in [(1000, 0.01), (1000, 0.005), (NUM_IMAGES, 0.005)]
        ),
    ],
)
def test_goal(benchmark, bench, monkeypatch, num_images, half_width):
    checkpoint = bench.checkpoint(SHIPPED)
    if not fits_shipped_images(checkpoint):
        pytest.skip("--ckpt: does not fit the shipped images; ddpmbench speed says what it takes")
    # Before a long run, included in its time: the sanity check, and terms in continuous time.
    check = continuous = None
    if bench.smoke:
        check = continuous = num_images > 100
        num_images, half_width = 16 if check else 4, 5.0
    images, counted = db.load_images("fashion-mnist:test", num_images=num_images), []

    class CountingPass(TermsPass):
        """Counts the run only: the check has its own passes."""

        def terms(self, index):
            counted.append(len(index))
            return super().terms(index)

    monkeypatch.setattr("ddpmbench.likelihood.continuous.TermsPass", CountingPass)
    summary = benchmark.pedantic(
        lambda: (
            db.evaluate_nll(
                checkpoint,
                images,
                half_width=half_width,
                check=check,
                continuous=continuous,
                device=str(bench.device),
            ).summary
        ),
        rounds=1,
    )
    calls, pairs = summary["num_evaluations"], num_images * summary["num_timesteps"]
    check_calls = 0 if summary["check"] is None else summary["check"]["num_evaluations"]
    continuous_calls = summary.get("continuous_num_evaluations") or 0
    # Half of those for continuous time are evaluated in a pass of its own.
    assert sum(counted) == calls + continuous_calls // 2
    assert continuous is None or continuous == (continuous_calls > 0)
    assert check is None or check == (check_calls > 0)
    assert summary["half_width"] <= half_width
    seconds = benchmark.stats.stats.median
    benchmark.group = "bound"
    benchmark.extra_info.update(
        model=bench.name(SHIPPED),
        checkpoint_sha256=checkpoint.sha256,
        what=f"bound to +-{half_width}",
        device=device_name(bench.device),
        precision=summary["precision"],
        num_images=num_images,
        num_timesteps=summary["num_timesteps"],
        half_width=summary["half_width"],
        bits_per_dim=summary["bits_per_dim"],
        calls=calls,
        check_calls=check_calls,
        continuous_calls=continuous_calls,
        calls_per_second=(calls + check_calls + continuous_calls) / seconds,
        images_per_second=num_images / seconds,
        every_pair_calls=pairs,
        ratio_to_every_pair=pairs / calls,
        eps_error=bench.engine(Case(SHIPPED, bench.device.type, 1, eager())).error,
    )
