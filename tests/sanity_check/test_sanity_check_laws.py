"""Laws of the sanity check: it accuses no right model, recommends nothing that worsens the exact
bound, and calls likely what the network was trained with alone.

The models are the exact denoiser of normal data (`normal_data`), that of a few images with noise
on them, and the shipped one as if it had been trained with other parameters (`retrained`). Exact
bounds are summed here over the terms, without the check's own estimate.
"""

import dataclasses

import numpy as np
import pytest
import torch
from normal_data import normal_images, trained_on_normal_data
from oracles import oracle_checkpoint, oracle_images
from retrained import checked, trained

from ddpmbench.checkpoints.schedules import read_schedule
from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.data_range import DataRange
from ddpmbench.diffusion.model import Checkpoint, TimeInput
from ddpmbench.diffusion.parameterization import Prediction, Process
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.likelihood.terms import VALUE_COLUMNS, TermIndex, TermsPass, TermTable
from ddpmbench.sanity_check.check import Checker, Outcome, SanityCheck
from ddpmbench.sanity_check.run import check_record
from ddpmbench.sanity_check.scores import Candidate, Comparison, Fault, Score, mean_over_images

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")


def exact_bound(checkpoint: Checkpoint, images: ImageSet) -> float:
    """Nats per dimension of two images, the terms of timesteps in between linear in t."""
    total, image = checkpoint.schedule.num_timesteps, np.array([1, len(images) - 1])
    t = np.unique(np.rint(np.geomspace(1, total, 40)).astype(np.int64))
    terms_pass = TermsPass(checkpoint, images, seed=7, decoder="exact", device=CPU)
    rows = TermIndex(np.repeat(image, len(t)), np.tile(t, 2), np.zeros(2 * len(t), np.int64))
    nats = terms_pass.terms(rows).values["nats"].reshape(2, -1).mean(0)
    kl = np.interp(np.arange(2, total + 1), t[1:], nats[1:]).sum()
    return float(terms_pass.prior(image).mean() + nats[0] + kl)


def one_more_entry(steps: int, end: float) -> NoiseSchedule:
    """The linear schedule of steps + 1 entries, without the first."""
    signal = np.cumprod(1 - np.linspace(1e-4, end, steps + 1))
    return NoiseSchedule.from_alphas_cumprod(signal[1:])


def cubed_cosine() -> NoiseSchedule:
    """The cosine to the third power, which is near no common schedule."""
    share = np.arange(1, 1001) / 1000
    return NoiseSchedule.from_alphas_cumprod(np.cos(0.998 * np.pi / 2 * share) ** 3)


def square_root() -> NoiseSchedule:
    return NoiseSchedule.from_alphas_cumprod(
        NoiseSchedule.linear(1000).alphas_cumprod.sqrt().numpy()
    )


ONE_MORE, CUBED = "one-more-entry", "cubed-cosine"
SPECIAL = {ONE_MORE: one_more_entry(100, 0.2), CUBED: cubed_cosine(), "square-root": square_root()}
"""Schedules that no form gives."""
READ = {
    "schedule": lambda form: SPECIAL.get(form) or read_schedule(form),
    "process": lambda name: read_schedule("linear:1000").in_family(Process(name)),
    "prediction": Prediction,
    "time_input": TimeInput,
    "data_range": lambda ends: DataRange(*map(float, ends.split(","))),
    "clip": "True".__eq__,
}
USUAL = {
    "schedule": "linear:1000", "process": "vp", "prediction": "eps", "data_range": "-1,1",
    "time_input": "index",
}  # fmt: skip


def words(line: str) -> dict[str, str]:
    return dict(word.split("=") for word in line.split())


def fields(line: str) -> dict[str, object]:
    """The fields of a checkpoint by the parameters in a line, `data_range=0,1 prediction=v`."""
    values = {name: READ[name](value) for name, value in words(line).items()}
    return {"schedule" if name == "process" else name: value for name, value in values.items()}


@pytest.fixture
def trained_on(shipped: Checkpoint, images: ImageSet):
    """A model as if trained with the parameters in a line, and images; by what it is made of."""

    def made(model: str, line: str) -> tuple[Checkpoint, ImageSet]:
        own = fields(line)
        if model == NORMAL:
            return trained_on_normal_data(**own), normal_images(64)
        if model == MIXTURE:
            means = oracle_images()
            return oracle_checkpoint(means, **own, spread=0.02), noisy(means, 60, spread=0.02)
        return trained(shipped, **own) if own else shipped, images

    return made


def noisy(means: ImageSet, count: int, *, spread: float) -> ImageSet:
    """Images drawn from the model of `oracle_checkpoint`."""
    numbers = means.pixels[np.arange(count) % len(means)] / 127.5 - 1
    numbers = numbers + np.random.default_rng(0).normal(0, spread**0.5, numbers.shape)
    pixels = np.rint((numbers.clip(-1, 1) + 1) * 127.5).astype(np.uint8)
    return ImageSet(pixels, [str(i) for i in range(count)], "drawn from the model")


NORMAL, SHIPPED, MIXTURE = "normal", "shipped", "mixture"
SCHEDULES = (
    *("cosine:10", "linear:50:0.002:0.4", "linear:100:0.001:0.2", "linear:200:0.0005:0.1"),
    *("cosine:200", "linear:500:0.0002:0.04", "cosine-betas:1000:0.0001:0.02"),
    *("linear:2000:5e-05:0.01", "linear:4000:2.5e-05:0.005", "geometric:1000:0.0001:0.02"),
    "cosine:4000",
)
EXPLODING = "schedule=ve:0.01:20:300 clip=False"
RIGHT = [
    *((SHIPPED, "", steps) for steps in (100, 10, 2, 1)),
    (SHIPPED, "time_input=one-based", None),
    (SHIPPED, "time_input=fraction", None),
    (SHIPPED, "prediction=v", None),
    (SHIPPED, "prediction=x_start", None),
    (SHIPPED, "schedule=cosine:1000", None),
    (SHIPPED, "data_range=-0.5,0.5", None),
    (NORMAL, f"{EXPLODING} prediction=score time_input=sigma", None),
    (NORMAL, f"{EXPLODING} prediction=eps time_input=reversed-index", None),
    (NORMAL, f"{EXPLODING} prediction=score time_input=log-snr", None),
    *(
        (NORMAL, f"schedule={schedule} prediction={prediction}", None)
        for schedule in ("linear:1000", *SCHEDULES)
        for prediction in ("eps", "v", "x_start")
    ),
    *(
        (MIXTURE, f"schedule={schedule} prediction=previous_mean", None)
        for schedule in ("linear:300:0.000333333:0.0666667", "cosine:60", "sigmoid:9")
    ),
]
"""What a model is made of, what it was trained with besides `USUAL`, and a number of timesteps."""


@pytest.mark.parametrize(("model", "own", "timesteps"), RIGHT)
def test_a_right_model_passes(model, own, timesteps, trained_on):
    right, images = trained_on(model, own)
    check = checked(right if timesteps is None else right.respaced(timesteps), images)
    assert check.outcome is Outcome.PASSED, (check.better, check.evidence)
    assert model != SHIPPED or check.num_evaluations < 1000


LIKELY, BETTER = Outcome.LIKELY, Outcome.BETTER
WRONG = [
    (SHIPPED, "time_input=one-based", "", LIKELY),
    (SHIPPED, "", "time_input=one-based", LIKELY),
    (SHIPPED, "", "time_input=fraction", LIKELY),
    (SHIPPED, "time_input=fraction", "", LIKELY),
    (SHIPPED, "prediction=v", "", LIKELY),
    (SHIPPED, "", "prediction=v", LIKELY),
    (SHIPPED, "", "prediction=x_start", LIKELY),
    (SHIPPED, "prediction=x_start", "", LIKELY),
    (SHIPPED, "schedule=cosine:1000", "", LIKELY),
    (SHIPPED, "", "schedule=cosine:1000", LIKELY),
    (SHIPPED, "schedule=linear:200:0.0005:0.1", "", LIKELY),
    (SHIPPED, "data_range=-0.5,0.5", "", LIKELY),
    (SHIPPED, "", "data_range=0,1", LIKELY),
    (SHIPPED, "", "data_range=0,255", LIKELY),
    (SHIPPED, "data_range=0,255", "", LIKELY),
    (SHIPPED, "data_range=-0.424213,2.821487", "", LIKELY),
    (SHIPPED, "", "schedule=square-root", None),
    (SHIPPED, "schedule=linear:2000:5e-05:0.01", "", None),
    *((NORMAL, f"schedule={form}", "", LIKELY) for form in SCHEDULES[1:5]),
    # The time test or a rival leaves open whether it is another schedule.
    *((NORMAL, f"schedule={form}", "", None) for form in (SCHEDULES[0], *SCHEDULES[5:])),
    (NORMAL, "data_range=-0.424213,2.821487", "", LIKELY),
    (NORMAL, "data_range=0,255", "", LIKELY),
    (NORMAL, "prediction=x_start", "", LIKELY),
    (NORMAL, "prediction=v", "", LIKELY),
    (NORMAL, "time_input=fraction", "", LIKELY),
    (NORMAL, "data_range=0,1 prediction=v", "", LIKELY),
    (NORMAL, "process=ve", "", LIKELY),
    (NORMAL, "", "process=ve", LIKELY),
    (NORMAL, "schedule=linear:2000:1e-4:0.02", "", None),
    (NORMAL, "schedule=linear:10:0.01:0.9", "", None),
    (NORMAL, f"schedule={CUBED}", "", None),
    # No parameter gives it.
    (
        *(NORMAL, f"schedule={ONE_MORE} time_input=fraction"),
        *("schedule=linear:100:1e-4:0.2 time_input=fraction", BETTER),
    ),
    # A schedule that the check does not try, and one near it.
    (NORMAL, "schedule=cosine:100", "", BETTER),
    (NORMAL, "schedule=cosine:100", "schedule=cosine:1000", BETTER),
    (NORMAL, "schedule=cosine:128", "", BETTER),
    (NORMAL, "schedule=cosine:128", "schedule=cosine:1000", BETTER),
    (NORMAL, "schedule=cosine:50", "schedule=linear:200:0.0005:0.1", BETTER),
    (NORMAL, "schedule=linear:300:0.0001:0.02", "", BETTER),
    (NORMAL, "schedule=linear:300:0.0001:0.02", "schedule=linear:200:0.0005:0.1", BETTER),
    (NORMAL, "schedule=cosine:100:0.008:3", "", BETTER),
    (NORMAL, "schedule=linear:150:0.0006:0.13", "schedule=cosine:1000", BETTER),
    (NORMAL, "schedule=linear:700:0.0001:0.02", "schedule=linear:200:0.0005:0.1", BETTER),
    (NORMAL, "schedule=geometric:200:0.0005:0.1", "", BETTER),
    (NORMAL, "schedule=geometric:300:0.0001:0.02", "", BETTER),
    (NORMAL, "schedule=geometric:600:0.000166667:0.0333333", "", BETTER),
]
"""What a model is made of, what it was trained with and what is given, each besides `USUAL`, and
the outcome; None where it may be likely or not."""


@pytest.mark.parametrize(("model", "own", "given", "outcome"), WRONG)
def test_a_wrong_model_does_not_pass_and_the_advice_lowers_its_bound(
    model, own, given, outcome, trained_on
):
    right, images = trained_on(model, own)
    usual = " ".join(f"{name}={value}" for name, value in USUAL.items() if name != "process")
    wrong = dataclasses.replace(right, **fields(usual) | fields(given))
    check = checked(wrong, images)
    assert check.outcome is not Outcome.PASSED
    assert check.num_evaluations < 3500
    # One timestep off, a trained network loses less than the noise of two images.
    if check.better is not None and (model == NORMAL or check.best is not None):
        bound = exact_bound(check.candidate.checkpoint, images)
        assert bound < exact_bound(wrong, images) - 0.01, check.better
    truth = own or " ".join(f"{name}={USUAL[name]}" for name in words(given))
    assert check.likely in (None, truth)
    if outcome is not None:
        assert check.outcome is outcome, check.better
    if outcome is BETTER:
        warning = check_record(check)["warning"]
        assert "likely" not in warning
        is_open = "perhaps trained with a schedule that the check does not try" in warning
        assert is_open == ("schedule=" in (check.better or ""))


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
