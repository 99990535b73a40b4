"""The sanity check names nothing that makes the exact bound worse, and accuses no right model.

The models are the best there is of normal data (`normal_data`), and the shipped one behind an
adapter (`misread.trained`): exactly what it is, trained otherwise. Their bounds are summed here
over the terms, without the check's own estimate.
"""

import dataclasses

import misread
import numpy as np
import pytest
import torch
from normal_data import normal_images, trained_on_normal_data

from ddpmbench import load_checkpoint, load_images
from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.data_range import UNIT_RANGE, DataRange
from ddpmbench.diffusion.model import Checkpoint, TimeInput
from ddpmbench.diffusion.process import Prediction
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.execution.engine import BatchSize
from ddpmbench.likelihood.terms import VALUE_COLUMNS, TermIndex, TermsPass, TermTable
from ddpmbench.sanity_check.candidates import Candidate
from ddpmbench.sanity_check.check import Checker, Compared, Outcome, SanityCheck, _clustered
from ddpmbench.sanity_check.run import check_reading
from ddpmbench.sanity_check.scores import Fault, Score

CPU = torch.device("cpu")
LINEAR = NoiseSchedule.linear(1000)


@pytest.fixture(scope="module")
def shipped() -> Checkpoint:
    return load_checkpoint()


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return load_images("fashion-mnist:test")


def checked(checkpoint: Checkpoint, images: ImageSet) -> SanityCheck:
    batch = BatchSize(None, device=CPU, image_shape=images.pixels.shape[1:], warn=pytest.fail)
    return check_reading(checkpoint, images, seed=0, device=CPU, batch=batch)


def exact_bound(checkpoint: Checkpoint, images: ImageSet) -> float:
    """Nats per dimension of two images, the terms of steps in between linear in t."""
    total, image = checkpoint.schedule.num_timesteps, np.array([1, len(images) - 1])
    t = np.unique(np.rint(np.geomspace(1, total, 40)).astype(np.int64))
    terms_pass = TermsPass(checkpoint, images, seed=7, decoder="exact", device=CPU)
    rows = TermIndex(np.repeat(image, len(t)), np.tile(t, 2), np.zeros(2 * len(t), np.int64))
    nats = terms_pass.terms(rows).values["nats"].reshape(2, -1).mean(0)
    kl = np.interp(np.arange(2, total + 1), t[1:], nats[1:]).sum()
    return float(terms_pass.prior(image).mean() + nats[0] + kl)


def one_more_entry(steps: int, end: float) -> NoiseSchedule:
    """The linear schedule of steps + 1 entries, the first of which is for no step."""
    kept = np.cumprod(1 - np.linspace(1e-4, end, steps + 1))
    return NoiseSchedule.from_alphas_cumprod(kept[1:])


def cubed_cosine() -> NoiseSchedule:
    """Of which alphas_cumprod is a cosine to the third power: no usual form is near it."""
    share = np.arange(1, 1001) / 1000
    return NoiseSchedule.from_alphas_cumprod(np.cos(0.998 * np.pi / 2 * share) ** 3)


TWO = {"data_range": DataRange(0, 1), "prediction": Prediction.V}
LISTED = {
    "--schedule cosine:10": NoiseSchedule.cosine(10),
    "--schedule linear:50:0.002:0.4": NoiseSchedule.linear(50),
    "--schedule linear:100:0.001:0.2": NoiseSchedule.linear(100),
    "--schedule linear:200:0.0005:0.1": NoiseSchedule.linear(200),
    "--schedule cosine:200": NoiseSchedule.cosine(200),
    "--schedule linear:500:0.0002:0.04": NoiseSchedule.linear(500),
    "--schedule cosine-betas:1000:0.0001:0.02": NoiseSchedule.cosine_betas(1000),
    "--schedule linear:2000:5e-05:0.01": NoiseSchedule.linear(2000),
    "--schedule linear:4000:2.5e-05:0.005": NoiseSchedule.linear(4000),
}
FRACTION = TimeInput.FRACTION
READ = {option: ({"schedule": trained}, {"schedule": LINEAR}) for option, trained in LISTED.items()}
READ |= {
    "linear, 2000 steps, unscaled": (
        {"schedule": NoiseSchedule.linear(2000, beta_start=1e-4, beta_end=0.02)},
        {"schedule": LINEAR},
    ),
    "linear, ten steps": (
        {"schedule": NoiseSchedule.linear(10, beta_start=0.01, beta_end=0.9)},
        {"schedule": LINEAR},
    ),
    "cosine, 4000 steps": ({"schedule": NoiseSchedule.cosine(4000)}, {"schedule": LINEAR}),
    "geometric": ({"schedule": NoiseSchedule.geometric(1000)}, {"schedule": LINEAR}),
    "geometric, 200 steps": ({"schedule": NoiseSchedule.geometric(200)}, {"schedule": LINEAR}),
    "not listed": ({"schedule": cubed_cosine()}, {"schedule": LINEAR}),
    "one more entry": (
        {"schedule": one_more_entry(100, 0.2), "time_input": FRACTION},
        {"schedule": NoiseSchedule.linear(100, beta_start=1e-4, beta_end=0.2)},
    ),
    "--data-range -0.424213,2.821487": (
        {"data_range": DataRange(-0.1307 / 0.3081, 0.8693 / 0.3081)},
        {"data_range": UNIT_RANGE},
    ),
    "--data-range 0,255": ({"data_range": DataRange(0, 255)}, {"data_range": UNIT_RANGE}),
    "--prediction x_start": ({"prediction": Prediction.X_START}, {}),
    "--prediction v": ({"prediction": Prediction.V}, {}),
    "--time-input fraction": ({"time_input": FRACTION}, {"time_input": TimeInput.INDEX}),
    "--data-range 0,1 --prediction v": (TWO, {"data_range": UNIT_RANGE}),
}
READ = {name: (of, {"prediction": Prediction.EPSILON} | read) for name, (of, read) in READ.items()}
UNSURE = {
    "--schedule cosine:10",
    "--schedule linear:500:0.0002:0.04",
    "--schedule linear:2000:5e-05:0.01",
    "--schedule linear:4000:2.5e-05:0.005",
}
"""Of which the best time or a rival leaves open whether it is another schedule."""
LISTED_AS = {
    "geometric": "--schedule geometric:1000:0.0001:0.02",
    "cosine, 4000 steps": "--schedule cosine:4000",
}


def assert_lawful(check: SanityCheck, stated: Checkpoint, images: ImageSet) -> None:
    """What is misread does not pass, and what is named lowers the bound."""
    assert not check.is_passed
    assert check.num_evaluations < 3500
    if check.named is not None:
        named = check.named.score.candidate.checkpoint
        assert exact_bound(named, images) < exact_bound(stated, images) - 0.01


@pytest.mark.parametrize("name", READ)
def test_what_is_named_lowers_the_exact_bound_and_what_is_misread_does_not_pass(name):
    images = normal_images(64)
    trained, read = READ[name]
    stated = dataclasses.replace(trained_on_normal_data(**trained), **read)
    check = checked(stated, images)
    assert_lawful(check, stated, images)
    if name.startswith("--"):
        better = check.named.score.candidate.option
        assert better == name
        assert check.outcome is Outcome.BETTER if name in UNSURE else Outcome.LIKELY
        return
    assert check.cause in (None, LISTED_AS.get(name))
    if name == "one more entry":
        # No option gives it.
        assert check.outcome is Outcome.BETTER


@pytest.mark.parametrize("schedule", [LINEAR, *LISTED.values()], ids=lambda of: of.name)
@pytest.mark.parametrize("prediction", ["eps", "v", "x_start"])
def test_no_right_model_is_accused_whatever_its_schedule(schedule, prediction):
    right = trained_on_normal_data(schedule=schedule, prediction=Prediction(prediction))
    check = checked(right, normal_images(64))
    assert check.is_passed, (check.outcome, check.fault, check.better_time)


TRAINED = {
    "--schedule linear:200:0.0005:0.1": ({"schedule": NoiseSchedule.linear(200)}, LINEAR),
    "linear, 2000 steps": ({"schedule": NoiseSchedule.linear(2000)}, LINEAR),
    "--data-range -0.424213,2.821487": (
        {"data_range": DataRange(-0.1307 / 0.3081, 0.8693 / 0.3081)}, LINEAR,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TRAINED)
def test_so_it_is_with_a_network_that_was_trained(name, shipped, images):
    trained, schedule = TRAINED[name]
    stated = misread.trained(shipped, **trained)
    stated = dataclasses.replace(stated, schedule=schedule, data_range=UNIT_RANGE)
    check = checked(stated, images)
    assert_lawful(check, stated, images)
    assert check.cause == (name if name.startswith("--") else None)


def test_draws_of_the_same_image_are_no_further_evidence():
    image = np.repeat(np.arange(4), 16)
    rows = TermIndex(image, np.zeros(64, np.int64), np.tile(np.arange(16), 4))
    mean, error = _clustered(image.astype(float), rows)
    assert (mean, error) == (1.5, pytest.approx(np.std(range(4), ddof=1) / 2))


@pytest.mark.parametrize(
    ("options", "is_sure", "is_advisable"), [(1, False, True), (1, True, False), (2, False, False)]
)
def test_what_may_have_a_fault_is_named_alone_and_if_it_is_not_sure(
    options, is_sure, is_advisable, shipped
):
    candidate = Candidate(("--prediction v", "--time-input fraction")[:options], shipped)
    errors = np.ones((16, 1))
    score = Score(candidate, np.ones(1, int), np.ones(1), errors, errors, np.ones(16))
    fault = Fault(1, "eps_mse", 1.1, 1.0, is_sure)
    assert Compared(score, 1.0, 0.01, 100.0, 1.0, 0.01, fault).is_advisable is is_advisable


class Pool:
    """The terms of all pairs that were asked for of a few images, evaluated once."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images
        self.known: dict[object, dict[str, np.ndarray]] = {}

    def evaluate(self, candidates, rows: TermIndex, chosen: np.ndarray) -> list[TermTable]:
        return [self._table(candidate, rows, chosen) for candidate in candidates]

    def _table(self, candidate, rows: TermIndex, chosen: np.ndarray) -> TermTable:
        pairs = np.stack([rows.t, rows.draw], 1)
        values = {name: np.empty(len(rows)) for name in VALUE_COLUMNS}
        for t, draw in np.unique(pairs, axis=0).tolist():
            of = (rows.t == t) & (rows.draw == draw)
            known = self._known(candidate, t, draw)
            for name, column in values.items():
                column[of] = known[name][chosen[rows.image[of]]]
        return TermTable(rows, values)

    def _known(self, candidate, t: int, draw: int) -> dict[str, np.ndarray]:
        network, time = candidate.checkpoint.network, candidate.checkpoint.network_time
        given = time(torch.tensor([t]))
        while hasattr(network, "_change"):
            given, network = network._change(given), network.network
        key = (candidate.options, float(given[0]), t, draw)
        if key not in self.known:
            count = len(self.images)
            terms_pass = TermsPass(
                candidate.checkpoint, self.images, seed=0, decoder="exact", device=CPU
            )
            full = np.full(count, t), np.full(count, draw)
            self.known[key] = terms_pass.terms(TermIndex(np.arange(count), *full)).values
        return self.known[key]


@pytest.fixture(scope="module")
def pool(images) -> Pool:
    some = np.linspace(0, len(images) - 1, 24).astype(int)
    return Pool(ImageSet(images.pixels[some], [str(i) for i in some], "pool"))


@pytest.mark.parametrize("size", [1, 4, 15, 16])
def test_no_few_images_accuse_a_right_model(size, shipped, pool):
    generator = np.random.default_rng(size)
    outcomes = []
    for _ in range(30):
        chosen = generator.choice(len(pool.images), size, replace=False)
        few = ImageSet(pool.images.pixels[chosen], [str(i) for i in chosen], "subset")
        check = Checker(
            shipped, few, lambda group, rows, of=chosen: pool.evaluate(group, rows, of)
        ).check()
        outcomes.append(check.outcome)
        assert check.named is None
    expected = Outcome.PASSED if size == 16 else Outcome.TOO_FEW_IMAGES
    assert outcomes.count(expected) > 27
    assert set(outcomes) <= {expected, Outcome.UNDECIDED}
