"""What the sanity check evaluates, counts and leaves undecided; its laws stand beside.

The models are the shipped one as if it had been trained with other parameters (`retrained`).
"""

import dataclasses

import numpy as np
import pytest
import torch
from oracles import oracle_checkpoint, oracle_images
from retrained import Shifted, checked, trained
from torch import nn

from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.data_range import DataRange
from ddpmbench.diffusion.model import TimeInput
from ddpmbench.diffusion.process import Prediction, Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.execution.worker import BatchSize
from ddpmbench.likelihood.terms import TermIndex
from ddpmbench.sanity_check.candidates import is_mistimed
from ddpmbench.sanity_check.check import Checker, Outcome
from ddpmbench.sanity_check.run import Evaluator
from ddpmbench.sanity_check.scores import NUM_IMAGES, Candidate

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
HALF, BYTES = DataRange(-0.5, 0.5), DataRange(0, 255)


def model_of(candidate: Candidate) -> tuple[object, ...]:
    one = candidate.checkpoint
    times = one.network_time(torch.arange(1, one.schedule.num_timesteps + 1))
    log_snr = one.schedule.log_snr.numpy().round(3)
    own = one.data_range
    return own.low, own.high, one.prediction, one.schedule.process, *times.tolist(), *log_snr


@pytest.mark.parametrize("given", [{"data_range": BYTES}, {"prediction": Prediction.V}], ids=str)
def test_no_model_is_scored_twice_and_no_time_tested_twice(given, shipped, images, monkeypatch):
    tested = []
    monkeypatch.setattr(
        "ddpmbench.sanity_check.check.is_mistimed",
        lambda scorer, *test: tested.append(test) or is_mistimed(scorer, *test),
    )
    check = checked(dataclasses.replace(shipped, **given), images)
    models = [model_of(check.given.candidate)]
    models += [model_of(other.score.candidate) for other in check.others]
    assert len(set(models)) == len(models)
    assert len(set(tested)) == len(tested) > 0


@pytest.mark.parametrize(
    "change",
    [
        {"schedule": NoiseSchedule.cosine(1000)},
        {"prediction": Prediction.V},
        {"variance": Variance.FIXED_SMALL},
        {"clip": False},
        {"data_range": HALF},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_candidate_has_its_own_process(change, shipped, images):
    batch = BatchSize(None, device=CPU, image_shape=(1, 28, 28), warn=pytest.fail)
    terms = TermIndex(np.zeros(2, int), np.array([1, 500]), np.zeros(2, int))

    def nats(*candidates: Candidate) -> list[np.ndarray]:
        evaluator = Evaluator(shipped, images, seed=0, device=CPU, batch=batch)
        return [evaluator.evaluate([one], terms)[0].values["nats"] for one in candidates]

    given, other = Candidate({}, shipped), Candidate({}, dataclasses.replace(shipped, **change))
    of_given, of_other = nats(given, other)
    assert (of_other == nats(other)).all()
    assert (of_other != of_given).any()


def test_the_truth_is_not_recommended_where_its_bound_is_worse(shipped, images):
    coarse = trained(shipped, prediction=Prediction.X_START)
    coarse.network.coarseness = 0.1
    check = checked(dataclasses.replace(coarse, prediction=Prediction.EPSILON), images)
    assert check.outcome is Outcome.FAULT


def test_an_error_that_may_be_chance_leaves_the_check_undecided(shipped, images):
    # In bytes the first timestep has less noise than the network inside was trained with.
    check = checked(trained(shipped, data_range=BYTES), images)
    assert check.outcome is Outcome.UNDECIDED
    assert check.evidence.fault.value > 1


def test_another_seed_and_other_images_raise_no_false_alarm(shipped, images):
    some = slice(400, 700)
    part = dataclasses.replace(
        images, pixels=images.pixels[some], ids=images.ids[some], labels=images.labels[some]
    )
    assert checked(shipped, part, seed=1).outcome is Outcome.PASSED


def test_an_untrained_network_has_a_fault_that_nothing_mends(small_model, images):
    crops = images.subset(300)
    crops = dataclasses.replace(crops, pixels=crops.pixels[:, :, 6:22:2, 6:22:2].copy())
    check = checked(small_model, crops)
    assert check.likely is None
    assert (check.evidence.fault.name, check.evidence.fault.limit) == ("eps_mse", 0.1)
    assert check.evidence.fault.value > 0.5
    # Predicting v = 0 is better than predicting no noise, but not than independent pixels.
    as_v = dataclasses.replace(small_model, prediction=Prediction.V)
    assert checked(as_v, crops).evidence.fault.name == "nats"


def test_a_time_two_timesteps_off_is_not_taken_for_one(shipped, images):
    # A network that is not fully trained may seem to be so.
    check = checked(dataclasses.replace(shipped, network=Shifted(shipped.network, -2)), images)
    assert check.offset.gain > 0.004
    assert not check.offset.is_likely
    assert check.offset.num_images == 64
    assert check.outcome is Outcome.PASSED


def test_a_candidate_that_one_image_rules_out_is_dropped(shipped, images):
    check = checked(shipped, images)
    scores = {other.score.candidate.name: other.score for other in check.others}
    assert {scores[name].num_images for name in ("prediction=x_start", "data_range=0,255")} == {1}
    assert check.given.num_images == NUM_IMAGES
    assert np.isnan(next(o for o in check.others if o.score.num_images == 1).standard_error)
    # The times match, so no schedule is tried.
    assert not any("schedule" in name or "time_input" in name for name in scores)


def test_evaluations_are_counted_and_the_batch_size_changes_nothing(shipped, images):
    batches = []
    hook = shipped.network.register_forward_pre_hook(lambda _, inputs: batches.append(inputs[0]))
    try:
        check = checked(shipped, images, batch_size=7)
    finally:
        hook.remove()
    assert sum(map(len, batches)) == check.num_evaluations
    at_once = checked(shipped, images, batch_size=64)
    assert at_once.num_evaluations == check.num_evaluations
    for one, other in zip(check.others, at_once.others, strict=True):
        assert one.gain == pytest.approx(other.gain, rel=1e-3, abs=1e-5)


class Table(nn.Module):
    """A network with an embedding of times, which notes an index outside."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.times = nn.Embedding(length, 1)
        self.was_outside = False

    def forward(self, x_t, time):
        self.was_outside |= bool((time < 0).any() or (time >= self.times.num_embeddings).any())
        return x_t * (1 + self.times(time)[:, :, None, None])


@pytest.mark.parametrize("time_input", ["index", "one-based"])
def test_no_index_is_outside_of_an_embedding(time_input):
    network = Table(40 if time_input == "index" else 41).eval()
    given = dataclasses.replace(
        oracle_checkpoint(oracle_images(), NoiseSchedule.linear(40)),
        network=network,
        time_input=TimeInput(time_input),
    )
    images = oracle_images(20)
    batch = BatchSize(None, device=CPU, image_shape=(1, 4, 4), warn=pytest.fail)
    evaluator = Evaluator(given, images, seed=0, device=CPU, batch=batch)
    check = Checker(given, images, evaluator.evaluate, raises_outside=False).check()
    assert not network.was_outside
    # On a CPU it raises, and the candidate is left out.
    checked(given, images)
    # A fraction is no index.
    assert "time_input=fraction" not in {other.score.candidate.name for other in check.others}


@pytest.mark.parametrize("num_timesteps", [1, 2, 3, 4])
def test_few_timesteps_and_equal_images_raise_no_error(num_timesteps):
    images = oracle_images(1)
    many = ImageSet(np.repeat(images.pixels, 16, 0), [str(i) for i in range(16)], "one image")
    schedule = NoiseSchedule.from_betas([0.3] * num_timesteps)
    assert checked(oracle_checkpoint(images, schedule, spread=0.02), many).best is None
