"""Which candidates there are, and that the command takes their parameters."""

import dataclasses

import numpy as np
import pytest
import torch

from ddpmbench.checkpoints.schedules import read_schedule
from ddpmbench.cli.launch import with_options
from ddpmbench.cli.main import ddpmbench
from ddpmbench.diffusion.data_range import DataRange
from ddpmbench.diffusion.model import TimeInput
from ddpmbench.diffusion.process import Prediction
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.sanity_check.candidates import (
    alternatives,
    one_timestep_away,
    other_lengths,
    scaled_time,
    shifted,
    time_at,
)
from ddpmbench.sanity_check.scores import Candidate


def values(checkpoint, parameter):
    candidates = alternatives(Candidate({}, checkpoint), 1)
    return [c.parameters[parameter] for c in candidates if parameter in c.parameters]


def test_a_candidate_differs_in_its_parameter_alone(small_model):
    # Of more timesteps, and so that no two are alike.
    given = dataclasses.replace(small_model, schedule=NoiseSchedule.linear(400))
    candidates = alternatives(Candidate({}, given), 1)
    assert len({candidate.name for candidate in candidates}) == len(candidates)
    for candidate in candidates:
        ((parameter, value),) = candidate.parameters.items()
        changed = [
            field.name
            for field in dataclasses.fields(given)
            if getattr(given, field.name) is not getattr(candidate.checkpoint, field.name)
            and getattr(given, field.name) != getattr(candidate.checkpoint, field.name)
        ]
        assert changed == [parameter]
        own = getattr(candidate.checkpoint, parameter)
        if parameter == "schedule":
            assert torch.equal(own.betas, read_schedule(value).betas)
        elif parameter == "data_range":
            assert own.option == value
        else:
            assert str(own) == value


def test_the_command_has_an_option_for_every_parameter(small_model):
    for one in alternatives(Candidate({}, small_model), 1):
        for candidate in (one, *alternatives(one, 1)[:3]):
            line = with_options(candidate.quoted, ddpmbench.commands["nll"])
            words = [f"--{k.replace('_', '-')} {v}" for k, v in candidate.parameters.items()]
            assert line == " ".join(words)
            assert candidate.quoted.replace("`", "") == candidate.name


def test_equivalent_candidates_are_left_out(small_model):
    thousand = dataclasses.replace(small_model, schedule=NoiseSchedule.linear(1000))
    assert "linear:1000" not in values(thousand, "schedule")
    assert "rescaled-1000" not in values(thousand, "time_input")
    assert set(values(thousand, "time_input")) == {"one-based", "fraction"}
    assert "-1,1" not in values(thousand, "data_range")
    as_table = NoiseSchedule.from_alphas_cumprod(thousand.schedule.alphas_cumprod.numpy())
    again = dataclasses.replace(thousand, schedule=as_table)
    assert "linear:1000" not in values(again, "schedule")
    scaled = dataclasses.replace(small_model, schedule=NoiseSchedule.linear(4000))
    assert "linear:4000:0.0001:0.02" in values(scaled, "schedule")
    assert "linear:4000:2.5e-05:0.005" not in values(scaled, "schedule")


def test_candidates_of_a_respaced_model_have_its_timesteps(small_model):
    given = dataclasses.replace(small_model, schedule=NoiseSchedule.cosine(200)).respaced(20)
    for candidate in alternatives(Candidate({}, given), 1):
        schedule = candidate.checkpoint.schedule
        assert schedule.num_timesteps == 20
        assert torch.equal(schedule.original_timesteps, given.schedule.original_timesteps)
    assert "linear:200:0.0005:0.1" in values(given, "schedule")


def test_the_number_of_levels_stays(small_model):
    given = dataclasses.replace(small_model, data_range=DataRange(0, 1, 32))
    candidates = alternatives(Candidate({}, given), 1)
    ranges = [c.checkpoint.data_range for c in candidates if "data_range" in c.parameters]
    assert ranges
    assert {data_range.levels for data_range in ranges} == {32}


def test_a_shifted_time_is_that_of_the_next_timestep(small_model):
    x_t, t = torch.randn(3, 1, 8, 8), torch.tensor([1, 5, 30])
    with torch.inference_mode():
        output = shifted(Candidate({}, small_model), 1).checkpoint.model_output(x_t, t)
        assert torch.equal(output, small_model.model_output(x_t, t + 1))


@pytest.mark.parametrize("kind", TimeInput)
def test_one_timestep_away_is_a_parameter_where_there_is_one(kind, small_model):
    given = Candidate({}, dataclasses.replace(small_model, time_input=kind))
    expected = {
        TimeInput.INDEX: {1: "time_input=one-based"},
        TimeInput.ONE_BASED: {-1: "time_input=index"},
    }
    names = {by: candidate.name for by, candidate in one_timestep_away(given)}
    assert names == expected.get(kind, {-1: "", 1: ""})


@pytest.mark.parametrize("factor", [1.15, 1.05])
@pytest.mark.parametrize("kind", TimeInput)
def test_a_scaled_time_is_one_timestep_off_at_least_and_inside_the_schedule(
    kind, factor, small_model
):
    times = []

    class Listening(torch.nn.Module):
        def forward(self, x_t, time):
            times.append(time)
            return x_t

    given = dataclasses.replace(
        small_model, network=Listening(), time_input=kind, schedule=NoiseSchedule.linear(200)
    )
    t = torch.arange(1, 201)
    own = given.network_time(t)
    order = own.argsort()
    for sign in (1, -1):
        candidate = scaled_time(Candidate({}, given), factor**sign)
        candidate.checkpoint.model_output(torch.zeros(200, 1, 8, 8), t)
        other = times.pop()
        assert other.dtype == own.dtype
        assert own.min() <= other.min()
        assert other.max() <= own.max()
        later = np.interp(other, own[order], t[order]) - t.numpy()  # in timesteps
        assert (sign * later[19:149] >= 0.99).all()
        assert sign * later[99] == pytest.approx(100 * (factor - 1), rel=0.2)


def test_schedules_of_other_lengths_end_in_noise_and_have_a_form(small_model):
    given = Candidate({}, dataclasses.replace(small_model, schedule=NoiseSchedule.linear(1000)))
    others = other_lengths(given)
    lengths = {other.checkpoint.schedule.num_timesteps for other in others}
    assert {10, 50, 100, 200, 500, 2000, 4000} <= lengths
    assert 1000 not in lengths
    for other in others:
        form = other.parameters["schedule"]
        assert torch.equal(read_schedule(form).betas, other.checkpoint.schedule.betas)
        assert other.checkpoint.schedule.alphas_cumprod[-1] < 0.5
    names = {other.parameters["schedule"].split(":")[0] for other in others}
    assert {"geometric", "cosine-betas", "linear", "cosine"} <= names
    respaced = dataclasses.replace(given, checkpoint=given.checkpoint.respaced(50))
    assert not other_lengths(respaced)
    fraction = dataclasses.replace(given.checkpoint, time_input=TimeInput.FRACTION)
    assert not other_lengths(Candidate({}, fraction))


@pytest.mark.parametrize("kind", [TimeInput.INDEX, TimeInput.ONE_BASED])
def test_the_time_at_a_noise_level_is_that_of_its_timestep(kind, small_model):
    model = dataclasses.replace(small_model, time_input=kind)
    log_snr = model.schedule.snr.log().numpy()
    own = model.network_time(torch.arange(1, 41)).double().numpy()
    assert time_at(Candidate({}, model), log_snr) == pytest.approx(own)


def test_of_two_parameters_each_is_there_once(small_model):
    for one in alternatives(Candidate({}, small_model), 1):
        for both in alternatives(one, 1):
            assert set(one.parameters) <= set(both.parameters)
            assert len(both.parameters) <= 2


def test_a_range_averaged_over_channels_is_not_exact(small_model):
    given = Candidate({}, small_model)
    for channels, is_exact in ((1, True), (3, False)):
        ranges = [c for c in alternatives(given, channels) if "data_range" in c.parameters]
        normalized = [c for c in ranges if abs(c.checkpoint.data_range.low) % 0.5]
        assert len(ranges) > 3
        assert {c.is_exact for c in normalized} == {is_exact}
    (mnist,) = [c for c in alternatives(given, 1) if c.name == "data_range=-0.424213,2.821487"]
    assert mnist.checkpoint.data_range == DataRange(-0.424213, 2.821487)


def test_a_predicted_previous_mean_has_no_other_prediction(small_model):
    given = dataclasses.replace(small_model, prediction=Prediction.PREVIOUS_MEAN)
    assert not values(given, "prediction")
