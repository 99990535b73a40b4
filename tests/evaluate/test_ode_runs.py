"""A run of `ode`: its numbers, its folder, and what must not change them."""

import dataclasses
import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
from interrupted import resumed
from normal_data import normal_images, trained_on_normal_data
from oracles import oracle_checkpoint, oracle_images
from processes import ranks
from sealing import read_record

import ddpmbench as db
from ddpmbench.diffusion.process import Prediction
from ddpmbench.errors import InputError
from ddpmbench.execution.importance import Importance
from ddpmbench.execution.worker import RunListener
from ddpmbench.report.ode import printed_ode
from ddpmbench.sanity_check.run import MIN_EVALUATIONS

OPTIONS = {"solver_steps": 2, "num_ode_images": 4, "half_width": 0.3, "seed": 1}
WORDS = ("--solver-steps", 2, "--num-ode-images", 4, "--half-width", 0.3, "--seed", 1)


@pytest.fixture(scope="module")
def whole(small_model, small_images):
    return db.evaluate_ode(small_model, small_images, **OPTIONS, batch_size=30)


@pytest.fixture(scope="module")
def bound(small_model, small_images):
    how = {"seed": OPTIONS["seed"], "half_width": OPTIONS["half_width"]}
    return db.evaluate_nll(small_model, small_images, **how)


@pytest.fixture(scope="module")
def in_small_batches(small_model, small_images, bound):
    return db.evaluate_ode(small_model, small_images, **OPTIONS, batch_size=3, bound=bound)


def numbers(report):
    names = ("bits_per_dim", "half_width", "half_width_population", "difference_from_bound")
    images = report.per_image.drop(columns=["image_id", "probe_error"])
    return np.append([report.summary[name] for name in names], images.to_numpy().ravel())


def test_the_numbers_belong_together(whole, small_images):
    summary, frame = whole.summary, whole.per_image
    assert list(frame.image_id) == sorted(frame.image_id)
    assert set(frame.image_id) < set(small_images.ids)
    assert len(frame) == summary["num_ode_images"] == 4
    assert frame.bits_per_dim.to_numpy() == pytest.approx(frame.decoder + frame.log_q - frame.log_p)
    differences = frame.bits_per_dim - frame.variational_bound
    assert summary["difference_from_bound"] == pytest.approx(differences.mean())
    bound = summary["bound"]
    assert summary["bits_per_dim"] == pytest.approx(bound["bits_per_dim"] + differences.mean())
    assert summary["half_width"] == pytest.approx(
        np.hypot(bound["half_width"], summary["difference_half_width"])
    )
    assert summary["half_width_population"] > summary["half_width"] > bound["half_width"]
    assert summary["solver_error"] == pytest.approx(frame.solver_error.mean())
    assert summary["num_evaluations"] == 4 * (4 * 3 + 1 + 48)
    assert summary["num_vjps"] == 4 * 4 * 3
    assert "NLL of the ODE <=" in repr(whole)


def test_a_folder_holds_what_memory_does(whole, small_model, small_images, tmp_path):
    out = tmp_path / "run"
    report = db.evaluate_ode(small_model, small_images, **OPTIONS, batch_size=30, out=out)
    np.testing.assert_allclose(numbers(report), numbers(whole), rtol=0, atol=1e-6)
    frame = pd.read_csv(out / "per_image.csv")
    assert frame.bits_per_dim.to_numpy() == pytest.approx(report.per_image.bits_per_dim.to_numpy())
    assert read_record(out / "summary.json")["bits_per_dim"] == report.summary["bits_per_dim"]
    started = []
    again = db.evaluate_ode(
        small_model, small_images, **OPTIONS, out=out, listener=RunListener(start=started.append)
    )
    assert started == [0]
    assert again.summary == report.summary
    with pytest.raises(InputError, match=r"holds another run \(solver_steps is 2"):
        db.evaluate_ode(small_model, small_images, **{**OPTIONS, "solver_steps": 4}, out=out)


def test_a_long_bound_is_checked_though_the_ode_is_short(small_model, small_images, monkeypatch):
    monkeypatch.setattr(Importance, "expected_evaluations", lambda *of: MIN_EVALUATIONS)
    given = OPTIONS | {"progress": False}
    for evaluate in (db.evaluate_ode, db.evaluate_likelihoods):
        unchecked = evaluate(small_model, small_images, **given, check=False)
        assert unchecked.summary["check"] is None
        checked = evaluate(small_model, small_images, **given).summary["check"]
        assert checked["num_evaluations"] == 0  # of so few images


def test_a_bound_that_is_known_is_not_evaluated_again(
    whole, bound, small_model, small_images, tmp_path
):
    given = db.evaluate_ode(small_model, small_images, **OPTIONS, bound=bound, out=tmp_path)
    np.testing.assert_allclose(numbers(given), numbers(whole), rtol=0, atol=2e-5)
    assert not (tmp_path / "bound").exists()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"seed": 2}, r"is of another evaluation \(seed is 2 there, 1 here\)"),
        ({"num_images": 5}, r"is of another evaluation \(data is [0-9a-f]{12} there"),
        ({"decoder": "tanh"}, r"is of another evaluation \(decoder is tanh there, exact here\)"),
        ({"estimator": "every-pair", "draws": 1}, "its interval is unknown"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_the_bound_of_another_evaluation_is_refused(small_model, small_images, changes, problem):
    how = {"seed": OPTIONS["seed"], "half_width": 9.0, **changes}
    if "draws" in how:
        del how["half_width"]
    images = small_images.subset(how.pop("num_images", len(small_images)))
    bound = db.evaluate_nll(small_model, images, **how)
    with pytest.raises(InputError, match=f"`bound`: {problem}"):
        db.evaluate_ode(small_model, small_images, **OPTIONS, bound=bound)


def test_a_wrong_parameterization_is_warned_of(tmp_path):
    images = normal_images(64)
    trained = trained_on_normal_data()
    wrong = dataclasses.replace(trained, prediction=Prediction.X_START)
    warnings = []
    db.evaluate_ode(
        wrong,
        images,
        solver_steps=2,
        num_ode_images=2,
        half_width=90.0,
        check=True,
        out=tmp_path,
        listener=RunListener(warn=warnings.append),
    )
    assert any("prediction" in line for line in warnings)
    assert read_record(tmp_path / "summary.json")["check"]["warning"] in warnings
    assert read_record(tmp_path / "bound" / "summary.json")["check"] is None


@pytest.mark.parametrize("num_ode_images", [4, 6])
@pytest.mark.parametrize("evaluation", ["ode", "ode, bound given", "likelihoods"])
def test_every_warning_comes_once_and_no_note_is_of_options_of_the_bound(
    small_model, small_images, bound, evaluation, num_ode_images
):
    evaluate = {
        "ode": db.evaluate_ode,
        "ode, bound given": partial(db.evaluate_ode, bound=bound),
        "likelihoods": db.evaluate_likelihoods,
    }[evaluation]
    images = dataclasses.replace(small_images, skipped=("a.txt", "b.txt"))
    warnings, notes = [], []
    options = {**OPTIONS, "num_ode_images": num_ode_images}
    listener = RunListener(warn=warnings.append, note=notes.append)
    evaluate(small_model, images, **options, listener=listener)
    assert warnings.count(images.skipped_note) == 1
    assert len([line for line in warnings if "raw pixels" in line]) == 1
    assert not [line for line in notes if "estimator" in line]


def test_the_page_holds_the_number_and_its_figure(small_model, small_images, tmp_path):
    report = db.evaluate_ode(small_model, small_images, solver_steps=2, out=tmp_path)
    page = db.write_report(tmp_path, progress=False).read_text()
    for text in (f"{int(report.summary['bits_per_dim'])}.", "from the variational bound", "<svg"):
        assert text in page
    drawn = pd.read_csv(tmp_path / "figures" / "pairs.csv")
    assert drawn.difference.mean() == pytest.approx(report.summary["difference_from_bound"])


@pytest.mark.parametrize(("time_input", "is_known"), [("index", True), ("log-sigma", False)])
def test_the_timesteps_of_the_training_are_named_where_they_are_known(whole, time_input, is_known):
    conventions = {**whole.summary["conventions"], "time_input": time_input}
    text = printed_ode({**whole.summary, "conventions": conventions}, "table")
    assert ("trained at whole timesteps only" in text) == is_known


def test_batch_size_changes_no_more_than_rounding(whole, in_small_batches):
    np.testing.assert_allclose(numbers(in_small_batches), numbers(whole), rtol=0, atol=2e-5)


def test_interrupted_after_every_batch_of_the_ode(
    in_small_batches, bound, small_model, small_images, tmp_path
):
    known = {"bound": bound, "batch_size": 3, "out": tmp_path}
    run = partial(db.evaluate_ode, small_model, small_images, **OPTIONS, **known)
    report, sessions = resumed(run, 1)
    assert sessions > 2
    np.testing.assert_allclose(numbers(report), numbers(in_small_batches), rtol=0, atol=1e-6)


def test_interrupted_in_the_bound(whole, small_model, small_images, tmp_path):
    run = partial(
        db.evaluate_ode, small_model, small_images, **OPTIONS, batch_size=30, out=tmp_path
    )
    report, sessions = resumed(run, 1, most=4)
    assert sessions == 4
    np.testing.assert_allclose(numbers(report), numbers(whole), rtol=0, atol=1e-6)


def test_processes_and_formats(whole, small_checkpoint, small_npz, tmp_path):
    command = ["ode", "--ckpt", small_checkpoint, "--data", small_npz, *WORDS, "--batch-size", 30]
    command = [*map(str, command), "--out", str(tmp_path)]
    together = ranks(2, *command, "--format", "quiet")
    assert [result.returncode for result in together] == [0, 0], together[0].stderr
    expected = whole.summary["bits_per_dim"]
    assert float(together[0].stdout) == pytest.approx(expected, abs=1e-6)
    assert together[1].stdout == ""
    read = db.load_report(tmp_path).summary
    assert json.loads(printed_ode(read, "json")) == read_record(tmp_path / "summary.json")
    assert "from the variational bound" in printed_ode(read, "table")


def test_the_ode_of_all_images_needs_no_bound_of_all(small_model, small_images, tmp_path):
    report = db.evaluate_ode(
        small_model, small_images, solver_steps=2, probes=2, dequantization="uniform", out=tmp_path
    )
    summary = report.summary
    assert summary["bound"] is None
    assert not (tmp_path / "bound").exists()
    assert summary["bits_per_dim"] == pytest.approx(report.per_image.bits_per_dim.mean())
    assert summary["half_width"] is None
    assert summary["half_width_population"] > 0
    assert (report.per_image.decoder == 0).all()
    assert (report.per_image.probe_error > 0).all()


def test_the_ode_needs_times_between_the_timesteps():
    images = oracle_images(2)
    with pytest.raises(InputError, match="cannot be solved: it rounds the time"):
        db.evaluate_ode(oracle_checkpoint(images), images)
