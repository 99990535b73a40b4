"""Paired differences between runs: what is returned, and what is written."""

import copy
import dataclasses
import json
import shutil
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from sealing import edit_npz, read_record
from unet_configs import TINY_CONFIG

import ddpmbench as db
from ddpmbench.diffusion.data_range import NATS_PER_BIT
from ddpmbench.diffusion.parameterization import Process, Variance
from ddpmbench.likelihood.bound import estimate_bound
from ddpmbench.likelihood.designs import EveryPairDesign
from ddpmbench.likelihood.terms import TermTable
from ddpmbench.report.compare_nll import (
    Difference,
    difference_figure,
    printed_comparison,
    steps_frame,
)
from ddpmbench.train.loop import train
from ddpmbench.train.recipe import TrainingRecipe

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


def test_the_same_comparison_again_is_welcome_in_its_folder(runs, tmp_path):
    folders, out = [runs / "one", runs / "one-other"], tmp_path / "out"
    first = db.compare(folders, out=out).summary
    assert db.compare(folders, out=out).summary == first


# ---- what is printed


def test_the_formats_print_the_same_result(runs, tmp_path):
    folders = [runs / name for name in ("importance", "importance-other", "importance-own")]
    summary = db.compare(folders, out=tmp_path).summary
    printed = {
        kind: printed_comparison(summary, kind) for kind in ("table", "json", "csv", "quiet")
    }
    assert json.loads(printed["json"]) == summary
    assert printed["csv"] + "\n" == (tmp_path / "runs.csv").read_text()
    differences = [run["difference"] for run in summary["runs"]]
    assert [float(line) for line in printed["quiet"].splitlines()] == differences
    lines = printed["table"].splitlines()
    first = summary["baseline"]
    assert lines[1].split() == [
        str(folders[0]), f"{first['bits_per_dim']:.4f}", "+-", f"{first['half_width']:.4f}"
    ]  # fmt: skip
    for line, path, there in zip(lines[2:], folders[1:], summary["runs"], strict=False):
        paired = there["difference_half_width"]
        ratio = there["half_width_unpaired"] / paired
        words = [f"{ratio:.1f}", "times", "narrower", "than", "unpaired"]
        assert line.split() == [
            str(path), f"{there['bits_per_dim']:.4f}", "+-", f"{there['half_width']:.4f}",
            f"{there['difference']:+.4f}", "+-", f"{paired:.4f}",
            f"({there['difference_half_width_population']:.4f}){',' if ratio > 1 else ''}",
            *(words if ratio > 1 else []),
        ]  # fmt: skip
    assert "6 of" in printed["table"]
    assert f"all are with ddpmbench nll --terms-of {folders[0]}" in printed["table"]


def test_one_draw_prints_no_interval(runs, tmp_path):
    folders = [runs / "one", shutil.copytree(runs / "one", tmp_path / "copy")]
    summary = db.compare(folders).summary
    lines = printed_comparison(summary, "table").splitlines()
    bits = summary["baseline"]["bits_per_dim"]
    assert lines[1].split() == [str(folders[0]), f"{bits:.4f}"]
    assert lines[2].split() == [str(folders[1]), f"{bits:.4f}", "+0.0000", "(0.0000)"]
    (there,) = summary["runs"]
    assert there["half_width"] is there["difference_half_width"] is None


# ---- two checkpoints of one training run


@pytest.mark.slow
def test_the_paired_interval_is_three_times_narrower(tmp_path):
    whole = db.load_images("fashion-mnist:test", num_images=300)
    pixels = np.ascontiguousarray(whole.pixels[:, :, 6:22:2, 6:22:2])
    crops = dataclasses.replace(whole, pixels=pixels, source="crops", split=None)
    recipe = TrainingRecipe(
        network=dataclasses.replace(TINY_CONFIG, attention=(False, False)),
        image_size=8,
        num_timesteps=50,
        variance=Variance.FIXED_LARGE,
        batch_size=32,
        learning_rate=3e-3,
        warmup_steps=5,
        ema_decay=0.95,
    )
    models = []
    for steps in (30, 45):
        path = train(recipe, crops, tmp_path / "run", steps=steps, device=torch.device("cpu"))
        models.append(db.load_checkpoint(path))
    names = {"a": {}, "b": {"terms_of": tmp_path / "a"}, "own": {}}
    reports = [
        db.evaluate_nll(models[name != "a"], crops, half_width=0.1, out=tmp_path / name, **options)
        for name, options in names.items()
    ]
    on_same_rows, on_own_rows = db.compare([tmp_path / name for name in names]).summary["runs"]
    widths = [report.summary["half_width"] for report in reports[:2]]
    assert on_same_rows["half_width_unpaired"] == pytest.approx(np.hypot(*widths))
    assert on_same_rows["half_width_unpaired"] > 3 * on_same_rows["difference_half_width"]
    assert on_own_rows["half_width_unpaired"] > on_own_rows["difference_half_width"]
    # 15 more steps help, and either pairing says by how much.
    assert on_same_rows["difference"] < -on_same_rows["difference_half_width"]
    apart = abs(on_same_rows["difference"] - on_own_rows["difference"])
    both = (on_same_rows, on_own_rows)
    assert apart < 1.5 * np.hypot(*(run["difference_half_width"] for run in both))


# ---- what is refused


def refusal(*folders, **options):
    """The line of a comparison that is refused."""
    with pytest.raises(db.InputError) as info:
        db.compare(folders, **options)
    return str(info.value)


class Conditional(torch.nn.Module):
    """A network that knows the label."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x_t, time, labels):
        return self.network(x_t, time) + 0.01 * labels[:, None, None, None]


@pytest.fixture
def another(small_model, small_images, tmp_path):
    """Makes a run that differs from `one` in what is named."""

    def make(name="run", *, images=None, labels=None, timesteps=None, **changes):
        fields = {field.name for field in dataclasses.fields(small_model)}
        of_model = {name: changes.pop(name) for name in changes.keys() & fields}
        model = dataclasses.replace(small_model, **of_model)
        model = model if timesteps is None else model.respaced(timesteps)
        data = small_images if images is None else images
        if labels is not None:
            network = Conditional(copy.deepcopy(model.network))
            model = dataclasses.replace(model, network=network, num_classes=4)
            data = dataclasses.replace(data, labels=np.array(labels))
        options = {"estimator": "every-pair", "draws": 1, **changes}
        db.evaluate_nll(model, data, **options, out=tmp_path / name)
        return tmp_path / name

    return make


VE = db.NoiseSchedule.linear(40).in_family(Process.VE)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"timesteps": 4}, "num_timesteps is 4, but 40 in"),
        ({"clip": False}, "conventions.clip is False, but True in"),
        ({"schedule": VE}, "conventions.process is ve, but vp in"),
        (
            {"variance": Variance.FIXED_SMALL},
            "conventions.variance is fixed_small, but fixed_large in",
        ),
        ({"decoder": "tanh"}, "conventions.decoder is tanh, but exact in"),
        ({"seed": 1}, "seed is 1, but 0 in"),
        ({"draws": 2}, "sampling.draws is 2, but 1 in"),
        (
            {"estimator": "importance", "draws": None, "half_width": 5.0},
            "estimator is importance, but every-pair in",
        ),
    ],
)
def test_runs_that_are_no_pair(runs, another, change, fact):
    other = another(**change)
    assert refusal(runs / "one", other).startswith(f"{other}: {fact} {runs / 'one'};")


def test_runs_of_other_images_and_labels(runs, another, small_images):
    one = runs / "one"
    few = another("few", images=small_images.subset(5))
    assert refusal(one, few).startswith(f"{few}: num_images is 5, but 6 in {one};")
    turned = dataclasses.replace(small_images, pixels=255 - small_images.pixels)
    labels = {"up": [1, 2] * 3, "down": [2, 1] * 3, "same": [1] * 6}
    labeled = {name: another(name, labels=of) for name, of in labels.items()}
    for first, second, name, field in (
        (one, another("turned", images=turned), "summary.json", "data.sha256"),
        (labeled["up"], labeled["down"], "run.json", "labels_sha256"),
    ):
        here, there = (json.loads((run / name).read_text()) for run in (second, first))
        for part in field.split("."):
            here, there = here[part], there[part]
        assert f"{field} is {here[:12]}, but {there[:12]} in" in refusal(first, second)
    line = refusal(labeled["up"], labeled["same"])
    assert "conventions.labels is class 1, but of the images in" in line


def test_what_is_no_run_or_holds_something_else(runs, tmp_path):
    one, thesis = runs / "one", tmp_path / "thesis"
    db.compare([one, one], out=tmp_path / "out")
    line = refusal(one, tmp_path / "out")
    assert f"{tmp_path / 'out'}" in line
    assert "is a comparison, not a run of nll; name a run of nll" in line
    thesis.mkdir()
    (thesis / "thesis.tex").write_text("precious")
    for out in (thesis, one, thesis / "thesis.tex"):
        before = sorted(out.rglob("*"))
        assert f"`out={out}`" in refusal(one, one, out=out)
        assert sorted(out.rglob("*")) == before


def of_another_design(path):
    """Whole, as a command leaves them that was stopped before it wrote its summary."""
    edit_npz(path, terms=np.zeros((9, 2)))


DAMAGES = [
    ("one", "shards", shutil.rmtree),
    ("importance", "predictions.npz", of_another_design),
]


@pytest.mark.parametrize(("kind", "name", "damage"), DAMAGES)
def test_a_damaged_run(runs, tmp_path, kind, name, damage):
    damaged = shutil.copytree(runs / kind, tmp_path / "damaged")
    damage(damaged / name)
    for folders in ([damaged, runs / kind], [runs / kind, damaged]):
        line = refusal(*folders)
        assert name in line
        assert str(damaged) in line
