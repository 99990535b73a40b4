"""The commands as a user types them; a process of its own has what depends on one."""

import io
import json
import signal
import subprocess
import sys

import pandas as pd
import pytest
import torch
from processes import Command, ddpmbench
from sealing import read_record
from setups import save_often

from ddpmbench.execution import progress
from ddpmbench.report.text import digits_by

EVERY_PAIR = ("--estimator", "every-pair", "--draws", 1)
TRAINING = (
    *("--data", "fashion-mnist:test", "--channels", "8,8", "--attention", 1, "--num-blocks", 1),
    *("--norm-groups", 4, "--timesteps", 30),
)


OF = {
    "every-pair": ("--estimator", "every-pair"),
    "importance": ("--half-width", 0.05),
}


@pytest.fixture(scope="module", params=list(OF))
def finished(request, small_checkpoint, small_npz, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    arguments = ("nll", "--ckpt", small_checkpoint, "--data", small_npz, *OF[request.param])
    arguments += ("--out", out)
    result = ddpmbench(*arguments)
    assert result.returncode == 0, result.stderr
    return out, arguments, result


def test_the_result_is_on_stdout_and_all_else_on_stderr(finished):
    out, _, result = finished
    lines = result.stdout.splitlines()
    summary = json.loads((out / "summary.json").read_text())
    half_width = summary["half_width"]
    digits = digits_by(half_width)
    bound = f"{summary['bits_per_dim']:.{digits}f} +- {half_width:.{digits}f}"
    assert lines[0] == f"NLL <= {bound} bits/dim"
    for name in ("prior", "kl", "decoder"):
        assert any(line.split()[:2] == [name, f"{summary[name]:.{digits}f}"] for line in lines)
    for fact in ("T = 40, linear", "eps, fixed_large, clip, exact decoder", "seed 0", "6 of"):
        assert fact in result.stdout
    assert str(out) in result.stderr


def test_the_run_folder_holds_the_contract(finished):
    out, arguments, _ = finished
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary) == [
        "schema", "bits_per_dim", "half_width", "half_width_population", "prior", "kl", "decoder",
        "num_images", "num_timesteps", "num_parts", "num_evaluations", "estimator", "sampling",
        "conventions", "checkpoint", "data", "seed", "device", "precision", "engine",
        "precision_correction", "seconds", "check", "continuous_bits_per_dim",
        "continuous_half_width", "continuous_num_evaluations", "continuous_absent",
        "worse_than_raw_pixels", "checksums",
    ]  # fmt: skip
    assert summary["check"] is None
    assert summary["schema"] == "ddpmbench.nll/1"
    steps = pd.read_csv(out / "per_timestep.csv")
    assert list(steps) == [
        "t", "part", "bits_per_dim", "standard_error", "x_start_mse", "eps_mse", "num_evaluations",
    ]  # fmt: skip
    assert list(steps.t) == list(range(1, 41))
    assert list(steps.part) == ["decoder"] + ["kl"] * 39
    rate = pd.read_csv(out / "rate_distortion.csv")
    assert list(rate) == [
        "t", "num_decoded_steps", "rate_bits_per_dim", "rate_standard_error", "distortion_rmse",
        "distortion_standard_error", "distortion_rmse_of_mean_mse", "psnr",
    ]  # fmt: skip
    assert list(rate.num_decoded_steps) == list(range(40, 0, -1))
    sampling = summary["sampling"]
    if summary["estimator"] == "every-pair":
        assert sampling == {"draws": 2}
        assert not (out / "proposal.csv").exists()
    else:
        assert list(sampling) == [
            "half_width_goal", "max_evaluations", "num_sampled_images", "num_blocks",
            "num_replicates", "pilot_evaluations", "horvitz_thompson",
        ]  # fmt: skip
        proposal = pd.read_csv(out / "proposal.csv")
        assert list(proposal.t) == list(range(2, 41))
        assert proposal.density.sum() == pytest.approx(1, abs=1e-12)
    images = pd.read_csv(out / "per_image.csv")
    assert list(images) == ["image_id", "prior", "kl", "decoder", "bits_per_dim"]
    known = images.notna().all()
    assert known.prior
    assert known.decoder
    # From a few rows no image's total is known.
    assert known.kl == known.bits_per_dim == (summary["estimator"] == "every-pair")
    environment = json.loads((out / "environment.json").read_text())
    assert environment["arguments"]["given"][1:] == [str(a) for a in arguments]
    assert environment["versions"]["torch"]
    assert environment["arguments"]["resolved"]["seed"] == 0
    assert not list(out.rglob("*.tmp"))


def test_the_formats_print_the_same_result(finished, invoke):
    out, arguments, _ = finished
    summary = read_record(out / "summary.json")
    assert json.loads(invoke(*arguments, "--format", "json")[1]) == summary
    assert float(invoke(*arguments, "--format", "quiet")[1]) == summary["bits_per_dim"]
    table = pd.read_csv(io.StringIO(invoke(*arguments, "--format", "csv")[1]))
    values = table.iloc[0]
    assert float(values["bits_per_dim"]) == summary["bits_per_dim"]
    assert values["checkpoint.sha256"] == summary["checkpoint"]["sha256"]


def test_without_out_the_run_goes_to_a_dated_folder(
    completed, small_checkpoint, small_npz, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    arguments = ("--ckpt", small_checkpoint, "--data", small_npz, "--num-images", 1)
    printed, _ = completed("nll", *arguments, "--timesteps", 5, *EVERY_PAIR)
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("nll-20")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["num_timesteps"] == 5
    assert summary["half_width"] is None
    assert "one draw; two give an interval" in printed


def test_training_interrupted_from_the_keyboard_loses_nothing(tmp_path):
    out = tmp_path / "training"
    running = Command("train", *TRAINING, "--out", out, setup=save_often)
    running.wait_until((out / "checkpoint.safetensors").exists)
    running.send(signal.SIGINT)
    result = running.result()
    assert result.returncode == 130, result.stderr
    assert f"Interrupted: run the same command with --out {out} to resume" in result.stderr
    assert "Traceback" not in result.stderr
    state = torch.load(out / "training_state.pt", weights_only=True)
    assert state["step"] > 0


@pytest.mark.parametrize(
    ("options", "total"),
    [
        (EVERY_PAIR[:2], "480"),
        (("--half-width", 5), "720"),  # the pilot is among them
    ],
)
def test_progress_is_plain_lines_where_there_is_no_terminal(
    completed, small_checkpoint, small_npz, tmp_path, monkeypatch, options, total
):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.01)
    monkeypatch.setattr(progress, "SECONDS_BEFORE_PACE", 0.0)
    arguments = ("nll", "--ckpt", small_checkpoint, "--data", small_npz, *options)
    arguments += ("--batch-size", 4, "--out", tmp_path / "run")
    printed, message = completed(*arguments)
    assert f" of {total} (" in message
    assert "evaluations/s" in message
    assert " left" in message
    assert ("so far NLL <= " in message) == ("--half-width" in options)
    assert "\x1b" not in message
    assert "left" not in printed


def test_train_then_evaluate(completed, tmp_path):
    out = tmp_path / "training"
    options = ("--steps", 4, "--batch-size", 8, "--objective", "hybrid")
    printed, _ = completed("train", *TRAINING, "--out", out, *options)
    assert printed == f"{out / 'checkpoint.safetensors'}\n"
    printed, _ = completed(
        "nll", "--ckpt", printed.strip(), "--data", "fashion-mnist:test", "--num-images", 2,
        "--half-width", 0.5, "--out", tmp_path / "run", "--format", "json",
    )  # fmt: skip
    assert json.loads(printed)["conventions"]["variance"] == "learned_range"


def test_env_names_versions_devices_and_the_cache(completed):
    printed, _ = completed("env")
    for name in ("torch", "clean-fid", "device", "cpu", "cache"):
        assert name in printed


def test_help_and_import_load_neither_torch_nor_torchvision():
    script = (
        "import sys, ddpmbench, ddpmbench.cli.main as m\n"
        "for a in ('', 'nll', 'rd', 'train'): m.run([*a.split(), '--help'])\n"
        "heavy = {'torch', 'torchvision', 'numpy', 'pandas', 'scipy', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_inspect_imports_neither_tables_nor_figures_nor_the_compiler():
    script = (
        "import sys; from ddpmbench.cli.main import run; run(['inspect']); "
        "print(*sorted({'pandas', 'matplotlib', 'scipy', 'PIL', 'torch._dynamo'} & "
        "set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.strip() == ""
    assert done.stdout.startswith("default: a diffusion model of 28x28 gray images, T = 1,000\n")
    assert done.stdout.splitlines()[-1] == "evaluate    ddpmbench nll"


# ---- report


@pytest.fixture
def small_run(copied):
    return copied("importance")


@pytest.mark.usefixtures("sketched")
def test_the_path_of_the_page_is_what_is_printed(small_run, invoke):
    assert invoke("report", small_run) == (0, f"{small_run / 'report.html'}\n", "")
    assert (small_run / "report.html").read_text().startswith("<!doctype html>")


@pytest.mark.usefixtures("sketched")
def test_a_comparison_leaves_its_page(small_run, invoke, completed, tmp_path):
    _, message = completed("compare", small_run, small_run, "--out", tmp_path / "out")
    assert message.endswith(f"Report: {tmp_path / 'out' / 'report.html'}\n")
    again = invoke("report", tmp_path / "out")
    assert again == (0, f"{tmp_path / 'out' / 'report.html'}\n", "")


def test_a_folder_that_cannot_be_written_is_named(small_run, refused, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("ddpmbench.files.os.fsync", refuse)
    assert f"{small_run}: cannot be written (permission denied)" in refused("report", small_run)
