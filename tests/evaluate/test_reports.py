"""Reports as objects: what Python shows of them, and how they come back from their folders."""

import dataclasses
import inspect
import re
import shutil
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from feature_networks import write_network
from sealing import edit, read_record

import ddpmbench as db
from ddpmbench.metrics.feature_networks import load_feature_network
from ddpmbench.report.display import Shown

HOSTILE = "<script>alert('&')</script>" + "x" * 300
LONGEST = 500
KINDS = (
    *("every-pair", "importance", "ode", "likelihoods", "score", "fid", "sample", "speed"),
    *("compare", "compare-fid"),
)
LOADED_FROM = {
    "likelihoods": "likelihoods.csv",
    "compare": "runs.csv",
    "compare-fid": "summary.json",
    "sample": "samples.npz",
}


@pytest.fixture(scope="module")
def model(small_model):
    """A name that no page may take for markup, and a record of its training."""
    training = {str(k): list(range(50)) for k in range(50)}
    notes = tuple(f"note {k}: {HOSTILE}" for k in range(20))
    model = dataclasses.replace(small_model, source=HOSTILE, training=training, notes=notes)
    return model.respaced(20)


@pytest.fixture(scope="module")
def images(small_images):
    return dataclasses.replace(small_images, source=HOSTILE)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp("network") / "stand-in.pt"
    write_network(path, num_features=6, num_classes=9)
    return load_feature_network(path, resize="clean", device=torch.device("cpu"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def reports(model, images, network, folders):
    """One report a kind, each with a folder of that name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDPMBENCH_CACHE", str(folders / "cache"))
        fid = db.FidSettings(network, db.PROTOCOLS["clean"], 12)
        trained = dataclasses.replace(model, schedule=db.NoiseSchedule.linear(40))
        patch.setattr("ddpmbench.execution.timing.LEAST_SECONDS", 0.0)
        quick = db.SpeedSettings(num_images=100)
        result = {
            "every-pair": db.evaluate_nll(
                model, images, estimator="every-pair", draws=2, out=folders / "every-pair"
            ),
            "importance": db.evaluate_nll(
                model, images, half_width=9.0, out=folders / "importance"
            ),
            "ode": db.evaluate_ode(
                trained,
                images,
                num_ode_images=3,
                solver_steps=2,
                half_width=9.0,
                out=folders / "ode",
            ),
            "likelihoods": db.evaluate_likelihoods(
                trained,
                images,
                num_ode_images=3,
                solver_steps=2,
                half_width=9.0,
                out=folders / "likelihoods",
            ),
            "score": db.score_images(model, images, images.subset(3), out=folders / "score"),
            "fid": db.evaluate_fid(model, images, fid, out=folders / "fid"),
            "sample": db.generate_samples(model, 5, out=folders / "sample"),
            "speed": db.measure_speed(model, settings=quick, batch_size=1, out=folders / "speed"),
        }
        other = dataclasses.replace(model, sha256="1" * 64)
        db.evaluate_nll(other, images, estimator="every-pair", draws=2, out=folders / "other")
        other_fid = dataclasses.replace(fid, samples=db.SampleSettings(seed=0))
        db.evaluate_fid(other, images, other_fid, out=folders / "other-fid")
    result["compare"] = db.compare(
        [folders / "every-pair", folders / "other"], out=folders / "compare"
    )
    result["compare-fid"] = db.compare(
        [folders / "fid", folders / "other-fid"], out=folders / "compare-fid"
    )
    return result


@pytest.fixture(scope="module")
def shown(reports, model, images, small_checkpoint, folders):
    """Every report there is."""
    inspection = db.inspect_checkpoint(small_checkpoint)
    conversion = db.convert_checkpoint(
        db.load_checkpoint(small_checkpoint), folders / "converted.safetensors"
    )
    curve = db.rate_distortion(reports["every-pair"])
    code = db.compress(model, images.subset(2), folders / "code", timesteps=4, compare=False)
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


def test_every_record_that_people_hold_is_short(
    shown, reports, model, images, network, monkeypatch
):
    """All that is exported, and what its functions return."""
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
        db.progressive_pictures(model, images, reports["every-pair"]),
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


def test_a_report_draws_the_figures_of_its_page(reports):
    for kind, report in reports.items():
        first = report.plot()
        assert first.get_axes(), kind
        assert first.get_facecolor() == (1, 1, 1, 1)
        for name in report._figures():
            assert report.plot(name).get_axes()
    assert first._repr_png_().startswith(b"\x89PNG")
    pages = reports["every-pair"].folder
    db.write_report(pages)
    drawn = {path.stem for path in (pages / "figures").glob("*.svg")}
    assert set(reports["every-pair"]._figures()) <= drawn
    with pytest.raises(db.InputError, match="choose from bound, rate_distortion"):
        reports["every-pair"].plot("curve")


# ---- and back from the folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_report_comes_back_as_it_was(reports, folders, kind):
    report, loaded = reports[kind], db.load_report(folders / kind)
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


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_folder_is_one_line(reports, folders, tmp_path, kind):
    name = LOADED_FROM.get(kind, "parts.csv" if kind == "speed" else "per_image.csv")
    folder = shutil.copytree(folders / kind, tmp_path / kind)
    whole = (folder / name).read_bytes()
    for damage in (whole[: len(whole) // 3], b"\x00" * 40, b""):
        (folder / name).write_bytes(damage)
        with pytest.raises(db.InputError) as caught:
            db.load_report(folder)
        assert "\n" not in str(caught.value)
        assert str(folder) in str(caught.value)
    (folder / name).write_bytes(whole)
    schema = read_record(folder / "summary.json")["schema"]
    edit(folder / "summary.json", schema=schema.partition("/")[0] + "/99")
    with pytest.raises(db.InputError, match="upgrade ddpmbench"):
        db.load_report(folder)


@pytest.mark.parametrize("folder", ["", "  ", None, 123])
def test_what_names_no_folder_is_one_line(folder):
    with pytest.raises(db.InputError, match="give the folder of a run"):
        db.load_report(folder)


def test_what_is_no_run_is_one_line(tmp_path, reports, folders):
    for folder in (tmp_path, tmp_path / "nowhere", folders / "cache"):
        with pytest.raises(db.InputError, match="no run"):
            db.load_report(folder)


def test_what_has_no_report_is_one_line(tmp_path):
    (tmp_path / "summary.json").write_text('{"schema": "ddpmbench.inspect/1"}')
    with pytest.raises(db.InputError, match="is a run of inspect, which has no"):
        db.load_report(tmp_path)
