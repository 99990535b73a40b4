"""What else a checkpoint could be: which readings there are, and that they can be asked for."""

import dataclasses

import pytest
import torch
from oracles import oracle_checkpoint, oracle_images

from ddpmbench.inputs.checkpoints.checkpoint import TimeInput
from ddpmbench.inputs.checkpoints.schedule_option import read_schedule
from ddpmbench.likelihood.readings import Reading, alternatives, is_a_step_away, shifted
from ddpmbench.process.data_range import DataRange
from ddpmbench.process.prediction import Prediction
from ddpmbench.process.schedule import NoiseSchedule


def options(checkpoint, name):
    readings = alternatives(checkpoint)
    return [r.option.split()[1] for r in readings if r.option.startswith(f"--{name} ")]


def test_a_reading_differs_in_what_its_option_says_and_in_nothing_else(small_model):
    # Of more steps, and so that no two are alike.
    stated = dataclasses.replace(small_model, schedule=NoiseSchedule.linear(400))
    fields = {
        "--prediction": "prediction",
        "--time-input": "time_input",
        "--schedule": "schedule",
        "--data-range": "data_range",
    }
    readings = alternatives(stated)
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
    for reading in alternatives(stated):
        schedule = reading.checkpoint.schedule
        assert schedule.num_timesteps == 20
        assert torch.equal(schedule.original_timesteps, stated.schedule.original_timesteps)
    assert "linear:200:0.0005:0.1" in options(stated, "schedule")


def test_the_levels_of_the_data_stay(small_model):
    stated = dataclasses.replace(small_model, data_range=DataRange(0, 1, 32))
    ranges = [r.checkpoint.data_range for r in alternatives(stated) if "range" in r.option]
    assert ranges
    assert {of.levels for of in ranges} == {32}


@pytest.mark.parametrize("time_input", ["index", "one-based"])
def test_a_table_of_steps_is_not_asked_for_more_than_it_has(time_input):
    images = oracle_images()
    foreign = dataclasses.replace(
        oracle_checkpoint(images, NoiseSchedule.linear(50)), time_input=TimeInput(time_input)
    )
    t = torch.arange(1, 50)  # the last step is not looked at
    for reading in alternatives(foreign):
        told = reading.checkpoint.network_time(t)
        assert told.min() >= 0, reading.option
        assert told.max() < 50, reading.option


def test_a_shifted_reading_tells_the_next_step(small_model):
    stated = Reading("", small_model)
    x_t, t = torch.randn(3, 1, 8, 8), torch.tensor([1, 5, 30])
    with torch.inference_mode():
        told = shifted(stated, 1).checkpoint.model_output(x_t, t)
        assert torch.equal(told, small_model.model_output(x_t, t + 1))


def test_only_counting_from_0_and_from_1_are_a_step_apart(small_model):
    kinds = {kind: dataclasses.replace(small_model, time_input=kind) for kind in TimeInput}
    near = {(a, b) for a in TimeInput for b in TimeInput if is_a_step_away(kinds[a], kinds[b])}
    index, one = TimeInput.INDEX, TimeInput.ONE_BASED
    assert near == {(index, one), (one, index)}


def test_what_predicts_the_previous_mean_is_read_as_nothing_else(small_model):
    stated = dataclasses.replace(small_model, prediction=Prediction.PREVIOUS_MEAN)
    assert not options(stated, "prediction")
