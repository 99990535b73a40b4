"""How many network calls the questions take is what runs really make."""

import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ddpmbench.cli.main import ddpmbench
from ddpmbench.evaluate.nll import evaluate_nll
from ddpmbench.evaluate.sample import generate_samples
from ddpmbench.execution.importance import IMAGE_HALF_WIDTH, TERM_HALF_WIDTH
from ddpmbench.execution.speed import FIRST, LATER, STEP, predict, workloads

ROOT = Path(__file__).parents[2]


def predicted(works, **seconds):
    """Seconds of commands whose evaluations take 1 s each, or as given by kind."""
    parts = pd.DataFrame({"row": [FIRST, LATER, STEP], "precision": "fp32", "ms": 1000.0})
    for kind, value in seconds.items():
        parts.loc[parts.row == kind, "ms"] = 1000 * value
    return predict(works, parts).seconds.tolist()


def of(images, steps, *, half_width=0.005, samples=4):
    return workloads(images, steps, half_width=half_width, num_samples=samples)


def test_the_calls_of_a_bound_are_those_that_a_run_makes(small_model, small_images):
    sampled, pairs, *_ = of(len(small_images), 40, half_width=9)
    report = evaluate_nll(small_model, small_images, half_width=9)
    assert sampled.num_evaluations == report.summary["num_evaluations"]
    assert sampled.evaluations[FIRST] == report.per_timestep.num_evaluations[0]
    report = evaluate_nll(small_model, small_images, estimator="every-pair", draws=1)
    assert pairs.num_evaluations == report.summary["num_evaluations"]
    firsts = report.per_timestep.num_evaluations[0]
    assert pairs.evaluations == {FIRST: firsts, LATER: pairs.num_evaluations - firsts}


def test_the_calls_of_samples_are_those_that_a_run_makes(small_model):
    _, _, whole = of(6, 40, samples=3)
    report = generate_samples(small_model, 3)
    assert whole.evaluations[STEP] == whole.num_evaluations == report.summary["num_evaluations"]


def test_the_default_run_is_predicted():
    sampled, *_ = of(10_000, 1000)
    assert sampled.num_evaluations == pytest.approx(14_000, rel=0.1)
    images = sampled.evaluations[LATER] / 2
    width = IMAGE_HALF_WIDTH**2 * (1 / images - 1e-4) + TERM_HALF_WIDTH**2 / (2 * images)
    assert width**0.5 == pytest.approx(0.005, rel=0.05)


def test_a_narrower_interval_takes_more_calls_and_a_wide_one_no_fewer_than_a_first_look():
    widths = (9, 0.05, 0.01, 0.001, 0.00025)
    calls = [of(10_000, 1000, half_width=h)[0].num_evaluations for h in widths]
    assert calls[0] == calls[1] < calls[2] < calls[3] < calls[4]
    # Once all images are evaluated, the error falls as one over the root of the rows.
    assert calls[4] / calls[3] == pytest.approx(16, rel=0.1)


def test_slower_terms_and_steps_make_longer_commands():
    works = of(100, 50)
    counts = [work.num_evaluations for work in works]
    assert predicted(works) == counts
    for kind in (FIRST, LATER, STEP):
        longer = np.subtract(predicted(works, **{kind: 3.0}), counts)
        assert longer.tolist() == [2 * work.evaluations.get(kind, 0) for work in works]


def test_a_model_of_one_step_has_no_sampled_bound():
    assert [work.command.split()[1] for work in of(10, 1)] == ["nll", "sample"]


@pytest.mark.parametrize("work", of(100, 1000), ids=lambda work: work.name)
def test_every_command_parses(work):
    program, name, *arguments = shlex.split(work.command)
    assert program == "ddpmbench"
    ddpmbench.commands[name].make_context(name, arguments)
