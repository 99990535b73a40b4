"""The sanity check before a run: when it runs, its record, and that it changes no number."""

import dataclasses
import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from feature_networks import write_network
from retrained import trained
from sealing import read_record

from ddpmbench import (
    FidSettings,
    RunListener,
    evaluate_fid,
    evaluate_nll,
    load_images,
    write_report,
)
from ddpmbench.checkpoints.native import write_native
from ddpmbench.checksums import checksum
from ddpmbench.cli.main import run
from ddpmbench.cli.options import check_option
from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.process import Prediction
from ddpmbench.errors import InputError
from ddpmbench.evaluate import fid
from ddpmbench.execution.distributed import Ranks
from ddpmbench.execution.session import Session
from ddpmbench.metrics.feature_networks import load_feature_network
from ddpmbench.metrics.scores import PROTOCOLS
from ddpmbench.sanity_check import run as check
from ddpmbench.sanity_check.check import Outcome
from ddpmbench.sanity_check.run import (
    MIN_EVALUATIONS,
    RECORD,
    TABLE,
    PreliminaryCheck,
    note,
)

EVERY_PAIR = {"estimator": "every-pair", "draws": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return load_images("fashion-mnist:test", num_images=16)


@pytest.fixture(scope="module")
def wrong_run(shipped, images, tmp_path_factory):
    """A run with a wrong prediction, and its lines."""
    out, lines = tmp_path_factory.mktemp("runs") / "wrong", []
    wrong = trained(shipped, prediction=Prediction.V)
    wrong = dataclasses.replace(wrong, prediction=Prediction.EPSILON)
    report = evaluate_nll(
        wrong.respaced(4),
        images,
        **EVERY_PAIR,
        check=True,
        out=out,
        listener=RunListener(warn=lines.append, note=lambda line: lines.append(f"note {line}")),
    )
    return wrong.respaced(4), report, lines


def forbidden(*arguments, **keywords):
    pytest.fail("it was checked")


def test_a_wrong_parameter_is_one_line_with_the_right_one_and_the_numbers(wrong_run):
    _, report, (first, line) = wrong_run
    assert first.startswith("note sanity check of the parameterization first")
    assert "`check=False`" in first
    assert "\n" not in line
    assert line.startswith(f"`ckpt={report.summary['checkpoint']['source']}`: ")
    assert "was likely trained with `prediction=v`:" in line
    assert "--" not in line
    assert re.search(r"on 16 images its bound is about [\d.]+ \(\+- [\d.]+\) bits/dim lower", line)
    assert re.search(r"eps_mse at t = \d is [\d.e-]+ instead of [\d.]+", line)
    record = report.summary["check"]
    assert record == {
        "warning": line,
        "likely": "prediction=v",
        "num_evaluations": record["num_evaluations"],
        "outcome": "likely",
        "better": "prediction=v",
    }
    # They do not count towards the run.
    assert record["num_evaluations"] > 0
    assert report.summary["num_evaluations"] == 16 * 4


def test_the_table_holds_every_candidate_at_its_timesteps(wrong_run):
    _, report, _ = wrong_run
    table = pd.read_csv(report.folder / TABLE)
    assert list(table) == [
        "parameterization", "num_images", "difference", "standard_error", "bound_difference",
        "bound_standard_error", "eps_difference", "eps_standard_error", "t", "eps_mse",
        "x_start_mse",
    ]  # fmt: skip
    assert table.parameterization[0] == "as given"
    given, v = (table[table.parameterization == name] for name in ("as given", "prediction=v"))
    assert list(given.t) == list(v.t)
    assert (v.difference < -4 * v.standard_error).all()
    assert given.eps_mse.max() > 0.1 > v.eps_mse.iloc[-1]
    record = read_record(report.folder / RECORD)
    assert record.pop("table_sha256") == checksum(report.folder / TABLE)
    assert record == report.summary["check"]


def test_a_resumed_run_warns_again_without_another_check(wrong_run, images, monkeypatch):
    checkpoint, report, (_, line) = wrong_run
    monkeypatch.setattr(check, "check_parameterization", forbidden)
    lines = []
    again = evaluate_nll(
        checkpoint,
        images,
        **EVERY_PAIR,
        check=True,
        out=report.folder,
        listener=RunListener(warn=lines.append),
    )
    assert lines == [line]
    assert again.summary["check"] == report.summary["check"]


def test_a_run_that_is_stopped_keeps_the_table_of_its_check(shipped, images, tmp_path, monkeypatch):
    """With its checksum; a damaged table is computed again."""
    made = []
    real = check.check_parameterization
    monkeypatch.setattr(
        check, "check_parameterization", lambda *of, **more: made.append(1) or real(*of, **more)
    )
    table = tmp_path / TABLE
    whole = None
    for damage, count in ((None, 1), (None, 1), (b"9", 2)):
        if whole is not None:
            (tmp_path / "summary.json").unlink()
        if damage is not None:
            table.write_bytes(whole[:-3] + damage + whole[-2:])
        evaluate_nll(shipped.respaced(3), images, **EVERY_PAIR, check=True, out=tmp_path)
        whole = whole or table.read_bytes()
        assert len(made) == count
        assert table.read_bytes() == whole
        known = json.loads((tmp_path / "summary.json").read_text())["checksums"]
        assert known[TABLE] == checksum(table)


def test_a_record_without_its_checksum_is_checked_again(shipped, images, tmp_path):
    evaluate_nll(shipped.respaced(3), images, **EVERY_PAIR, check=False, out=tmp_path)
    (tmp_path / RECORD).write_text(json.dumps({"warning": None, "num_evaluations": 3}))
    report = evaluate_nll(shipped.respaced(3), images, **EVERY_PAIR, check=True, out=tmp_path)
    assert report.summary["check"]["num_evaluations"] > 3


@pytest.mark.usefixtures("sketched")
def test_a_right_model_has_no_warning_and_the_same_numbers_as_without_a_check(
    wrong_run, shipped, images, tmp_path
):
    lines = []
    listener = RunListener(note=lines.append, warn=lines.append)
    options = {**EVERY_PAIR, "out": tmp_path / "right", "listener": listener}
    right = evaluate_nll(shipped.respaced(4), images, **options, check=True)
    record = right.summary["check"]
    assert record["warning"] is None
    assert lines[1:] == [
        f"sanity check, {record['num_evaluations']:,} network evaluations: nothing speaks against "
        "the parameterization"
    ]
    unchecked = evaluate_nll(shipped.respaced(4), images, **EVERY_PAIR, check=False)
    assert unchecked.summary["check"] is None
    assert unchecked.summary["bits_per_dim"] == right.summary["bits_per_dim"]
    assert unchecked.per_timestep.equals(right.per_timestep)
    assert 'role="note"' not in write_report(right.folder).read_text()
    page = write_report(wrong_run[1].folder).read_text()
    assert "was likely trained with `prediction=v`" in page


@pytest.fixture(scope="module")
def enough(small_images) -> ImageSet:
    """As many crops as the check takes."""
    pixels, ids = np.resize(small_images.pixels, (16, 1, 8, 8)), [str(i) for i in range(16)]
    return ImageSet(pixels, ids, "crops")


def record_of(check, checkpoint, images, ranks=Ranks()):  # noqa: B008
    session = Session(ranks, torch.device("cpu"), None)
    return check.run(checkpoint, images, session, None)


def test_long_runs_are_checked_and_short_ones_if_that_is_asked_for(
    small_model, small_images, monkeypatch
):
    for wanted, calls, is_checked in (
        (None, MIN_EVALUATIONS, True),
        (None, MIN_EVALUATIONS - 1, False),
        (True, 1, True),
        (False, 10**9, False),
    ):
        record = record_of(PreliminaryCheck(wanted, calls), small_model, small_images)
        assert (record is not None) == is_checked
    assert f"{MIN_EVALUATIONS:,} evaluations" in check_option(lambda: None).__click_params__[0].help


def test_too_few_images_are_not_checked(small_model, small_images):
    lines = []
    preliminary = PreliminaryCheck(True, 1, listener=RunListener(note=lines.append))
    record = record_of(preliminary, small_model, small_images)
    assert record == {
        "warning": None, "likely": None, "num_evaluations": 0, "outcome": "too few images",
        "better": None,
    }  # fmt: skip
    assert lines[1:] == ["the sanity check takes 16 images or more: nothing was checked"]


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_has_a_line(outcome):
    record = {"warning": None, "num_evaluations": 7, "outcome": str(outcome)}
    line = note(record)
    assert ("undecided" in line) == (outcome is Outcome.UNDECIDED)
    assert ("nothing was checked" in line) == (outcome is Outcome.TOO_FEW_IMAGES)
    if outcome is Outcome.PASSED:
        assert line.endswith("nothing speaks against the parameterization")
    assert note({**record, "warning": "a warning"}) is None


def test_the_printed_remedy_gives_the_true_number(shipped, tmp_path, capsys):
    # The shipped weights in a file with the wrong prediction.
    path = tmp_path / "wrong.safetensors"
    write_native(path, dataclasses.replace(shipped, prediction=Prediction.V))
    common = ["--num-images", "16", "--estimator", "every-pair", "--draws", "1"]
    common += ["--timesteps", "3", "--device", "cpu", "--format", "quiet"]

    def number(*options):
        arguments = [*options, *common]
        status = run(["nll", *arguments, "--out", str(tmp_path / str(len(options)))])
        captured = capsys.readouterr()
        assert status == 0, captured.err
        return float(captured.out), captured.err

    data = ["--data", "fashion-mnist:test"]
    wrong, lines = number("--ckpt", str(path), *data, "--check")
    (remedy,) = re.findall(r"was likely trained with (--\S+ \S+):", lines)
    right, _ = number("--ckpt", str(path), *data, *remedy.split())
    truth, _ = number(*data)
    assert right == truth < wrong - 0.1


def test_only_the_first_rank_checks(small_model, small_images, monkeypatch):
    monkeypatch.setattr(check, "check_parameterization", forbidden)

    class Second(Ranks):
        def once(self, compute):
            return "the record of the first rank"

    record = record_of(
        PreliminaryCheck(True, 1), small_model, small_images, Second(rank=1, count=2)
    )
    assert record == "the record of the first rank"


def test_the_command_prints_the_warning_as_one_line_of_standard_error(
    tmp_path, enough, small_checkpoint, capsys
):
    crops = tmp_path / "crops.npz"
    np.savez(crops, arr_0=enough.pixels.transpose(0, 2, 3, 1))
    arguments = ["--ckpt", small_checkpoint, "--data", crops, "--estimator", "every-pair"]
    arguments += ["--draws", 1, "--timesteps", 5, "--device", "cpu", "--format", "quiet"]

    def lines_of(*more):
        status = run([str(a) for a in ("nll", *arguments, "--out", tmp_path / more[0], *more[1:])])
        captured = capsys.readouterr()
        assert status == 0, captured.err
        float(captured.out)
        lines = captured.err.splitlines()
        return [line for line in lines if "parameterization" in line and "raw pixels" not in line]

    first, second = lines_of("checked", "--check")
    assert first.startswith("Note: sanity check of the parameterization first")
    assert second.startswith(
        f"Warning: --ckpt {small_checkpoint}: the parameterization is wrong, or the weights are "
        "not those of a trained model: "
    )
    assert "that of a trained model below" in second
    assert not lines_of("left-out", "--no-check")
    assert not lines_of("short")


def test_samples_are_checked_with_the_first_reference_that_has_images_such_as_theirs(
    shipped, images, tmp_path, monkeypatch
):
    checked, lines = [], []
    network = load_feature_network(write_network(tmp_path / "n.pt", num_features=2, num_classes=2))
    settings = FidSettings(network, PROTOCOLS["clean"], num_generated=5, check=True)
    small = dataclasses.replace(images, pixels=images.pixels[:, :, 4:20, 4:20].copy())

    def stop(self, checkpoint, of, *others):
        checked.append((of, self.num_evaluations))
        raise InputError("far enough")

    def no_further(self, **others):
        raise InputError("no further")

    def evaluate(*references):
        listener = RunListener(note=lines.append)
        evaluate_fid(shipped.respaced(6), references, settings, device="cpu", listener=listener)

    monkeypatch.setattr(fid.PreliminaryCheck, "run", stop)
    with pytest.raises(InputError, match="far enough"):
        evaluate(small, images)
    assert checked == [(images, 30)]
    monkeypatch.setattr(fid.FidelityRun, "engine", no_further)
    with pytest.raises(InputError, match="no further"):
        evaluate(small)
    assert lines == ["`check`: no reference has images such as the checkpoint makes; left out"]
