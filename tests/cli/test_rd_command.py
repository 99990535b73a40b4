"""`ddpmbench rd` as a user types it, and what it refuses."""

import io
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from processes import ranks
from sealing import write_frame

from ddpmbench.checkpoints import load as checkpoints
from ddpmbench.data import load as images
from ddpmbench.execution.stored_images import Pictures


@pytest.fixture(params=["every-pair", "importance"])
def finished(request, runs):
    """The folder of a run of nll."""
    return runs[request.param].folder


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was called, or its checkpoint looked for")

    monkeypatch.setattr(torch.nn.Module, "__call__", refuse)
    monkeypatch.setattr(checkpoints, "load_checkpoint", refuse)
    monkeypatch.setattr(images, "load_images", refuse)


@pytest.mark.parametrize("option", [(), ("--pictures", "none")])
def test_a_finished_run_takes_no_network_call(finished, no_network, completed, option):
    printed, message = completed("rd", "--run", finished, *option)
    assert printed.splitlines()[0].split()[:2] == ["steps", "rate,"]
    *warnings, last = message.splitlines()
    assert last == f"Run folder: {finished}"
    assert all("raw pixels" in line for line in warnings)  # the network has random weights


def test_without_a_finished_run_the_network_is_called(no_network, invoke, tmp_path):
    with pytest.raises(AssertionError, match="the network was called"):
        invoke("rd", "--out", tmp_path / "run")


def test_the_formats_print_the_same_curve(finished, completed):
    printed = {}
    for kind in ("table", "json", "csv", "quiet"):
        printed[kind], _ = completed("rd", "--run", finished, "--format", kind)
    assert printed["csv"] == (finished / "rate_distortion.csv").read_text()
    curve = pd.read_csv(io.StringIO(printed["csv"]), dtype=str).map(float)
    summary = json.loads(printed["json"])
    assert summary["schema"] == "ddpmbench.rd/1"
    points = summary["curve"]
    assert [float(word) for word in printed["quiet"].split()] == [
        curve.rate_bits_per_dim[0],
        curve.distortion_rmse[0],
    ]
    lines = printed["table"].splitlines()
    for line, point in zip(lines[1:11], points, strict=True):
        row = curve[curve.num_decoded_steps == point["num_decoded_steps"]].iloc[0]
        assert point["rate_bits_per_dim"] == row.rate_bits_per_dim
        if np.isnan(row.distortion_rmse):  # of few rows
            assert point["distortion_rmse"] is None
            assert line.split()[4:] == ["unknown"] * 3
            continue
        assert point["distortion_rmse"] == row.distortion_rmse
        half = 1.96 * row.distortion_standard_error
        assert line.split() == [
            f"{row.num_decoded_steps:.0f}",
            f"{row.rate_bits_per_dim:.5f}", "+-", f"{1.96 * row.rate_standard_error:.5f}",
            f"{row.distortion_rmse:.3f}", *([] if np.isnan(half) else ["+-", f"{half:.3f}"]),
            f"{row.distortion_rmse_of_mean_mse:.3f}", f"{row.psnr:.2f}",
        ]  # fmt: skip
    assert f"decoder's {summary['decoder']:.4f} bits/dim" in printed["table"]
    assert "6 of <script>" in printed["table"]


def test_of_several_processes_one_draws_pictures(small_checkpoint, small_npz, tmp_path):
    of = ("--ckpt", small_checkpoint, "--data", small_npz, "--half-width", 5)
    arguments = ("rd", *of, "--out", tmp_path / "run")
    first, second = ranks(2, *arguments)
    assert first.returncode == second.returncode == 0, first.stderr
    assert first.stderr.count("66 network evaluations more for the pictures; to resume: --out") == 1
    assert first.stderr.count("Run folder: ") == first.stdout.count("PSNR") == 1
    assert second.stdout == second.stderr == ""
    assert Pictures.read(tmp_path / "run", 40).decoding.rmse.shape == (6, 11)
    refused = ranks(2, *arguments, "--pictures", "all", "--depth", 41)
    assert [result.returncode for result in refused] == [2, 2]
    assert "".join(result.stderr for result in refused).count("Error: --depth 41") == 1


def test_what_is_unknown_is_said(finished, invoke, completed, tmp_path):
    # As where no row lies near a step.
    out = shutil.copytree(finished, tmp_path / "run")
    curve = pd.read_csv(out / "rate_distortion.csv")
    curve.loc[curve.num_decoded_steps == 20, list(curve)[4:]] = np.nan
    write_frame(out / "rate_distortion.csv", curve)
    printed, _ = completed("rd", "--run", out)
    (line,) = (line for line in printed.splitlines() if line.split()[:1] == ["20"])
    assert line.split()[4:] == ["unknown"] * 3
    printed = invoke("rd", "--run", out, "--format", "json")[1]
    (point,) = (p for p in json.loads(printed)["curve"] if p["num_decoded_steps"] == 20)
    assert point["distortion_rmse"] is point["psnr"] is None


# ---- what is refused


@pytest.mark.parametrize(
    "option",
    [
        ("--ckpt", "default"),
        ("--out", "there"),
        ("--num-images", 3),
        ("--half-width", 1),
        ("--estimator", "importance"),
        ("--no-clip",),
        ("--class", 1),
        ("--seed", 0),
        ("--pictures", "decoding"),
        ("--depth", 3),
    ],
)
def test_an_option_that_would_have_no_effect(refused, finished, option):
    line = refused("rd", "--run", finished, *option)
    assert option[0].removeprefix("--no-") in line
    assert f"--run {finished}" in line
