"""Runs in continuous time, of refined schedules, and the row of continuous time in others."""

import dataclasses
import math
import re
from functools import partial

import numpy as np
import pytest
import torch
from interrupted import resumed
from oracles import oracle_checkpoint, oracle_images
from torch import nn

import ddpmbench as db
from ddpmbench.diffusion.process import Prediction, Variance
from ddpmbench.errors import InputError
from ddpmbench.execution.network_check import why_not_continuous
from ddpmbench.report.nll_figures import bound_figure
from ddpmbench.report.nll_text import comparability, printed_nll

HOW = {"progress": False, "seed": 5}
CPU = torch.device("cpu")
SVGS = dict.fromkeys(
    ("bound", "rate_distortion"),
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><path d="M 0 0 L 9 9"/></svg>',
)


@pytest.fixture(scope="module")
def continuous_run(small_model, small_images):
    return db.evaluate_nll(
        small_model.in_continuous_time(), small_images, estimator="every-pair", draws=8, **HOW
    )


def test_its_parts_sum_to_the_bound_and_its_timesteps_to_the_kl(continuous_run):
    summary, steps = continuous_run.summary, continuous_run.per_timestep
    parts = summary["prior"] + summary["kl"] + summary["decoder"]
    assert summary["bits_per_dim"] == pytest.approx(parts)
    assert steps.bits_per_dim[1:].sum() == pytest.approx(summary["kl"])
    assert "continuous time" in summary["conventions"]["schedule"]


def test_prior_and_decoder_are_those_of_the_discrete_bound(
    continuous_run, small_model, small_images
):
    discrete = db.evaluate_nll(small_model, small_images, estimator="every-pair", draws=8, **HOW)
    assert continuous_run.summary["prior"] == pytest.approx(discrete.summary["prior"], rel=1e-6)
    assert continuous_run.summary["decoder"] == pytest.approx(discrete.summary["decoder"], rel=1e-5)


def test_runs_of_two_variances_are_compared_for_the_limit_has_none(
    small_model, small_images, tmp_path
):
    folders = [
        tmp_path / str(variance) for variance in (Variance.FIXED_SMALL, Variance.FIXED_LARGE)
    ]
    for folder in folders:
        model = small_model.with_conventions(variance=folder.name).in_continuous_time()
        of = {"estimator": "every-pair", "draws": 1, "out": folder, **HOW}
        db.evaluate_nll(model, small_images.subset(2), **of)
    (run,) = db.compare(folders).summary["runs"]
    assert run["difference"] == 0


def test_two_estimators_agree(continuous_run, small_model, small_images):
    sampled = db.evaluate_nll(
        small_model.in_continuous_time(), small_images, half_width=0.05, **HOW
    ).summary
    difference = sampled["bits_per_dim"] - continuous_run.summary["bits_per_dim"]
    widths = sampled["half_width"], continuous_run.summary["half_width"]
    assert abs(difference) < 2 * math.hypot(*widths)


def test_its_conventions_differ_in_the_decoder_alone(continuous_run):
    table = continuous_run.conventions
    assert set(table.spacing) == {"continuous time"}
    assert len(set(table.rate_bits_per_dim)) == 1
    assert len(table) == 4
    assert list(table.used_by.astype(bool)) == [True, False, False, False]


def test_the_row_beside_a_run_is_its_bound_and_the_difference(
    continuous_run, small_model, small_images
):
    report = db.evaluate_nll(
        small_model, small_images, estimator="every-pair", draws=8, continuous=True, **HOW
    )
    summary, table = report.summary, report.conventions.set_index("convention")
    row = table.loc["continuous time"]
    assert row.bits_per_dim == pytest.approx(summary["continuous_bits_per_dim"])
    assert row.half_width == pytest.approx(summary["continuous_half_width"])
    assert row.difference == pytest.approx(row.bits_per_dim - summary["bits_per_dim"])
    widths = summary["half_width"], row.difference_half_width
    assert row.half_width == pytest.approx(math.hypot(*widths))
    assert summary["continuous_num_evaluations"] == 1000
    assert summary["num_evaluations"] == 6 * 40 * 8
    of_run = continuous_run.summary
    widths = summary["continuous_half_width"], of_run["half_width"]
    distance = summary["continuous_bits_per_dim"] - of_run["bits_per_dim"]
    assert abs(distance) < 1.5 * math.hypot(*widths)
    assert summary["continuous_half_width"] >= summary["half_width"]


def test_it_is_found_again_after_an_interruption(small_model, small_images, tmp_path):
    def run(**how):
        return db.evaluate_nll(
            small_model, small_images, estimator="every-pair", out=tmp_path / "run", **how, **HOW
        )

    assert run().summary["continuous_bits_per_dim"] is None
    first = run(continuous=True).summary
    (tmp_path / "run" / "summary.json").unlink()
    for shard in (tmp_path / "run" / "shards" / "continuous").glob("*.npz"):
        shard.unlink()
    again = run(continuous=True, batch_size=7).summary
    read = db.load_report(tmp_path / "run")
    assert len(read.continuous) == first["continuous_num_evaluations"] // 2
    assert ((read.continuous.u < read.continuous.t) & (read.continuous.u > 1)).all()
    for name in ("bits_per_dim", "continuous_bits_per_dim", "continuous_half_width"):
        assert again[name] == pytest.approx(first[name], rel=1e-6)


def test_a_run_in_continuous_time_is_the_same_in_any_batches_and_after_interruptions(
    small_model, small_images, tmp_path
):
    model = small_model.in_continuous_time()
    run = partial(db.evaluate_nll, model, small_images, estimator="every-pair", draws=1, seed=5)
    whole, small = (run(progress=False, **how) for how in ({}, {"batch_size": 17}))
    report, _ = resumed(partial(run, batch_size=60, out=tmp_path / "run"), 1, most=4)
    for other in (report, small):
        for name in ("bits_per_dim", "kl", "decoder", "half_width_population"):
            assert other.summary[name] == pytest.approx(whole.summary[name], abs=2e-6)
        np.testing.assert_allclose(
            other.per_image.bits_per_dim, whole.per_image.bits_per_dim, rtol=0, atol=2e-6
        )


def test_why_there_is_no_row(small_model, small_images):
    def absent(checkpoint, **how):
        report = db.evaluate_nll(checkpoint, small_images, estimator="every-pair", **how, **HOW)
        assert report.summary["continuous_bits_per_dim"] is None
        assert "continuous time" not in set(report.conventions.convention)
        return report.summary["continuous_absent"]

    assert "the run is short" in absent(small_model)
    assert "left it out" in absent(small_model, continuous=False)
    fine, notes = small_model.respaced(61), []
    listener = db.RunListener(note=notes.append)
    assert "between those" in absent(fine, continuous=True, listener=listener)
    (note,) = (note for note in notes if "no bound in continuous time" in note)
    assert "beside that of the run: the model visits" in note
    notes.clear()
    absent(fine, listener=listener)
    assert not any("continuous time" in note for note in notes)
    for between in (fine, small_model.in_continuous_time()):
        with pytest.raises(InputError, match="respace the model as it was trained"):
            between.respaced(5)
    mean = dataclasses.replace(small_model, prediction=Prediction.PREVIOUS_MEAN)
    for checkpoint, words in (
        (small_model.respaced(5), "visits 5 of its timesteps"),
        (small_model.respaced(1), "visits 1 of its timesteps"),
        (mean, "predicts the mean"),
    ):
        assert words in why_not_continuous(checkpoint, (1, 8, 8), CPU)
        with pytest.raises(InputError, match="no bound in continuous time"):
            db.evaluate_nll(
                checkpoint, small_images, estimator="every-pair", continuous=True, **HOW
            )


class Timed(nn.Module):
    """A network that makes of its time what `embed` does."""

    def __init__(self, embed):
        super().__init__()
        self.conv, self.embed = nn.Conv2d(1, 1, 3, padding=1), embed
        nn.init.normal_(self.conv.weight, generator=torch.Generator().manual_seed(0))

    def forward(self, x, time):
        return self.conv(x) + self.embed(time).view(-1, 1, 1, 1)


def wrapped(embed, schedule=None):
    return db.wrap_network(
        Timed(embed),
        schedule=schedule or db.NoiseSchedule.linear(40),
        prediction="eps",
        variance="fixed_small",
        time_input="index",
        channels=1,
    )


TABLE = nn.Embedding(40, 1)
TAKES_WHOLE = {
    "a table of embeddings": (TABLE, "whole timesteps only"),
    "an index": (lambda time: torch.linspace(0, 1, 40)[time], "whole timesteps only"),
    "rounded": (lambda time: time.long() / 40, "rounds the time"),
    "another unit": (
        lambda time: time if time.is_floating_point() else time / 40,
        "reads a timestep that is given as a floating-point number otherwise",
    ),
}


@pytest.mark.parametrize(("embed", "words"), TAKES_WHOLE.values(), ids=TAKES_WHOLE)
def test_a_network_of_whole_timesteps_is_refused(small_images, embed, words):
    checkpoint = wrapped(embed)
    assert words in why_not_continuous(checkpoint, (1, 8, 8), CPU)
    for changed in (checkpoint.in_continuous_time(), checkpoint.respaced(100)):
        with pytest.raises(InputError, match=f"between its timesteps: .*{words}.*at most 40"):
            db.evaluate_nll(changed, small_images, estimator="every-pair", **HOW)


def out_of_memory(time):
    raise torch.OutOfMemoryError("out of memory")


@pytest.mark.parametrize(
    "embed", [lambda time: time / 40, lambda time: 0 * time.float(), out_of_memory]
)
def test_a_network_of_any_time_or_one_that_is_too_large_is_not(embed):
    assert why_not_continuous(wrapped(embed), (1, 8, 8), CPU) is None


def test_continuous_time_has_no_sampler(small_model):
    with pytest.raises(InputError, match="has no sampler"):
        db.generate_samples(small_model.in_continuous_time(), 2, progress=False)


def test_variances_that_a_network_gives_are_of_its_own_timesteps(small_model):
    learned = dataclasses.replace(small_model, variance=Variance.LEARNED)
    with pytest.raises(InputError, match="choose at most as many"):
        learned.respaced(80)


def test_learned_variances_and_classes_and_other_ranges_have_the_bound():
    images = oracle_images(3, num_classes=2)
    for variance in ("learned", "learned_range"):
        checkpoint = oracle_checkpoint(images, variance=variance)
        fractional = dataclasses.replace(
            checkpoint, network=Between(checkpoint.network), schedule=checkpoint.schedule
        )
        report = db.evaluate_nll(
            fractional.in_continuous_time(), images, estimator="every-pair", **HOW
        )
        names = list(report.conventions.convention)
        assert len(set(names)) == len(names)
        assert math.isfinite(report.summary["bits_per_dim"])


class Between(nn.Module):
    """Between timesteps, a mean of the outputs at both."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, time, *labels):
        low = time.floor() if time.is_floating_point() else time
        high = torch.minimum(low + 1, torch.full_like(low, self.network.schedule.num_timesteps - 1))
        share = (time - low).view(-1, 1, 1, 1).to(x.dtype)
        return (1 - share) * self.network(x, low.float(), *labels) + share * self.network(
            x, high.float(), *labels
        )


def test_a_row_has_the_place_where_its_part_of_time_ends(continuous_run, small_model):
    summary, frame = continuous_run.summary, continuous_run.per_timestep
    schedule = small_model.in_continuous_time().schedule
    assert summary["num_timesteps"] == 40
    assert summary["num_parts"] == len(frame) == schedule.num_timesteps > 40
    assert set(continuous_run.conventions.num_timesteps) == {40}
    assert frame.u.iloc[0] == 1.0
    assert frame.u.iloc[-1] == 40.0
    assert set(range(1, 41)) <= set(frame.u)
    at_timesteps = frame.log_snr[frame.u.isin(range(1, 41))]
    assert at_timesteps.to_numpy() == pytest.approx(small_model.schedule.snr.log().numpy())
    assert f"T = 40, linear, continuous time from t = 1 to T, in {len(frame)} parts" in (
        "\n".join(comparability(summary))
    )


def test_the_page_speaks_of_parts_of_time(continuous_run):
    page = continuous_run.page(SVGS)
    count = continuous_run.summary["num_parts"]
    assert f"from t&nbsp;=&nbsp;1 to 40 of the training in {count} parts" in page
    assert "Generation runs from right to left, from noise at t&nbsp;=&nbsp;40" in page
    assert "<h2>Every part of continuous time</h2>" in page
    half = int(re.search(r"spent at t&nbsp;&le;&nbsp;(\d+) of 40", page)[1])
    steps = continuous_run.per_timestep[1:]
    for places, least in ((steps.u <= half, 0.5), (steps.u > half - 1, 0.5)):
        assert steps.bits_per_dim[places].sum() >= least * steps.bits_per_dim.sum()


def test_the_figure_of_bits_is_over_timesteps(continuous_run):
    _, groups = bound_figure(continuous_run.per_timestep, continuous_run.rate_distortion)
    np.testing.assert_array_equal(groups.u_last[:-1], groups.u_first[1:])
    assert groups.u_last.iloc[-1] == 40
    bits = groups.bits_per_step[1:] * (groups.u_last - groups.u_first)[1:]
    assert bits.sum() == pytest.approx(continuous_run.summary["kl"])


def test_the_page_says_why_there_is_no_row(small_model, small_images):
    def page(checkpoint, **how):
        report = db.evaluate_nll(checkpoint, small_images, estimator="every-pair", **how, **HOW)
        return report.page(SVGS)

    words = "The bound in continuous time is not among them: "
    assert f"{words}the run is short; <code>continuous=True</code>" in page(small_model)
    assert f"{words}the model visits timesteps between" in page(small_model.respaced(61))
    assert words not in page(small_model, continuous=True)


def test_runs_in_continuous_time_are_read_and_compared(small_model, small_images, tmp_path):
    def run(name, checkpoint, **how):
        how = {"estimator": "every-pair", "draws": 2, **how}
        return db.evaluate_nll(checkpoint, small_images, out=tmp_path / name, **how, **HOW)

    one = run("one", small_model.in_continuous_time())
    read = db.load_report(tmp_path / "one")
    assert list(read.per_timestep) == list(one.per_timestep)
    np.testing.assert_array_equal(read.per_timestep.u, one.per_timestep.u)
    run("two", dataclasses.replace(small_model, sha256="1" * 64).in_continuous_time())
    compared = db.compare([tmp_path / "one", tmp_path / "two"])
    assert compared.summary["runs"][0]["difference"] == pytest.approx(0, abs=1e-9)
    assert len(compared.per_timestep) == one.summary["num_parts"]
    how = {"estimator": "importance", "draws": None, "half_width": 0.4}
    sampled = run("sampled", small_model.in_continuous_time(), **how)
    how["terms_of"] = tmp_path / "sampled"
    terms = run("again", small_model.in_continuous_time(), **how)
    assert terms.summary["bits_per_dim"] == pytest.approx(sampled.summary["bits_per_dim"])
    beside = run("discrete", small_model, continuous=True)
    assert "bits/dim in continuous time" in printed_nll(beside.summary, "table")
    with pytest.raises(InputError, match="schedule is linear, but linear, continuous time"):
        db.compare([tmp_path / "one", tmp_path / "discrete"])
