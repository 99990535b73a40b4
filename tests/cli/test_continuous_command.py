"""`nll --timesteps continuous`, `nll --continuous` and `ode`, and what they refuse in one line."""

import pytest
from oracles import oracle_checkpoint, oracle_images

import ddpmbench as db

CONTINUOUS = ("--timesteps", "continuous")
EVERY_PAIR = ("--estimator", "every-pair", "--draws", "1")


@pytest.fixture
def inputs(small_checkpoint, small_npz):
    return ["--ckpt", small_checkpoint, "--data", small_npz]


def test_the_command(invoke, inputs, tmp_path):
    words = ["nll", *inputs, "--estimator", "every-pair"]
    status, printed, _ = invoke(*words, *CONTINUOUS, "--out", tmp_path / "run")
    assert status == 0
    assert "T = 40, linear, continuous time from t = 1 to T, in " in printed
    status, printed, _ = invoke(*words, "--continuous", "--out", tmp_path / "other")
    assert status == 0
    assert "bits/dim in continuous time" in printed
    status, _, message = invoke(*words, "--timesteps", "none")
    assert status == 2
    assert "--timesteps" in message


def test_a_row_that_is_asked_for_and_absent_is_said(invoke, inputs, tmp_path):
    words = ["nll", *inputs, *EVERY_PAIR, "--timesteps", "61"]
    _, printed, message = invoke(*words, "--out", tmp_path / "run", "--continuous")
    assert "no bound in continuous time beside that of the run: the model visits" in message
    assert "no bound in continuous time" not in printed
    _, _, message = invoke(*words, "--out", tmp_path / "other")
    assert "no bound in continuous time" not in message


def test_a_run_in_continuous_time_has_no_row_of_it_besides(refused, inputs):
    line = refused("nll", *inputs, *EVERY_PAIR, *CONTINUOUS, "--continuous")
    assert line.startswith("Error: --continuous: the run itself is in continuous time")


def test_only_the_bound_is_in_continuous_time(invoke, inputs):
    for command in ("ode", "rd", "score", "sample"):
        data = inputs if command != "sample" else [*inputs[:2], "-n", "2"]
        status, _, message = invoke(command, *data, *CONTINUOUS)
        assert status == 2
        assert "--timesteps" in message


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--probes", "0"], "--probes"),
        (["--probes", "2", "--trace", "exact"], "--probes 2"),
        (["--solver-steps", "7"], "--solver-steps 7"),
        (["--solver-steps", "0"], "--solver-steps"),
        (["--solver", "euler"], "--solver"),
        (["--num-ode-images", "0"], "--num-ode-images"),
        (["--timesteps", "80"], "timesteps between those of its training"),
        (["--timesteps", "5"], "visits 5 of its timesteps only"),
        (["--timesteps", "1"], "visits 1 of its timesteps only"),
    ],
)
def test_options_of_the_ode_that_make_no_sense(refused, inputs, words, line, tmp_path):
    assert line in refused("ode", *inputs, *words, "--out", tmp_path / "run")


def test_continuous_and_discrete_runs_are_not_compared(invoke, refused, inputs, tmp_path):
    for name, words in (("one", CONTINUOUS), ("two", ())):
        status, _, message = invoke("nll", *inputs, *EVERY_PAIR, *words, "--out", tmp_path / name)
        assert status == 0, message
    line = refused("compare", tmp_path / "one", tmp_path / "two")
    assert "schedule is linear, but linear, continuous time" in line


def test_the_ode_needs_times_between_the_timesteps():
    images = oracle_images(2)
    with pytest.raises(db.InputError, match="cannot be solved: it rounds the time"):
        db.evaluate_ode(oracle_checkpoint(images), images)
