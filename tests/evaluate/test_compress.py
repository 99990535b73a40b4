"""Compressed files: the pixels come back, the length is the bound's, and nothing else is read."""

import dataclasses
import itertools
import json
import shutil
import sys
import zlib
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from normal_data import normal_images, trained_on_normal_data
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
from ddpmbench.evaluate import coding as module
from ddpmbench.evaluate import compress as compressing
from ddpmbench.evaluate import decompress as decompressing
from ddpmbench.evaluate.code_choice import VARIANCES, bound_of, chosen_process
from ddpmbench.evaluate.codecs import other_codecs
from ddpmbench.evaluate.decompress import first_image, write_images
from ddpmbench.execution import progress as lines
from ddpmbench.execution.importance import Importance
from ddpmbench.execution.worker import RunListener
from ddpmbench.report.codec import codec_facts, codec_rows
from ddpmbench.unet.precision import Precision

SILENT = {"progress": False}
QUIET = {"compare": False, "verify": "none", **SILENT}
OPTIONS = {"timesteps": 20, "block_images": 30, "batch_size": 16, **QUIET}
OWN = """
import torch

class Score(torch.nn.Module):
    def forward(self, x, sigma):
        return -x / (0.05 + sigma[:, None, None, None] ** 2)
"""
T = 60
LINEAR = NoiseSchedule.linear(T, beta_start=1e-4, beta_end=0.2)


@pytest.fixture(scope="module")
def model():
    return trained_on_normal_data(schedule=LINEAR)


@pytest.fixture(scope="module")
def images():
    return normal_images(70)


@pytest.fixture(scope="module")
def coded(model, images, tmp_path_factory):
    """70 images in blocks of 30."""
    folder = tmp_path_factory.mktemp("codec")
    db.evaluate_nll(model, images, estimator="every-pair", draws=2, out=folder / "run", **SILENT)
    how = {name: of for name, of in OPTIONS.items() if name != "verify"}
    return db.compress(model, images, folder / "images.ddpmc", run=folder / "run", **how)


@pytest.fixture
def options(coded):
    """Those of `coded`."""
    return {**OPTIONS, "run": coded.file.with_name("run")}


def restored(report, checkpoint, **options):
    return db.decompress(report.file, checkpoint, progress=False, **options)


def models():
    shape = {"schedule": LINEAR}
    flow = LINEAR.in_family(Process.FLOW)
    ve = LINEAR.in_family(Process.VE)
    of_normal = {
        "v": {**shape, "prediction": Prediction.V},
        "x_start": {**shape, "prediction": Prediction.X_START, "clip": False},
        "ve-score": {"schedule": ve, "prediction": Prediction.SCORE},
        "flow": {"schedule": flow, "prediction": Prediction.EPSILON},
        "from 0 to 1": {**shape, "data_range": DataRange(0, 1)},
    }
    for name, changes in of_normal.items():
        yield name, trained_on_normal_data(**changes), normal_images(5)
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
    model = trained_on_normal_data(schedule=ve, prediction=Prediction.SCORE)
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
    for timesteps in (8, 10):
        out = tmp_path / str(timesteps)
        result = db.compress(model, few, out, run=run, timesteps=timesteps, **QUIET).summary[
            "bound"
        ]
        if timesteps == 8:
            assert result is None
            continue
        best = report.sub_schedules.query(
            "variance == 'best_constant' and num_timesteps == 10 and spacing == 'best'"
        )
        assert result["bits_per_dim"] == best.bits_per_dim.item()


UNEVEN = NoiseSchedule.from_betas([0.02, *LINEAR.betas[1:].tolist()])


@pytest.mark.parametrize(
    ("schedule", "timesteps"), [(LINEAR, 1), (UNEVEN, 20), (UNEVEN, T)], ids=str
)
def test_a_bound_that_no_run_has_is_unknown(images, tmp_path, schedule, timesteps):
    model, few = trained_on_normal_data(schedule=schedule), images.subset(3)
    report = db.compress(model, few, tmp_path / "file", timesteps=timesteps, **QUIET)
    assert report.summary["bound"] is None
    np.testing.assert_array_equal(restored(report, model).pixels, few.pixels)


def test_blocks_decode_alone(coded, model, images):
    for block, part in enumerate((slice(0, 30), slice(30, 60), slice(60, 70))):
        result = restored(coded, model, block=block)
        np.testing.assert_array_equal(result.pixels, images.pixels[part])
        assert list(result.ids) == list(images.ids)[part]
    with pytest.raises(InputError, match="`block=3`"):
        restored(coded, model, block=3)


def test_an_interruption_changes_no_byte(coded, options, model, images, tmp_path):
    out = tmp_path / "images.ddpmc"

    def stop(now):
        if now.done > 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        db.compress(model, images, out, **options, listener=RunListener(progress=stop))
    assert not out.exists()
    partial = out.with_name("images.ddpmc.partial")
    partial.write_bytes(partial.read_bytes() + b"half a record")
    with pytest.raises(InputError, match="was begun with `timesteps=20`"):
        db.compress(model, images, out, **{**options, "timesteps": 19})
    with pytest.raises(InputError, match="was begun with another data"):
        db.compress(model, normal_images(70, seed=1), out, **options)
    another = out.with_name("run")
    few = images.subset(3)
    db.evaluate_nll(model, few, estimator="every-pair", draws=2, out=another, **SILENT)
    for of in (another, None):
        with pytest.raises(InputError, match="was begun with another run"):
            db.compress(model, images, out, **{**options, "run": of})
    started = []
    report = db.compress(
        model,
        images,
        out,
        **{**options, "verify": "all"},
        listener=RunListener(progress=started.append),
    )
    assert (coded.summary["verified_blocks"], report.summary["verified_blocks"]) == (1, 3)
    assert started[0].done == 30
    assert out.read_bytes() == coded.file.read_bytes()
    assert report.summary["bits_per_dim"] == coded.summary["bits_per_dim"]
    assert coded.summary["num_evaluations"] == 70 * 20
    assert report.summary["num_evaluations"] == 70 * 20
    assert coded.summary["seconds"] > 0
    assert report.summary["seconds"] is report.summary["seconds_per_image"] is None
    assert codec_facts(report.summary)["device"].endswith(", continued")
    assert codec_rows(report.summary)[0][2] == ""
    assert not partial.exists()
    with pytest.raises(InputError, match="is there already"):
        db.compress(model, images, out, **options)


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


@pytest.mark.parametrize(("verify", "is_seen"), [("none", False), ("first", True), ("all", True)])
def test_blocks_of_an_earlier_session_are_verified(
    coded, options, model, images, tmp_path, verify, is_seen
):
    partial = tmp_path / "file.partial"
    flipped = with_words(lambda words: np.append(words[:-1], words[-1] ^ 1))
    rewritten(coded.file, tmp_path / "other", flipped).rename(partial)
    options["verify"] = verify
    if not is_seen:
        report = db.compress(model, images, tmp_path / "file", **options)
        assert report.summary["verified_blocks"] == 0
        return
    with pytest.raises(InputError, match="cannot be decoded"):
        db.compress(model, images, tmp_path / "file", **options)


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


def test_other_models_and_machines_are_refused(coded, model, monkeypatch):
    other = dataclasses.replace(model, sha256="1" * 64)
    with pytest.raises(
        InputError, match=r"was compressed with checkpoint 0000.*and here it is 111"
    ):
        restored(coded, other)
    with pytest.raises(InputError, match="clip True"):
        restored(coded, model.with_conventions(clip=False))
    with pytest.raises(InputError, match="was compressed with schedule"):
        restored(coded, model.respaced(30))
    with monkeypatch.context() as patch:
        patch.setattr(module, "device_name", lambda device: "another, 64 threads")
        with pytest.raises(InputError, match="device cpu, 1 thread, and here it is another"):
            restored(coded, model)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "9.9")
        with pytest.raises(InputError, match=r"torch .*, and here it is 9.9"):
            restored(coded, model)


def test_a_network_that_rounds_otherwise_is_noticed(coded, model):
    forward = model.network.forward
    network = type(model.network)(model)
    # but for the timesteps of the network check
    network.forward = lambda x_t, time: (
        forward(x_t, time) + 1e-3 * ((time > 0) & (time < T - 1)).float().view(-1, 1, 1, 1)
    )
    with pytest.raises(InputError, match="block 0 does not decode"):
        restored(coded, dataclasses.replace(model, network=network))


def test_damaged_files_are_refused(coded, model, tmp_path):
    whole = coded.file.read_bytes()
    rng = np.random.default_rng(0)
    broken = [whole[:n] for n in (0, 5, 20, 500, len(whole) // 2, len(whole) - 1)]
    broken += [whole + b"more", b"no such file" * 10]
    header, first, second, *rest = sections(coded.file)
    broken.append(b"".join([header, second, first, *rest]))  # whole blocks in another order
    for bit in rng.integers(0, 8 * len(whole), 150):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        broken.append(bytes(flipped))
    path = tmp_path / "broken"
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            db.decompress(path, model, progress=False)
        assert str(path) in str(caught.value)


def sections(file):
    """The bytes of the header, of each block, and of the end."""
    whole = file.read_bytes()
    with container.Reader(file) as reader:
        ends = [0, reader.first, *(end for _, end in reader.whole_blocks()), len(whole)]
    return [whole[a:b] for a, b in itertools.pairwise(ends)]


def rewritten(file, path, change=lambda block: block, **changes):
    """The file with another header and other blocks, whose checksums hold."""
    with container.Reader(file) as reader:
        header = msgspec.structs.replace(reader.header, **changes)
        blocks = [block for block, _ in reader.whole_blocks()]
    writer = container.Writer(path.with_suffix(".partial"), header)
    for block in blocks:
        writer.add(change(block))
    writer.finish(path)
    return path


CLAIMS = {
    "images": {"num_images": 10**12},
    "blocks": {"block_images": 10**9},
    "shape": {"shape": (1, 60_000, 60_000)},
    "labels": {"labels": b"\x78\x9c" + b"0" * 40},
    "ids": {"ids": b"\x78\x9c" + b"0" * 40},
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_header_claims_in_vain(coded, model, tmp_path, claim):
    path = rewritten(coded.file, tmp_path / "file", **CLAIMS[claim])
    anywhere = dataclasses.replace(model, image_size=None, channels=None)
    with pytest.raises(InputError) as caught:
        db.decompress(path, anywhere, progress=False)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("batches", [[1 << 20] * 1000 + [1], [1] * 3 + [1 << 20, 1]], ids=len)
@pytest.mark.parametrize("kind", ["labels", "ids"])
def test_nothing_is_inflated_for_images_that_the_words_do_not_hold(
    coded, model, tmp_path, monkeypatch, batches, kind
):
    with container.Reader(coded.file) as reader:
        block = reader.block(0)
        header = msgspec.structs.replace(
            reader.header,
            num_images=sum(batches),
            block_images=sum(batches),
            **{kind: zlib.compress(bytes(1 << 20))},
        )
    record = msgspec.structs.replace(block.record, batches=batches)
    writer = container.Writer(tmp_path / "partial", header)
    writer.add(dataclasses.replace(block, record=record))
    writer.finish(tmp_path / "file")

    def inflated(*given):
        raise AssertionError("inflated")

    monkeypatch.setattr(decompressing, "_inflated", inflated)
    with pytest.raises(InputError, match="file: is damaged"):
        db.decompress(tmp_path / "file", model, progress=False)


def test_names_are_read_after_the_images(coded, model, tmp_path, monkeypatch):
    names = zlib.compress(json.dumps(["a"] * 70).encode())
    flipped = with_words(lambda words: np.append(words[:-1], words[-1] ^ 1))
    path = rewritten(coded.file, tmp_path / "file", flipped, ids=names)
    monkeypatch.setattr(decompressing, "_inflated", None)
    with pytest.raises(InputError, match="block 0 does not decode"):
        db.decompress(path, model, progress=False)


@pytest.mark.parametrize("depth", [500, 5000, 200_000])
def test_a_header_of_any_depth_is_refused(coded, model, tmp_path, depth):
    path = tmp_path / "file"
    nested = msgspec.Raw(b"\x91" * depth + b"\xc0")
    with pytest.raises(InputError, match=r"file: (is damaged|was compressed with checkpoint None)"):
        db.decompress(rewritten(coded.file, path, model={"deep": nested}), model, progress=False)


@pytest.mark.parametrize(
    "process",
    [
        {"timesteps": [1] * 20},
        {"timesteps": [*range(T + 1, T + 21)]},
        {"variances": [1e-300] * 20},
        {"variances": [1.0]},
        *({"variances": [value] * 20} for value in (np.inf, np.nan, 1e300, 0.0)),
        {"variances": [1.0] * 19 + [1e300]},
    ],
)
def test_hostile_processes_are_refused(coded, model, tmp_path, process):
    with container.Reader(coded.file) as reader:
        changed = msgspec.structs.replace(reader.header.process, **process)
    path = rewritten(coded.file, tmp_path / "file", process=changed)
    with pytest.raises(InputError, match=r"file: .*damaged"):
        db.decompress(path, model, progress=False)


def with_words(words):
    return lambda block: dataclasses.replace(block, words=words(block.words))


def with_batches(*batches):
    def changed(block):
        sizes = batches if block.record.num_images == sum(batches) else block.record.batches
        record = msgspec.structs.replace(block.record, batches=list(sizes))
        return dataclasses.replace(block, record=record)

    return changed


HOSTILE = {
    "noise": with_words(
        lambda words: np.random.default_rng(0).integers(0, 1 << 16, len(words)).astype(np.uint16)
    ),
    "nothing": with_words(lambda words: words[:0]),
    "zeros": with_words(np.zeros_like),
    "one word more": with_words(lambda words: np.append(np.uint16(7), words)),
    "other pixels": lambda block: dataclasses.replace(
        block, record=msgspec.structs.replace(block.record, pixels=block.record.pixels ^ 1)
    ),
    "one batch": with_batches(30),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_hostile_blocks_are_refused(coded, model, tmp_path, change):
    path = rewritten(coded.file, tmp_path / "file", change)
    with pytest.raises(InputError, match="damaged"):
        db.decompress(path, model, progress=False)


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
    model = trained_on_normal_data(schedule=LINEAR, data_range=DataRange(levels=32))
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


NAMES = {
    "plain": (["b.JPG", "a", "été 2.png"], ["a.png", "b.png", "été 2.png"]),
    "numbers": (["7", "8", "9"], None),
    "twice": (["a.png", "A.jpg", "b"], None),
    **{name: (["a", name, "b"], None) for name in ("../x", "a\\b", ".", "", "a\0b", "x" * 300)},
}


@pytest.mark.parametrize(("ids", "names"), NAMES.values(), ids=range(len(NAMES)))
def test_a_png_has_the_name_of_its_image_where_that_is_safe(images, tmp_path, ids, names):
    few = dataclasses.replace(images.subset(3), ids=ids)
    out = tmp_path / "of" / "images"
    out.parent.mkdir()
    write_images(out, few, first=30)
    result = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    names = names or [f"0000{number}.png" for number in (30, 31, 32)]
    assert result == [Path("of", "images", name) for name in names]
    order = [1, 0, 2] if "b.png" in names else [0, 1, 2]
    np.testing.assert_array_equal(db.load_images(out).pixels, few.pixels[order])


def test_the_numbers_of_a_block_go_on(coded):
    assert [first_image(coded.file, block) for block in (None, 0, 2)] == [0, 0, 60]


def test_the_commands(small_checkpoint, small_npz, small_images, tmp_path, capsys):
    file, out = tmp_path / "crops.ddpmc", tmp_path / "crops.npz"
    options = ["--ckpt", str(small_checkpoint)]
    compress = ["compress", *options, "--data", str(small_npz), "--out", str(file)]
    page = tmp_path / "page.html"
    assert run([*compress, "--timesteps", "4", "--format", "json", "--page", str(page)]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["schema"] == "ddpmbench.codec/1"
    assert {codec["name"] for codec in summary["codecs"]} > {"PNG", "Zstandard 19"}
    text = page.read_text()
    for codec in summary["codecs"]:
        assert (codec["missing"] is None) == (f"{codec['name']}</th>" in text)
    assert f"{summary['bits_per_dim']:.4f}" in text
    assert run(["decompress", str(file), *options, "--out", str(out)]) == 0
    np.testing.assert_array_equal(db.load_images(out).pixels, small_images.pixels)
    assert run(["decompress", str(file), *options, "--out", str(tmp_path / "pngs")]) == 0
    np.testing.assert_array_equal(db.load_images(tmp_path / "pngs").pixels, small_images.pixels)
    capsys.readouterr()
    file.write_bytes(file.read_bytes()[:-3])
    for wrong in (
        ["decompress", str(file), *options, "--out", str(tmp_path / "new.npz")],
        ["decompress", str(file), *options, "--out", str(out)],
        ["decompress", str(file), "--out", str(tmp_path / "new.npz")],
        ["decompress", str(tmp_path / "none"), *options, "--out", str(tmp_path / "new.npz")],
        ["compress", *options, "--data", str(small_npz)],
    ):
        assert run(wrong) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert len(captured.err.splitlines()) == 1
        assert captured.err.startswith("Error: ")
    assert not (tmp_path / "new.npz").exists()


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


def test_what_cannot_be_written_is_refused_first(
    coded, model, images, small_checkpoint, tmp_path, capsys
):
    options = {**OPTIONS, "run": tmp_path / "not opened"}
    (tmp_path / "file").touch()
    for folder, why in (("none", "no such file"), ("file", "not a directory")):
        with pytest.raises(InputError, match=f"`out` .*{folder}: cannot be written .{why}"):
            db.compress(model, images, tmp_path / folder / "x", **options)
        # of another model, which is not compared before
        command = ["decompress", str(coded.file), "--ckpt", str(small_checkpoint), "--out"]
        assert run([*command, str(tmp_path / folder / "x.npz")]) == 2
        assert why in capsys.readouterr().err
    assert run([*command, str(tmp_path / "file" / "x")]) == 2
    assert "not a directory" in capsys.readouterr().err
    assert run([*command, str(tmp_path / "new" / "x")]) == 2
    assert "was compressed with" in capsys.readouterr().err


def test_a_file_is_written_by_one_process_at_a_time(coded, options, model, images, tmp_path):
    out, seen = tmp_path / "file", []

    def again(now):
        if now.done > 30 and not seen:
            seen.append(now)
            with pytest.raises(InputError, match=r"file\.partial: another process writes it"):
                db.compress(model, images, out, **options)

    db.compress(model, images, out, **options, listener=RunListener(progress=again))
    assert seen
    assert out.read_bytes() == coded.file.read_bytes()


def test_a_file_that_appeared_meanwhile_is_kept(options, model, images, tmp_path):
    out = tmp_path / "file"
    listener = RunListener(progress=lambda now: out.write_bytes(b"kept"))
    with pytest.raises(InputError, match="is there already"):
        db.compress(model, images.subset(2), out, **options, listener=listener)
    assert out.read_bytes() == b"kept"


@pytest.mark.parametrize("order", [(0, 0, 1, 2), (0, 2), (0, 1, 2, 2)], ids=str)
def test_a_partial_file_of_other_blocks_is_refused(coded, options, model, images, tmp_path, order):
    partial = tmp_path / "file.partial"
    header, *blocks = sections(coded.file)
    partial.write_bytes(header + b"".join(blocks[i] for i in order))
    before = partial.read_bytes()
    with pytest.raises(InputError, match="blocks do not fit its header; remove it"):
        db.compress(model, images, tmp_path / "file", **options)
    assert partial.read_bytes() == before


def test_blocks_have_at_most_as_many_images_as_the_format_counts(options, model, images, tmp_path):
    out, most, few = tmp_path / "file", container.MOST, images.subset(2)
    options["timesteps"] = 2
    with pytest.raises(InputError, match=f"`block_images={most + 1}`"):
        db.compress(model, few, out, **{**options, "block_images": most + 1})
    report = db.compress(model, few, out, **{**options, "block_images": most})
    np.testing.assert_array_equal(restored(report, model).pixels, few.pixels)


def test_a_refused_compression_leaves_nothing(options, images, tmp_path):
    fine = NoiseSchedule.from_betas([1e-12] * 10)
    model = trained_on_normal_data(schedule=fine)
    with pytest.raises(InputError, match="variance of the reverse process is too small"):
        db.compress(model, images.subset(2), tmp_path / "file", timesteps=10, **QUIET)
    model = trained_on_normal_data(schedule=LINEAR)
    network, forward = type(model.network)(model), model.network.forward
    # but for the timesteps of the network check
    network.forward = lambda x_t, time: forward(x_t, time).where(
        ((time == 0) | (time == T - 1)).view(-1, 1, 1, 1), torch.nan
    )
    broken = dataclasses.replace(model, network=network)
    with pytest.raises(InputError, match="is not finite"):
        db.compress(broken, images.subset(2), tmp_path / "file", **options)
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_too_long_with_its_ending_is_refused(coded, model, images, tmp_path):
    out = tmp_path / ("x" * 253)
    with pytest.raises(InputError, match="`out`: a name of more than 255 bytes"):
        db.compress(model, images, out, **OPTIONS)
