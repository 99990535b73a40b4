"""A folder of a run of fid: read whole or refused by the name of a file; its figures and page."""

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest
from fidelity_folders import NUM_GENERATED, fidelity_folder, nearest, summary
from sealing import write_frame

import ddpmbench as db
from ddpmbench.execution.finished_runs import read_environment
from ddpmbench.execution.samples import read_samples, write_samples
from ddpmbench.execution.stored_images import NearestImages
from ddpmbench.report.fid import FidReport, reference_name
from ddpmbench.report.fid_figures import pictures_of
from ddpmbench.report.sample import NUM_SHOWN


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fidelity_folder(tmp_path_factory.mktemp("fid") / "run")


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """The same with its page."""
    made = fidelity_folder(tmp_path_factory.mktemp("reported") / "run")
    assert db.write_report(made) == made / "report.html"
    return made


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copied")


def read(folder):
    """The report, the nearest images, the first samples and the environment."""
    report = db.load_report(folder)
    pictures = pictures_of(folder, report.summary["num_generated"])
    return report, *pictures, read_environment(folder)


def test_everything_is_read_as_it_was_written(folder):
    report, pictures, samples, _ = read(folder)
    assert report.summary == summary()
    assert list(report.per_image.image_id) == [str(n) for n in range(NUM_GENERATED)]
    written = pd.read_csv(folder / "per_image.csv")
    np.testing.assert_array_equal(report.per_image.class_entropy, written.class_entropy)
    assert report.against_n.num_generated.dtype == np.int64
    with np.load(folder / "samples.npz") as archive:
        pixels = archive["arr_0"].transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(samples.pixels, pixels[:NUM_SHOWN])
    again = nearest(np.asarray(db.load_images("fashion-mnist:test", num_images=160).pixels), 120)
    for field in dataclasses.fields(NearestImages):
        stored = getattr(pictures, field.name)
        np.testing.assert_array_equal(stored, getattr(again, field.name))


def test_what_a_run_need_not_have_is_not_asked_for(copied):
    for name in ("nearest.npz", "samples.npz", "environment.json", "run.json"):
        (copied / name).unlink()
    _, pictures, samples, environment = read(copied)
    assert pictures is samples is environment is None


def test_what_is_not_known_of_an_image_may_be_empty(copied):
    table = pd.read_csv(copied / "per_image.csv")
    table[["nearest_reference_id", "nearest_reference_distance", "class_entropy"]] = None
    write_frame(copied / "per_image.csv", table)
    found = read(copied)[0].per_image
    assert found.nearest_reference_distance.isna().all()
    assert found.class_entropy.isna().all()
    assert set(found.nearest_reference_id) == {""}


# ---- damage


# ---- small things


def test_a_reference_has_its_split_in_its_name_once():
    for source, split, name in (
        ("cifar10", "train", "cifar10:train"),
        ("cifar10:train", "train", "cifar10:train"),
        ("folder", None, "folder"),
    ):
        assert reference_name({"source": source, "split": split}) == name


@pytest.mark.parametrize("number", [1, NUM_SHOWN, NUM_SHOWN + 5])
def test_labels_are_those_of_the_first_samples(tmp_path, number):
    pixels = np.random.default_rng(0).integers(0, 256, (number, 3, 4, 4), dtype=np.uint8)
    path = tmp_path / "samples.npz"
    write_samples(path, pixels, np.arange(number) % 10)
    found = read_samples(path, min(number, NUM_SHOWN))
    assert len(found.pixels) == min(number, NUM_SHOWN)
    np.testing.assert_array_equal(found.pixels[-1], pixels[len(found.pixels) - 1])
    np.testing.assert_array_equal(found.labels, np.arange(len(found.pixels)) % 10)


@pytest.mark.parametrize("channels", [2, 4])
def test_samples_of_other_channels_are_left_out(copied, channels):
    whole = NearestImages.read(copied / "nearest.npz")
    wide = {
        name: np.repeat(getattr(whole, name), channels, -3) for name in ("samples", "references")
    }
    dataclasses.replace(whole, **wide).write(copied / "nearest.npz")
    assert read(copied)[1] is None


# ---- figures and page


def test_every_figure_is_there_in_every_form_and_on_the_page(reported):
    files = {path.name for path in (reported / "figures").iterdir()}
    names = {*FidReport.FIGURES, *FidReport.STRIPS}
    assert files == {f"{name}.{form}" for name in names for form in ("svg", "png", "csv")}
    page = (reported / "report.html").read_text()
    assert page.count('role="img"') == 5  # two panels of histograms
    assert "ddpmbench fid --protocol clean" in page
    points = pd.read_csv(reported / "fid_against_n.csv")
    drawn = {name: pd.read_csv(reported / "figures" / f"{name}.csv") for name in FidReport.FIGURES}
    assert list(drawn["fid_against_n"].fid) == list(points.fid)
    assert list(drawn["per_image"].groupby("measure").num_images.sum()) == [NUM_GENERATED] * 2


def test_the_same_folder_gives_the_same_page(reported):
    before = {path: path.read_bytes() for path in reported.rglob("*") if path.is_file()}
    db.write_report(reported)
    assert before == {path: path.read_bytes() for path in reported.rglob("*") if path.is_file()}


def test_a_run_with_little_in_it_has_a_page_and_a_damaged_one_keeps_its_own(reported, tmp_path):
    copied = shutil.copytree(reported, tmp_path / "copied")
    for name in ("nearest.npz", "samples.npz", "environment.json"):
        (copied / name).unlink()
    shutil.rmtree(copied / "figures")
    whole = (copied / "report.html").read_text()
    page = db.write_report(copied).read_text()
    assert page.count('role="img"') == 3
    for heading in ("Pictures", "Reproducibility"):
        assert f"<h2>{heading}</h2>" in whole
        assert f"<h2>{heading}</h2>" not in page
    (copied / "per_image.csv").write_bytes(b"damaged")
    with pytest.raises(db.InputError, match=r"per_image\.csv"):
        db.write_report(copied)
    assert (copied / "report.html").read_text() == page
