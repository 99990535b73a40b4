"""The check before a run: when it is made, what it leaves, and that it changes no number."""

import dataclasses
import json
import re

import misread
import pandas as pd
import pytest
import torch
from sealing import read_record

from ddpmbench import (
    FidSettings,
    RunListener,
    evaluate_fid,
    evaluate_nll,
    load_checkpoint,
    load_images,
    write_report,
)
from ddpmbench.cli.main import run
from ddpmbench.cli.options import check_option
from ddpmbench.errors import InputError
from ddpmbench.inputs.checkpoints.checkpoint import Checkpoint
from ddpmbench.inputs.images import ImageSet
from ddpmbench.process.prediction import Prediction
from ddpmbench.quality.protocols import PROTOCOLS
from ddpmbench.questions import check
from ddpmbench.questions.check import RECORD, TABLE, CheckBefore
from ddpmbench.report.check import CheckRecord
from ddpmbench.runs.check import WORTH_A_CHECK
from ddpmbench.runs.distributed import Ranks
from ddpmbench.runs.quality import QualityListener

EVERY_PAIR = {"estimator": "every-pair", "draws": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def shipped() -> Checkpoint:
    return load_checkpoint()


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return load_images("fashion-mnist:test", num_images=9)


@pytest.fixture(scope="module")
def misread_run(shipped, images, tmp_path_factory):
    """A run of a model that is misread, and the lines that it said."""
    out, said = tmp_path_factory.mktemp("runs") / "misread", []
    wrong = dataclasses.replace(misread.giving_v(shipped), prediction=Prediction.EPSILON)
    report = evaluate_nll(
        wrong.respaced(4),
        images,
        **EVERY_PAIR,
        check=True,
        out=out,
        listener=RunListener(warn=said.append, note=lambda line: said.append(f"note {line}")),
    )
    return wrong.respaced(4), report, said


def forbidden(*arguments, **keywords):
    pytest.fail("it was checked")


def test_a_misread_model_is_said_in_one_line_with_the_option_and_the_numbers(misread_run):
    _, report, (note, line) = misread_run
    assert note.startswith("note First some hundred network calls")
    assert "--no-check" in note
    assert "\n" not in line
    assert line.startswith("--ckpt ")
    assert "likely trained to be read with --prediction v:" in line
    assert re.search(r"\d+ images cost [\d.]+ \(\+- [\d.]+\) bits/dim less so", line)
    assert re.search(r"eps_mse at t = \d is [\d.]+ as it is read and [\d.e-]+ so", line)
    record = report.summary["check"]
    assert record == {
        "warning": line,
        "likely": "--prediction v",
        "num_evaluations": record["num_evaluations"],
    }
    # They are none of the run's.
    assert record["num_evaluations"] > 0
    assert report.summary["num_evaluations"] == 9 * 4


def test_the_table_holds_every_reading_at_its_steps(misread_run):
    _, report, _ = misread_run
    table = pd.read_csv(report.folder / TABLE)
    assert list(table) == [
        "reading", "num_images", "difference", "standard_error", "eps_difference",
        "eps_standard_error", "t", "eps_mse", "x_start_mse",
    ]  # fmt: skip
    assert table.reading[0] == "as asked for"
    (stated, v) = (table[table.reading == name] for name in ("as asked for", "--prediction v"))
    assert list(stated.t) == list(v.t)
    assert (v.difference < -4 * v.standard_error).all()
    assert stated.eps_mse.max() > 0.1 > v.eps_mse.iloc[-1]
    assert read_record(report.folder / RECORD) == report.summary["check"]


def test_a_run_that_goes_on_is_not_checked_again_but_says_it_again(
    misread_run, images, monkeypatch
):
    checkpoint, report, (_, line) = misread_run
    monkeypatch.setattr(check, "check_reading", forbidden)
    said = []
    again = evaluate_nll(
        checkpoint,
        images,
        **EVERY_PAIR,
        check=True,
        out=report.folder,
        listener=RunListener(warn=said.append),
    )
    assert said == [line]
    assert again.summary["check"] == report.summary["check"]


def test_a_damaged_record_is_made_again(misread_run, shipped, images, tmp_path):
    record = CheckRecord("a warning", "--prediction v", 7)
    for text in ("", "[]", '{"warning": 1, "likely": null, "num_evaluations": 3}'):
        out = tmp_path / str(len(text))
        kept = evaluate_nll(shipped.respaced(3), images, **EVERY_PAIR, check=False, out=out)
        assert kept.summary["check"] is None
        (out / RECORD).write_text(text)
        found = evaluate_nll(shipped.respaced(3), images, **EVERY_PAIR, check=True, out=out)
        assert found.summary["check"]["num_evaluations"] > record.num_evaluations


def test_the_page_shows_what_speaks_against_the_reading_and_nothing_else(
    misread_run, shipped, images, tmp_path
):
    _, report, _ = misread_run
    page = write_report(report.folder).read_text()
    assert "likely trained to be read with --prediction v" in page
    said = []
    listener = RunListener(note=said.append, warn=said.append)
    given = {"check": True, "out": tmp_path / "right", "listener": listener}
    right = evaluate_nll(shipped.respaced(4), images, **EVERY_PAIR, **given)
    assert right.summary["check"]["warning"] is None
    calls = right.summary["check"]["num_evaluations"]
    assert said[1:] == [f"{calls:,} of them: nothing speaks against its reading"]
    assert 'role="note"' not in write_report(right.folder).read_text()


@pytest.mark.parametrize("value", [3, {"warning": None}, {"warning": 5, "likely": None}])
def test_a_damaged_check_in_a_summary_is_refused(value, shipped, images, tmp_path):
    found = evaluate_nll(shipped.respaced(2), images, **EVERY_PAIR, out=tmp_path / "run")
    path = found.folder / "summary.json"
    path.write_text(json.dumps(found.summary | {"check": value}))
    with pytest.raises(InputError, match=r"summary.json: missing or damaged: check"):
        write_report(found.folder)


def test_the_check_changes_no_number_of_the_run(shipped, images):
    runs = [evaluate_nll(shipped.respaced(3), images, **EVERY_PAIR, check=c) for c in (True, False)]
    first, second = (run.summary for run in runs)
    assert first["bits_per_dim"] == second["bits_per_dim"]
    assert runs[0].per_timestep.equals(runs[1].per_timestep)


def made(before: CheckBefore, checkpoint, images, ranks=Ranks()) -> CheckRecord | None:  # noqa: B008
    return before.made(checkpoint, images, device=torch.device("cpu"), ranks=ranks, folder=None)


def test_long_runs_are_checked_and_short_ones_if_that_is_asked_for(
    small_model, small_images, monkeypatch
):
    for wanted, calls, is_checked in (
        (None, WORTH_A_CHECK, True),
        (None, WORTH_A_CHECK - 1, False),
        (True, 1, True),
        (False, 10**9, False),
    ):
        found = made(CheckBefore(wanted, calls), small_model, small_images)
        assert (found is not None) == is_checked
    assert f"{WORTH_A_CHECK:,} calls" in check_option(lambda: None).__click_params__[0].help


def test_random_weights_are_said_to_be_no_trained_model(small_model, small_images):
    said = []
    made(CheckBefore(True, 1, warn=said.append), small_model, small_images)
    (line,) = said
    assert "\n" not in line
    assert "--ckpt small: is read otherwise than it was trained, or its weights are not" in line
    assert "where that of a trained model is below" in line


def test_the_first_process_alone_checks(small_model, small_images, monkeypatch):
    monkeypatch.setattr(check, "check_reading", forbidden)

    class Second(Ranks):
        def once(self, compute):
            return "what the first found"

    found = made(CheckBefore(True, 1), small_model, small_images, Second(rank=1, count=2))
    assert found == "what the first found"


def test_both_options_are_there_and_the_warning_is_one_line_of_standard_error(
    tmp_path, small_npz, small_checkpoint, capsys
):
    arguments = ["--ckpt", small_checkpoint, "--data", small_npz, "--estimator", "every-pair"]
    arguments += ["--draws", 1, "--timesteps", 5, "--device", "cpu", "--format", "quiet"]

    def told(*more):
        status = run([str(a) for a in ("nll", *arguments, "--out", tmp_path / more[0], *more[1:])])
        captured = capsys.readouterr()
        assert status == 0, captured.err
        float(captured.out)
        return [line for line in captured.err.splitlines() if "trained" in line]

    first, second = told("checked", "--check")
    assert first.startswith("Note: First some hundred network calls")
    assert second.startswith(f"Warning: --ckpt {small_checkpoint}: is read otherwise")
    assert not told("left-out", "--no-check")
    assert not told("short")


def test_samples_are_checked_with_the_first_reference_that_has_images_such_as_theirs(
    shipped, images, monkeypatch
):
    from ddpmbench.questions import fid, fid_check

    asked, said = [], []

    def stop(self, checkpoint, of, **others):
        asked.append((of, self.num_evaluations))
        raise InputError("far enough")

    monkeypatch.setattr(fid_check.CheckBefore, "made", stop)
    monkeypatch.setattr(fid, "_identity", lambda run, settings: {})
    small = dataclasses.replace(images, pixels=images.pixels[:, :, 4:20, 4:20].copy())

    class Network:
        resize = PROTOCOLS["clean"].resize
        sha256 = "0" * 64

    def evaluate(*references):
        settings = FidSettings(Network(), PROTOCOLS["clean"], num_generated=5, check=True)
        listener = QualityListener(note=said.append)
        evaluate_fid(shipped.respaced(6), references, settings, device="cpu", listener=listener)

    monkeypatch.setattr(fid.QualityStores, "of", lambda *arguments: None)
    with pytest.raises(InputError, match="far enough"):
        evaluate(small, images)
    assert asked == [(images, 30)]
    monkeypatch.setattr(fid.QualityRun, "engine", stop_here)
    with pytest.raises(InputError, match="no further"):
        evaluate(small)
    assert said == ["--check: no --data has images such as the checkpoint makes; left out"]


def stop_here(self, folder):
    raise InputError("no further")
