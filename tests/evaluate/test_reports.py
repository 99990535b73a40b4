"""Reports as objects: what Python shows of them, and how they come back from their folders."""

import dataclasses
import inspect
import re
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from run_folders import HOSTILE, KINDS

import ddpmbench as db
from ddpmbench.report.display import Shown

LONGEST = 500


@pytest.fixture(scope="module")
def reports(runs):
    """One report a kind."""
    return {kind: runs[kind] for kind in KINDS}


@pytest.fixture(scope="module")
def shown(runs, reports, small_checkpoint, tmp_path_factory):
    """Every report there is."""
    out = tmp_path_factory.mktemp("others")
    inspection = db.inspect_checkpoint(small_checkpoint)
    conversion = db.convert_checkpoint(
        db.load_checkpoint(small_checkpoint), out / "converted.safetensors"
    )
    curve = db.rate_distortion(reports["every-pair"])
    images = runs.images.subset(2)
    code = db.compress(runs.model, images, out / "code", timesteps=4, compare=False)
    return [*reports.values(), curve, inspection, conversion, code]


# ---- what Python shows


def test_a_report_is_a_few_lines(shown, reports):
    assert len({type(report) for report in shown}) == 13
    for report in shown:
        assert isinstance(report, Shown)
        text = repr(report)
        assert len(text) < LONGEST, text
        assert text.count("\n") < 8, text
        assert text.startswith(type(report).__name__)
    assert "\n  device      cpu" in repr(reports["importance"])


def test_a_report_shows_its_number_with_its_interval(reports):
    report = reports["importance"]
    text = re.search(r"NLL <= ([\d.]+) \+- ([\d.]+) bits/dim", repr(report))
    value, half_width = map(float, text.groups())
    assert value == pytest.approx(report.summary["bits_per_dim"], abs=0.001)
    assert half_width == pytest.approx(report.summary["half_width"], rel=0.005)
    html = report._repr_html_()
    for width in (report.summary["half_width"], report.summary["half_width_population"]):
        assert f"\N{PLUS-MINUS SIGN} {width:.4f}"[:6] in html


def test_every_record_that_people_hold_is_short(runs, shown, copied):
    """All that is exported, and what its functions return."""
    model, images, network = runs.model, runs.images, runs.network
    statistics = db.ReferenceStatistics(np.zeros(2048), np.zeros((2048, 2048)), HOSTILE)
    rows = torch.arange(500, dtype=torch.float64)
    features = np.random.default_rng(0).normal(size=(40, 30))
    gaussian = db.feature_statistics(features[:20])
    scores = [
        db.frechet_infinity(features, gaussian),
        db.inception_score(features),
        db.precision_recall(features, features + 0.1),
        gaussian,
    ]
    bounds = [
        of(**{field.name: np.arange(500.0) for field in dataclasses.fields(of)})
        for of in (db.BoundEstimate, db.SampledBound)
    ]
    flags = db.CheckpointSettings(network=HOSTILE, model_flags="--lr 1e-4 " * 100)
    made = [
        *shown,
        model,
        images,
        network,
        statistics,
        model.schedule,
        model.diffusion,
        flags,
        db.EveryPairDesign(num_images=2, num_timesteps=3, draws=1),
        db.ImportanceDesign(2, 1000, np.full(999, 1 / 999), seed=0, num_replicates=2),
        *bounds,
        db.BoundTerms(rows, rows, rows, rows, {str(k): rows for k in range(20)}),
        db.DataRange(),
        db.FidSettings(network, db.PROTOCOLS["clean"]),
        *scores,
        scores[0].estimate,
        db.AddedNoise.INNER,
        db.EightBit.ROUND,
        db.Features(features, features),
        db.Precision.FP32,
        db.SamplerChoice("ddim", eta=0.5),
        db.PROTOCOLS["clean"],
        db.RunListener(),
        db.SampleSettings(),
        db.SpeedSettings(),
        db.progressive_pictures(model, images, db.load_report(copied("every-pair"))),
    ]
    for record in made:
        assert len(repr(record)) < LONGEST, type(record)
    exported = {of for of in map(vars(db).get, dir(db)) if inspect.isclass(of)}
    exported |= {of for name in db.__all__ if inspect.isclass(of := getattr(db, name))}
    lacking = {of for of in exported if not any(isinstance(record, of) for record in made)}
    assert lacking == {db.InputError}


def test_a_notebook_gets_a_table_whose_texts_are_texts(shown):
    for report in shown:
        html = report._repr_html_()
        assert "<script" not in html
        table = ElementTree.fromstring(html)
        assert table.tag == "table"
        colors = {of.get("style", "") for of in table.iter()}
        assert not any("#" in style or "rgb" in style for style in colors)
    assert any("&lt;script&gt;" in report._repr_html_() for report in shown)


def test_a_report_draws_the_figures_of_its_page(reports, copied):
    for kind, report in reports.items():
        first = report.plot()
        assert first.get_axes(), kind
        assert first.get_facecolor() == (1, 1, 1, 1)
        for name in report._figures():
            assert report.plot(name).get_axes()
    assert first._repr_png_().startswith(b"\x89PNG")
    pages = copied("every-pair")
    db.write_report(pages)
    drawn = {path.stem for path in (pages / "figures").glob("*.svg")}
    assert set(reports["every-pair"]._figures()) <= drawn
    with pytest.raises(db.InputError, match="choose from bound, rate_distortion"):
        reports["every-pair"].plot("curve")


# ---- and back from the folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_report_comes_back_as_it_was(runs, kind):
    report, loaded = runs[kind], db.load_report(runs[kind].folder)
    assert type(loaded) is type(report)
    for field in dataclasses.fields(report):
        there, here = getattr(report, field.name), getattr(loaded, field.name)
        if isinstance(there, pd.DataFrame):
            pd.testing.assert_frame_equal(here, there, check_exact=True)
        elif isinstance(there, db.ImageSet):
            assert (here.sha256, list(here.ids)) == (there.sha256, list(there.ids))
        else:
            assert here == there
    assert repr(loaded) == repr(report)


@pytest.mark.parametrize("folder", ["", "  ", None, 123])
def test_what_names_no_folder_is_one_line(folder):
    with pytest.raises(db.InputError, match="give the folder of a run"):
        db.load_report(folder)
