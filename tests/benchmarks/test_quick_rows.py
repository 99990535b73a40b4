"""The suites of benchmarks/ run, and what they write says what it is."""

import ast
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import Result, ddpmbench
from unet_configs import TINY_CONFIG

from ddpmbench.checkpoints.native import write_native
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.execution.engine import EngineChoice
from ddpmbench.samples.samplers import SETTINGS
from ddpmbench.unet.unet import UNet

pytestmark = pytest.mark.slow
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
    # pytest-benchmark measures nothing in a worker of pytest-xdist, which this may be.
    inherited = {name: of for name, of in os.environ.items() if "XDIST" not in name}
    environment = {**inherited, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def forked(*arguments) -> Result:
    """The same in a process that has imported PyTorch already."""
    return ddpmbench(
        *("--benchmark-only", "-q", "-p", "no:cacheprovider", *arguments), setup=run_pytest
    )


def run_pytest() -> None:
    # Of a worker of pytest-xdist, in which pytest-benchmark measures nothing.
    for name in [name for name in os.environ if "XDIST" in name]:
        del os.environ[name]
    sys.exit(int(pytest.main(sys.argv[1:])))


@dataclasses.dataclass(frozen=True)
class Session:
    """Rows of the JSON file, and what was printed."""

    rows: list
    printed: str

    def of_networks(self):
        """The rows in which a case is measured."""
        return [row for row in self.rows if set(row["extra_info"]) >= COLUMNS]


@pytest.fixture(scope="module")
def tiny_checkpoint(small_model, tmp_path_factory):
    """A network with random weights that the shipped images fit, with attention at 7x7 pixels.

    T is small, for the rows that evaluate every timestep.
    """
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    config = dataclasses.replace(
        TINY_CONFIG,
        model_channels=4,
        channels=(4, 4, 4),
        norm_groups=2,
        attention=(False, False, True),
    )
    changes = {"network": UNet(config).eval(), "schedule": NoiseSchedule.linear(21)}
    write_native(path, dataclasses.replace(small_model, **changes, image_size=28, size_multiple=4))
    return path


@pytest.fixture(scope="module")
def smoke(tiny_checkpoint, tmp_path_factory):
    """Every test of every suite and every kind of row, once, from another folder."""
    path = tmp_path_factory.mktemp("json") / "rows.json"
    options = ("--smoke", "--device", "cpu", "--ckpt", tiny_checkpoint, "-ra")
    done = benchmarks("../benchmarks", *options, "--benchmark-json", path, cwd=ROOT / "tests")
    assert done.returncode == 0, done.stdout + done.stderr
    return Session(json.loads(path.read_text())["benchmarks"], done.stdout)


def functions_of(folder):
    """FILE::NAME of every test there."""
    return {
        f"{path.name}::{node.name}"
        for path in folder.glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_test_of_every_suite_has_run(smoke):
    run = {row["fullname"].rpartition("/")[-1].partition("[")[0] for row in smoke.rows}
    assert run == functions_of(ROOT / "benchmarks")
    assert len(run) > 10


def test_only_rows_of_another_device_are_left_out(smoke):
    left_out = [line for line in smoke.printed.splitlines() if line.startswith("SKIPPED")]
    assert left_out
    assert all(line.endswith("needs a CUDA device") for line in left_out)


def test_every_kind_of_row_has_one():
    rows = [
        *cases.cases(cases.SHIPPED, "cpu", [32, 1], [cases.eager(), cases.compiled()], quick=True),
        *cases.cases(cases.CIFAR10, "cpu", [8], [cases.eager(), cases.eager(cases.BF16)]),
        *cases.cases(cases.CIFAR10, "cuda", [1, 512], [cases.graphed(cases.FP16)]),
    ]
    chosen = cases.one_of_each_kind(rows)
    kinds = [(row.where, row.choice) for row in chosen]
    assert set(kinds) == {(row.where, row.choice) for row in rows}
    assert len(kinds) == len(set(kinds))
    assert all(row.batch == 2 for row in chosen)


def test_the_calls_of_a_goal_are_the_run_s_own(smoke):
    goals = [row["extra_info"] for row in smoke.rows if "::test_goal" in row["fullname"]]
    for extra in ("check_calls", "continuous_calls"):
        assert {info[extra] > 0 for info in goals} == {True, False}
    for info in goals:
        assert info["ratio_to_every_pair"] == info["every_pair_calls"] / info["calls"]


def test_rows_say_what_they_are(smoke, tiny_checkpoint):
    found = smoke.of_networks()
    assert {row["extra_info"]["what"] for row in found} == {
        "forward",
        "compress",
        "decompress",
        "divergence",
        "sampler step",
        "sampler",
        *(f"sampler {method}" for method in SETTINGS if method != "ancestral"),
        "every pair",
        "every pair against the loop",
        "sampler against the pipeline",
        "likelihood, t = 1",
        "likelihood, t >= 2",
        "step of a sample",
    }
    for row in found:
        info = row["extra_info"]
        assert info["model"] == str(tiny_checkpoint)
        assert info["eps_error"] <= info["eps_tolerance"]
        assert row["stats"]["rounds"] >= 3
        assert row["stats"]["min"] * row["stats"]["iterations"] > 0


def test_rates_belong_to_the_times(smoke):
    for row in smoke.of_networks():
        info, seconds = row["extra_info"], row["stats"]["median"]
        assert info["calls_per_second"] == pytest.approx(info["calls"] / seconds)
        assert info["tflops"] * 1e12 == pytest.approx(
            info["calls_per_second"] * info["flop_per_call"]
        )
        assert info["share_of_peak"] == pytest.approx(info["tflops"] / info["matmul_peak_tflops"])


def test_quick_measures_a_few_rows():
    options = ("--quick", "--device", "cpu", "--collect-only")
    done = forked(ROOT / "benchmarks/test_sampler.py", *options)
    batches = re.findall(r"-cpu-(\d+)-", done.stdout)
    assert list(map(int, batches)) == [1, 32] + [32] * 5


def test_the_calls_of_a_sampler_are_those_of_its_method(smoke):
    # Heun's method and the corrector evaluate the network more than once a step.
    each = {"ddim": 4, "langevin": 5, "predictor-corrector": 8, "ode": 7, "dpm-solver++": 4}
    for row in smoke.of_networks():
        _, _, method = row["extra_info"]["what"].partition("sampler ")
        if method in each:
            assert row["extra_info"]["calls"] == each[method] * row["extra_info"]["batch"]


def test_a_device_that_is_not_there_is_one_line():
    done = forked(ROOT / "benchmarks/test_forward.py", "--device", "cuda:99")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "cuda:99" in done.stderr
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


def test_the_error_of_a_network_is_the_same_for_any_batch(tiny_checkpoint):
    session = bench.Bench(torch.device("cpu"), quick=True, ckpt=tiny_checkpoint)
    errors = [
        session.engine(cases.Case(cases.SHIPPED, "cpu", batch, cases.eager(cases.BF16))).error
        for batch in (1, 2, 3)
    ]
    assert errors[0] > 1e-3
    assert errors == pytest.approx(3 * errors[:1], rel=0.01)


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

    rows.record_ratio(Benchmark, "ratio", rows.PairedRatio(2.0, 1.5, 2.5, 10, 4.0, 2.0))
    assert Benchmark.extra_info["ratio"] == 2.0
    assert Benchmark.extra_info["ratio_low"] < 2.0 < Benchmark.extra_info["ratio_high"]
