"""Models that visit some of the steps: the best of them are the best of all."""

import dataclasses
import itertools

import numpy as np
import pytest
from scipy import stats

from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.likelihood.sub_schedules import (
    BEST,
    VARIANCES,
    SubScheduleCosts,
    TimestepErrors,
    sub_schedule_bounds,
)

T = 9
SCHEDULE = NoiseSchedule.linear(40).respaced(T)


def costs(mse=None, *, schedule=SCHEDULE, spread=1e-4, over_freedom=0.0, decoder_variance=0.01):
    size = schedule.num_timesteps
    if mse is None:
        # Errors of no pattern: the best steps are at no obvious places.
        generator = np.random.default_rng(5)
        mse = np.exp(generator.normal(size=size)) / (1 + schedule.snr.numpy())
    return SubScheduleCosts(
        schedule=schedule,
        prior=0.1,
        errors=TimestepErrors(mse, None, np.full(size, spread), np.full(size, over_freedom)),
        decoder=np.linspace(1.0, 1.3, 7),
        decoder_variance=decoder_variance,
        decoder_over_freedom=0.0,
    )


def bounds_of(of):
    return sub_schedule_bounds(of, chosen_by=of.errors, judged_by=of.errors)


@pytest.mark.parametrize("variance", VARIANCES)
def test_the_best_steps_are_the_best_of_all(variance):
    of = costs()
    for length in range(2, T + 1):
        (steps,) = of.best_timesteps(variance, [length])
        every = [
            of.bound(variance, [1, *inner, T])
            for inner in itertools.combinations(range(2, T), length - 2)
        ]
        best = min(every, key=lambda bound: bound.nats)
        assert steps == best.steps.tolist()
        assert len(steps) == length


@pytest.mark.parametrize("variance", VARIANCES)
def test_several_lengths_are_found_at_once(variance):
    of = costs()
    apart = [of.best_timesteps(variance, [k])[0] for k in (3, 5, 9)]
    assert of.best_timesteps(variance, [3, 5, 9]) == apart


def test_with_true_errors_more_steps_are_never_worse():
    # Of an optimal denoiser of white data, whose errors follow from the schedule.
    schedule = NoiseSchedule.linear(200)
    of = costs(0.25 / (1 + 0.25 * schedule.snr.numpy()), schedule=schedule)
    for variance in VARIANCES[1:]:
        best = of.best_timesteps(variance, range(2, 60))
        bounds = [of.bound(variance, steps).nats for steps in best]
        assert (np.diff(bounds) < 1e-12).all()


@pytest.mark.parametrize("own", VARIANCES[:2])
def test_the_interval_of_a_difference_is_that_of_its_noise(own):
    of, every = costs(spread=1e-6), SCHEDULE.evenly_spaced(T)
    generator = np.random.default_rng(0)
    differences = []
    for _ in range(4000):
        mse = of.errors.mse + 1e-3 * generator.normal(size=T)
        drawn = dataclasses.replace(of, errors=dataclasses.replace(of.errors, mse=mse))
        differences.append(drawn.bound(None, every).nats - drawn.bound(own, every).nats)
    half_width = of.difference_half_width(None, own)
    assert half_width == pytest.approx(1.96 * np.std(differences), rel=0.05)
    assert half_width < of.bound(own, every).half_width
    assert of.difference_half_width(own, own) == 0
    assert costs(spread=np.nan).difference_half_width(None, own) is None


def test_the_best_constant_variance_is_better_than_either():
    of = costs()
    for length in range(2, T + 1):
        steps = SCHEDULE.evenly_spaced(length)
        large, small, best = (of.bound(variance, steps).rate for variance in VARIANCES)
        assert best <= min(large, small) + 1e-12


def test_a_perfect_network_pays_for_the_variance_alone():
    of = costs(np.zeros(T))
    large, small, best = (of.bound(variance, range(1, T + 1)).rate for variance in VARIANCES)
    assert small == best == of.prior
    assert large > of.prior + 0.01


def test_the_interval_is_that_of_the_errors_and_the_decoder():
    steps, step = SCHEDULE.evenly_spaced(4), 1e-6
    for variance in VARIANCES:
        of = costs(decoder_variance=0.0)
        slopes = []
        for t in range(T):
            moved = of.errors.mse.copy()
            moved[t] += step
            slopes.append((costs(moved).bound(variance, steps).nats
                           - of.bound(variance, steps).nats) / step)  # fmt: skip
        assert slopes[0] == 0  # at t = 1 it is the decoder's
        width = 1.96 * np.sqrt(1e-4 * np.square(slopes).sum())
        assert of.bound(variance, steps).half_width == pytest.approx(width, rel=1e-4)
        wider = costs(decoder_variance=0.01).bound(variance, steps).half_width
        assert wider == pytest.approx(np.hypot(width, 0.196), rel=1e-4)
        assert costs(spread=np.nan).bound(variance, steps).half_width is None


def test_with_few_degrees_of_freedom_the_interval_is_wider():
    of = costs(decoder_variance=0.0)
    sure = of.bound(None, SCHEDULE.evenly_spaced(2)).half_width
    # Of a single step the errors have as many degrees of freedom as its variance has.
    for freedom in (1, 3, 30):
        unsure = costs(decoder_variance=0.0, over_freedom=1e-8 / freedom)
        half_width = unsure.bound(None, SCHEDULE.evenly_spaced(2)).half_width
        quantile = stats.t.ppf(0.975, freedom)
        assert half_width / sure == pytest.approx(quantile / stats.norm.ppf(0.975), rel=1e-9)


def test_steps_of_unknown_error_are_not_chosen():
    of = costs(np.full(T, 1e-9))
    influence, spread = np.eye(T), np.full(T, 1e-4)
    spread[[3, 5]] = np.nan
    errors = TimestepErrors(of.errors.mse, influence, spread, spread)
    unsure = dataclasses.replace(of, errors=errors)
    assert list(np.flatnonzero(~errors.is_known)) == [3, 5]
    chosen = unsure.best_timesteps(None, range(2, T + 1))
    assert [len(steps) for steps in chosen] == list(range(2, T - 1))
    assert not {4, 6} & {step for steps in chosen for step in steps}


def test_the_best_are_judged_by_other_errors():
    of, other = costs(), costs(np.linspace(0.1, 0.9, T))
    found = sub_schedule_bounds(of, chosen_by=of.errors, judged_by=other.errors)
    best = [bound for bound in found if bound.spacing == BEST]
    assert len(best) == len(VARIANCES) * 6
    for bound in best:
        (steps,) = of.best_timesteps(bound.variance, [len(bound.steps)])
        assert bound.steps.tolist() == steps
        assert bound.nats == other.bound(bound.variance, steps).nats


def test_steps_that_do_not_run_from_the_first_to_the_last_are_refused():
    for steps in ([2, T], [1, 5], [1, 5, 5, T], [1, 6, 5, T]):
        with pytest.raises(ValueError, match="1 to T"):
            costs().bound(None, steps)


def test_a_long_schedule_is_searched_no_further_than_can_be():
    found = bounds_of(costs(schedule=NoiseSchedule.linear(1000)))
    longest = max(len(bound.steps) for bound in found if bound.spacing == BEST)
    assert longest == 250
    whole = [bound for bound in found if len(bound.steps) == 1000]
    assert [bound.variance for bound in whole] == list(VARIANCES)


def test_two_steps_are_enough():
    schedule = NoiseSchedule.linear(40).respaced(2)
    found = bounds_of(costs(schedule=schedule))
    assert [bound.steps.tolist() for bound in found] == [[1, 2]] * 6
