"""Paired differences between runs: what is returned, and what is written."""

import copy
import dataclasses
import json
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from sealing import read_record

import ddpmbench as db
from ddpmbench.diffusion.data_range import NATS_PER_BIT
from ddpmbench.likelihood.bound import estimate_bound
from ddpmbench.likelihood.designs import EveryPairDesign
from ddpmbench.likelihood.terms import TermTable
from ddpmbench.report.compare_nll import Difference, difference_figure, steps_frame

KINDS = pytest.mark.parametrize(
    ("baseline", "run"),
    [
        ("importance", "importance-other"),
        ("importance", "importance-own"),
        ("pairs", "pairs-other"),
        ("one", "one-other"),
    ],
)


@pytest.fixture(scope="module")
def other_model(small_model):
    """The same network a little further on."""
    network = copy.deepcopy(small_model.network)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=generator)
    return dataclasses.replace(small_model, network=network, sha256="1" * 64)


@pytest.fixture(scope="module")
def runs(small_model, other_model, small_images, tmp_path_factory):
    """Run folders by name."""
    root = tmp_path_factory.mktemp("runs")
    importance, pairs = {"half_width": 5.0}, {"estimator": "every-pair"}
    for name, options in {
        "importance": importance,
        "importance-other": {**importance, "terms_of": root / "importance"},
        "importance-own": importance,
        "pairs": pairs,
        "pairs-other": pairs,
        "one": {**pairs, "draws": 1},
        "one-other": {**pairs, "draws": 1},
    }.items():
        model = other_model if "-" in name else small_model
        db.evaluate_nll(model, small_images, **options, out=root / name)
    return root


def test_schedules_of_one_name_are_told_apart(small_model, small_images, runs, tmp_path):
    steeper = db.NoiseSchedule.linear(40, beta_end=0.3)
    assert steeper.name == small_model.schedule.name
    other = dataclasses.replace(small_model, schedule=steeper)
    db.evaluate_nll(other, small_images, half_width=9.0, out=tmp_path / "run")
    with pytest.raises(db.InputError, match="schedule_sha256 is"):
        db.compare([runs / "importance", tmp_path / "run"])


def test_a_schedule_of_another_name_is_the_same(small_model, small_images, runs, tmp_path):
    named = dataclasses.replace(small_model.schedule, name="betas")
    other = dataclasses.replace(small_model, schedule=named)
    db.evaluate_nll(other, small_images, half_width=5.0, out=tmp_path / "run")
    (result,) = db.compare([runs / "importance", tmp_path / "run"]).summary["runs"]
    assert result["difference"] == 0


def summary_of(run):
    return json.loads((run / "summary.json").read_text())


@pytest.mark.parametrize("name", ["importance", "pairs"])
def test_a_run_does_not_differ_from_itself(runs, name):
    result = db.compare([runs / name, runs / name])
    (run,) = result.summary["runs"]
    assert run["difference"] == run["difference_half_width"] == 0
    assert run["difference_half_width_population"] == 0
    assert run["half_width_unpaired"] > 0
    assert (result.per_timestep[["bits_per_dim", "rate_bits_per_dim"]] == 0).all(axis=None)


@KINDS
def test_the_difference_is_that_of_the_printed_bounds(runs, baseline, run):
    first, second = summary_of(runs / baseline), summary_of(runs / run)
    result = db.compare([runs / baseline, runs / run])
    (there,) = result.summary["runs"]
    expected = second["bits_per_dim"] - first["bits_per_dim"]
    assert there["difference"] == pytest.approx(expected, abs=1e-9)
    assert there["difference"] != 0
    assert there["bits_per_dim"] == second["bits_per_dim"]
    assert (there["same_rows"] == 1) == (run != "importance-own")
    steps = [pd.read_csv(runs / name / "per_timestep.csv") for name in (baseline, run)]
    np.testing.assert_allclose(
        result.per_timestep.bits_per_dim,
        steps[1].bits_per_dim - steps[0].bits_per_dim,
        atol=1e-9,
    )


@KINDS
def test_swapped_runs_differ_the_other_way(runs, baseline, run):
    one = db.compare([runs / baseline, runs / run]).summary["runs"][0]
    other = db.compare([runs / run, runs / baseline]).summary["runs"][0]
    assert one["difference"] == pytest.approx(-other["difference"], rel=1e-9)
    if run == "one-other":
        assert one["difference_half_width"] is other["difference_half_width"] is None
    else:
        half_width = pytest.approx(other["difference_half_width"], rel=0.05)
        assert one["difference_half_width"] == half_width


def test_the_first_run_is_the_baseline_of_all_others(runs):
    names = [runs / name for name in ("importance", "importance-other", "importance-own")]
    result = db.compare(names)
    assert result.summary["baseline"]["run"] == str(names[0])
    assert list(result.runs.run) == [str(name) for name in names]
    assert list(result.per_timestep.run) == [str(name) for name in names[1:] for _ in range(40)]
    for k, name in enumerate(names[1:]):
        alone = db.compare([names[0], name])
        assert result.summary["runs"][k] == alone.summary["runs"][0]


def test_runs_of_unequal_length_compare(runs, other_model, small_images, tmp_path):
    half_width = 0.9 * summary_of(runs / "importance-other")["half_width"]
    options = {"terms_of": runs / "importance", "half_width": half_width}
    db.evaluate_nll(other_model, small_images, **options, out=tmp_path)
    longer, short = (summary_of(path)["sampling"] for path in (tmp_path, runs / "importance"))
    assert longer["num_replicates"] > short["num_replicates"]
    (run,) = db.compare([runs / "importance", tmp_path]).summary["runs"]
    rows = summary_of(runs / "importance")["num_evaluations"] - short["pilot_evaluations"]
    assert run["num_evaluations"] == rows
    (expected,) = db.compare([runs / "importance", runs / "importance-other"]).summary["runs"]
    assert run["difference"] == pytest.approx(expected["difference"], abs=0.02)
    assert 0 < run["difference_half_width"] < run["half_width_unpaired"]


@pytest.mark.parametrize(
    ("baseline", "run"), [("importance", "importance-own"), ("one", "one-other")]
)
def test_every_file_holds_the_same_numbers(runs, baseline, run, tmp_path):
    result = db.compare([runs / baseline, runs / run], out=tmp_path / "out")
    out = tmp_path / "out"
    assert read_record(out / "summary.json") == result.summary
    (there,) = result.summary["runs"]
    table = pd.read_csv(out / "runs.csv", dtype={"checkpoint": str})
    for k, row in enumerate([result.summary["baseline"], there]):
        for name, value in row.items():
            cell = table[name][k]
            if isinstance(value, float):
                value = pytest.approx(value, rel=1e-12)
            assert pd.isna(cell) if value is None else cell == value
    assert isinstance(there["num_evaluations"], int)
    steps = pd.read_csv(out / "per_timestep.csv")
    assert steps.bits_per_dim.sum() == pytest.approx(there["difference"], abs=1e-8)
    assert steps.num_evaluations.sum() == there["num_evaluations"]
    groups = pd.read_csv(out / "figures" / "difference.csv")
    assert groups.difference.sum() == pytest.approx(there["difference"], abs=1e-8)
    assert groups.cumulative[0] == pytest.approx(there["difference"], abs=1e-8)
    assert list(groups.t_first[1:]) == list(groups.t_last[:-1] + 1)
    assert (groups.t_first[0], groups.t_last.iloc[-1]) == (1, 40)
    known = there["difference_half_width"] is not None
    assert groups[["half_width", "cumulative_half_width"]].notna().to_numpy().all() == known
    if known:
        # With so few images Student's quantile is well above that of the normal distribution.
        shown = groups.cumulative_half_width[0] / there["difference_half_width"]
        assert 0.6 < shown < 1.05
    assert (out / "figures" / "difference.png").read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(out / "figures" / "difference.svg").getroot().tag.endswith("svg")


def bound(num_timesteps, *, draws=2, prior=0.0):
    """Of terms without a model."""
    design, generator = EveryPairDesign(3, num_timesteps, draws), np.random.default_rng(0)
    rows = design.index(0, len(design))
    values = {name: generator.normal(size=len(rows)) for name in ("nats", "x_start_mse", "eps_mse")}
    return estimate_bound(design, np.full(3, prior), [TermTable(rows, values)])


@pytest.mark.parametrize("num_timesteps", [1, 2, 3, 40, 1000])
@pytest.mark.parametrize("draws", [1, 2])
def test_the_numbers_behind_the_figure_sum_to_the_difference(num_timesteps, draws):
    result = bound(num_timesteps, draws=draws, prior=0.5)
    steps = steps_frame(["run"], [Difference(result, 1.0)])
    _, groups = difference_figure(steps, "baseline")
    bits = result.nats / NATS_PER_BIT
    # The prior belongs to no step, but is sent before any.
    assert groups.difference.sum() == pytest.approx(bits - 0.5 / NATS_PER_BIT)
    assert groups.cumulative[0] == pytest.approx(bits)
    later = groups.difference[::-1].cumsum()[::-1] + 0.5 / NATS_PER_BIT
    np.testing.assert_allclose(groups.cumulative, later, rtol=1e-9)
    assert groups.half_width.isna().all() == (draws == 1)
    if draws > 1:
        # The errors of every pair's terms are independent: squares add up.
        squares = np.square(groups.half_width)[::-1].cumsum()[::-1]
        np.testing.assert_allclose(np.square(groups.cumulative_half_width), squares, rtol=1e-9)


@pytest.mark.parametrize(
    "names", [[], ["importance"], ["importance", "importance-other", "importance-other"]]
)
def test_runs_are_two_or_more_and_different(runs, names):
    with pytest.raises(db.InputError, match=r"two run folders|named twice"):
        db.compare([runs / name for name in names])


def test_runs_are_named_by_their_reports_as_well(runs):
    folders = [runs / "importance", runs / "importance-other"]
    by_folder, by_report = (
        db.compare(named) for named in (folders, [db.load_report(folder) for folder in folders])
    )
    assert by_report.summary == by_folder.summary
    for wrong in (str(folders[0]), [1, 2]):
        with pytest.raises(db.InputError):
            db.compare(wrong)
