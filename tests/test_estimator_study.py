"""The estimator study measures what it says: every design unbiased, errors as theory has them."""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from mixtures import SyntheticModel
from sealing import edit_npz, read_npz

import ddpmbench as db
from ddpmbench.execution.store import FolderStore
from ddpmbench.likelihood.designs import ImportanceDesign, PilotDesign

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import estimator_designs as designs
    import estimator_study as study

SHARD = "shards/terms-000000000000-000000004000.npz"
IMAGES, STEPS = 60, 100
SEEDS = {"images": 300, "rows": 300, "num_replicates": 100}
SIZE = {"images": 12, "rows": 400, "num_replicates": 4}
NAMES = [design.name for design in designs.DESIGNS]


@functools.cache
def population():
    model, generator = SyntheticModel(IMAGES, STEPS), np.random.default_rng(5)
    draws = 1 + 0.03 * generator.normal(size=(IMAGES, STEPS, 2))
    return designs.Population(model.mean[:, :, None] * draws, model.prior, model.features)


def find(design, population, size):
    generators = [np.random.default_rng([1, size, trial]) for trial in range(SEEDS[design.unit])]
    return [design.estimate(population, size, generator) for generator in generators]


@functools.cache
def found(name):
    design = designs.DESIGNS[NAMES.index(name)]
    return design, find(design, population(), SIZE[design.unit])


@functools.cache
def row(name):
    design, estimates = found(name)
    return study.measured_row(design, SIZE[design.unit], estimates, population())


def z_score(errors):
    return np.mean(errors) / np.std(errors, ddof=1) * np.sqrt(len(errors))


@pytest.mark.parametrize("name", NAMES)
def test_every_design_is_unbiased_and_costs_what_it_says(name):
    design, estimates = found(name)
    measured = row(name)
    assert abs(measured["mean_error"]) < 3 * measured["mean_error_standard_error"]
    pilot, density = len(PilotDesign(IMAGES, STEPS, 0)), np.full(STEPS - 1, 1 / (STEPS - 1))
    importance = pilot + len(ImportanceDesign(IMAGES, STEPS, density, 0, 4))
    calls = [12 * STEPS, 400, IMAGES + 400, pilot + IMAGES + 400, importance, importance]
    expected = calls[NAMES.index(name)]
    assert {one.num_evaluations for one in estimates} == {expected}
    assert design.num_evaluations(SIZE[design.unit], population().setting) == expected


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("t", [1, 2, STEPS])
def test_every_step_counts_once(name, t):
    design, terms = found(name)[0], np.zeros((IMAGES, STEPS, 2))
    terms[:, t - 1] = 1.0
    model = SyntheticModel(IMAGES, STEPS)
    population = designs.Population(terms, np.zeros(IMAGES), model.features)
    generators = [np.random.default_rng([2, trial]) for trial in range(50)]
    size = 2000 if design.unit == "rows" else SIZE[design.unit]
    nats = np.array([design.estimate(population, size, one).nats for one in generators])
    assert abs(nats.mean() - 1) < 3 * nats.std(ddof=1) / np.sqrt(50) + 1e-6
    assert nats.std() < 0.5


@pytest.mark.parametrize("name", [name for name in NAMES if name != "uniform t"])
def test_the_noise_that_is_not_sampling_has_its_variance(name):
    design, estimates = found(name)
    noise = np.array([one.noise for one in estimates])
    _, expected = design.variance(SIZE[design.unit], population().setting)
    assert abs(z_score(noise)) < 3
    assert noise.var(ddof=1) == pytest.approx(expected, rel=3 * np.sqrt(2 / len(noise)))


def per_row_variance(name):
    """What theory says, nats squared."""
    terms, noise = population().mean, population().computed.var(axis=2, ddof=1)
    if name == "every-pair":
        return terms.sum(1).var(ddof=1)
    if name == "uniform t":
        return STEPS**2 * (terms**2 + noise).mean() - terms.sum(1).mean() ** 2
    deviation = np.sqrt(terms.var(0) + noise.mean(0))[1:]
    if name == "stratified t":
        return (STEPS - 1) * np.square(deviation).sum()
    return deviation.sum() ** 2  # Neyman's minimum


@pytest.mark.parametrize("name", ["every-pair", "uniform t", "stratified t", "Neyman"])
def test_the_variance_of_a_row_is_that_of_theory(name):
    measured = row(name)
    expected = per_row_variance(name) / np.log(2) ** 2
    slack = 0.2 if name == "Neyman" else 0.05  # a pilot's density is not quite the best one
    error = 3 * measured["per_row_variance_standard_error"]
    assert expected - error < measured["per_row_variance"] < (1 + slack) * expected + error


@pytest.mark.parametrize("name", ["importance HT", "importance GREG"])
def test_the_stated_half_widths_are_those_measured(name):
    measured = row(name)
    error = 3 * measured["half_width_standard_error"]
    assert abs(measured["mean_reported_half_width"] - measured["half_width"]) < error
    assert 0.9 < measured["coverage"] <= 1


def test_errors_that_are_known_are_reported_as_they_are():
    error = 0.01 * np.random.default_rng(0).normal(size=4000)
    found = [designs.Estimate(population().truth + e, 400, half_width=0.0196) for e in error]
    measured = study.measured_row(designs.UniformSteps(), 400, found, population())
    half_width = 0.0196 / np.log(2)
    assert measured["half_width"] == pytest.approx(half_width, rel=0.04)
    error = half_width / np.sqrt(2 * 4000)
    assert measured["half_width_standard_error"] == pytest.approx(error, rel=0.1)
    assert measured["mean_reported_half_width"] == pytest.approx(half_width)
    assert measured["coverage"] == pytest.approx(0.95, abs=0.015)
    variance = 400 * (0.01 / np.log(2)) ** 2
    assert measured["per_row_variance"] == pytest.approx(variance, rel=0.08)


def test_a_design_that_is_wrong_is_noticed():
    # Every row one step later than it was drawn.
    computed = population().computed
    later = np.concatenate([computed[:, :1], computed[:, 2:], computed[:, -1:]], axis=1)
    wrong = dataclasses.replace(population(), computed=later)
    design = designs.StratifiedSteps(neyman=True)
    measured = study.measured_row(design, 400, find(design, wrong, 400), population())
    assert abs(measured["mean_error"]) > 5 * measured["mean_error_standard_error"]


def test_what_few_images_say_holds_for_more():
    design, model = found("importance HT")[0], SyntheticModel(4 * IMAGES, STEPS, seed=1)
    more = designs.Population(np.stack([model.mean] * 2, axis=2), model.prior, model.features)
    stated = [design.estimate(more, 8, np.random.default_rng(k)).half_width for k in range(20)]
    setting = dataclasses.replace(study.in_bits(population().setting), num_images=4 * IMAGES)
    width = study.scaled_half_width(design, 8, row("importance HT")["per_row_variance"], setting)
    assert width == pytest.approx(np.mean(stated) / np.log(2), rel=0.25)


@pytest.mark.parametrize("name", NAMES)
def test_the_calls_needed_give_the_half_width(name):
    design, setting = found(name)[0], study.in_bits(population().setting)
    measured = pd.DataFrame([{**row(name), "size": 10**6}])
    needed = study.needed_row(design, measured, setting)
    target = dataclasses.replace(setting, num_images=study.NUM_IMAGES)
    width = functools.partial(
        study.scaled_half_width, design, per_row=needed["per_row_variance"], setting=target
    )
    # Another draw of the decoder narrows it at once.
    assert width(1.001 * needed["size"]) < study.HALF_WIDTH < width(0.999 * needed["size"])
    assert needed["whole_half_width"] <= study.HALF_WIDTH * (1 + 1e-9)
    assert needed["num_evaluations"] <= needed["whole_num_evaluations"]
    assert needed["num_evaluations_standard_error"] > 0


def test_the_published_figure_follows_from_the_published_table():
    published = Path(__file__).parents[1] / "results" / "estimator"
    needed = pd.read_csv(published / "calls_needed.csv").set_index("design")
    setting = study.setting_of(needed.reset_index())
    assert list(needed.index) == NAMES
    for design, row in zip(designs.DESIGNS, needed.itertuples(), strict=True):
        width = study.scaled_half_width(design, row.whole_size, row.per_row_variance, setting)
        assert width == pytest.approx(row.whole_half_width, rel=1e-9)
        assert f"<!-- {design.name} -->" in (published / "half_width.svg").read_text()


# ---- the command


@pytest.fixture
def run(tmp_path):
    """A folder like that of a run: two images, every step, two draws."""
    images, generator = db.load_images("fashion-mnist:test", num_images=2), np.random.default_rng(0)
    place = [axis.ravel() for axis in np.indices((2, 1000, 2))]
    nats = generator.gamma(2.0, 1e-3, size=4000)
    terms = {"image": place[0], "t": place[1] + 1, "draw": place[2], "nats": nats}
    FolderStore(tmp_path / "shards", "terms").save(0, terms, seconds=1.0, device="cpu")
    pd.DataFrame({"prior": [0.0, 0.0]}).to_csv(tmp_path / "per_image.csv")
    summary = {
        "bits_per_dim": nats.sum() / 4 / np.log(2),
        "num_images": 2,
        "num_timesteps": 1000,
        "estimator": "every-pair",
        "sampling": {"draws": 2},
        "checkpoint": {"source": "default"},
        "data": {"source": "fashion-mnist", "split": "test", "sha256": images.sha256},
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    return tmp_path


def invoke(run, out):
    arguments = ["--run", str(run), "--out", str(out), "--seeds", "2"]
    return CliRunner().invoke(study.main, arguments)


def test_the_command_writes_the_figure_and_tables_that_follow_from_the_seed(run, monkeypatch):
    sizes = {"images": (1,), "rows": (10_000,), "num_replicates": (50,)}
    monkeypatch.setattr(study, "SIZES", sizes)
    result = invoke(run, run / "out")
    assert result.exit_code == 0, result.output
    again = study.study(study.read_population(run), seeds=2, seed=0)
    for name, frame in zip(("half_width", "calls_needed"), again, strict=True):
        assert list(frame["design"]) == NAMES
        assert (run / "out" / f"{name}.csv").read_text() == frame.to_csv(index=False)
    for name in ("half_width.svg", "half_width.png"):
        assert (run / "out" / name).stat().st_size > 10_000


@pytest.mark.parametrize("damage", ["summary.json", SHARD, "per_image.csv"])
def test_a_folder_that_is_no_finished_run_is_refused_in_one_line(run, damage):
    (run / damage).unlink()
    result = invoke(run, run / "out")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert str(run) in result.stderr


@pytest.mark.parametrize("change", ["term", "missing", "draws", "images"])
def test_a_run_that_does_not_hold_what_its_summary_says_is_refused(run, change):
    path = run / SHARD
    summary = json.loads((run / "summary.json").read_text())
    if change == "term":
        edit_npz(path, nats=read_npz(path)["nats"] + 1e-6)
    elif change == "missing":
        path.rename(path.with_name("terms-000000000001-000000004000.npz"))
    elif change == "draws":
        summary["sampling"]["draws"] = 1
    else:
        summary["data"]["sha256"] = "0"
    (run / "summary.json").write_text(json.dumps(summary))
    result = invoke(run, run / "out")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
