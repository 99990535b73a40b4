"""Sample i is a function of checkpoint, sampler, seed and i: nothing else can change it."""

import dataclasses
import json
import os
from functools import partial

import numpy as np
import pytest
from feature_networks import write_network
from oracles import oracle_checkpoint, oracle_images
from PIL import Image
from processes import ddpmbench, ranks
from sealing import read_record

import ddpmbench as db
from ddpmbench.cli.main import run
from ddpmbench.diffusion.data_range import DataRange
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError
from ddpmbench.execution import devices
from ddpmbench.execution import samples as module
from ddpmbench.report.sample import printed_samples
from ddpmbench.samples.samplers import SamplerChoice

N = 12


@pytest.fixture(scope="module")
def whole(small_model):
    return db.generate_samples(small_model, N, batch_size=4)


def pixels_of(folder):
    return np.load(folder / "samples.npz")["arr_0"].transpose(0, 3, 1, 2)


def test_a_folder_holds_what_memory_does(small_model, whole, tmp_path):
    report = db.generate_samples(small_model, N, batch_size=4, out=tmp_path / "run", png=True)
    assert np.array_equal(report.images.pixels, whole.images.pixels)
    assert np.array_equal(pixels_of(report.folder), whole.images.pixels)
    again = db.load_images(report.folder / "samples.npz")
    assert again.sha256 == report.summary["sha256"] == whole.summary["sha256"]
    for index in range(N):
        with Image.open(report.folder / "png" / f"{index:06d}.png") as picture:
            assert np.array_equal(np.asarray(picture), whole.images.pixels[index, 0])
    assert report.summary["num_evaluations"] == N * small_model.schedule.num_timesteps
    assert len(list((report.folder / "png").iterdir())) == N
    assert (report.folder / "figures" / "samples.png").exists()


def test_the_formats_print_what_the_samples_are(whole, small_model, tmp_path):
    printed = partial(printed_samples, whole.summary, tmp_path / "samples.npz")
    assert printed("table").startswith(f"{N} samples, 8x8 gray: {tmp_path / 'samples.npz'}")
    assert printed("quiet") == str(tmp_path / "samples.npz")
    assert json.loads(printed("json"))["num_samples"] == N
    two = dataclasses.replace(small_model.respaced(3), data_range=DataRange(levels=2))
    report = db.generate_samples(two, 2)
    assert "data in [-1, 1], 2 levels" in printed_samples(report.summary, tmp_path, "table")
    assert set(np.unique(report.images.pixels)) <= {0, 255}


@pytest.mark.parametrize("batch_size", [1, 5, 64, None])
def test_batch_size_changes_no_more_than_a_level_here_and_there(small_model, whole, batch_size):
    other = db.generate_samples(small_model, N, batch_size=batch_size)
    levels = np.abs(other.images.pixels.astype(int) - whole.images.pixels)
    assert levels.max() <= 1  # float rounding of the network
    assert (levels > 0).mean() < 0.005


def test_more_samples_begin_with_the_fewer(small_model, whole, tmp_path):
    out = tmp_path / "run"
    db.generate_samples(small_model, 4, batch_size=4, out=out)
    counts = []
    listener = db.RunListener(start=counts.append)
    more = db.generate_samples(small_model, N, batch_size=4, out=out, listener=listener)
    assert np.array_equal(more.images.pixels, whole.images.pixels)
    assert counts == [(N - 4) * small_model.schedule.num_timesteps]
    with pytest.raises(db.InputError, match=r"`out=.*`: holds 12 samples, more than the 5"):
        db.generate_samples(small_model, 5, out=out)
    assert len(pixels_of(out)) == N
    (out / "samples.npz").write_bytes(b"cut")
    again = db.generate_samples(small_model, N, batch_size=4, out=out)
    assert np.array_equal(pixels_of(out), again.images.pixels)


@pytest.mark.parametrize(
    "settings",
    [
        db.SampleSettings(seed=1),
        db.SampleSettings(sampler=SamplerChoice("ddim")),
        db.SampleSettings(eight_bit="truncate"),
    ],
)
def test_another_command_is_refused_the_folder(small_model, tmp_path, settings):
    db.generate_samples(small_model, 2, out=tmp_path / "run")
    with pytest.raises(db.InputError, match=r"`out=.*`: holds another run"):
        db.generate_samples(small_model, 2, settings=settings, out=tmp_path / "run")


def test_samples_have_their_classes(tmp_path):
    images = oracle_images(6, shape=(1, 4, 4), num_classes=3)
    checkpoint = oracle_checkpoint(images, NoiseSchedule.cosine(30))
    checkpoint = dataclasses.replace(checkpoint, image_size=4, channels=1)
    for settings, expected in (
        (db.SampleSettings(), np.arange(9) % 3),
        (db.SampleSettings(label=2), np.full(9, 2)),
    ):
        out = tmp_path / str(settings.label)
        report = db.generate_samples(checkpoint, 9, settings=settings, out=out)
        assert np.array_equal(np.load(out / "samples.npz")["arr_1"], expected)
        nearest = np.square(report.images.pixels[:, None].astype(float) - images.pixels).sum(
            (2, 3, 4)
        )
        assert np.array_equal(images.labels[nearest.argmin(1)], expected)


def test_what_fits_no_checkpoint_is_refused(small_model, tmp_path):
    unsized = dataclasses.replace(small_model, image_size=None)
    for model, settings, words in [
        (unsized, db.SampleSettings(), "`image_size`"),
        (unsized, db.SampleSettings(image_size=9), "divisible by 2"),
        (small_model, db.SampleSettings(image_size=16), "`image_size=16`: .* 8x8"),
        (small_model, db.SampleSettings(label=0), "`label=0`: the checkpoint has no classes"),
    ]:
        with pytest.raises(db.InputError, match=words):
            db.generate_samples(model, 2, settings=settings, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    sized = db.generate_samples(unsized, 2, settings=db.SampleSettings(image_size=16))
    assert sized.images.pixels.shape == (2, 1, 16, 16)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sampler", "ddim"),
        ("eight_bit", "floor"),
        ("seed", -1),
        ("seed", 1.0),
        ("label", True),
        ("image_size", "8"),
        ("precision", "fp8"),
    ],
)
def test_settings_of_another_type_are_named(name, value):
    with pytest.raises(db.InputError, match=f"^`{name}="):
        db.SampleSettings(**{name: value})


def test_arguments_of_another_type_are_named(small_model, tmp_path):
    for value in (2.0, "2", True, 0):
        with pytest.raises(db.InputError, match=r"`num_samples=.*: give a whole number from 1 on"):
            db.generate_samples(small_model, value)
        with pytest.raises(db.InputError, match=r"`batch_size="):
            db.generate_samples(small_model, 2, batch_size=value)
    for settings in ("ddim", SamplerChoice("ddim"), {}):
        with pytest.raises(db.InputError, match=r"`settings=.*type SampleSettings"):
            db.generate_samples(small_model, 2, settings=settings)
    settings = db.SampleSettings(seed=np.int64(0), image_size=np.int64(8))
    of_numpy = db.generate_samples(
        small_model, np.int64(2), settings=settings, batch_size=np.int64(2), out=tmp_path / "run"
    )
    assert np.array_equal(of_numpy.images.pixels, db.generate_samples(small_model, 2).images.pixels)


def test_a_batch_that_does_not_fit_is_halved(small_model, whole, monkeypatch):
    real = module.SamplesRun.samples

    def small_memory(self, index, told):
        if len(index) > 4:
            raise MemoryError
        return real(self, index, told)

    monkeypatch.setattr(module.SamplesRun, "samples", small_memory)
    warnings = []
    halved = db.generate_samples(small_model, N, listener=db.RunListener(warn=warnings.append))
    assert warnings
    assert np.array_equal(halved.images.pixels, whole.images.pixels)


# ---- processes


@pytest.fixture(scope="module")
def command(small_checkpoint):
    return ["sample", "--ckpt", small_checkpoint, "-n", N, "--batch-size", 2]


@pytest.fixture(scope="module")
def uninterrupted(command, tmp_path_factory):
    out = tmp_path_factory.mktemp("samples") / "run"
    assert ddpmbench(*command, "--out", out).returncode == 0
    return out


def same_images(one, other):
    return (one / "samples.npz").read_bytes() == (other / "samples.npz").read_bytes()


def test_the_number_of_processes_changes_nothing(command, uninterrupted, tmp_path):
    out = tmp_path / "run"
    for result in ranks(3, *command, "--out", out):
        assert result.returncode == 0, result.stderr
    assert same_images(out, uninterrupted)
    one, other = (read_record(f / "summary.json") for f in (out, uninterrupted))
    changing = {"seconds", "images_per_second"}
    assert {k: v for k, v in one.items() if k not in changing} == {
        k: v for k, v in other.items() if k not in changing
    }


# ---- more than there is room for


@pytest.mark.parametrize("command", ["sample", "fid"])
@pytest.mark.parametrize("count", [10**8, 10**12, 10**30])
def test_more_samples_than_there_is_room_for_are_refused_at_once(
    small_checkpoint, small_npz, tmp_path, capsys, monkeypatch, command, count
):
    monkeypatch.setattr(module, "_free", lambda out: 40_000)
    monkeypatch.setattr("ddpmbench.execution.samples.SamplesRun.compute", None)
    out = tmp_path / "run"
    of = ["-n"] if command == "sample" else ["--data", small_npz, "--num-generated"]
    features = ["--feature-network", write_network(tmp_path / "n.pt", num_features=6)]
    options = [*of, count, *(features if command == "fid" else [])]
    arguments = [command, "--ckpt", small_checkpoint, "--out", out, "--timesteps", 2, *options]
    assert run([str(argument) for argument in arguments]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("Error: --num-samples" if command == "sample" else "Error: --num-gen")
    assert not out.exists()


def test_the_number_that_is_advised_fits(small_model, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_free", lambda out: 4_000)
    shortened = small_model.respaced(2)
    with pytest.raises(InputError, match="choose at most") as refused:
        db.generate_samples(shortened, 1000, out=tmp_path / "run")
    advised = int(str(refused.value).split()[-1])
    made = db.generate_samples(shortened, advised, out=tmp_path / "run")
    assert len(made.images) == advised == 4_000 // (4 * 64)
    # Those that are there take no more room.
    monkeypatch.setattr(module, "_free", lambda out: advised * 64)
    assert len(db.generate_samples(shortened, advised, out=tmp_path / "run").images) == advised


def test_a_run_in_memory_is_held_against_memory(small_model, monkeypatch):
    monkeypatch.setattr(module, "available_memory", lambda: 4_000)
    with pytest.raises(InputError, match="GB of memory"):
        db.generate_samples(small_model.respaced(2), 1000)
    monkeypatch.setattr(module, "available_memory", lambda: 63)
    with pytest.raises(InputError, match="no room for one; free some, or name an `out`"):
        db.generate_samples(small_model.respaced(2), 1000)
    monkeypatch.setattr(module, "available_memory", lambda: 64)
    with pytest.raises(InputError, match=r"choose at most 1$"):
        db.generate_samples(small_model.respaced(2), 1000)
    assert len(db.generate_samples(small_model.respaced(2), 1).images) == 1


def test_memory_in_use_is_not_free():
    assert 0 < devices.available_memory() < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
