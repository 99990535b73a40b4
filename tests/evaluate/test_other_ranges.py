"""Runs of models whose data are not [-1, 1] with 256 levels."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from feature_networks import write_network
from oracles import ScaledNetwork, oracle_checkpoint, oracle_images, scaled_schedule
from sealing import edit, read_record

import ddpmbench as db
from ddpmbench.diffusion.data_range import UNIT_RANGE, DataRange
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError
from ddpmbench.metrics.feature_networks import load_feature_network
from ddpmbench.report import conventions as convention_tables
from ddpmbench.report.nll_text import printed_nll
from ddpmbench.report.text import conventions_line
from ddpmbench.samples.samplers import SamplerChoice

PAIRS = {"estimator": "every-pair", "draws": 2}
IMPORTANCE = {"half_width": 20.0}
OTHER = DataRange(0, 1)


def in_range(model, of):
    """The model of the affine images of another's data."""
    return dataclasses.replace(
        model,
        network=ScaledNetwork(model.network, model.schedule, of),
        schedule=scaled_schedule(model.schedule, of),
        data_range=of,
    )


@pytest.fixture(scope="module")
def small(small_model):
    return small_model.with_conventions(variance="fixed_small")


# ---- a range is only another way to write the same images


@pytest.mark.parametrize("options", [PAIRS, IMPORTANCE], ids=["every-pair", "importance"])
@pytest.mark.parametrize("of", [OTHER, DataRange(-3, 1, 32)], ids=str)
def test_a_whole_run_finds_the_same_steps_and_distortions(
    small, small_images, options, of, monkeypatch
):
    monkeypatch.setattr(convention_tables, "RESPACINGS", (20, 10))
    # Large terms: a network of random weights that rounds otherwise moves no row.
    plain = dataclasses.replace(small, data_range=DataRange(levels=of.levels))
    expected = db.evaluate_nll(plain, small_images, **options)
    result = db.evaluate_nll(in_range(small, of), small_images, **options)
    assert result.summary["conventions"]["data_range"] == of.interval
    assert result.summary["num_evaluations"] == expected.summary["num_evaluations"]
    assert result.summary["kl"] == pytest.approx(expected.summary["kl"], rel=1e-5)
    steps, known = result.per_timestep, expected.per_timestep
    np.testing.assert_allclose(steps.bits_per_dim[1:], known.bits_per_dim[1:], rtol=1e-4)
    np.testing.assert_allclose(steps.eps_mse, known.eps_mse, rtol=1e-4)
    scale = ((of.high - of.low) / 2) ** 2
    np.testing.assert_allclose(steps.x_start_mse, scale * known.x_start_mse, rtol=1e-4)
    for name in ("distortion_rmse", "distortion_rmse_of_mean_mse", "psnr"):
        of_run, before = result.rate_distortion[name], expected.rate_distortion[name]
        np.testing.assert_allclose(of_run, before, rtol=1e-4)
    # Models that skip steps keep t = 1, whose decoder pays for the range; all else is the same.
    tables = [
        table[(table.variance == "fixed_small") & table["clip"]]
        for table in (result.conventions, expected.conventions)
    ]
    kl = [
        table.rate_bits_per_dim.to_numpy() - report.summary["prior"]
        for table, report in zip(tables, (result, expected), strict=True)
    ]
    assert len(kl[0]) == len(kl[1]) > 6
    np.testing.assert_allclose(kl[0], kl[1], rtol=1e-3)


def test_other_conventions_are_what_runs_under_them_find(small, small_images):
    model = in_range(small, DataRange(-3, 1, 32))
    table = db.evaluate_nll(model, small_images, **PAIRS).conventions
    other = model.with_conventions(variance="fixed_large", clip=False)
    for decoder in ("exact", "tanh"):
        run = db.evaluate_nll(other, small_images, decoder=decoder, **PAIRS)
        row = table[
            (table.variance == "fixed_large")
            & ~table["clip"]
            & (table.decoder == decoder)
            & (table.decoder_variance == "posterior")
            & (table.spacing == "all")
        ]
        assert run.summary["bits_per_dim"] == pytest.approx(row.bits_per_dim.item(), rel=1e-6)


@pytest.mark.parametrize("method", ["ancestral", "ddim"])
def test_chains_of_both_end_in_the_same_pixels(method):
    images = oracle_images(3, shape=(1, 8, 8))
    known = oracle_checkpoint(images, NoiseSchedule.cosine(40), spread=0.05)
    chain, pixels, sample = SamplerChoice(method), [], torch.arange(3)
    for model in (known, in_range(known, OTHER)):
        sampler = chain.prepare(model, seed=0, device=torch.device("cpu"))
        x_t = sampler.start(sample, (1, 8, 8))
        if model is not known:
            x_t = model.network.shift[-1] + model.network.scale[-1] * x_t
        for step in sampler.steps(x_t, 40, sample=sample):
            x_t = step.x_previous
        pixels.append(model.data_range.to_pixels(x_t).int())
    assert pixels[0].unique().numel() > 50
    assert (pixels[0] - pixels[1]).abs().max() <= 1  # of rounding


# ---- what a run is, and how it is said


def test_a_run_of_before_goes_on_and_one_of_another_range_is_refused(small, small_images, tmp_path):
    short = small.respaced(3)
    db.evaluate_nll(short, small_images, **PAIRS, out=tmp_path)
    assert not {"data_range", "levels"} & set(json.loads((tmp_path / "run.json").read_text()))
    for of, message in (
        (OTHER, r"data_range is None there, \[0, 1\] here"),
        (DataRange(levels=32), "levels is None there, 32 here|data_range is None there"),
    ):
        with pytest.raises(InputError, match=message):
            db.evaluate_nll(
                dataclasses.replace(short, data_range=of), small_images, **PAIRS, out=tmp_path
            )


def test_samples_of_before_go_on_and_those_of_another_range_are_refused(small, tmp_path):
    short = small.respaced(3)
    db.generate_samples(short, 2, out=tmp_path)
    assert not any("range" in name for name in json.loads((tmp_path / "run.json").read_text()))
    result = db.generate_samples(short, 3, out=tmp_path).summary["sampler"]
    assert (result["data_range"], result["levels"]) == ("[-1, 1]", 256)
    with pytest.raises(InputError, match=r"sampler\.data_range is None there"):
        db.generate_samples(dataclasses.replace(short, data_range=OTHER), 2, out=tmp_path)


def test_a_folder_of_before_compares_and_one_of_another_range_does_not(
    small, small_images, tmp_path
):
    runs = [tmp_path / name for name in "abc"]
    for out, of in zip(runs, (UNIT_RANGE, UNIT_RANGE, DataRange(levels=128)), strict=True):
        model = dataclasses.replace(small.respaced(3), data_range=of)
        db.evaluate_nll(model, small_images, **PAIRS, out=out)

    conventions = read_record(runs[1] / "summary.json")["conventions"]
    del conventions["data_range"], conventions["levels"]
    edit(runs[1] / "summary.json", conventions=conventions)
    assert conventions_line(conventions)
    for pair in (runs[:2], runs[1::-1]):
        assert db.compare(pair).summary["runs"][0]["difference"] == 0.0
    with pytest.raises(InputError, match=r"conventions\.levels is 128, but 256 in"):
        db.compare([runs[1], runs[2]])


# ---- pictures and samples of few levels


def test_pictures_show_the_levels_of_the_model(small, small_images, tmp_path):
    of = DataRange(-3, 1, 4)
    model = in_range(small, of)
    run = db.evaluate_nll(model, small_images, **PAIRS, out=tmp_path)
    made = db.progressive_pictures(model, small_images, run, pictures="all")
    decoding, between = made.decoding, made.interpolation
    shown = {0, 85, 170, 255}
    np.testing.assert_array_equal(decoding.x_start, of.shown(small_images.pixels))
    for pixels in (decoding.x_t, decoding.pred_x_start, between.x_start, between.decoded):
        assert set(np.unique(pixels)) <= shown
    # The error is that of the picture before it is rounded, so that it is near that of the picture.
    seen = decoding.x_start[:, None].astype(float) - decoding.pred_x_start
    root = np.sqrt(np.square(seen).reshape(*decoding.rmse.shape, -1).mean(-1))
    assert np.abs(root - decoding.rmse).max() < 85 / 2
    plain = db.evaluate_nll(small, small_images, **PAIRS)
    with pytest.raises(InputError, match="the run has another data range"):
        db.progressive_pictures(model, small_images, plain)


def test_a_range_stands_in_the_result(small, small_images, tmp_path):
    model = dataclasses.replace(small.respaced(3), data_range=DataRange(0, 1, 32))
    report = db.evaluate_nll(model, small_images, **PAIRS, out=tmp_path)
    assert "exact decoder, data in [0, 1], 32 levels" in printed_nll(report.summary, "table")
    resolved = json.loads((tmp_path / "environment.json").read_text())["arguments"]["resolved"]
    for record in (report.summary["conventions"], resolved):
        assert (record["data_range"], record["levels"]) == ("[0, 1]", 32)
    usual = db.evaluate_nll(small.respaced(3), small_images, **PAIRS)
    assert "levels" not in printed_nll(usual.summary, "table")


# ---- images that look reduced already


@pytest.mark.parametrize("levels", [2, 32, 100])
def test_images_that_look_reduced_already_are_refused(small, small_images, levels, tmp_path):
    model = dataclasses.replace(small.respaced(2), data_range=DataRange(levels=levels))
    levels_of = small_images.pixels.astype(int) * levels // 256
    reduced = dataclasses.replace(small_images, pixels=levels_of.astype(np.uint8))
    line = (
        f"no pixel is above {levels - 1}, .* save level k as the pixel 256 k / {levels}, rounded up"
    )
    with pytest.raises(InputError, match=line):
        db.evaluate_nll(model, reduced, **PAIRS)
    with pytest.raises(InputError, match=line):
        db.measure_speed(model, reduced)
    network = load_feature_network(write_network(tmp_path / "n.pt", num_features=2, num_classes=2))
    with pytest.raises(InputError, match=line):
        db.evaluate_fid(model, reduced, db.FidSettings(network, db.PROTOCOLS["clean"]))
    # As the line says, they cost the same as the images that they come from.
    pixels = np.ceil(256 * levels_of / levels).astype(np.uint8)
    saved = dataclasses.replace(small_images, pixels=pixels)
    result, expected = (db.evaluate_nll(model, of, **PAIRS) for of in (saved, small_images))
    assert result.summary["bits_per_dim"] == expected.summary["bits_per_dim"]
