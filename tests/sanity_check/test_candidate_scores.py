"""Scores: the area under eps_mse, the bound from a few timesteps, and the faults."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from oracles import log_snr_schedule, oracle_checkpoint, oracle_images

from ddpmbench.diffusion.data_range import DataRange
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.process import Prediction
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.likelihood.terms import TermIndex, TermsPass
from ddpmbench.sanity_check.scores import (
    Candidate,
    Score,
    furthest_apart,
    log_snr,
    shared_areas,
    timesteps_of,
    worst_fault,
)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return oracle_checkpoint(oracle_images(), NoiseSchedule.linear(1000))


def score(checkpoint: Checkpoint, variance: float, timesteps=None) -> Score:
    """The score of the exact denoiser of normal data of this variance, on [0, 1]: two images."""
    candidate = Candidate({}, checkpoint)
    timesteps = timesteps_of(candidate) if timesteps is None else timesteps
    ratio = variance * np.exp(log_snr(candidate)[timesteps - 1])
    eps_mse = np.tile(ratio / (1 + ratio), (2, 1))
    width = checkpoint.data_range.high - checkpoint.data_range.low
    x_start_mse = width**2 * variance * (1 - eps_mse)
    return Score(
        candidate, timesteps, log_snr(candidate)[timesteps - 1], eps_mse, x_start_mse, np.zeros(2)
    )


def faults(of: Score, *, spread: float):
    """The worst fault, of pixels whose variance on [0, 1] is `spread`."""
    return worst_fault(of, spread=spread * of.squared_width)


def gaussian_rate(variance: float, low: float, high: float) -> float:
    """The rate of a Gaussian source between two ratios."""
    return 0.5 * math.log((1 + variance * math.exp(high)) / (1 + variance * math.exp(low)))


def test_the_area_is_the_rate_of_a_gaussian_source_and_few_timesteps_suffice(checkpoint):
    for variance in (0.01, 0.1, 1.0):
        of = score(checkpoint, variance)
        low, high = of.log_snr[-1], of.log_snr[0]
        assert of.areas(low, high) == pytest.approx(
            [gaussian_rate(variance, low, high)] * 2, rel=0.06
        )
        every = score(checkpoint, variance, np.arange(1, 1001))
        assert every.areas(low, high) == pytest.approx(
            [gaussian_rate(variance, low, high)] * 2, rel=2e-3
        )


@pytest.mark.parametrize(
    "schedule", [NoiseSchedule.cosine(1000), NoiseSchedule.linear(1000).respaced(40)]
)
def test_the_area_does_not_depend_on_the_schedule(checkpoint, schedule):
    other = dataclasses.replace(checkpoint, schedule=schedule)
    first, second = shared_areas(score(checkpoint, 0.1), score(other, 0.1))
    assert first == pytest.approx(second, rel=0.02)


def test_nor_on_the_data_range(checkpoint):
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


def test_candidates_without_a_common_noise_level_are_equal(checkpoint):
    noisy = dataclasses.replace(checkpoint, schedule=log_snr_schedule(20, first=-12, last=-20))
    first, second = shared_areas(score(checkpoint, 0.1), score(noisy, 0.5))
    assert (first == second).all()


def test_an_error_above_1_or_no_number_counts_as_1(checkpoint):
    of = score(checkpoint, 0.1)
    for bad in (7.0, np.inf, np.nan):
        worst = dataclasses.replace(of, eps_mse=np.full_like(of.eps_mse, bad))
        assert worst.areas(-3, 3) == pytest.approx([3, 3])


def test_timesteps_range_from_the_first_to_the_last_but_one():
    images = oracle_images()
    for schedule in (NoiseSchedule.linear(1000), NoiseSchedule.cosine(400), log_snr_schedule(5)):
        steps = timesteps_of(Candidate({}, oracle_checkpoint(images, schedule)))
        assert steps[0] == 1
        log_ratio = log_snr(Candidate({}, oracle_checkpoint(images, schedule)))
        has_data = log_ratio[steps[-1] - 1] > -9.5
        assert has_data if log_ratio[-2] < -9 else steps[-1] == schedule.num_timesteps - 1
        assert (np.diff(steps) > 0).all()
    alone = NoiseSchedule.from_betas([0.5])
    assert timesteps_of(Candidate({}, oracle_checkpoint(images, alone))).tolist() == [1]


def test_the_exact_denoiser_has_no_fault(checkpoint):
    for variance in (0.001, 0.1):
        assert faults(score(checkpoint, variance), spread=3 * variance) is None
        # Of independent pixels nothing is learned.
        assert faults(score(checkpoint, variance), spread=variance).name == "nats"


def test_the_worst_fault_is_reported(checkpoint):
    of = score(checkpoint, 0.1)
    nothing = dataclasses.replace(of, eps_mse=np.ones_like(of.eps_mse))
    fault = faults(nothing, spread=0.2)
    assert (fault.name, fault.value, fault.limit) == ("eps_mse", 1.0, 0.1)
    assert fault.t > 500
    loud = of.eps_mse.copy()
    loud[:, 1] = 5.0
    fault = faults(dataclasses.replace(of, eps_mse=loud), spread=0.3)
    assert (fault.t, fault.value, fault.limit) == (of.timesteps[1], 5.0, 1.0)
    blurred = dataclasses.replace(
        of, x_start_mse=np.full_like(of.x_start_mse, 0.6 * of.squared_width)
    )
    fault = faults(blurred, spread=0.3)
    assert (fault.name, fault.value, fault.limit) == ("x_start_mse", pytest.approx(2.0), 1.0)
    lost = dataclasses.replace(of, eps_mse=np.full_like(of.eps_mse, np.nan))
    assert faults(lost, spread=0.1) is not None


def test_eps_mse_at_low_noise_is_no_fault_where_x_start_is_predicted(checkpoint):
    coarse = score(dataclasses.replace(checkpoint, prediction=Prediction.X_START), 0.03)
    loud = np.where(coarse.log_snr > 5, 50.0, coarse.eps_mse)
    coarse = dataclasses.replace(coarse, eps_mse=loud)
    assert faults(coarse, spread=0.3) is None
    as_eps = dataclasses.replace(coarse, candidate=Candidate({}, checkpoint))
    assert faults(as_eps, spread=0.3).name == "eps_mse"


def test_the_timestep_furthest_apart_has_the_errors_of_both(checkpoint):
    good = score(checkpoint, 0.1)
    bad = good.eps_mse.copy()
    bad[:, 3] = 8.0
    t, own, other = furthest_apart(dataclasses.replace(good, eps_mse=bad), good)
    assert t == good.timesteps[3]
    assert own == 8.0
    assert other == pytest.approx(good.eps_mse[0, 3])


def test_an_excess_by_chance_is_not_significant(checkpoint):
    of = score(checkpoint, 0.1)
    eps_mse = of.eps_mse.copy()
    eps_mse[:, 0] = 1.3, 0.9  # 1.1, of two images that are 0.4 apart
    fault = faults(dataclasses.replace(of, eps_mse=eps_mse), spread=0.3)
    assert (fault.name, fault.t, fault.is_significant) == ("eps_mse", 1, False)
    eps_mse[:, 0] = 1.11, 1.09
    assert faults(dataclasses.replace(of, eps_mse=eps_mse), spread=0.3).is_significant


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("steps", [20, 300])
def test_the_bound_from_a_few_timesteps_is_the_bound(variance, steps):
    # Against the sum of all terms.
    images, every_step = oracle_images(), NoiseSchedule.linear(1000).respaced(steps)
    schedule = NoiseSchedule.from_alphas_cumprod(every_step.alphas_cumprod.numpy())
    model = oracle_checkpoint(images, schedule, variance=variance, spread=0.02)
    candidate = Candidate({}, model)
    every, few = np.arange(1, steps + 1), timesteps_of(candidate)
    mean_square = np.square(model.data_range.array_to_model(images.pixels)).mean((1, 2, 3))
    exact, bounds, image = [], [], np.arange(len(images))
    for seed in range(20):
        terms_pass = TermsPass(
            model, images, seed=seed, decoder="exact", device=torch.device("cpu")
        )

        def table(t, of=terms_pass):
            rows = TermIndex(
                np.repeat(image, len(t)), np.tile(t, len(image)), np.zeros(6 * len(t), int)
            )
            return of.terms(rows)

        nats = table(every).values["nats"].reshape(len(image), -1).sum(1)
        exact.append(terms_pass.prior(image) + nats)
        bounds.append(Score.from_terms(candidate, table(few), few).bounds(mean_square))
    assert np.mean(bounds) == pytest.approx(np.mean(exact), rel=0.1)
