"""Figures and page of a run of fid in its folder."""

import re
import shutil

import pandas as pd
import pytest
from fidelity_folders import NUM_GENERATED, fidelity_folder

import ddpmbench as db

FIGURES = {"fid_against_n", "per_image", "nearest", "samples"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = fidelity_folder(tmp_path_factory.mktemp("fid") / "run")
    assert db.write_report(made) == made / "report.html"
    return made


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copied")


def test_every_figure_is_there_in_every_form_and_on_the_page(folder):
    files = {path.name for path in (folder / "figures").iterdir()}
    assert files == {f"{name}.{form}" for name in FIGURES for form in ("svg", "png", "csv")}
    page = (folder / "report.html").read_text()
    assert page.count('role="img"') == 5  # two panels of histograms
    assert "ddpmbench fid --protocol clean" in page


def test_the_numbers_behind_the_figures_are_those_of_the_run(folder):
    figures = folder / "figures"
    points = pd.read_csv(folder / "fid_against_n.csv")
    assert list(pd.read_csv(figures / "fid_against_n.csv").fid) == list(points.fid)
    bins = pd.read_csv(figures / "per_image.csv").groupby("measure").num_images.sum()
    assert list(bins) == [NUM_GENERATED] * 2


def test_the_same_folder_gives_the_same_page(folder):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    db.write_report(folder)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_with_little_in_it_has_a_page_too(copied):
    for name in ("nearest.npz", "samples.npz", "environment.json"):
        (copied / name).unlink()
    shutil.rmtree(copied / "figures")
    whole = (copied / "report.html").read_text()
    page = db.write_report(copied).read_text()
    assert page.count('role="img"') == 3
    for heading in ("Pictures", "Reproducibility"):
        assert f"<h2>{heading}</h2>" in whole
        assert f"<h2>{heading}</h2>" not in page


@pytest.mark.parametrize("name", ["per_image.csv", "nearest.npz", "samples.npz", "summary.json"])
def test_a_damaged_file_is_named_and_no_page_replaced(copied, name):
    before = (copied / "report.html").read_bytes()
    (copied / name).write_bytes(b"damaged")
    with pytest.raises(db.InputError, match=re.escape(name)):
        db.write_report(copied)
    assert (copied / "report.html").read_bytes() == before
