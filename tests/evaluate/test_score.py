"""Scores of images from a network: right, and the same however they are computed."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from oracles import oracle_checkpoint
from sealing import read_record

import ddpmbench as db
from ddpmbench import ImageSet, NoiseSchedule
from ddpmbench.likelihood.image_scores import PerImageDesign, estimate_image_scores
from ddpmbench.likelihood.regression import code_length
from ddpmbench.likelihood.terms import TermsPass

CPU = torch.device("cpu")
LN2 = np.log(2)


@pytest.fixture(scope="module")
def model(small_model):
    return small_model.respaced(12)


@pytest.fixture(scope="module")
def base(model, small_images, tmp_path_factory):
    out = tmp_path_factory.mktemp("score") / "run"
    return score(model, small_images, out=out)


@pytest.fixture(scope="module")
def others(small_images):
    pixels = np.ascontiguousarray(small_images.pixels[::-1, :, ::-1])
    return dataclasses.replace(small_images, pixels=pixels, source="turned")


def score(*of, **how):
    return db.score_images(*of, **{"evaluations_per_image": 8, "progress": False, **how})


def assert_same(report, other, **tolerance):
    pd.testing.assert_frame_equal(
        report.per_image, other.per_image, **(tolerance or {"check_exact": True})
    )


def test_scores_are_those_of_every_pair(model, small_images, base):
    truth = db.evaluate_nll(
        model, small_images, estimator="every-pair", draws=150, seed=999, progress=False
    )
    density = pd.read_csv(base.folder / "proposal.csv").density.to_numpy()
    terms_pass = TermsPass(model, small_images, seed=0, decoder="exact", device=CPU)
    prior = terms_pass.prior(np.arange(6))
    runs = []
    for seed in range(200):
        terms_pass.seed = seed
        design = PerImageDesign(6, 12, density, seed, 8)
        terms = terms_pass.terms(design.index(0, len(design)))
        runs.append(estimate_image_scores(design, prior, [terms]))
    first = base.per_image  # of seed 0
    assert first.bits_per_dim.to_numpy() == pytest.approx(runs[0].total / LN2, rel=1e-5)
    assert first.standard_error.to_numpy() == pytest.approx(runs[0].standard_error / LN2, rel=1e-4)
    bits = np.stack([run.total for run in runs]) / LN2
    error = bits.mean(0) - truth.per_image.bits_per_dim.to_numpy()
    spread = bits.var(0, ddof=1)
    assert np.abs(error / np.sqrt(spread / len(runs))).max() < 3.5
    claimed = np.stack([run.variance for run in runs]).mean(0) / LN2**2
    assert (claimed / spread).mean() == pytest.approx(1, abs=0.15)


def test_the_table_and_the_summary_agree(base, small_images):
    summary, per_image = base.summary, base.per_image
    assert list(per_image.image_id) == list(map(str, small_images.ids))
    assert summary["bits_per_dim"] == pytest.approx(per_image.bits_per_dim.mean())
    (of,) = summary["sets"]
    assert of["prior"] + of["kl"] + of["decoder"] == pytest.approx(of["bits_per_dim"])
    assert np.square(per_image.standard_error).mean() == pytest.approx(
        of["image_standard_error"] ** 2
    )
    assert per_image.code_length.to_numpy() == pytest.approx(code_length(small_images.pixels) / LN2)
    assert summary["comparison"] is None
    evaluations = 8 * len(small_images) + summary["pilot_evaluations"]
    assert summary["num_evaluations"] == evaluations
    assert read_record(base.folder / "summary.json") == json.loads(json.dumps(summary))


def test_batches_change_nothing_but_rounding(model, small_images, base):
    for size in (1, 7):
        assert_same(score(model, small_images, batch_size=size), base, rtol=1e-5)


def interrupting(batches):
    """A listener that interrupts the run after so many batches."""
    left = iter(range(batches))

    def progress(now):
        if next(left, None) is None:
            raise KeyboardInterrupt

    return db.RunListener(progress=progress)


def test_an_interrupted_run_goes_on_to_the_same_scores(model, small_images, others, tmp_path):
    whole = score(model, small_images, others, batch_size=8)
    for batches in (1, 4, 9):  # in the pilot and in each set
        with pytest.raises(KeyboardInterrupt):
            score(
                model,
                small_images,
                others,
                batch_size=8,
                out=tmp_path,
                listener=interrupting(batches),
            )
        assert not (tmp_path / "summary.json").exists()
    missing = []
    again = score(
        model,
        small_images,
        others,
        batch_size=8,
        out=tmp_path,
        listener=db.RunListener(start=missing.append),
    )
    assert 0 < missing[0] < whole.summary["num_evaluations"]
    assert_same(again, whole)


def test_a_finished_run_is_not_repeated(model, small_images, base):
    missing = []
    listener = db.RunListener(start=missing.append)
    again = score(model, small_images, out=base.folder, listener=listener)
    assert missing == [0]
    assert_same(again, base)
    assert again.summary == base.summary


def test_a_score_does_not_depend_on_the_other_images(model, small_images, others, base):
    alone = score(model, small_images.subset(1), terms_of=base.folder)
    assert_same(alone, dataclasses.replace(base, per_image=base.per_image[:1]), rtol=1e-5)
    pixels = np.concatenate([small_images.pixels[:2], others.pixels[2:]])
    mixed = dataclasses.replace(small_images, pixels=pixels)
    among = score(model, mixed, terms_of=base.folder).per_image.bits_per_dim
    assert among[:2].to_numpy() == pytest.approx(base.per_image.bits_per_dim[:2], rel=1e-5)
    assert among[2:].to_numpy() != pytest.approx(base.per_image.bits_per_dim[2:], rel=1e-5)


def test_the_second_set_has_the_density_of_the_first(model, small_images, others, base):
    both = score(model, small_images, others)
    second = both.per_image[both.per_image.set == "B"].reset_index(drop=True)
    alone = score(model, others, terms_of=base.folder).per_image
    assert second.drop(columns="set").equals(alone.drop(columns="set"))
    assert both.per_image[:6].equals(base.per_image)


def test_a_set_is_not_told_from_itself(model, small_images):
    compared = score(model, small_images, small_images).summary["comparison"]
    assert (compared["difference"], compared["p_value"]) == (0, 1)
    for name in ("auroc", "auroc_corrected"):
        area = compared[name]
        assert area["lower"] < area["value"] == 0.5 < area["upper"]


def test_raw_bits_rank_simple_images_as_likely_and_code_lengths_correct_them():
    """Images of N(0, 1/4) cost more than its mean does, which is no image of it."""
    generator = np.random.default_rng(0)
    gray = ImageSet(np.full((1, 1, 8, 8), 128, np.uint8), ["gray"], "gray")
    gaussian = oracle_checkpoint(gray, NoiseSchedule.linear(30), spread=0.25)
    levels = np.clip(127.5 + 64 * generator.normal(size=(30, 8, 8)), 0, 255).astype(np.uint8)
    flat = np.repeat(generator.integers(120, 136, 30, dtype=np.uint8), 64).reshape(30, 8, 8)
    report = score(gaussian, levels, flat, evaluations_per_image=24)
    compared = report.summary["comparison"]
    means = report.per_image.groupby("set").bits_per_dim.mean()
    assert compared["difference"] == pytest.approx(means["B"] - means["A"])
    assert compared["difference"] + compared["half_width"] < 0
    assert compared["p_value"] < 1e-4
    assert compared["auroc"]["upper"] < 0.1
    assert compared["auroc_corrected"]["lower"] > 0.85


def test_the_figure_counts_every_image_of_each_set(model, small_images, others, tmp_path):
    report = score(model, small_images, others.subset(4), out=tmp_path)
    numbers = pd.read_csv(tmp_path / "figures" / "scores.csv")
    counts = numbers.groupby(["score", "set"]).num_images.sum()
    for of in ("bits_per_dim", "corrected"):
        assert counts[of].to_dict() == {"A": 6, "B": 4}
    lowest = (report.per_image.bits_per_dim - report.per_image.code_length).min()
    assert numbers[numbers.score == "corrected"].bits_from.min() == pytest.approx(lowest)
    assert len(report.plot().axes) == 2


def test_labels_stand_beside_the_scores(model, small_images, others, tmp_path):
    labels = np.array([3, 1, 4, 1, 5, 9])
    labelled = dataclasses.replace(small_images, labels=labels)
    report = score(model, labelled, dataclasses.replace(others, labels=None), out=tmp_path)
    assert report.per_image.label[:6].tolist() == labels.tolist()
    assert report.per_image.label[6:].isna().all()
    read = db.load_report(tmp_path)
    assert_same(read, report)
    assert read.summary == json.loads(json.dumps(report.summary))


def test_a_report_is_read_back(base):
    read = db.load_report(base.folder)
    assert_same(read, base)
    assert repr(read) == repr(base)
    assert repr(base).startswith("ScoreReport: NLL <= ")
    with pytest.raises(db.InputError, match="have no page"):
        db.write_report(base.folder)
    path = base.folder / "per_image.csv"
    kept = path.read_bytes()
    path.write_bytes(kept.replace(b"A,", b"B,", 1))
    with pytest.raises(db.InputError, match=r"per_image\.csv"):
        db.load_report(base.folder)
    path.write_bytes(kept)


def test_what_cannot_be_scored_is_refused(model, small_images, base):
    def refused(match, *of, **how):
        with pytest.raises(db.InputError, match=match):
            score(*of, **how)

    refused(
        r"`evaluations_per_image=3`: give a whole number from 4 on",
        model,
        small_images,
        evaluations_per_image=3,
    )
    anything = dataclasses.replace(model, image_size=None)
    larger = db.load_images(np.zeros((2, 16, 16), np.uint8))
    refused("at one size only", anything, small_images, larger)
    refused("16x16", model, larger)
    refused(
        r"`timesteps`: the proposal of .* is for 12, this run is for 6",
        model.respaced(6),
        small_images,
        terms_of=base.folder,
    )
    refused("`timesteps=1`", model.respaced(1), small_images)
    conditional = dataclasses.replace(model, num_classes=10)
    refused(r"has no labels", conditional, dataclasses.replace(small_images, labels=None))
    refused(
        r"is 9 here|evaluations_per_image is",
        model,
        small_images,
        out=base.folder,
        evaluations_per_image=9,
    )
