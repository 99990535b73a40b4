"""A run's figures and its page in its folder: what is written, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from damage import truncate
from sealing import write_text

import ddpmbench as db
from ddpmbench.checksums import write_npz
from ddpmbench.evaluate import page as pages
from ddpmbench.execution.stored_images import Extremes, Pictures

SHIPPED = Path(__file__).parents[2] / "results"
COMMON = {"bound", "rate_distortion", "images", "sub_schedules"}
DRAWN = {"every-pair": COMMON, "importance": COMMON | {"calls"}}


@pytest.fixture(scope="module")
def folders(runs, tmp_path_factory):
    """Runs of both estimators that have their pages."""
    root = tmp_path_factory.mktemp("runs")
    for kind in DRAWN:
        runs.copied(kind, root)
        assert db.write_report(root / kind) == root / kind / "report.html"
    return root


@pytest.fixture(params=list(DRAWN))
def kind(request):
    return request.param


@pytest.fixture
def folder(folders, kind):
    return folders / kind


@pytest.fixture
def copied(folders, tmp_path):
    """A run that a test may spoil."""
    return Path(shutil.copytree(folders / "importance", tmp_path / "run"))


def test_every_figure_is_there_in_every_form(folder, kind):
    files = {path.name for path in (folder / "figures").iterdir()}
    expected = {f"{name}.{form}" for name in DRAWN[kind] for form in ("svg", "png", "csv")}
    assert files == expected


def test_the_page_shows_the_run(folder, kind):
    page = (folder / "report.html").read_text()
    summary = json.loads((folder / "summary.json").read_text())
    assert f"{summary['bits_per_dim']:.4f}" in page
    assert page.count('role="img"') >= len(DRAWN[kind]) + 4
    for convention in pd.read_csv(folder / "conventions.csv").convention:
        assert convention.replace("&", "&amp;") in page


def test_the_numbers_behind_a_figure_are_those_of_the_run(folder, kind):
    steps = pd.read_csv(folder / "per_timestep.csv")
    bound = pd.read_csv(folder / "figures" / "bound.csv")
    size = bound.t_last - bound.t_first + 1
    assert (bound.bits_per_step * size).sum() == pytest.approx(steps.bits_per_dim.sum())
    images = pd.read_csv(folder / "per_image.csv")
    shown = images.bits_per_dim if kind == "every-pair" else images.decoder
    histogram = pd.read_csv(folder / "figures" / "images.csv")
    assert histogram.num_images.sum() == 6
    assert histogram.bits_from[0] == pytest.approx(shown.min())


def test_the_same_folder_gives_the_same_page_without_a_network(folders, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a page is of what is in the folder")

    monkeypatch.setattr(torch.nn.Module, "__call__", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)
    folder = folders / "importance"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    db.write_report(str(folder))
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_is_read_once_for_its_page(copied, monkeypatch):
    read = []
    for kind in (Extremes, Pictures):

        def counted(*of, kind=kind, reader=kind.read):
            read.append(kind)
            return reader(*of)

        monkeypatch.setattr(kind, "read", counted)
    monkeypatch.setattr(pages, "read_environment", read.append)
    db.write_report(copied, progress=False)
    assert read == [Extremes, Pictures, copied]


def test_a_page_is_written_whole_or_not_at_all(folders, monkeypatch):
    page = folders / "every-pair" / "report.html"
    before = page.read_bytes()
    write_text = Path.write_text

    def half(path, text, **options):
        write_text(path, text[: len(text) // 2], **options)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(db.InputError, match=r"cannot be written \(no space left on device\)"):
        db.write_report(page.parent)
    assert page.read_bytes() == before


def test_a_run_without_pictures_environment_and_models_that_skip_steps_has_a_page(copied):
    whole = (copied / "report.html").read_text()
    for name in ("extremes.npz", "environment.json"):
        (copied / name).unlink()
    head = (copied / "sub_schedules.csv").read_text().splitlines()[0]
    write_text(copied / "sub_schedules.csv", head + "\n")
    shorter = db.write_report(copied).read_text()
    for heading in ("Reproducibility", "Most bits", "<h2>Fewer timesteps</h2>"):
        assert heading in whole
        assert heading not in shorter


def test_a_single_image_is_neither_the_best_nor_the_worst(small_model, small_images, tmp_path):
    one = small_images.subset(1)
    db.evaluate_nll(small_model, one, estimator="every-pair", out=tmp_path / "run")
    none = {"best_index": [], "best_pixels": np.zeros((0, 1, 8, 8), np.uint8)}
    none |= {name.replace("best", "worst"): value for name, value in none.items()}
    write_npz(tmp_path / "run" / "extremes.npz", none)
    page = db.write_report(tmp_path / "run").read_text()
    assert "Bits per image" in page
    assert "Fewest bits" not in page


def test_of_large_pictures_the_page_is_still_small(copied):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 3, 256, 256), dtype=np.uint8)
    index = np.arange(8) % 6
    Extremes(index, pixels, index, pixels).write(copied / "extremes.npz")
    assert db.write_report(copied).stat().st_size < 1_500_000


# ---- what is refused


def test_a_damaged_file_is_named_and_the_old_page_stays(copied):
    truncate(copied / "per_timestep.csv")
    before = (copied / "report.html").read_bytes()
    with pytest.raises(db.InputError, match=r"per_timestep\.csv: missing or damaged"):
        db.write_report(copied)
    assert (copied / "report.html").read_bytes() == before
    assert not list(copied.rglob("*.tmp"))


@pytest.mark.parametrize("name", ["per_timestep.csv", "conventions.csv", "sub_schedules.csv"])
def test_a_table_of_another_kind_is_named(copied, name):
    for content in ("", "a,b\n1,2\n"):
        write_text(copied / name, content)
        with pytest.raises(db.InputError, match=f"{name}: missing or damaged"):
            db.write_report(copied)


# ---- of a comparison


def test_a_comparison_has_a_page_of_its_own(folders, tmp_path):
    out = tmp_path / "compared"
    db.compare([folders / "importance", folders / "importance"], out=out)
    before = (out / "report.html").read_bytes()
    assert b" against " in before
    (out / "report.html").unlink()
    shutil.rmtree(out / "figures")
    assert db.write_report(out).read_bytes() == before
    names = {path.name for path in (out / "figures").iterdir()}
    assert names == {"difference.svg", "difference.png", "difference.csv"}
