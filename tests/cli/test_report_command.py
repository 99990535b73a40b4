"""`ddpmbench report` as a user types it, and the pages that other commands leave."""

import pytest

import ddpmbench as db


@pytest.fixture(scope="module")
def finished(small_model, small_images, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    db.evaluate_nll(small_model, small_images, half_width=5.0, out=out)
    return out


def test_the_path_of_the_page_is_what_is_printed(finished, invoke):
    assert invoke("report", finished) == (0, f"{finished / 'report.html'}\n", "")
    assert (finished / "report.html").read_text().startswith("<!doctype html>")


def test_a_comparison_leaves_its_page(finished, invoke, tmp_path):
    status, _, message = invoke("compare", finished, finished, "--out", tmp_path / "out")
    assert status == 0, message
    assert message.endswith(f"Report: {tmp_path / 'out' / 'report.html'}\n")
    again = invoke("report", tmp_path / "out")
    assert again == (0, f"{tmp_path / 'out' / 'report.html'}\n", "")


def test_what_is_no_run_is_refused(refused, tmp_path):
    assert "is no run folder" in refused("report", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds no run of ddpmbench" in refused("report", tmp_path / "empty")
    assert "Missing argument 'RUN'" in refused("report")


def test_a_folder_that_cannot_be_written_is_named(finished, refused, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("ddpmbench.files.os.fsync", refuse)
    assert f"{finished}: cannot be written (permission denied)" in refused("report", finished)
