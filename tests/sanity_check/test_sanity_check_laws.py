"""Laws of the sanity check: it accuses no right model, recommends nothing that worsens the exact
bound, and calls likely what the network was trained with alone.

The models are the exact denoiser of normal data (`normal_data`), and the shipped one as if it had
been trained with other parameters (`retrained`). Exact bounds are summed here over the terms,
without the check's own estimate.
"""

import dataclasses

import numpy as np
import pytest
import torch
from normal_data import normal_images, trained_on_normal_data
from retrained import trained

from ddpmbench.checkpoints.schedules import read_schedule
from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.data_range import UNIT_RANGE, DataRange
from ddpmbench.diffusion.model import Checkpoint, TimeInput
from ddpmbench.diffusion.parameterization import Prediction, Process
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.execution.worker import BatchSize
from ddpmbench.likelihood.terms import VALUE_COLUMNS, TermIndex, TermsPass, TermTable
from ddpmbench.sanity_check.candidates import Candidate
from ddpmbench.sanity_check.check import Checker, Outcome, SanityCheck
from ddpmbench.sanity_check.run import check_parameterization, check_record
from ddpmbench.sanity_check.scores import Comparison, Fault, Score, mean_over_images

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
LINEAR = NoiseSchedule.linear(1000)
NORMALIZED = DataRange(-0.1307 / 0.3081, 0.8693 / 0.3081)


def checked(checkpoint: Checkpoint, images: ImageSet) -> SanityCheck:
    batch = BatchSize(None, device=CPU, image_shape=images.pixels.shape[1:], warn=pytest.fail)
    return check_parameterization(checkpoint, images, seed=0, device=CPU, batch=batch)


def exact_bound(checkpoint: Checkpoint, images: ImageSet) -> float:
    """Nats per dimension of two images, the terms of timesteps in between linear in t."""
    total, image = checkpoint.schedule.num_timesteps, np.array([1, len(images) - 1])
    t = np.unique(np.rint(np.geomspace(1, total, 40)).astype(np.int64))
    terms_pass = TermsPass(checkpoint, images, seed=7, decoder="exact", device=CPU)
    rows = TermIndex(np.repeat(image, len(t)), np.tile(t, 2), np.zeros(2 * len(t), np.int64))
    nats = terms_pass.terms(rows).values["nats"].reshape(2, -1).mean(0)
    kl = np.interp(np.arange(2, total + 1), t[1:], nats[1:]).sum()
    return float(terms_pass.prior(image).mean() + nats[0] + kl)


def assert_advice_lowers_the_bound(check: SanityCheck, given: Checkpoint, images: ImageSet) -> None:
    assert check.num_evaluations < 3500
    if check.better is not None:
        bound = exact_bound(check.candidate.checkpoint, images)
        assert bound < exact_bound(given, images) - 0.01, check.better


def one_more_entry(steps: int, end: float) -> NoiseSchedule:
    """The linear schedule of steps + 1 entries, without the first."""
    signal = np.cumprod(1 - np.linspace(1e-4, end, steps + 1))
    return NoiseSchedule.from_alphas_cumprod(signal[1:])


def cubed_cosine() -> NoiseSchedule:
    """The cosine to the third power, which is near no common schedule."""
    share = np.arange(1, 1001) / 1000
    return NoiseSchedule.from_alphas_cumprod(np.cos(0.998 * np.pi / 2 * share) ** 3)


SCHEDULES = (
    *("cosine:10", "linear:50:0.002:0.4", "linear:100:0.001:0.2", "linear:200:0.0005:0.1"),
    *("cosine:200", "linear:500:0.0002:0.04", "cosine-betas:1000:0.0001:0.02"),
    *("linear:2000:5e-05:0.01", "linear:4000:2.5e-05:0.005", "geometric:1000:0.0001:0.02"),
    "cosine:4000",
)
FRACTION = TimeInput.FRACTION
TRAINED = {
    **{f"schedule={form}": ({"schedule": read_schedule(form)}, {}) for form in SCHEDULES},
    "data_range=-0.424213,2.821487": ({"data_range": NORMALIZED}, {}),
    "data_range=0,255": ({"data_range": DataRange(0, 255)}, {}),
    "prediction=x_start": ({"prediction": Prediction.X_START}, {}),
    "prediction=v": ({"prediction": Prediction.V}, {}),
    "time_input=fraction": ({"time_input": FRACTION}, {}),
    "data_range=0,1 prediction=v": (
        {"data_range": DataRange(0, 1), "prediction": Prediction.V},
        {},
    ),
    "process=ve": ({"schedule": LINEAR.in_family(Process.VE)}, {}),
    "process=vp": ({}, {"schedule": LINEAR.in_family(Process.VE)}),
    "linear, 2000 timesteps, unscaled": ({"schedule": read_schedule("linear:2000:1e-4:0.02")}, {}),
    "linear, ten timesteps": ({"schedule": read_schedule("linear:10:0.01:0.9")}, {}),
    "not listed": ({"schedule": cubed_cosine()}, {}),
    "one more entry": (
        {"schedule": one_more_entry(100, 0.2), "time_input": FRACTION},
        {"schedule": read_schedule("linear:100:1e-4:0.2"), "time_input": FRACTION},
    ),
}
"""The parameters of the truth, and those given where they are not linear:1000, eps and [-1, 1]."""
GIVEN = {
    "schedule": LINEAR,
    "prediction": Prediction.EPSILON,
    "data_range": UNIT_RANGE,
    "time_input": TimeInput.INDEX,
}
LIKELY = {
    *(f"schedule={form}" for form in SCHEDULES[1:5]),
    *(name for name in TRAINED if "=" in name and "schedule" not in name),
}
"""Of the others the time test or a rival leaves open whether it is another schedule."""


EXPLODING = {
    "schedule": NoiseSchedule.variance_exploding(300, sigma_min=0.01, sigma_max=20.0),
    "clip": False,
}


@pytest.mark.parametrize(
    ("prediction", "time_input"),
    [
        (Prediction.SCORE, TimeInput.SIGMA),
        (Prediction.EPSILON, TimeInput.REVERSED_INDEX),
        (Prediction.SCORE, TimeInput.LOG_SNR),
    ],
)
def test_a_right_model_of_another_process_passes(prediction, time_input):
    right = trained_on_normal_data(**EXPLODING, prediction=prediction, time_input=time_input)
    check = checked(right, normal_images(64))
    assert check.outcome is Outcome.PASSED, check.better


@pytest.mark.parametrize("name", TRAINED)
def test_a_wrong_model_does_not_pass_and_the_advice_lowers_its_bound(name):
    images = normal_images(64)
    own, given = TRAINED[name]
    model = dataclasses.replace(trained_on_normal_data(**own), **GIVEN | given)
    check = checked(model, images)
    assert check.outcome is not Outcome.PASSED
    assert_advice_lowers_the_bound(check, model, images)
    assert check.likely in (None, name)
    if name in LIKELY:
        assert check.likely == name, (check.outcome, check.better)
    if name == "one more entry":
        # No parameter gives it.
        assert check.outcome is Outcome.BETTER


@pytest.mark.parametrize(
    ("own", "given"),
    [
        ("cosine:100", "linear:1000"),
        ("cosine:100", "cosine:1000"),
        ("cosine:128", "linear:1000"),
        ("cosine:128", "cosine:1000"),
        ("cosine:50", "linear:200:0.0005:0.1"),
        ("linear:300:0.0001:0.02", "linear:1000"),
        ("linear:300:0.0001:0.02", "linear:200:0.0005:0.1"),
        ("cosine:100:0.008:3", "linear:1000"),
        ("linear:150:0.0006:0.13", "cosine:1000"),
        ("linear:700:0.0001:0.02", "linear:200:0.0005:0.1"),
        ("geometric:200:0.0005:0.1", "linear:1000"),
        ("geometric:300:0.0001:0.02", "linear:1000"),
        ("geometric:600:0.000166667:0.0333333", "linear:1000"),
    ],
)
def test_a_schedule_near_the_truth_is_better_but_not_likely(own, given):
    images = normal_images(64)
    model = trained_on_normal_data(schedule=read_schedule(own))
    model = dataclasses.replace(model, schedule=read_schedule(given))
    check = checked(model, images)
    assert check.outcome is Outcome.BETTER
    assert_advice_lowers_the_bound(check, model, images)
    warning = check_record(check)["warning"]
    assert "likely" not in warning
    is_open = "perhaps trained with a schedule that the check does not try" in warning
    assert is_open == ("schedule=" in check.better)


@pytest.mark.parametrize("schedule", ["linear:1000", *SCHEDULES])
@pytest.mark.parametrize("prediction", ["eps", "v", "x_start"])
def test_a_right_model_passes_under_any_schedule(schedule, prediction):
    schedule, prediction = read_schedule(schedule), Prediction(prediction)
    right = trained_on_normal_data(schedule=schedule, prediction=prediction)
    check = checked(right, normal_images(64))
    assert check.outcome is Outcome.PASSED, (check.better, check.evidence)


def square_root(schedule: NoiseSchedule) -> NoiseSchedule:
    return NoiseSchedule.from_alphas_cumprod(schedule.alphas_cumprod.sqrt().numpy())


@pytest.mark.parametrize(
    ("own", "given", "likely"),
    [
        ({}, {"schedule": square_root(LINEAR)}, None),
        ({"schedule": NoiseSchedule.linear(2000)}, {"schedule": LINEAR}, None),
        ({"data_range": NORMALIZED}, {"data_range": UNIT_RANGE}, "data_range=-0.424213,2.821487"),
    ],
    ids=["square root", "2000 timesteps", "normalized"],
)
def test_so_it_is_with_a_trained_network(own, given, likely, shipped, images):
    model = dataclasses.replace(trained(shipped, **own) if own else shipped, **given)
    check = checked(model, images)
    assert check.outcome is not Outcome.PASSED
    assert_advice_lowers_the_bound(check, model, images)
    assert check.likely == likely


def test_draws_of_an_image_are_no_further_evidence():
    image = np.repeat(np.arange(4), 16)
    rows = TermIndex(image, np.zeros(64, np.int64), np.tile(np.arange(16), 4))
    mean, error = mean_over_images(image.astype(float), rows)
    assert (mean, error) == (1.5, pytest.approx(np.std(range(4), ddof=1) / 2))


@pytest.mark.parametrize(
    ("count", "is_significant", "is_improvement"),
    [(1, False, True), (1, True, False), (2, False, False)],
)
def test_a_fault_by_chance_is_no_obstacle_to_one_parameter(
    count, is_significant, is_improvement, shipped
):
    parameters = dict([("prediction", "v"), ("time_input", "fraction")][:count])
    errors = np.ones((16, 1))
    score = Score(
        Candidate(parameters, shipped), np.ones(1, int), np.ones(1), errors, errors, np.ones(16)
    )
    fault = Fault(1, "eps_mse", 1.1, 1.0, is_significant)
    comparison = Comparison(score, 1.0, 0.01, 100.0, 1.0, 0.01, fault)
    assert comparison.is_improvement is is_improvement


class Pool:
    """Terms of a set of images, each evaluated once, from which subsets are drawn."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images
        self._tables: dict[object, dict[str, np.ndarray]] = {}

    def check(self, checkpoint: Checkpoint, chosen: np.ndarray) -> SanityCheck:
        """The check on a subset."""
        subset = ImageSet(self.images.pixels[chosen], [str(i) for i in chosen], "subset")
        return Checker(
            checkpoint, subset, lambda group, rows: [self._terms(c, rows, chosen) for c in group]
        ).check()

    def _terms(self, candidate: Candidate, rows: TermIndex, chosen: np.ndarray) -> TermTable:
        image, places, missing = chosen[rows.image], [], np.zeros(len(rows), bool)
        steps, at = np.unique(np.stack([rows.t, rows.draw], 1), axis=0, return_inverse=True)
        times = self._times(candidate, steps[:, 0])
        for place, ((t, draw), time) in enumerate(zip(steps.tolist(), times, strict=True)):
            table, of = self._table((candidate.name, time, t, draw)), np.flatnonzero(at == place)
            missing[of] = np.isnan(table["eps_mse"][image[of]])
            places.append((of, table))
        computed = {name: np.empty(len(rows)) for name in VALUE_COLUMNS}
        if missing.any():
            few = TermIndex(image[missing], rows.t[missing], rows.draw[missing])
            terms_pass = TermsPass(
                candidate.checkpoint, self.images, seed=0, decoder="exact", device=CPU
            )
            for name, column in terms_pass.terms(few).values.items():
                computed[name][missing] = column
        values = {name: np.empty(len(rows)) for name in VALUE_COLUMNS}
        for of, table in places:
            new = of[missing[of]]
            for name, column in values.items():
                table[name][image[new]] = computed[name][new]
                column[of] = table[name][image[of]]
        return TermTable(rows, values)

    @staticmethod
    def _times(candidate: Candidate, t: np.ndarray) -> list[float]:
        """What the network inside is given at timesteps."""
        network = candidate.checkpoint.network
        times = candidate.checkpoint.network_time(torch.from_numpy(t))
        while hasattr(network, "change"):
            times, network = network.change(times), network.network
        return times.tolist()

    def _table(self, key: object) -> dict[str, np.ndarray]:
        if key not in self._tables:
            self._tables[key] = {name: np.full(len(self.images), np.nan) for name in VALUE_COLUMNS}
        return self._tables[key]


@pytest.fixture(scope="module")
def pool(images) -> Pool:
    some = np.linspace(0, len(images) - 1, 48).astype(int)
    return Pool(ImageSet(images.pixels[some], [str(i) for i in some], "pool"))


@pytest.mark.parametrize(("size", "count"), [(1, 20), (4, 20), (15, 20), (16, 200)])
def test_no_subset_of_images_accuses_the_shipped_model(size, count, shipped, pool):
    generator = np.random.default_rng(size)
    outcomes = []
    for _ in range(count):
        chosen = np.sort(generator.choice(len(pool.images), size, replace=False))
        check = pool.check(shipped, chosen)
        outcomes.append(check.outcome)
        assert check_record(check)["warning"] is None
        assert check.candidate is None
    expected = Outcome.PASSED if size == 16 else Outcome.TOO_FEW_IMAGES
    assert set(outcomes) <= {expected, Outcome.UNDECIDED}
    assert outcomes.count(expected) > 0.9 * count
