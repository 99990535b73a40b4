"""Scores of images from a network: right, and the same however they are computed."""

import dataclasses
import io
import json
import re
import shutil
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from interrupted import interrupting
from oracles import oracle_checkpoint
from processes import ranks
from sealing import read_record

import ddpmbench as db
from ddpmbench import ImageSet, NoiseSchedule
from ddpmbench.likelihood.image_scores import PerImageDesign, estimate_image_scores
from ddpmbench.likelihood.regression import code_length
from ddpmbench.likelihood.terms import TermsPass
from ddpmbench.report.score import ScoreReport, printed_scores, verdict
from ddpmbench.report.text import digits_by, with_interval

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


def test_the_formats_and_the_folder_hold_the_same_scores(model, small_images, others, tmp_path):
    sets = (dataclasses.replace(of, labels=None) for of in (small_images, others.subset(5)))
    report = score(model, *sets, out=tmp_path)
    summary = json.loads(json.dumps(report.summary))
    forms = ("table", "json", "csv", "quiet")
    printed = {form: printed_scores(report.summary, report.per_image, form) for form in forms}
    text = " ".join(printed["table"].split())
    headline = with_interval(summary["bits_per_dim"], summary["sets"][0]["half_width"])
    assert text.startswith(f"NLL <= {headline} bits/dim")
    area = summary["comparison"]["auroc"]
    assert f"AUROC {area['value']:.3f} ({area['lower']:.3f} to {area['upper']:.3f})" in text
    for part in ("p = ", "(Welch)", "rank simple images as likely", "images A 6 of", "images B 5"):
        assert part in text
    assert json.loads(printed["json"]) == summary
    means = [of["bits_per_dim"] for of in summary["sets"]]
    assert [float(line) for line in printed["quiet"].split()] == means
    for table in (io.StringIO(printed["csv"]), tmp_path / "per_image.csv"):
        frame = pd.read_csv(table)
        columns = ["set", "image_id", "bits_per_dim", "standard_error", "code_length"]
        assert list(frame.columns) == [*columns, "nearest_distance"]
        assert frame.set.tolist() == ["A"] * 6 + ["B"] * 5
    assert pd.read_csv(tmp_path / "proposal.csv").density.sum() == pytest.approx(1)
    for name in ("environment.json", "run.json"):
        assert (tmp_path / name).exists()


def test_two_processes_have_the_scores_of_one(base, small_checkpoint, small_npz, tmp_path):
    inputs = ("--ckpt", small_checkpoint, "--data", small_npz, "--timesteps", 12)
    first, other = ranks(2, "score", *inputs, "--evaluations-per-image", 8, "--out", tmp_path)
    assert first.returncode == other.returncode == 0, first.stderr + other.stderr
    assert other.stdout == ""
    both = pd.read_csv(tmp_path / "per_image.csv", dtype={"image_id": str})
    columns = ["bits_per_dim", "standard_error"]
    pd.testing.assert_frame_equal(both[columns], base.per_image[columns], rtol=1e-5)


def test_batches_change_nothing_but_rounding(model, small_images, base):
    for size in (1, 7):
        assert_same(score(model, small_images, batch_size=size), base, rtol=1e-5)


def test_an_interrupted_run_goes_on_to_the_same_scores(model, small_images, others, tmp_path):
    run = partial(score, model, small_images, others, batch_size=8)
    whole, missing = run(), []
    for batches in (1, 4, 9):  # in the pilot and in each set
        with pytest.raises(KeyboardInterrupt):
            run(out=tmp_path, listener=interrupting(batches))
        assert not (tmp_path / "summary.json").exists()
    again = run(out=tmp_path, listener=db.RunListener(start=missing.append))
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
    columns = base.per_image.columns  # of one set: without the nearest images
    assert second[columns].drop(columns="set").equals(alone.drop(columns="set"))
    assert both.per_image[columns][:6].equals(base.per_image)


def test_a_set_is_not_told_from_itself(model, small_images):
    compared = score(model, small_images, small_images).summary["comparison"]
    assert (compared["difference"], compared["p_value"]) == (0, 1)
    assert (compared["name"], compared["copies"]) == ("difference", 6)
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
    lengths = report.per_image.groupby("set").code_length.mean()
    shift = lengths["B"] - lengths["A"]
    assert compared["corrected"]["difference"] == pytest.approx(compared["difference"] - shift)
    assert compared["corrected"]["difference"] > compared["corrected"]["half_width"]
    assert compared["difference"] + compared["half_width"] < 0
    assert compared["p_value"] < 1e-4
    assert compared["auroc"]["upper"] < 0.1
    assert compared["auroc_corrected"]["lower"] > 0.85


def normal_images(count, seed):
    """Images of one population."""
    levels = 127.5 + 32 * np.random.default_rng(seed).normal(size=(count, 1, 2, 2))
    pixels = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return ImageSet(pixels, [str(i) for i in range(count)], f"normal images, seed {seed}")


def trained_on(images, **of_data):
    """The kernel density of its training images: the fewer they are, the more it memorizes them."""
    model = oracle_checkpoint(images, NoiseSchedule.linear(40), spread=0.03, clip=False)
    data = {"source": images.source, "split": images.split, "sha256": images.sha256, **of_data}
    return dataclasses.replace(model, training={"data": data})


def test_a_model_of_few_images_has_memorized_them_and_one_of_many_has_not():
    result = {}
    for count in (20, 400):
        train, test = normal_images(count, 0), normal_images(200, 1)
        some = train.subset(min(count, 200))
        report = score(trained_on(train), some, test, evaluations_per_image=16)
        result[count] = report.summary["comparison"]
        assert result[count]["name"] == "generalization gap"
        nearest = result[count]["auroc_nearest"]  # and the sets are alike
        assert nearest["lower"] < 0.5 < nearest["upper"]
    few, many = result[20], result[400]
    assert few["auroc"]["lower"] > 0.7
    for of_few, of_many in ((few, many), (few["corrected"], many["corrected"])):
        assert of_few["p_value"] < 1e-6
        assert of_few["difference"] > of_few["half_width"]
        assert of_many["p_value"] > 0.05
        assert abs(of_many["difference"]) < of_many["half_width"]
    assert "has memorized them in part" in verdict(few)
    assert "no generalization gap beyond chance" in verdict(many)


def test_a_gap_is_judged_less_the_code_length():
    """If one set is simpler by chance, raw bits alone would say that a model has memorized it."""
    raw = {"difference": 0.05, "half_width": 0.04, "p_value": 0.02}
    comparison = {"name": "generalization gap", **raw}
    for difference, expected in (
        (0.001, "undecided: the generalization gap is beyond chance, .*; one set may have simpler"),
        (0.03, "has memorized them in part"),
        (-0.03, "cost more bits than the others, beyond chance: the sets differ"),
    ):
        corrected = {"difference": difference, "half_width": 0.02, "p_value": 0.5}
        assert re.search(expected, verdict({**comparison, "corrected": corrected}))


def test_the_difference_is_a_gap_where_the_first_set_was_trained_on(small_images):
    train = dataclasses.replace(small_images, source="data", split="train", labels=None)
    pixels = 255 - small_images.pixels
    test = dataclasses.replace(train, split="test", pixels=pixels)
    folder = dataclasses.replace(test, source="folder", split=None)
    model = oracle_checkpoint(train, NoiseSchedule.linear(24))

    def name(model, *sets):
        compared = score(model, *sets, evaluations_per_image=4).summary["comparison"]
        return compared["name"]

    def recorded(**of_data):
        return dataclasses.replace(model, training={"data": of_data})

    gap, difference = "generalization gap", "difference"
    assert name(model, train, test) == gap  # no record
    assert name(model, train, folder) == gap
    assert name(recorded(source="data", split="train"), train.subset(3), test) == gap
    assert name(recorded(source="x", sha256=train.sha256), train, test) == gap
    assert name(recorded(source="other", split="train"), train, test) == difference
    assert name(dataclasses.replace(model, training={"data": "of hers"}), train, test) == gap
    assert name(model, test, train) == difference
    assert name(model, folder, test) == difference
    assert name(model, train, dataclasses.replace(test, source="other")) == difference
    assert name(model, train, dataclasses.replace(test, split="train")) == difference
    assert name(model, train, dataclasses.replace(train, split="test")) == difference


def test_images_of_the_second_set_in_the_first_are_counted(model, small_images, others):
    warnings = []
    mixed = dataclasses.replace(
        others, pixels=np.concatenate([small_images.pixels[2:4], others.pixels[2:]])
    )
    report = score(model, small_images, mixed, listener=db.RunListener(warn=warnings.append))
    assert report.summary["comparison"]["copies"] == 2
    assert "2 images of B also in A" in warnings
    of_second = report.per_image[report.per_image.set == "B"]
    assert (of_second.nearest_distance == 0).tolist() == [True, True, *[False] * 4]


def test_one_image_is_scored_and_compared(model, small_images, others):
    alone, other = small_images.subset(1), others.subset(1)
    for sets in ((alone,), (alone, other), (alone, others), (small_images, other)):
        report = score(model, *sets, evaluations_per_image=4)
        assert np.isfinite(report.per_image.bits_per_dim).all()
        compared = report.summary["comparison"]
        if compared is None:
            continue
        assert (compared["p_value"], compared["half_width"]) == (None, None)
        assert "unknown" in verdict(compared)
        assert (compared["auroc_nearest"] is None) == (len(sets[0]) == 1)
        assert compared["corrected"]["p_value"] is None
        printed = printed_scores(report.summary, report.per_image, "table")
        assert f"{compared['difference']:+.4f} bits/dim; p unknown" in printed


def test_a_bound_above_that_of_raw_pixels_is_warned_of(small_images):
    gray = ImageSet(np.full((1, 1, 8, 8), 128, np.uint8), ["gray"], "gray")
    warnings = []
    coarse = oracle_checkpoint(gray, NoiseSchedule.linear(24))
    score(coarse, small_images, listener=db.RunListener(warn=warnings.append))
    assert any("worse than sending raw pixels" in line for line in warnings)


def words(page):
    return " ".join(re.sub(r"<(style|svg).*?</\1>|<[^>]+>", " ", page, flags=re.DOTALL).split())


def test_the_page_has_both_sets_the_gap_and_the_warning(tmp_path):
    train, test = normal_images(20, 0), normal_images(30, 1)
    report = score(trained_on(train), train, test, out=tmp_path)
    page = db.write_report(tmp_path, progress=False).read_text()
    text, compared = words(page), report.summary["comparison"]
    digits = digits_by(compared["half_width"])
    for part in (
        f"{compared['difference']:+.{digits}f} &plusmn;&nbsp;{compared['half_width']:.{digits}f}",
        f"Generalization gap, B minus A; p = {compared['p_value']:.2g}.",
        "the model has memorized them in part",
        "A: normal images, seed 0 20",
        "B: normal images, seed 1 30",
        "rank simple images as likely, even those of other data (Nalisnick et al. 2019)",
        "(Serra et al. 2020)",
    ):
        assert part in text, part
    assert page.count("<svg") == 2 + 4  # two histograms, and two ends of each set
    shown = pd.read_csv(tmp_path / "figures" / "extremes.csv")
    for name, of_set in report.per_image.groupby("set"):
        order = of_set.sort_values("bits_per_dim").image_id.astype(int).tolist()
        ends = shown[shown.set == name].groupby("end").image_id
        assert ends.get_group("fewest").tolist() == order[:8]
        assert ends.get_group("most").tolist() == order[:-9:-1]


def test_the_page_has_a_row_for_every_score():
    report = score(trained_on(normal_images(9, 0)), normal_images(9, 0), normal_images(8, 1))
    areas = {
        name: {"value": value, "lower": value - 0.05, "upper": value + 0.05}
        for name, value in (("auroc", 0.1), ("auroc_corrected", 0.2), ("auroc_nearest", 0.3))
    }
    corrected = {"difference": 1.25, "half_width": 0.25, "p_value": 1e-200}
    raw = {"difference": 2.5, "half_width": 0.5, "p_value": 0.125}
    comparison = {**report.summary["comparison"], **raw, "corrected": corrected, **areas}
    summary = {**report.summary, "comparison": comparison}
    text = words(ScoreReport(summary, report.per_image, None).page({}))
    for row in (
        "bits/dim +2.500 &plusmn;&nbsp;0.500 p = 0.12 0.100 0.050 to 0.150",
        "bits/dim less the code length +1.250 &plusmn;&nbsp;0.250 p < 1e-99 0.200 0.150 to 0.250",
        "distance to the nearest other image of A, without the model 0.300 0.250 to 0.350",
    ):
        assert row in text.replace("&lt;", "<"), text


def test_the_page_of_one_set_compares_nothing(base, tmp_path):
    folder = shutil.copytree(base.folder, tmp_path / "run")
    text = words(db.write_report(folder, progress=False).read_text())
    for absent in ("AUROC", "nearest", "B minus A"):
        assert absent not in text
    (folder / "extremes.npz").write_bytes(b"damaged")
    with pytest.raises(db.InputError, match=r"extremes\.npz: missing or damaged"):
        db.write_report(folder)


def test_the_figure_counts_every_image_of_each_set(model, small_images, others, tmp_path):
    report = score(model, small_images, others.subset(4), out=tmp_path)
    db.write_report(tmp_path)
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


def test_a_density_that_is_lost_or_of_another_command_is_refused(
    model, small_images, base, tmp_path
):
    folder = shutil.copytree(base.folder, tmp_path / "run")
    path = folder / "proposal.csv"
    path.write_text(path.read_text().replace("2,", "3,", 1))
    with pytest.raises(db.InputError, match=r"proposal\.csv: missing or damaged"):
        score(model, small_images, terms_of=folder)
    path.unlink()
    with pytest.raises(db.InputError, match=r"has no proposal\.csv: it is no run of"):
        score(model, small_images, terms_of=folder)
    other = tmp_path / "other"
    db.evaluate_nll(model, small_images, half_width=9, out=other, progress=False)
    with pytest.raises(db.InputError, match="is a run of nll, not a run of score"):
        score(model, small_images, terms_of=other)


@pytest.mark.parametrize(
    ("match", "changes", "how"),
    [
        (r"`evaluations_per_image=3`: give a whole", {}, {"evaluations_per_image": 3}),
        ("at one size only", {"image_size": None}, {"second": np.zeros((2, 16, 16), np.uint8)}),
        ("16x16", {}, {"images": np.zeros((2, 16, 16), np.uint8)}),
        (r"`timesteps`: the proposal of .* is for 12, this run is for 6", 6, {"terms_of": True}),
        ("`timesteps=1`", 1, {}),
        ("timesteps=continuous", "continuous", {}),
        ("has no labels", {"num_classes": 10}, {}),
        (r"evaluations_per_image is", {}, {"out": True, "evaluations_per_image": 9}),
    ],
)
def test_what_cannot_be_scored_is_refused(
    small_model, model, small_images, base, match, changes, how
):
    if changes == "continuous":
        other = small_model.in_continuous_time()
    elif isinstance(changes, int):
        other = model.respaced(changes)
    else:
        other = dataclasses.replace(model, **changes)
    images = dataclasses.replace(small_images, labels=None)
    how = {name: base.folder if value is True else value for name, value in how.items()}
    with pytest.raises(db.InputError, match=match):
        score(other, **{"images": images, **how})
