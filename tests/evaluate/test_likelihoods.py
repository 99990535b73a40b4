"""The likelihoods side by side: each is that of its own command; an absent one has its reason."""

import dataclasses
import io
import json
import re
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from documents import ROOT
from interrupted import resumed
from oracles import oracle_checkpoint, oracle_images
from processes import ranks
from sealing import read_record
from torch import nn

import ddpmbench as db
from ddpmbench.cli.main import run
from ddpmbench.diffusion.process import Prediction
from ddpmbench.errors import InputError
from ddpmbench.execution.worker import RunListener
from ddpmbench.report.likelihoods import (
    LikelihoodsReport,
    likelihoods_frame,
    printed_likelihoods,
    published_bound,
    rows_of,
)

SHARED = {"half_width": 0.3, "seed": 1, "batch_size": 24}
OF_ODE = {"solver_steps": 2, "num_ode_images": 4}
OPTIONS = {**SHARED, **OF_ODE}
WORDS = (
    *("--half-width", 0.3, "--seed", 1, "--batch-size", 24),
    *("--solver-steps", 2, "--num-ode-images", 4),
)
NAMES = ["variational bound", "best constant variance", "continuous time", "probability-flow ODE"]
CONSTANT, CONTINUOUS, ODE = NAMES[1:]


@pytest.fixture(scope="module")
def whole(small_model, small_images, tmp_path_factory):
    """The run of the ODE does not evaluate the bound once more."""
    out = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ddpmbench.evaluate.ode.evaluate_nll", None)
        return db.evaluate_likelihoods(small_model, small_images, **OPTIONS, out=out)


@pytest.fixture(scope="module")
def bound(small_model, small_images):
    return db.evaluate_nll(small_model, small_images, continuous=True, **SHARED)


@pytest.fixture(scope="module")
def ode(small_model, small_images):
    return db.evaluate_ode(small_model, small_images, **OPTIONS)


def table(report):
    return report.likelihoods.set_index("likelihood")


def numbers(report):
    return report.likelihoods.select_dtypes("number").to_numpy()


def assert_same(row, names, values):
    assert row[list(names)].to_list() == pytest.approx(list(values), abs=1e-6, nan_ok=True)


# ---- the numbers


def test_each_number_is_that_of_its_own_command(whole, bound, ode):
    assert list(whole.likelihoods.likelihood) == NAMES
    frame, intervals = table(whole), ("half_width", "half_width_population")
    names = ("bits_per_dim", *intervals, "num_evaluations")
    assert_same(frame.loc[NAMES[0]], names, [bound.summary[name] for name in names])
    assert_same(frame.loc[ODE], names, [ode.summary[name] for name in names])
    names = ("bits_per_dim", "half_width", "difference", "difference_half_width")
    constant = bound.conventions[
        (bound.conventions.variance == "best_constant") & (bound.conventions.spacing == "all")
    ]
    continuous = bound.conventions[bound.conventions.convention == CONTINUOUS]
    for name, rows in ((CONSTANT, constant), (CONTINUOUS, continuous)):
        (row,) = rows[list(names)].to_numpy()
        assert_same(frame.loc[name], names, row)
    of = [bound.summary[f"continuous_{name}"] for name in ("bits_per_dim", "num_evaluations")]
    assert_same(frame.loc[CONTINUOUS], ("bits_per_dim", "num_evaluations"), of)


def test_differences_are_those_of_pairs(whole, ode):
    frame = table(whole)
    pairs = db.load_report(whole.folder / "ode").per_image
    differences = pairs.bits_per_dim - pairs.variational_bound
    assert frame.difference[ODE] == pytest.approx(differences.mean())
    assert frame.difference_half_width[ODE] == pytest.approx(ode.summary["difference_half_width"])
    added = frame.bits_per_dim[NAMES[0]] + frame.difference[[CONTINUOUS, ODE]]
    assert added.to_numpy() == pytest.approx(frame.bits_per_dim[[CONTINUOUS, ODE]].to_numpy())
    # What theory orders, and no more: the best variance of every timestep.
    assert frame.difference[CONSTANT] <= 0
    assert np.isnan(frame.difference[NAMES[0]])


def test_the_counts_add_up(whole, bound, ode):
    summary, of_bound = whole.summary, bound.summary
    terms = of_bound["num_evaluations"] + of_bound["continuous_num_evaluations"]
    assert summary["num_evaluations"] == terms + ode.summary["num_evaluations"]
    assert summary["num_vjps"] == table(whole).num_vjps[ODE] == 4 * 4 * 3


def test_the_folder_holds_both_runs(whole, small_model, small_images):
    out = whole.folder
    assert {path.name for path in out.iterdir()} == {
        *("run.json", "summary.json", "environment.json", "likelihoods.csv", "bound", "ode")
    }
    assert not (out / "ode" / "bound").exists()
    known = [read_record(out / name / "summary.json") for name in ("bound", "ode")]
    assert [of["check"] for of in known] == [None, None]
    started = []
    again = db.evaluate_likelihoods(
        small_model, small_images, **OPTIONS, out=out, listener=RunListener(start=started.append)
    )
    assert started == [0]
    assert again.summary == whole.summary
    with pytest.raises(InputError, match=r"holds another run \(solver_steps is 2"):
        db.evaluate_likelihoods(
            small_model, small_images, **{**OPTIONS, "solver_steps": 4}, out=out
        )


# ---- interruptions, processes, formats


def test_interrupted_again_and_again(whole, small_model, small_images, tmp_path):
    run = partial(db.evaluate_likelihoods, small_model, small_images, **OPTIONS, out=tmp_path)
    report, sessions = resumed(run, 12)
    assert sessions > 3
    np.testing.assert_allclose(numbers(report), numbers(whole), rtol=0, atol=1e-6)


def test_processes_and_formats(whole, small_checkpoint, small_npz, tmp_path, capsys):
    command = ["likelihoods", "--ckpt", small_checkpoint, "--data", small_npz, *WORDS]
    command = [*map(str, command), "--out", str(tmp_path)]
    together = ranks(2, *command, "--format", "quiet")
    assert [result.returncode for result in together] == [0, 0], together[0].stderr
    expected = whole.likelihoods.bits_per_dim.to_list()
    assert list(map(float, together[0].stdout.split())) == pytest.approx(expected, abs=1e-6)
    assert together[1].stdout == ""
    assert run([*command, "--format", "json"]) == 0
    printed = capsys.readouterr()
    assert "none is repeated" in printed.err
    assert json.loads(printed.out) == read_record(tmp_path / "summary.json")


def test_the_formats_print_the_same_numbers(whole):
    rows = whole.summary["likelihoods"]
    printed = {
        form: printed_likelihoods(whole.summary, whole.likelihoods, form)
        for form in ("table", "csv", "quiet")
    }
    frame = pd.read_csv(io.StringIO(printed["csv"]))
    values = [row["bits_per_dim"] for row in rows]
    assert frame.bits_per_dim.to_list() == list(map(float, printed["quiet"].split())) == values
    lines = printed["table"].splitlines()
    for row, line in zip(rows, lines[1:5], strict=True):
        assert line.startswith(row["likelihood"])
        assert row["convention"] in line
    assert any(line.startswith("order") and "best constant variance <=" in line for line in lines)


# ---- what a checkpoint does not have


class Convolution(nn.Module):
    """A small network at any time, or at whole ones, with a gradient or without."""

    def __init__(self, *, is_detached=False, is_rounded=False):
        super().__init__()
        self.is_detached, self.is_rounded = is_detached, is_rounded
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        nn.init.normal_(self.conv.weight, generator=torch.Generator().manual_seed(0))

    def forward(self, x, time):
        time = time.long() if self.is_rounded else time
        output = self.conv(x) + time.view(-1, 1, 1, 1) / 40
        return output.detach() if self.is_detached else output


def absent_of(checkpoint, images):
    report = db.evaluate_likelihoods(checkpoint, images, **{**OPTIONS, "half_width": 1e9})
    rows = {row["likelihood"]: row for row in report.summary["likelihoods"]}
    assert list(rows) == NAMES
    for row in rows.values():
        assert (row["bits_per_dim"] is None) == (row["absent"] is not None)
    assert rows[NAMES[0]]["bits_per_dim"] > 0
    return {name: row["absent"] for name, row in rows.items() if row["absent"] is not None}


def wrapped(prediction="eps", variance="fixed_small", **network):
    return db.wrap_network(
        Convolution(**network),
        schedule=db.NoiseSchedule.linear(40),
        prediction=prediction,
        variance=variance,
        time_input="index",
        channels=1,
    )


@pytest.mark.parametrize(
    ("changed", "absent", "why"),
    [
        (lambda model: wrapped(is_rounded=True), [CONTINUOUS, ODE], "rounds the time"),
        (lambda model: wrapped(is_detached=True), [ODE], "has no gradient by x_t"),
        (lambda model: wrapped(), [], ""),
        (
            lambda model: dataclasses.replace(model, prediction=Prediction.PREVIOUS_MEAN),
            NAMES[1:],
            "predicts the mean",
        ),
        (lambda model: model.respaced(5), [CONTINUOUS, ODE], "timesteps"),
        (lambda model: model.respaced(80), NAMES[1:], "timesteps"),
    ],
)
def test_what_a_model_does_not_have_is_absent(small_model, small_images, changed, absent, why):
    result = absent_of(changed(small_model), small_images)
    assert list(result) == absent
    assert all(why in result[name] for name in {CONTINUOUS, ODE} & set(result))


def test_a_row_without_an_interval_is_named(whole):
    row = whole.summary["likelihoods"][1]
    rows = [row | {"half_width": None, "half_width_population": None}]
    for likelihoods, is_named in ((rows, True), ([row], False)):
        summary = whole.summary | {"likelihoods": likelihoods}
        printed = printed_likelihoods(summary, whole.likelihoods, "table")
        assert (f"unknown for {row['likelihood']}: make more evaluations" in printed) is is_named


def test_no_order_is_known_beside_a_learned_variance():
    images = oracle_images(4)
    learned = oracle_checkpoint(images, variance="learned")
    report = db.evaluate_likelihoods(learned, images, **{**OPTIONS, "half_width": 1e9})
    constant = table(report).loc[CONSTANT]
    assert np.isfinite(constant.difference)
    assert np.isnan(constant.difference_half_width)
    assert "learned" in report.likelihoods.convention[0]
    lines = printed_likelihoods(report.summary, report.likelihoods, "table").splitlines()
    assert "order       none is known for a trained network" in lines


def test_continuous_time_is_one_of_them(small_model, small_images):
    with pytest.raises(InputError, match="continuous time is one of the likelihoods"):
        db.evaluate_likelihoods(small_model.in_continuous_time(), small_images)


# ---- the page


def test_the_page_has_every_row_and_the_figure(whole, small_images, tmp_path):
    page = db.write_report(whole.folder, progress=False).read_text()
    for row in whole.summary["likelihoods"]:
        assert row["likelihood"] in page
        assert f"{row['bits_per_dim']:.2f}"[:3] in page
    assert "<svg" in page
    assert "published" not in page
    drawn = pd.read_csv(whole.folder / "figures" / "likelihoods.csv")
    assert list(drawn.likelihood) == NAMES
    report = db.evaluate_likelihoods(
        wrapped(is_rounded=True),
        small_images,
        **{**OPTIONS, "half_width": 1e9},
        out=tmp_path / "run",
    )
    page = db.write_report(report.folder, progress=False).read_text()
    assert page.count("absent: it rounds the time") == 2
    drawn = pd.read_csv(report.folder / "figures" / "likelihoods.csv")
    assert list(drawn.likelihood) == NAMES[:2]


def test_a_published_number_stands_beside_its_row(whole, bound):
    frame = likelihoods_frame(
        bound.summary,
        bound.conventions,
        None,
        absent={CONTINUOUS: None, ODE: "why"},
        published="<= 2",
    )
    assert frame.published.to_list() == ["<= 2", "", "", ""]
    assert frame.absent.to_list() == ["", "", "", "why"]
    summary = {**whole.summary, "likelihoods": rows_of(frame)}
    page = LikelihoodsReport(summary, frame, None).page({})
    assert "published" in page
    assert "\N{LESS-THAN OR EQUAL TO} 2" in page
    assert "absent: why" in page


def test_a_published_number_is_that_of_the_checkpoint_and_its_images():
    data = {"source": "cifar10", "split": "test"}
    bound = {"data": data, "num_images": 10_000, "num_timesteps": 1000, "conventions": {}}
    ours = "google/ddpm-cifar10-32"
    assert "3.75" in published_bound(ours, bound)
    assert published_bound("google/ddpm-celebahq-256", bound) == ""
    for changes in (
        {"num_images": 1000},
        {"num_timesteps": 50},
        {"conventions": {"process": "ve"}},
        {"data": {**data, "split": "train"}},
        {"data": {"source": "mnist", "split": "test"}},
    ):
        assert published_bound(ours, {**bound, **changes}) == ""


def test_the_documents_name_every_file_and_column(whole):
    text = (ROOT / "docs" / "reference" / "run_folder.md").read_text()
    section = text.split("## The folder of likelihoods")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]+`) \|", section, re.MULTILINE)
    named = {name.rstrip("/") for cell in cells for name in re.findall(r"`([^`]+)`", cell)}
    assert named == {path.name for path in whole.folder.iterdir()} | {"figures", "report.html"}
    assert f"`{', '.join(pd.read_csv(whole.folder / 'likelihoods.csv'))}`" in section
