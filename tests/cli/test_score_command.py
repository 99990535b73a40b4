"""`score` as a user types it."""

import io
import json

import numpy as np
import pandas as pd
import pytest
from processes import ddpmbench, ranks

from ddpmbench.report.text import with_interval

SHORT = ("--evaluations-per-image", 4, "--timesteps", 10)


@pytest.fixture(scope="module")
def bright(small_images, tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "bright.npz"
    np.savez(path, arr_0=255 - small_images.pixels[:5].transpose(0, 2, 3, 1))
    return path


@pytest.fixture(scope="module")
def arguments(small_checkpoint, small_npz, bright):
    return ("score", "--ckpt", small_checkpoint, "--data", small_npz, "--data", bright, *SHORT)


@pytest.fixture(scope="module")
def finished(arguments, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    result = ddpmbench(*arguments, "--out", out)
    assert result.returncode == 0, result.stderr
    return out, result


def test_the_result_is_on_stdout_and_in_the_folder(finished):
    out, result = finished
    summary = json.loads((out / "summary.json").read_text())
    text = " ".join(result.stdout.split())
    headline = with_interval(summary["bits_per_dim"], summary["sets"][0]["half_width"])
    assert text.startswith(f"NLL <= {headline} bits/dim")
    area = summary["comparison"]["auroc"]
    assert f"AUROC {area['value']:.3f} ({area['lower']:.3f} to {area['upper']:.3f})" in text
    for words in ("p = ", "(Welch)", "rank simple images as likely", "images A 6 of", "images B 5"):
        assert words in text
    table = pd.read_csv(out / "per_image.csv")
    columns = ["set", "image_id", "bits_per_dim", "standard_error", "code_length"]
    assert list(table.columns) == [*columns, "nearest_distance"]
    assert table.set.tolist() == ["A"] * 6 + ["B"] * 5
    density = pd.read_csv(out / "proposal.csv").density
    assert density.sum() == pytest.approx(1)
    for name in ("environment.json", "run.json"):
        assert (out / name).exists()


def test_the_formats(completed, finished, arguments):
    out, _ = finished
    summary = json.loads((out / "summary.json").read_text())
    summary.pop("checksums")
    printed = {}
    for form in ("json", "csv", "quiet"):
        printed[form], message = completed(*arguments, "--out", out, "--format", form)
        assert "none is repeated" in message
    assert json.loads(printed["json"]) == summary
    assert len(pd.read_csv(io.StringIO(printed["csv"]))) == 11
    assert [float(line) for line in printed["quiet"].split()] == [
        of["bits_per_dim"] for of in summary["sets"]
    ]


def test_two_processes_have_the_scores_of_one(finished, arguments, tmp_path):
    out, _ = finished
    first, other = ranks(2, *arguments, "--out", tmp_path / "run")
    assert first.returncode == other.returncode == 0, first.stderr + other.stderr
    assert other.stdout == ""
    one, two = (pd.read_csv(path / "per_image.csv") for path in (out, tmp_path / "run"))
    pd.testing.assert_frame_equal(one, two, rtol=1e-5)
