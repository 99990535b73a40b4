"""What else a checkpoint could be: which candidates there are, and that they can be asked for."""

import dataclasses

import pytest
import torch

from ddpmbench.checkpoints.schedules import read_schedule
from ddpmbench.diffusion.data_range import DataRange
from ddpmbench.diffusion.model import TimeInput
from ddpmbench.diffusion.process import Prediction
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.sanity_check.candidates import (
    Candidate,
    alternatives,
    nudged,
    one_step_away,
    other_lengths,
    shifted,
    time_at,
)


def options(checkpoint, name):
    candidates = alternatives(Candidate((), checkpoint), 1)
    return [r.option.split()[1] for r in candidates if r.option.startswith(f"--{name} ")]


def test_a_reading_differs_in_what_its_option_says_and_in_nothing_else(small_model):
    # Of more steps, and so that no two are alike.
    stated = dataclasses.replace(small_model, schedule=NoiseSchedule.linear(400))
    fields = {
        "--prediction": "prediction",
        "--time-input": "time_input",
        "--schedule": "schedule",
        "--data-range": "data_range",
    }
    readings = alternatives(Candidate((), stated), 1)
    assert len({reading.option for reading in readings}) == len(readings)
    for reading in readings:
        name, value = reading.option.split()
        changed = [
            field.name
            for field in dataclasses.fields(stated)
            if getattr(stated, field.name) is not getattr(reading.checkpoint, field.name)
            and getattr(stated, field.name) != getattr(reading.checkpoint, field.name)
        ]
        assert changed == [fields[name]]
        read = getattr(reading.checkpoint, fields[name])
        if name == "--schedule":
            assert torch.equal(read.betas, read_schedule(value).betas)
        elif name == "--data-range":
            assert read.option == value
        else:
            assert str(read) == value
        assert reading.same_calls == (name == "--prediction")


def test_what_is_the_same_under_another_name_is_no_other_reading(small_model):
    thousand = dataclasses.replace(small_model, schedule=NoiseSchedule.linear(1000))
    assert "linear:1000" not in options(thousand, "schedule")
    assert "rescaled-1000" not in options(thousand, "time-input")
    assert set(options(thousand, "time-input")) == {"one-based", "fraction"}
    assert "-1,1" not in options(thousand, "data-range")
    as_table = NoiseSchedule.from_alphas_cumprod(thousand.schedule.alphas_cumprod.numpy())
    again = dataclasses.replace(thousand, schedule=as_table)
    assert "linear:1000" not in options(again, "schedule")
    scaled = dataclasses.replace(small_model, schedule=NoiseSchedule.linear(4000))
    assert "linear:4000:0.0001:0.02" in options(scaled, "schedule")
    assert "linear:4000:2.5e-05:0.005" not in options(scaled, "schedule")


def test_a_respaced_model_is_read_on_the_steps_that_it_has(small_model):
    stated = dataclasses.replace(small_model, schedule=NoiseSchedule.cosine(200)).respaced(20)
    for reading in alternatives(Candidate((), stated), 1):
        schedule = reading.checkpoint.schedule
        assert schedule.num_timesteps == 20
        assert torch.equal(schedule.original_timesteps, stated.schedule.original_timesteps)
    assert "linear:200:0.0005:0.1" in options(stated, "schedule")


def test_the_levels_of_the_data_stay(small_model):
    stated = dataclasses.replace(small_model, data_range=DataRange(0, 1, 32))
    ranges = [
        r.checkpoint.data_range
        for r in alternatives(Candidate((), stated), 1)
        if "range" in r.option
    ]
    assert ranges
    assert {of.levels for of in ranges} == {32}


def test_a_shifted_reading_tells_the_next_step(small_model):
    stated = Candidate((), small_model)
    x_t, t = torch.randn(3, 1, 8, 8), torch.tensor([1, 5, 30])
    with torch.inference_mode():
        told = shifted(stated, 1).checkpoint.model_output(x_t, t)
        assert torch.equal(told, small_model.model_output(x_t, t + 1))


@pytest.mark.parametrize("kind", TimeInput)
def test_a_step_away_is_an_option_where_there_is_one(kind, small_model):
    stated = Candidate((), dataclasses.replace(small_model, time_input=kind))
    by = {by: of.option for by, of in one_step_away(stated)}
    if kind is TimeInput.INDEX:
        assert by == {1: "--time-input one-based"}
    elif kind is TimeInput.ONE_BASED:
        assert by == {-1: "--time-input index"}
    else:
        assert by == {-1: "", 1: ""}


@pytest.mark.parametrize("kind", TimeInput)
def test_another_time_is_a_step_away_at_least_and_one_that_the_schedule_has(kind, small_model):
    given = []

    class Listening(torch.nn.Module):
        def forward(self, x_t, time):
            given.append(time)
            return x_t

    stated = dataclasses.replace(
        small_model,
        network=Listening(),
        time_input=kind,
        schedule=NoiseSchedule.linear(200),
    )
    t = torch.arange(1, 201)
    own = stated.network_time(t)
    for sign in (1, -1):
        nudged(Candidate((), stated), sign).checkpoint.model_output(torch.zeros(200, 1, 8, 8), t)
        other = given.pop()
        assert other.dtype == own.dtype
        assert other.min() >= own.min()
        assert other.max() <= own.max()
        inside = t[20:150]
        assert (sign * (other - own)[inside - 1] >= (own[1] - own[0]) * 0.99).all()
        assert sign * (other - own)[99] == pytest.approx(float(15 * (own[1] - own[0])), rel=0.2)


def test_schedules_of_other_lengths_end_in_noise_and_can_be_asked_for(small_model):
    stated = Candidate((), dataclasses.replace(small_model, schedule=NoiseSchedule.linear(1000)))
    others = other_lengths(stated)
    lengths = {of.checkpoint.schedule.num_timesteps for of in others}
    assert {10, 50, 100, 200, 500, 2000, 4000} <= lengths
    assert 1000 not in lengths
    for of in others:
        assert torch.equal(read_schedule(of.option.split()[1]).betas, of.checkpoint.schedule.betas)
        assert of.checkpoint.schedule.alphas_cumprod[-1] < 0.5
    assert {"geometric", "cosine-betas", "linear", "cosine"} <= {
        of.option.split()[1].split(":")[0] for of in others
    }
    respaced = dataclasses.replace(stated, checkpoint=stated.checkpoint.respaced(50))
    assert not other_lengths(respaced)
    fraction = dataclasses.replace(stated.checkpoint, time_input=TimeInput.FRACTION)
    assert not other_lengths(Candidate((), fraction))


def test_the_time_at_some_noise_is_that_of_its_step(small_model):
    for kind in (TimeInput.INDEX, TimeInput.ONE_BASED):
        of = dataclasses.replace(small_model, time_input=kind)
        log_snr = of.schedule.snr.log().numpy()
        assert time_at(Candidate((), of), log_snr) == pytest.approx(
            of.network_time(torch.arange(1, 41)).double().numpy()
        )


def test_two_mistakes_are_two_options_and_each_is_there_once(small_model):
    first = alternatives(Candidate((), small_model), 1)
    for one in first:
        for both in alternatives(one, 1):
            names = [option.split()[0] for option in both.options]
            assert len(names) == len(set(names)) <= 2
            assert len(names) == 2 or names == [one.options[0].split()[0]]


def test_ranges_of_channels_are_no_exact_candidates(small_model):
    stated = Candidate((), small_model)
    for channels, is_exact in ((1, True), (3, False)):
        ranges = [c for c in alternatives(stated, channels) if "range" in c.option]
        normalized = [c for c in ranges if abs(c.checkpoint.data_range.low) % 0.5]
        assert len(ranges) > 3
        assert {c.is_exact for c in normalized} == {is_exact}
    (mnist,) = [c for c in alternatives(stated, 1) if c.option.endswith("-0.424213,2.821487")]
    assert mnist.checkpoint.data_range == DataRange(-0.424213, 2.821487)


def test_what_predicts_the_previous_mean_is_read_as_nothing_else(small_model):
    stated = dataclasses.replace(small_model, prediction=Prediction.PREVIOUS_MEAN)
    assert not options(stated, "prediction")
