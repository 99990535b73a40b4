"""`ddpmbench rd --pictures` as a user types it, and what it refuses."""

import pandas as pd
import pytest
import torch
from processes import ranks

from ddpmbench.execution.stored_images import PICTURES, Pictures

HEAD = "network evaluations more for the pictures"


@pytest.fixture
def arguments(small_checkpoint, small_npz, tmp_path):
    of = ("--ckpt", small_checkpoint, "--data", small_npz, "--half-width", 5)
    return ("rd", *of, "--out", tmp_path / "run")


@pytest.mark.usefixtures("pages", "sketched")
def test_the_pictures_of_the_first_images_come_by_themselves(arguments, completed, tmp_path):
    printed, message = completed(*arguments, "--format", "csv")
    assert f"66 {HEAD}" in message
    assert HEAD not in printed
    result = Pictures.read(tmp_path / "run", 40)
    assert result.decoding.rmse.shape == (6, 11)
    assert result.generation is result.interpolation is None
    # The rates above the pictures are those printed.
    curve = pd.read_csv(tmp_path / "run" / "rate_distortion.csv").set_index("t")
    numbers = pd.read_csv(tmp_path / "run" / "figures" / "decoding.csv")
    assert list(numbers.rate_bits_per_dim) == list(curve.rate_bits_per_dim.loc[numbers.t])


@pytest.mark.usefixtures("pages", "sketched")
def test_none_all_and_a_depth(arguments, completed, tmp_path):
    without, message = completed(*arguments, "--pictures", "none", "--format", "csv")
    assert HEAD not in message
    assert not (tmp_path / "run" / PICTURES).exists()
    printed, message = completed(*arguments, "--pictures", "all", "--depth", 3, "--format", "csv")
    assert f"{66 + 8 * 40 + 33 * 3} {HEAD}" in message
    assert printed == without
    assert Pictures.read(tmp_path / "run", 40).interpolation.depth == 3
    assert {path.stem for path in (tmp_path / "run" / "figures").iterdir()} >= {
        "rate_distortion", "decoding", "generation", "interpolation",
    }  # fmt: skip


@pytest.mark.usefixtures("sketched")
def test_a_finished_run_keeps_and_redraws_its_pictures(
    arguments, invoke, completed, tmp_path, monkeypatch
):
    assert invoke(*arguments)[0] == 0
    before = (tmp_path / "run" / PICTURES).read_bytes()

    def refuse(*_, **__):
        raise AssertionError("the network was called")

    monkeypatch.setattr(torch.nn.Module, "__call__", refuse)
    _, message = completed("report", tmp_path / "run")
    assert HEAD not in message
    assert (tmp_path / "run" / PICTURES).read_bytes() == before
    assert (tmp_path / "run" / "figures" / "decoding.svg").exists()


def test_of_several_processes_one_makes_them(arguments, tmp_path):
    first, second = ranks(2, *arguments)
    assert first.returncode == second.returncode == 0, first.stderr
    assert first.stderr.count(HEAD) == first.stderr.count("Run folder: ") == 1
    assert first.stdout.count("PSNR") == 1
    assert second.stdout == second.stderr == ""
    assert Pictures.read(tmp_path / "run", 40).decoding.rmse.shape == (6, 11)
    refused = ranks(2, *arguments, "--pictures", "all", "--depth", 41)
    assert [result.returncode for result in refused] == [2, 2]
    assert "".join(result.stderr for result in refused).count("Error: --depth 41") == 1
