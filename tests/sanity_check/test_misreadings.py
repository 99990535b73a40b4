"""A checkpoint that is read otherwise than it was trained is named; one that is read right is not.

Misread models are the shipped one behind an adapter (`misread`): exactly what it is, trained
otherwise.
"""

import dataclasses

import misread
import numpy as np
import pytest
import torch
from oracles import oracle_checkpoint, oracle_images
from torch import nn

from ddpmbench import load_checkpoint, load_images
from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.data_range import UNIT_RANGE, DataRange
from ddpmbench.diffusion.model import Checkpoint, TimeInput
from ddpmbench.diffusion.process import Prediction
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.execution.engine import BatchSize
from ddpmbench.sanity_check.check import NUM_IMAGES, Checker, Outcome, SanityCheck
from ddpmbench.sanity_check.run import _Passes, check_reading

CPU = torch.device("cpu")
LINEAR, COSINE = NoiseSchedule.linear(1000), NoiseSchedule.cosine(1000)


@pytest.fixture(scope="module")
def shipped() -> Checkpoint:
    return load_checkpoint()


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return load_images("fashion-mnist:test")


def checked(
    checkpoint: Checkpoint, images: ImageSet, *, seed: int = 0, batch_size: int | None = None
) -> SanityCheck:
    shape = images.pixels.shape[1:]
    batch = BatchSize(batch_size, device=CPU, image_shape=shape, warn=pytest.fail)
    return check_reading(checkpoint, images, seed=seed, device=CPU, batch=batch)


RIGHT = {
    "as shipped": lambda model: model,
    "respaced": lambda model: model.respaced(100),
    "ten steps": lambda model: model.respaced(10),
    "counting from 1": misread.counting_from_one,
    "told fractions": misread.told_fractions,
    "giving v": misread.giving_v,
    "giving x_start": misread.giving_x_start,
    "of cosine": misread.of_cosine,
    "half the range": lambda model: misread.in_range(model, -0.5, 0.5),
}
IN_BYTES = lambda model: misread.in_range(model, 0, 255)  # noqa: E731


@pytest.mark.parametrize("name", RIGHT)
def test_nothing_is_said_of_a_model_that_is_read_as_it_was_trained(name, shipped, images):
    found = checked(RIGHT[name](shipped), images)
    assert found.is_passed, (found.cause, found.fault)
    assert found.num_evaluations < 1000


WRONG = {
    "--time-input one-based": (misread.counting_from_one, {"time_input": TimeInput.INDEX}),
    "--time-input index": (RIGHT["as shipped"], {"time_input": TimeInput.ONE_BASED}),
    "--time-input fraction": (misread.told_fractions, {"time_input": TimeInput.INDEX}),
    "--prediction v": (misread.giving_v, {"prediction": Prediction.EPSILON}),
    "--prediction eps": (RIGHT["as shipped"], {"prediction": Prediction.V}),
    "--prediction x_start": (misread.giving_x_start, {"prediction": Prediction.EPSILON}),
    "--schedule cosine:1000": (misread.of_cosine, {"schedule": LINEAR}),
    "--schedule linear:1000": (RIGHT["as shipped"], {"schedule": COSINE}),
    "--data-range -0.5,0.5": (RIGHT["half the range"], {"data_range": UNIT_RANGE}),
    "--data-range -1,1": (RIGHT["as shipped"], {"data_range": DataRange(0, 1)}),
    "--data-range 0,255": (IN_BYTES, {"data_range": UNIT_RANGE}),
}


@pytest.mark.parametrize("option", WRONG)
def test_what_is_misread_is_told_with_the_option_that_mends_it(option, shipped, images):
    trained, read = WRONG[option]
    found = checked(dataclasses.replace(trained(shipped), **read), images)
    assert found.cause == option


def test_what_is_right_is_not_named_where_it_makes_the_bound_worse(shipped, images):
    coarse = misread.giving_x_start(shipped)
    coarse.network.coarseness = 0.1
    check = checked(dataclasses.replace(coarse, prediction=Prediction.EPSILON), images)
    assert check.outcome is Outcome.FAULT


def test_fractions_for_steps_and_bytes_for_units_are_told_too(shipped, images):
    for read, option in (
        ({"time_input": TimeInput.FRACTION}, "--time-input index"),
        ({"data_range": DataRange(0, 255)}, "--data-range -1,1"),
        ({"prediction": Prediction.X_START}, "--prediction eps"),
    ):
        assert checked(dataclasses.replace(shipped, **read), images).cause == option


def test_of_an_error_that_may_be_chance_nothing_is_said_but_that_it_could_not_tell(shipped, images):
    # In bytes the network inside knows no ratio as high as the first, and adds to the noise there.
    found = checked(IN_BYTES(shipped), images)
    assert found.outcome is Outcome.UNDECIDED
    assert found.fault.value > 1


@pytest.mark.parametrize("seed", range(2))
def test_no_draw_of_the_noise_and_no_images_raise_a_false_alarm(seed, shipped, images):
    some = slice(400 * seed, 400 * seed + 300)
    part = dataclasses.replace(
        images, pixels=images.pixels[some], ids=images.ids[some], labels=images.labels[some]
    )
    assert checked(shipped, part, seed=seed).is_passed


def test_a_network_that_was_not_trained_is_told_and_nothing_is_said_to_mend_it(shipped, images):
    torch.manual_seed(0)
    untrained = type(shipped.network)(shipped.network.config)
    found = checked(dataclasses.replace(shipped, network=untrained), images)
    assert found.cause is None
    assert (found.fault.name, found.fault.limit) == ("eps_mse", 0.1)
    assert found.fault.value > 0.5
    # Nothing at all for v is a better guess than for the noise, but no better than pixels alone.
    as_v = dataclasses.replace(shipped, network=untrained, prediction=Prediction.V)
    assert checked(as_v, images).fault.name == "nats"


def test_a_network_two_steps_away_is_not_said_to_be_one(shipped, images):
    # As one that is not trained to the end may seem to be.
    later = dataclasses.replace(shipped, network=misread.CountsFrom(shipped.network, 1, -2))
    found = checked(later, images)
    assert found.close.gain > 0.004
    assert not found.close.is_likely
    assert found.close.num_images == 64
    assert found.is_passed


def test_what_is_set_by_one_image_is_asked_of_no_more(shipped, images):
    found = checked(shipped, images)
    looks = {of.score.candidate.option: len(of.score.eps_mse) for of in found.others}
    assert looks["--prediction x_start"] == looks["--data-range 0,255"] == 1
    assert len(found.stated.eps_mse) == NUM_IMAGES
    assert np.isnan(next(of for of in found.others if len(of.score.eps_mse) == 1).standard_error)
    # Every time is the best there is, so no schedule is tried.
    assert not any("schedule" in option or "time-input" in option for option in looks)


@dataclasses.dataclass
class Counting:
    """Counts the images that a network is called with, by a hook on it."""

    images: int = 0

    def __call__(self, module, inputs):
        self.images += len(inputs[0])


def test_the_calls_are_counted_and_a_batch_of_any_size_finds_the_same(shipped, images):
    counting = Counting()
    with_hook = shipped.network.register_forward_pre_hook(counting)
    try:
        found = checked(shipped, images, batch_size=7)
    finally:
        with_hook.remove()
    assert counting.images == found.num_evaluations
    at_once = checked(shipped, images, batch_size=64)
    assert at_once.num_evaluations == found.num_evaluations
    for one, other in zip(found.others, at_once.others, strict=True):
        assert one.gain == pytest.approx(other.gain, rel=1e-3, abs=1e-5)


class Table(nn.Module):
    """A network that looks its steps up in a table, and is told where it is asked for none."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = nn.Embedding(steps, 1)
        self.outside = False

    def forward(self, x_t, time):
        self.outside |= bool((time < 0).any() or (time >= self.steps.num_embeddings).any())
        return x_t * (1 + self.steps(time)[:, :, None, None])


@pytest.mark.parametrize("time_input", ["index", "one-based"])
def test_a_table_of_steps_is_asked_for_none_that_it_does_not_have(time_input):
    network = Table(40 if time_input == "index" else 41).eval()
    stated = dataclasses.replace(
        oracle_checkpoint(oracle_images(), NoiseSchedule.linear(40)),
        network=network,
        time_input=TimeInput(time_input),
    )
    # As on a GPU, where it cannot be caught; on a CPU it is, and the candidate is left out.
    images = oracle_images(20)
    batch = BatchSize(None, device=CPU, image_shape=(1, 4, 4), warn=pytest.fail)
    passes = _Passes(stated, images, 0, CPU, batch)
    found = Checker(stated, images, passes.evaluate, is_safe_outside=False).check()
    assert not network.outside
    checked(stated, images)
    # It takes whole numbers only: what is a fraction is no candidate.
    assert "--time-input fraction" not in {of.score.candidate.option for of in found.others}


def test_the_best_model_there_is_of_its_data_passes_in_every_schedule():
    means, generator = oracle_images(), np.random.default_rng(0)
    numbers = means.pixels[np.arange(60) % 6] / 127.5 - 1
    numbers = numbers + generator.normal(0, 0.02**0.5, numbers.shape)
    pixels = np.rint((numbers.clip(-1, 1) + 1) * 127.5).astype(np.uint8)
    images = ImageSet(pixels, [str(i) for i in range(60)], "drawn from the model")
    for schedule in (NoiseSchedule.linear(300), NoiseSchedule.cosine(60), NoiseSchedule.sigmoid(9)):
        for prediction in ("eps", "v", "x_start", "previous_mean"):
            best = oracle_checkpoint(means, schedule, prediction=prediction, spread=0.02)
            found = checked(best, images)
            assert found.is_passed, (schedule.name, prediction, found.cause, found.fault)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_of_a_few_steps_or_a_single_image_what_can_be_told_is_told(steps):
    images = oracle_images(1)
    many = ImageSet(np.repeat(images.pixels, 16, 0), [str(i) for i in range(16)], "one image")
    schedule = NoiseSchedule.from_betas([0.3] * steps)
    assert checked(oracle_checkpoint(images, schedule, spread=0.02), many).named is None
