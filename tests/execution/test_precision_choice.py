"""What `precision=auto` is on a CPU: a matter of the whole run's cost, and settled at its start."""

import json
import os
import re

import numpy as np
import pytest
import torch
from engines import install, noisy
from processes import ranks
from run_folders import assert_same_numbers
from torch import nn

import ddpmbench as db
from ddpmbench.execution import precision_choice as module
from ddpmbench.execution.distributed import Ranks
from ddpmbench.execution.engine_choice import FEW_BATCHES, WORTH_A_TEST, NetworkUse
from ddpmbench.execution.precision_choice import Candidate, settled_precision, speedup
from ddpmbench.execution.session import Session
from ddpmbench.execution.worker import RunListener
from ddpmbench.likelihood.precision import CorrectionDesign, differences, estimate_correction
from ddpmbench.likelihood.terms import TermsPass
from ddpmbench.unet.timed_unet import Precision

CPU, FP32, BF16 = torch.device("cpu"), Precision.FP32, Precision.BF16
TIMED = module.timed_terms
ROWS, LONG = 4, 10_000


@pytest.fixture
def seconds(monkeypatch):
    """Seconds of a batch in either precision, as a test would measure them."""
    of = {FP32: 1.0, BF16: 1.0}

    def timed(terms_pass, index, precision):
        of.setdefault("tested", []).append(precision)
        return of[precision], TIMED(terms_pass, index, precision)[1]

    monkeypatch.setattr(module, "timed_terms", timed)
    monkeypatch.setattr(module, "has_native_bfloat16", lambda: True)
    return of


def settle(model, images, *, name="auto", num_evaluations=LONG * ROWS, num_terms=100, **options):
    lines = []
    candidate = Candidate(
        TermsPass(model, images, seed=0, decoder="exact", device=CPU),
        NetworkUse((1, 8, 8), num_evaluations, ROWS),
        CorrectionDesign(len(images), model.schedule.num_timesteps, 0, num_terms),
        options.get("half_width"),
        lambda precision: None,
    )
    session = Session(options.get("ranks", Ranks()), CPU, options.get("out"))
    precision = settled_precision(name, candidate, session, note=lines.append)
    return precision, " ".join(lines)


# ---- the cost of the whole run decides


@pytest.mark.parametrize("num_terms", [100, 1000])
def test_bf16_is_chosen_from_a_third_faster_on(small_model, small_images, seconds, num_terms):
    num_evaluations = LONG * ROWS
    # N s32 = 4/3 (N s16 + m (s16 + s32)), solved for s32 / s16.
    just = 4 * (num_evaluations + num_terms) / (3 * num_evaluations - 4 * num_terms)
    assert just > 4 / 3
    for factor, expected in ((1 + 1e-9, BF16), (1 - 1e-9, FP32)):
        seconds[FP32] = just * factor
        precision, line = settle(small_model, small_images, num_terms=num_terms)
        assert precision is expected
        assert f"precision {expected}: " in line
        assert "1.33 times as fast" in line
        assert (f"corrected by {num_terms:,} terms in fp32" in line) == (expected is BF16)


def test_the_speedup_is_that_of_all_evaluations():
    alone = speedup(2.0, num_evaluations=1000, num_terms=0, share=0.0)
    assert alone == pytest.approx(2.0)
    # 1,000 terms of 2 s; or 1,000 of 1 s and 50 in both precisions.
    with_correction = speedup(2.0, num_evaluations=1000, num_terms=50, share=0.0)
    assert with_correction == pytest.approx(2000 / (1000 + 50 * 3))
    # Half of the interval is the correction's: 4/3 as many terms fill the rest.
    narrow = speedup(2.0, num_evaluations=1000, num_terms=50, share=0.5)
    assert narrow == pytest.approx(2000 / (4000 / 3 + 50 * 3))


def test_processes_share_one_correction(small_model, small_images, seconds):
    """Each has a part of the evaluations, and the correction is once for all."""
    seconds[FP32] = 1.4
    one = settle(small_model, small_images, num_evaluations=FEW_BATCHES * ROWS)
    many = Ranks(0, 8, 0, None)
    all_of_them = settle(small_model, small_images, num_evaluations=FEW_BATCHES * ROWS, ranks=many)
    assert (one[0], all_of_them[0]) == (FP32, BF16)


@pytest.mark.parametrize(("slow", "true", "expected"), [(FP32, 1.2, FP32), (BF16, 1.5, BF16)])
def test_a_busy_moment_decides_nothing(
    small_model, small_images, seconds, monkeypatch, slow, true, expected
):
    """Some batches of one precision take a hundred times as long."""
    calls = []

    def timed(terms_pass, index, precision):
        calls.append(precision)
        hiccup = 100.0 if precision is slow and calls.count(slow) in (3, 5, 8) else 1.0
        return hiccup * seconds[precision], TIMED(terms_pass, index, precision)[1]

    monkeypatch.setattr(module, "timed_terms", timed)
    seconds[FP32] = true
    assert settle(small_model, small_images)[0] is expected


def test_a_narrow_interval_has_no_room_for_a_correction(
    small_model, small_images, seconds, monkeypatch
):
    install(monkeypatch, rounding=noisy)
    seconds[FP32] = 2.0
    assert settle(small_model, small_images, half_width=10.0)[0] is BF16
    precision, line = settle(small_model, small_images, half_width=0.01)
    assert precision is FP32
    assert "no less than the +- 0.01 of the whole" in line
    # Where the number of terms is known, nothing has to be reached.
    assert settle(small_model, small_images)[0] is BF16


def test_the_interval_of_a_correction_is_known_beforehand(small_model, small_images):
    """Within a factor of 2 from a part of its terms, and rather too wide."""
    design = CorrectionDesign(len(small_images), small_model.schedule.num_timesteps, 0, 600)
    strict = TermsPass(small_model, small_images, seed=0, decoder="exact", device=CPU)
    low = strict.calling(lambda *inputs: noisy(strict.model_output(*inputs)))
    every = [[each.terms(design.index(0, len(design)))] for each in (strict, low)]
    difference = differences(design, *every)
    whole = estimate_correction(design, difference).half_width
    candidate = Candidate(strict, NetworkUse((1, 8, 8), LONG, 12), design, None, lambda p: None)
    batches = [candidate.batch(number) for number in range(module.NUM_PAIRS)]
    place = np.concatenate([batch.draw for batch in batches]) - design.first_draw
    assert len(set(place)) == len(place) == 12 * module.NUM_PAIRS
    about = module._half_width(design, design.t[place], difference[place])
    assert 0.7 * whole < about < 2 * whole


# ---- where there is no test


def test_a_short_run_is_not_tested(small_model, small_images, seconds):
    seconds[FP32] = 2.0
    few = FEW_BATCHES * ROWS - 1
    assert settle(small_model, small_images, num_evaluations=few)[0] is FP32
    assert "tested" not in seconds
    seconds[FP32] = 2 * WORTH_A_TEST / FEW_BATCHES
    seconds[BF16] = seconds[FP32] / 2
    long = {"num_evaluations": FEW_BATCHES * ROWS}
    assert settle(small_model, small_images, **long, num_terms=6)[0] is BF16
    seconds[FP32] = 0.99 * WORTH_A_TEST / FEW_BATCHES
    seconds["tested"].clear()
    precision, line = settle(small_model, small_images, **long)
    assert precision is FP32
    assert "too short" in line
    assert seconds["tested"] == [FP32, BF16, FP32]


def test_a_named_precision_and_a_cpu_without_bf16_are_not_tested(
    small_model, small_images, seconds, monkeypatch
):
    for name in ("fp32", "bf16"):
        assert settle(small_model, small_images, name=name) == (name, "")
    monkeypatch.setattr(module, "has_native_bfloat16", lambda: False)
    precision, line = settle(small_model, small_images)
    assert precision is FP32
    assert "no instructions for bf16" in line
    assert "tested" not in seconds


# ---- networks that cannot


class Own(nn.Module):
    """A network of the user's, that may do something in 16 bits."""

    image_channels = 1

    def __init__(self, narrow=lambda output: output):
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)
        self.narrow = narrow

    def forward(self, x, t):
        output = self.layer(x)
        return self.narrow(output) if output.dtype is torch.bfloat16 else output


def own(narrow):
    torch.manual_seed(0)
    schedule = db.NoiseSchedule.linear(40)
    return db.wrap_network(Own(narrow), schedule=schedule, prediction="eps", variance="fixed_small")


def fails(output):
    raise TypeError("no kernel for 16 bits")


@pytest.mark.parametrize(
    ("narrow", "expected", "why"),
    [
        (lambda output: output, BF16, "2.97 times as fast"),
        (
            fails,
            FP32,
            "fails in bf16: test_precision_choice.py, line .*TypeError: no kernel for 16",
        ),
        (lambda output: output / 0, FP32, "output is not finite in bf16"),
    ],
)
def test_a_network_of_ones_own(small_images, seconds, narrow, expected, why):
    seconds[FP32] = 3.0
    precision, line = settle(own(narrow), small_images)
    assert precision is expected
    assert re.search(why, line), line


# ---- what is chosen stays chosen


@pytest.fixture
def long(seconds, monkeypatch):
    """Runs of few terms count as long."""
    monkeypatch.setattr(module, "FEW_BATCHES", 1)
    seconds[FP32], seconds[BF16] = 60.0, 1.0
    return seconds


def evaluate(model, images, out=None, **options):
    lines = []
    given = {"batch_size": 50, "precision": "auto", "device": "cpu"}
    listener = RunListener(note=lines.append)
    report = db.evaluate_nll(model, images, out=out, listener=listener, **{**given, **options})
    return report.summary, [line for line in lines if line.startswith("precision ")]


@pytest.mark.parametrize(("begun", "then"), [(BF16, FP32), (FP32, BF16)])
def test_a_run_goes_on_in_its_precision(
    small_model, small_images, long, tmp_path, monkeypatch, begun, then
):
    def faster(precision):
        long[precision], long[FP32 if precision is BF16 else BF16] = 60.0, 600.0

    of_terms = 0

    def before():
        nonlocal of_terms
        of_terms += (tmp_path / "run" / "run.json").exists()
        if of_terms == 4:
            raise KeyboardInterrupt

    install(monkeypatch, before=before)
    every_pair = {"estimator": "every-pair", "draws": 1}
    options = {**every_pair, "out": tmp_path / "run"}
    faster(begun)
    with pytest.raises(KeyboardInterrupt):
        evaluate(small_model, small_images, **options)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["precision"] == begun
    assert BF16 in long["tested"]
    faster(then)
    long["tested"].clear()
    resumed, (line,) = evaluate(small_model, small_images, **options)
    assert f"precision {begun}: " in line
    assert resumed["precision"] == begun
    again, _ = evaluate(small_model, small_images, **options)
    assert long["tested"] == []
    named, _ = evaluate(small_model, small_images, precision=str(begun), **every_pair)
    for summary in (resumed, again):
        for number in ("bits_per_dim", "num_evaluations", "precision"):
            assert summary[number] == named[number]
    fresh, _ = evaluate(small_model, small_images, **every_pair)
    assert fresh["precision"] == then


def test_the_two_differ_by_less_than_the_correction_knows(small_model, small_images, long):
    """The real rounding of this machine, and every pair: the terms are the same."""
    options = {"estimator": "every-pair", "draws": 4}
    low, (line,) = evaluate(small_model, small_images, **options)
    strict, _ = evaluate(small_model, small_images, **options, precision="fp32")
    assert "times as fast as fp32 here, corrected by 100 terms in fp32" in line
    assert low["precision"] == BF16
    assert low["bits_per_dim"] != strict["bits_per_dim"]
    difference = abs(low["bits_per_dim"] - strict["bits_per_dim"])
    assert difference < 2 * low["precision_correction"]["half_width"] < low["half_width"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"half_width": 1e-4, "max_evaluations": 910}, "leaves no room"),
        ({"half_width": 1e-5, "max_evaluations": 930}, "no less than the +- 1e-05"),
    ],
)
def test_the_limit_and_the_interval_of_the_run_decide(
    small_model, small_images, long, options, why
):
    summary, (line,) = evaluate(small_model, small_images, **options)
    assert summary["precision"] == FP32
    assert summary["num_evaluations"] <= options["max_evaluations"]
    assert why in line


def of_rank():
    """Stand-ins for engines, and a test that comes out otherwise in every process."""
    install(pytest.MonkeyPatch())
    module.FEW_BATCHES, module.has_native_bfloat16 = 1, lambda: True
    is_first = os.environ["RANK"] == "0"
    fast, slow = (BF16, FP32) if is_first else (FP32, BF16)

    def timed(terms_pass, index, precision):
        return {fast: 1.0, slow: 60.0}[precision], TIMED(terms_pass, index, precision)[1]

    module.timed_terms = timed


@pytest.mark.slow
def test_all_processes_agree_and_compute_what_one_computes(
    small_checkpoint, small_npz, small_model, small_images, tmp_path, monkeypatch
):
    command = ["nll", "--ckpt", small_checkpoint, "--data", small_npz]
    command += ["--estimator", "every-pair", "--draws", 1]
    how = ["--precision", "auto", "--device", "cpu", "--batch-size", 50, "--out", tmp_path / "run"]
    first, second = ranks(2, *command, *how, setup=of_rank)
    assert first.returncode == second.returncode == 0, (first.stderr, second.stderr)
    assert "precision bf16: " in first.stderr
    assert "precision" not in second.stderr
    report = db.load_report(tmp_path / "run")
    assert report.summary["precision"] == BF16
    install(monkeypatch)
    alone = db.evaluate_nll(
        small_model, small_images, estimator="every-pair", draws=1, precision="bf16"
    )
    assert_same_numbers(report, alone)
    corrections = [one.summary["precision_correction"] for one in (report, alone)]
    assert corrections[0] == pytest.approx(corrections[1], abs=1e-6)
