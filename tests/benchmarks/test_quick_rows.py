"""The suites of benchmarks/ run, and what they write says what it is."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ddpmbench.runs.engine import EngineChoice
from ddpmbench.runs.timing import PairedRatio

ROOT = Path(__file__).parents[2]

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(ROOT / "benchmarks"))
    import bench
    import cases
    import rows
    import subjects

COLUMNS = {
    *("model", "what", "batch", "precision", "channels_last", "compiled", "cuda_graph", "device"),
    *("calls_per_second", "images_per_second", "ms_per_step", "flop_per_call", "tflops"),
    *("share_of_peak", "matmul_peak_tflops", "eps_error", "eps_tolerance", "checkpoint_sha256"),
}


def benchmarks(*arguments, cwd=ROOT):
    """A session of pytest of its own, as the README has it."""
    command = [sys.executable, "-m", "pytest", "--benchmark-only", "-q", *arguments]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def quick(small_checkpoint, tmp_path_factory):
    """A row of each of the suites that cost little, of a small checkpoint, from another folder."""
    path = tmp_path_factory.mktemp("json") / "rows.json"
    names = "test_forward or test_step or test_every_pair or test_sampler"
    done = benchmarks(
        *("../benchmarks", "--quick", "--device", "cpu", "--benchmark-json", path),
        *("--ckpt", small_checkpoint, "-k", f"({names}) and not compiled and not overhead"),
        cwd=ROOT / "tests",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(path.read_text())["benchmarks"]
    return {row["extra_info"]["what"]: row for row in rows}, done.stdout


def test_rows_say_what_they_are(quick, small_checkpoint):
    found, _ = quick
    assert set(found) == {
        "forward",
        "sampler step",
        "sampler",
        "every pair",
        "every pair against the loop",
        "sampler against the pipeline",
    }
    for row in found.values():
        info = row["extra_info"]
        assert set(info) >= COLUMNS
        assert info["model"] == str(small_checkpoint)
        assert info["eps_error"] <= info["eps_tolerance"]
        assert row["stats"]["rounds"] >= 3
        assert row["stats"]["min"] * row["stats"]["iterations"] > 0


def test_rates_belong_to_the_times(quick):
    for row in quick[0].values():
        info, seconds = row["extra_info"], row["stats"]["median"]
        assert info["calls_per_second"] == pytest.approx(info["calls"] / seconds)
        assert info["tflops"] * 1e12 == pytest.approx(
            info["calls_per_second"] * info["flop_per_call"]
        )
        assert info["share_of_peak"] == pytest.approx(info["tflops"] / info["matmul_peak_tflops"])


def test_rows_of_another_device_are_left_out_by_name(quick):
    assert "needs a CUDA device" in quick[1]


def test_a_device_that_is_not_there_is_one_line():
    done = benchmarks("benchmarks/test_forward.py", "--device", "cuda:99")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--device cuda:99" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("model", cases.MODELS)
def test_a_row_over_tolerance_fails(model):
    case = cases.Case(model, "cpu", 1, EngineChoice())
    session = bench.Bench(torch.device("cpu"), quick=True, ckpt=None)
    tolerance = bench.TOLERANCE[case.choice.precision]
    session._engines[case] = bench.PreparedEngine(None, 1.0, tolerance)
    rows.check_error(session, case)
    session._engines[case] = bench.PreparedEngine(None, 1.0, 1.1 * tolerance)
    with pytest.raises(AssertionError, match="against strict float32"):
        rows.check_error(session, case)


def test_where_a_row_is():
    cpu = torch.device("cpu")
    case = cases.Case(cases.SHIPPED, "cuda", 512, cases.graphed(cases.FP16))
    assert "512" in case.missing(cpu)
    assert "CUDA" in case.missing(cpu)
    here = dataclasses.replace(case, where="cpu", choice=cases.eager())
    assert here.missing(cpu) is None
    assert "--ckpt" in here.missing(cpu, has_ckpt=True)
    assert dataclasses.replace(here, quick=True).missing(cpu, has_ckpt=True) is None


def test_the_network_measured_is_that_of_the_paper():
    checkpoint = subjects.cifar10_checkpoint()
    assert sum(weights.numel() for weights in checkpoint.network.parameters()) == 35_746_307
    session = bench.Bench(torch.device("cpu"), quick=True, ckpt=None)
    assert session.flop(cases.CIFAR10) == 12_443_713_536


def test_a_shortened_model_has_its_network_called_at_the_first_steps(small_model):
    model = subjects.shortened(small_model, 5)
    t = torch.arange(1, 6)
    assert torch.equal(model.network_time(t), small_model.network_time(t))
    assert model.schedule.alphas_cumprod[-1] == pytest.approx(
        float(small_model.schedule.alphas_cumprod[-1])
    )


def test_a_ratio_has_its_interval():
    class Benchmark:
        extra_info = {}  # noqa: RUF012

    rows.record_ratio(Benchmark, "ratio", PairedRatio(2.0, 1.5, 2.5, 10, 4.0, 2.0))
    assert Benchmark.extra_info["ratio"] == 2.0
    assert Benchmark.extra_info["ratio_low"] < 2.0 < Benchmark.extra_info["ratio_high"]
