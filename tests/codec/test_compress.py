"""Compressing images: the pixels come back, and the length is that of the bound."""

import dataclasses
import itertools
import json
import shutil
import sys

import numpy as np
import pytest
from coded import LINEAR, OPTIONS, QUIET, SILENT, T, linear_model, restored
from normal_data import normal_images
from oracles import oracle_checkpoint, oracle_images
from PIL import features

import ddpmbench as db
from ddpmbench.cli.main import run
from ddpmbench.codec import container
from ddpmbench.codec.rans import Coder
from ddpmbench.diffusion.data_range import DataRange
from ddpmbench.diffusion.parameterization import Process
from ddpmbench.diffusion.process import Prediction
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError
from ddpmbench.evaluate import compress as compressing
from ddpmbench.evaluate.coding import VARIANCES, bound_of, chosen_process
from ddpmbench.evaluate.decompress import write_images
from ddpmbench.evaluate.other_codecs import other_codecs
from ddpmbench.execution import progress as lines
from ddpmbench.execution.importance import Importance
from ddpmbench.report.codec import codec_facts, codec_page, printed_codec
from ddpmbench.unet.timed_unet import Precision


def models():
    of_normal = {
        "v": {"prediction": Prediction.V},
        "x_start": {"prediction": Prediction.X_START, "clip": False},
        "ve-score": {"schedule": LINEAR.in_family(Process.VE), "prediction": Prediction.SCORE},
        "flow": {"schedule": LINEAR.in_family(Process.FLOW)},
        "from 0 to 1": {"data_range": DataRange(0, 1)},
    }
    for name, changes in of_normal.items():
        yield name, linear_model(**changes), normal_images(5)
    few = oracle_images(5)
    for prediction in ("previous_mean", "velocity"):
        yield prediction, oracle_checkpoint(few, prediction=prediction, spread=0.01), few
    color = oracle_images(5, shape=(3, 4, 4))
    yield "color", oracle_checkpoint(color, spread=0.01), color
    learned = oracle_checkpoint(few, variance="learned_range", spread=0.01)
    yield "learned", learned, few
    classes = oracle_images(5, num_classes=3)
    yield "classes", oracle_checkpoint(classes, spread=0.01), classes


@pytest.mark.parametrize(
    ("checkpoint", "images"),
    [pytest.param(*of, id=name) for name, *of in models()],
)
def test_every_kind_of_model_codes_without_loss(checkpoint, images, tmp_path):
    out = tmp_path / "file"
    report = db.compress(checkpoint, images, out, timesteps=8, batch_size=2, **QUIET)
    result = restored(report, checkpoint)
    np.testing.assert_array_equal(result.pixels, images.pixels)
    assert list(result.ids) == list(images.ids)
    if checkpoint.num_classes:
        np.testing.assert_array_equal(result.labels, images.labels)


@pytest.mark.parametrize(("count", "batch_size"), [(1, 64), (7, 1), (7, 64), (257, 64)])
def test_any_number_of_images_in_any_batch(model, tmp_path, count, batch_size):
    few = normal_images(count)
    out = tmp_path / "file"
    report = db.compress(model, few, out, timesteps=6, batch_size=batch_size, **QUIET)
    np.testing.assert_array_equal(restored(report, model).pixels, few.pixels)


def test_the_length_is_that_of_the_draws_and_of_the_bound(coded, images, model):
    summary, dims = coded.summary, images.pixels[0].size
    net, bound = summary["bits_per_dim"], summary["bound"]
    ideal = summary["ideal_bits_per_dim"] - summary["tail_bits_per_dim"]
    assert abs(net / ideal - 1) < 0.002
    assert abs(net - ideal) * dims < 64
    assert summary["tail_bits_per_dim"] < 0.001 * net
    # Beside the error of the bound: log q / p of a draw varies by about the square root of twice
    # its mean, in nats.
    rate = net * dims * np.log(2)
    noise = 2 * np.sqrt(2 * rate / len(images)) / dims / np.log(2)
    assert abs(net - bound["bits_per_dim"]) < bound["half_width"] + noise
    assert noise < 0.02 * net


def test_the_prior_and_the_decoder_of_ve_are_coded(images, tmp_path):
    # Half of the data's variance is left at T, where the priors of VE and VP differ.
    ve = NoiseSchedule.linear(T, beta_start=1e-4, beta_end=0.02).in_family(Process.VE)
    model = linear_model(schedule=ve, prediction=Prediction.SCORE)
    run = tmp_path / "run"
    bound = db.evaluate_nll(model, images, estimator="every-pair", draws=2, out=run, **SILENT)
    summary = db.compress(model, images, tmp_path / "file", run=run, **OPTIONS).summary
    result = summary["bound"]["bits_per_dim"]
    assert summary["bits_per_dim"] == pytest.approx(result, rel=0.01)
    best = bound.sub_schedules.query("variance == 'best_constant' and num_timesteps == 20")
    assert result == pytest.approx(best.bits_per_dim.iloc[-1], rel=1e-6)


def test_every_bit_of_the_file_is_counted(coded):
    summary, dims = coded.summary, 70 * 144
    size, net, most = coded.file.stat().st_size, 0.0, 0.0
    with container.Reader(coded.file) as reader:
        header = reader.first
        blocks = [block for block, _ in reader.whole_blocks()]
    for block in blocks:
        coder, lanes = Coder(block.words), 8 * max(block.record.batches)
        coder.restore(lanes)
        # a lane that opens gains up to a bit, which is no image's
        gained = coder.bits - 16 * block.record.borrowed - block.record.net_bits
        assert 0 <= gained <= lanes
        net += block.record.net_bits
        record = 8 * (len(block.to_bytes()) - 2 * len(block.words))
        most += 16 * block.record.borrowed + 17 * lanes + record
    assert summary["bits_per_dim"] == pytest.approx(net / dims, rel=1e-12)
    assert summary["bits_per_dim_with_startup"] == pytest.approx(8 * size / dims, rel=1e-12)
    heads = 9 * (len(blocks) + 1) + 32  # of the blocks and of the end, and SHA-256
    assert summary["header_bits"] == 8 * (header + heads)
    assert 0.7 * most < summary["startup_bits"] <= most
    assert summary["startup_bits"] == pytest.approx(8 * (size - header - heads) - net, rel=1e-9)
    assert summary["startup_below_one_percent_from"] > 70


def test_the_bound_is_the_row_of_the_run_or_unknown(model, images, tmp_path):
    few, run = images.subset(10), tmp_path / "run"
    report = db.evaluate_nll(model, few, half_width=1e-4, max_evaluations=3000, out=run, **SILENT)
    for timesteps, variance in itertools.product((1, 2, 3, 8, 10, 20, 50, T), VARIANCES):
        process = chosen_process(model, report, timesteps, variance)
        bound, table = bound_of(report, process), report.sub_schedules
        rows = table[(table.variance == variance) & (table.num_timesteps == timesteps)]
        rows = rows[(rows.spacing == "best") | (timesteps == T)]
        if rows.empty:
            assert timesteps in (1, 8, 50)  # 50 are not known by so few terms
            assert bound is None
            continue
        row = rows.sort_values("spacing").iloc[0]
        assert bound.bits_per_dim == row.bits_per_dim
        np.testing.assert_equal(bound.half_width or np.nan, row.half_width)
        assert row.steps in ("", " ".join(map(str, process.timesteps)))


UNEVEN = NoiseSchedule.from_betas([0.02, *LINEAR.betas[1:].tolist()])


@pytest.mark.parametrize(
    ("schedule", "timesteps"), [(LINEAR, 1), (UNEVEN, 20), (UNEVEN, T)], ids=str
)
def test_a_bound_that_no_run_has_is_unknown(images, tmp_path, schedule, timesteps):
    model, few = linear_model(schedule=schedule), images.subset(3)
    report = db.compress(model, few, tmp_path / "file", timesteps=timesteps, **QUIET)
    assert report.summary["bound"] is None
    np.testing.assert_array_equal(restored(report, model).pixels, few.pixels)


OTHER_MODELS = {
    "checkpoint": {"sha256": "1" * 64},
    "schedule_sha256": {"schedule": NoiseSchedule.linear(T, beta_start=1e-4, beta_end=0.19)},
    "clip": {"clip": False},
    "prediction": {"prediction": Prediction.V},
    "process": {"schedule": LINEAR.in_family(Process.FLOW)},
    "data_range": {"data_range": DataRange(0, 1)},
    "num_timesteps": {"schedule": NoiseSchedule.linear(T + 1)},
    "network": {"part": "another"},
}


@pytest.mark.parametrize("fact", OTHER_MODELS)
def test_a_run_of_another_model_is_refused(options, model, images, tmp_path, fact):
    other = dataclasses.replace(model, **OTHER_MODELS[fact])
    with pytest.raises(InputError, match=f"of another model \\({fact} is"):
        db.compress(other, images, tmp_path / "file", **options)
    assert not list(tmp_path.iterdir())


def test_a_run_must_say_of_which_model_it_is(coded, model, images, tmp_path):
    run = shutil.copytree(coded.file.with_name("run"), tmp_path / "run")
    (run / "run.json").unlink()
    for wrong, why in ((run, r"has no run\.json"), (tmp_path, "holds no run")):
        with pytest.raises(InputError, match=why):
            db.compress(model, images, tmp_path / "file", run=wrong, **OPTIONS)


def test_a_run_on_other_images_bounds_nothing(coded, options, model, images, tmp_path):
    report = db.compress(model, images.subset(3), tmp_path / "file", **options)
    assert report.summary["bound"] is None
    assert report.summary["timesteps"] == coded.summary["timesteps"]
    assert "not known" in str(report)


@pytest.mark.parametrize("num_images", [1000, 50_000, 56_000, 500_000])
def test_the_run_that_chooses_takes_as_many_evaluations_as_its_interval(small_model, num_images):
    few = small_model.respaced(20)
    asked = compressing._design(num_images, few.schedule.num_timesteps)
    images = db.load_images(np.zeros((num_images, 1, 1, 1), np.uint8))
    Importance(max_evaluations=asked["max_evaluations"]).check(
        few, images, seed=0, precision=Precision.FP32
    )
    if num_images == 1000:
        assert asked == {"max_evaluations": 4000}


def test_the_run_that_chooses_shows_its_progress(model, images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(lines, "SECONDS_BETWEEN_LINES", 0.0)
    options = {"timesteps": 5, "compare": False, "verify": "none"}
    db.compress(model, images.subset(4), tmp_path / "file", **options)
    message = capsys.readouterr().err
    assert "choose timesteps: 480 of 480 (100%)" in message
    assert message.index("choose timesteps:") < message.index("compress: ")


def test_the_variances_of_a_predicted_mean_are_those_of_errors_without_clipping(tmp_path):
    few = oracle_images(5)
    clipped = oracle_checkpoint(few, prediction="previous_mean", spread=0.01)
    network, forward = clipped.network, clipped.network.forward
    network.forward = lambda x_t, *given: forward(x_t, *given) + 0.3 * x_t
    clipped = dataclasses.replace(clipped, clip=True)
    free = dataclasses.replace(clipped, clip=False)
    options = {"timesteps": 20, **QUIET}
    result = [
        db.compress(model, few, tmp_path / str(index), code_variance=variance, **options).summary
        for index, (model, variance) in enumerate(
            ((clipped, "best_constant"), (free, "best_constant"), (free, "fixed_large"))
        )
    ]
    of_clipped, of_free, fixed = (summary["bits_per_dim"] for summary in result)
    assert of_clipped == of_free < fixed
    assert all(summary["bound"] is None for summary in result)
    for model in (clipped, free):
        run = tmp_path / f"run-{model.clip}"
        design = {"estimator": "every-pair", "draws": 2, "check": False}
        db.evaluate_nll(model, few, **design, out=run, **SILENT)
    with pytest.raises(InputError, match="has the errors of the clipped x_start"):
        db.compress(clipped, few, tmp_path / "file", run=tmp_path / "run-True", **options)
    report = db.compress(free, few, tmp_path / "file", run=tmp_path / "run-False", **options)
    assert report.summary["bits_per_dim"] == of_free


def test_huge_outputs_that_are_clipped_are_coded_without_a_warning(tmp_path):
    few = oracle_images(5)
    model = oracle_checkpoint(few, prediction="x_start", spread=0.01)
    model.network.forward = lambda x_t, *given: 1e20 * x_t
    # pytest makes every warning an error
    report = db.compress(model, few, tmp_path / "file", timesteps=6, **QUIET)
    np.testing.assert_array_equal(restored(report, model).pixels, few.pixels)


def test_levels_between_those_of_the_model_are_refused(images, tmp_path):
    model = linear_model(data_range=DataRange(levels=32))
    with pytest.raises(InputError, match="`levels=32`"):
        db.compress(model, images, tmp_path / "file", **QUIET)
    few = dataclasses.replace(images.subset(3), pixels=model.data_range.shown(images.pixels[:3]))
    report = db.compress(model, few, tmp_path / "file", timesteps=6, **QUIET)
    np.testing.assert_array_equal(restored(report, model).pixels, few.pixels)


def test_the_best_timesteps_beat_even_ones_and_constant_variances_fixed_ones(
    coded, model, images, tmp_path
):
    few = images.subset(30)
    fixed = db.compress(
        model, few, tmp_path / "a", timesteps=20, code_variance="fixed_large", **QUIET
    )
    assert fixed.summary["bound"]["bits_per_dim"] > coded.summary["bound"]["bits_per_dim"]
    assert fixed.summary["bits_per_dim"] > coded.summary["bits_per_dim"]
    steps = coded.summary["timesteps"]
    assert (steps[0], steps[-1], len(steps)) == (1, T, 20)
    assert steps != model.schedule.evenly_spaced(20)


OWN = """
import torch

class Score(torch.nn.Module):
    def forward(self, x, sigma):
        return -x / (0.05 + sigma[:, None, None, None] ** 2)
"""


def test_a_network_of_ones_own_codes_without_loss(tmp_path, capsys):
    (tmp_path / "own.py").write_text(OWN)
    images = normal_images(3).pixels.transpose(0, 2, 3, 1)
    np.savez(tmp_path / "x.npz", images)
    settings = ("--process", "ve:0.01:5:30", "--prediction", "score", "--variance", "fixed_small")
    model = ("--network", f"{tmp_path}/own.py:Score", *settings, "--time-input", "sigma")
    file = str(tmp_path / "file")
    compress = ("compress", *model, "--data", str(tmp_path / "x.npz"), "--timesteps", "5")
    assert run([*compress, "--no-compare", "--out", file]) == 0
    assert run(["decompress", file, *model, "--out", str(tmp_path / "y.npz")]) == 0
    capsys.readouterr()
    result = db.load_images(tmp_path / "y.npz").pixels
    np.testing.assert_array_equal(result, images.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("channels", [2, 5])
def test_codecs_that_do_not_take_such_images_are_left_out(coded, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (2, channels, 8, 8)).astype(np.uint8)
    sizes = {codec.name: dataclasses.asdict(codec) for codec in other_codecs(pixels)}
    assert sizes["LZMA 9e"]["bits_per_dim"] > 7
    assert (sizes["PNG"]["bits_per_dim"] is None) == (channels == 5)
    if channels == 5:
        facts = codec_facts({**coded.summary, "codecs": sizes.values()})
        assert "PNG, WebP lossless" in facts["left out"]
        assert "not for images of 5 channels" in facts["left out"]


def test_what_is_not_installed_is_named_with_its_remedy(coded, images, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    monkeypatch.setattr(features, "check", lambda name: name != "webp")
    codecs = [dataclasses.asdict(codec) for codec in other_codecs(images.pixels[:1])]
    assert codec_facts({**coded.summary, "codecs": codecs})["left out"] == (
        "WebP lossless: pip install --upgrade pillow; "
        'JPEG XL lossless, JPEG-LS: pip install "ddpmbench[codecs]"'
    )


def test_the_text_and_the_page_name_every_codec(model, images, tmp_path):
    how = {**OPTIONS, "timesteps": 4, "compare": True}
    summary = db.compress(model, images.subset(2), tmp_path / "file.ddpmc", **how).summary
    assert json.loads(printed_codec(summary, "json")) == json.loads(json.dumps(summary))
    assert {codec["name"] for codec in summary["codecs"]} > {"PNG", "Zstandard 19"}
    page = codec_page(summary)
    for codec in summary["codecs"]:
        assert (codec["missing"] is None) == (f"{codec['name']}</th>" in page)
    assert f"{summary['bits_per_dim']:.4f}" in page


@pytest.mark.parametrize("name", ["crops.npz", "pngs"])
def test_what_is_written_is_what_was_compressed(coded, model, images, tmp_path, name):
    write_images(tmp_path / name, db.decompress(coded.file, model, progress=False))
    np.testing.assert_array_equal(db.load_images(tmp_path / name).pixels, images.pixels)


def test_a_page_replaces_pages_alone(small_checkpoint, small_npz, tmp_path, capsys, monkeypatch):
    def called(*given, **options):
        raise AssertionError("computed")

    monkeypatch.setattr(compressing, "compress", called)
    out, notes = tmp_path / "file.html", tmp_path / "notes.txt"
    notes.write_text("mine")
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "link.html").symlink_to(out)
    command = ["compress", "--ckpt", str(small_checkpoint), "--data", str(small_npz)]
    for page, why in (
        ("file.html", "is the file of --out"),
        ("link.html", "is the file of --out"),
        ("file.html.partial", "is the file of --out"),
        ("notes.txt", "is no .html"),
        ("folder.html", "is a folder"),
        ("none/page.html", "no such file or directory"),
        ("notes.txt/page.html", "not a directory"),
    ):
        assert run([*command, "--out", str(out), "--page", str(tmp_path / page)]) == 2
        message = capsys.readouterr().err
        assert message.startswith("Error: --page ")
        assert why in message
    assert notes.read_text() == "mine"
    page = tmp_path / "page.html"
    page.write_text("an earlier one")
    with pytest.raises(AssertionError, match="computed"):
        run([*command, "--out", str(out), "--page", str(page)])
