"""What a reading is judged by: the area under the error of its noise, and what is no model."""

import dataclasses
import math

import numpy as np
import pytest
from oracles import log_snr_schedule, oracle_checkpoint, oracle_images

from ddpmbench.inputs.checkpoints.checkpoint import Checkpoint
from ddpmbench.likelihood.reading_scores import (
    Score,
    furthest_apart,
    log_snr,
    shared_areas,
    steps_of,
    worst_fault,
)
from ddpmbench.likelihood.readings import Reading
from ddpmbench.process.data_range import DataRange
from ddpmbench.process.prediction import Prediction
from ddpmbench.process.schedule import NoiseSchedule


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return oracle_checkpoint(oracle_images(), NoiseSchedule.linear(1000))


def score(checkpoint: Checkpoint, variance: float, steps=None) -> Score:
    """What the best denoiser of normal data of this variance, on [0, 1], makes of one image."""
    reading = Reading("", checkpoint)
    steps = steps_of(reading) if steps is None else steps
    ratio = variance * np.exp(log_snr(reading)[steps - 1])
    eps_mse = ratio / (1 + ratio)
    return Score(
        reading,
        steps,
        log_snr(reading)[steps - 1],
        eps_mse[None],
        variance * (1 - eps_mse)[None],
        0,
    )


def known_area(variance: float, low: float, high: float) -> float:
    """The rate of a Gaussian source between two ratios."""
    return 0.5 * math.log((1 + variance * math.exp(high)) / (1 + variance * math.exp(low)))


def test_the_area_is_the_code_length_of_a_gaussian_source_and_the_steps_suffice(checkpoint):
    for variance in (0.01, 0.1, 1.0):
        of = score(checkpoint, variance)
        low, high = of.log_snr[-1], of.log_snr[0]
        (found,) = of.areas(low, high)
        assert found == pytest.approx(known_area(variance, low, high), rel=0.06)
        every = score(checkpoint, variance, np.arange(1, 1001))
        (found,) = every.areas(low, high)
        assert found == pytest.approx(known_area(variance, low, high), rel=2e-3)


@pytest.mark.parametrize(
    "schedule", [NoiseSchedule.cosine(1000), NoiseSchedule.linear(1000).respaced(40)]
)
def test_what_a_model_is_worth_does_not_depend_on_its_schedule(checkpoint, schedule):
    other = dataclasses.replace(checkpoint, schedule=schedule)
    first, second = shared_areas(score(checkpoint, 0.1), score(other, 0.1))
    assert first == pytest.approx(second, rel=0.02)


def test_nor_on_the_range_that_its_data_are_in(checkpoint):
    # A tenth of the range with a hundredth of the noise's share is the same model.
    narrow = dataclasses.replace(
        checkpoint,
        data_range=DataRange(0.4, 0.6),
        schedule=NoiseSchedule.from_alphas_cumprod(
            (100 * checkpoint.schedule.snr / (1 + 100 * checkpoint.schedule.snr)).numpy()
        ),
    )
    first, second = score(checkpoint, 0.1), score(narrow, 0.1)
    assert second.log_snr == pytest.approx(first.log_snr)
    assert second.areas(-5, 5) == pytest.approx(first.areas(-5, 5))


def test_nothing_is_told_apart_where_two_readings_have_no_ratio_in_common(checkpoint):
    noisy = dataclasses.replace(checkpoint, schedule=log_snr_schedule(20, first=-12, last=-20))
    first, second = shared_areas(score(checkpoint, 0.1), score(noisy, 0.5))
    assert first == second


def test_what_is_worse_than_nothing_or_no_number_counts_as_nothing_learned(checkpoint):
    of = score(checkpoint, 0.1)
    for bad in (7.0, np.inf, np.nan):
        worst = dataclasses.replace(of, eps_mse=np.full_like(of.eps_mse, bad))
        assert worst.areas(-3, 3) == pytest.approx(3)


def test_the_steps_are_those_of_a_schedule_from_its_first_to_the_last_but_one():
    images = oracle_images()
    for schedule in (NoiseSchedule.linear(1000), NoiseSchedule.cosine(400), log_snr_schedule(5)):
        steps = steps_of(Reading("", oracle_checkpoint(images, schedule)))
        assert steps[0] == 1
        assert steps[-1] == schedule.num_timesteps - 1
        assert (np.diff(steps) > 0).all()
    alone = NoiseSchedule.from_betas([0.5])
    assert steps_of(Reading("", oracle_checkpoint(images, alone))).tolist() == [1]


def test_the_best_denoiser_has_no_fault(checkpoint):
    for variance in (0.001, 0.1):
        assert worst_fault(score(checkpoint, variance), spread=3 * variance) is None
        # Of pixels that have nothing to do with one another nothing is learned.
        assert worst_fault(score(checkpoint, variance), spread=variance).name == "nats"


def test_what_no_trained_model_does_is_found_where_it_is_worst(checkpoint):
    of = score(checkpoint, 0.1)
    nothing = dataclasses.replace(of, eps_mse=np.ones_like(of.eps_mse))
    fault = worst_fault(nothing, spread=0.2)
    assert (fault.name, fault.value, fault.limit) == ("eps_mse", 1.0, 0.1)
    assert fault.t > 500
    loud = of.eps_mse.copy()
    loud[0, 1] = 5.0
    fault = worst_fault(dataclasses.replace(of, eps_mse=loud), spread=0.3)
    assert (fault.t, fault.value, fault.limit) == (of.steps[1], 5.0, 1.5)
    blurred = dataclasses.replace(of, x_start_mse=np.full_like(of.x_start_mse, 0.6))
    fault = worst_fault(blurred, spread=0.3)
    assert (fault.name, fault.value, fault.limit) == ("x_start_mse", pytest.approx(2.0), 1.0)
    lost = dataclasses.replace(of, eps_mse=np.full_like(of.eps_mse, np.nan))
    assert worst_fault(lost, spread=0.1) is not None


def test_the_noise_of_what_predicts_x_start_may_be_far_off_where_there_is_little(checkpoint):
    coarse = score(dataclasses.replace(checkpoint, prediction=Prediction.X_START), 0.03)
    loud = np.where(coarse.log_snr > 5, 50.0, coarse.eps_mse)
    coarse = dataclasses.replace(coarse, eps_mse=loud)
    assert worst_fault(coarse, spread=0.3) is None
    as_eps = dataclasses.replace(coarse, reading=Reading("", checkpoint))
    assert worst_fault(as_eps, spread=0.3).name == "eps_mse"


def test_the_step_where_two_are_furthest_apart_has_the_error_of_both(checkpoint):
    good = score(checkpoint, 0.1)
    bad = good.eps_mse.copy()
    bad[0, 3] = 8.0
    t, own, other = furthest_apart(dataclasses.replace(good, eps_mse=bad), good)
    assert t == good.steps[3]
    assert own == 8.0
    assert other == pytest.approx(good.eps_mse[0, 3])
