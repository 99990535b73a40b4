"""Scores of a run: whatever interrupts or divides it, they are those of its samples."""

import copy
import dataclasses
import random
import signal
import time

import numpy as np
import pytest
import torch
from feature_networks import write_network
from PIL import Image
from processes import Command, ddpmbench, ranks
from sealing import read_record
from setups import slow_samples

import ddpmbench as db
from ddpmbench.evaluate import fid
from ddpmbench.evaluate.fid import load_reference
from ddpmbench.evaluate.sample import load_samples
from ddpmbench.execution import features
from ddpmbench.metrics.feature_networks import load_feature_network
from ddpmbench.metrics.frechet import frechet_distance, frechet_infinity
from ddpmbench.metrics.scores import PROTOCOLS
from ddpmbench.metrics.statistics import feature_statistics
from ddpmbench.report.fid import fid_facts
from ddpmbench.unet.unet import UNet

N = 24
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDPMBENCH_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def network_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("network") / "stand-in.pt"
    return write_network(path, num_features=6, num_classes=9)


@pytest.fixture(scope="module")
def network(network_file):
    return load_feature_network(network_file, resize="clean", device=CPU)


@pytest.fixture(scope="module")
def reference():
    whole = db.load_images("fashion-mnist:test", num_images=60)
    pixels = np.ascontiguousarray(whole.pixels[:, :, 10:18, 10:18])
    return dataclasses.replace(whole, pixels=pixels, source="crops", split=None)


@pytest.fixture(scope="module")
def settings(network):
    return db.FidSettings(network, PROTOCOLS["clean"], N)


@pytest.fixture(scope="module")
def whole(small_model, reference, settings):
    return db.evaluate_fid(small_model, [reference], settings)


def scores(report):
    """All of a summary that is no time."""
    return {name: of for name, of in report.summary.items() if name != "seconds"}


# ---- what the numbers are


def test_the_distance_is_that_of_the_features(small_model, reference, network, whole):
    samples = db.generate_samples(small_model, N).images
    known = feature_statistics(network(reference.pixels).features)
    features = network(samples.pixels).features
    expected = frechet_distance(feature_statistics(features), known)
    assert whole.summary["fid"] == pytest.approx(expected, rel=1e-4)
    division = frechet_infinity(features, known, seed=0)
    assert whole.summary["fid_infinity"] == pytest.approx(division.estimate.value, rel=1e-4)
    assert whole.summary["samples"]["sha256"] == samples.sha256
    assert whole.summary["num_generated"] == len(whole.per_image) == N
    assert whole.summary["num_evaluations"] == N * small_model.schedule.num_timesteps
    assert whole.against_n.num_generated.tolist() == [N, N // 2, N // 4]


@pytest.mark.parametrize(
    ("choice", "each", "words"),
    [
        (
            db.SamplerChoice("predictor-corrector", snr=0.1),
            12,
            "predictor-corrector, T = 6 of 40, fixed_large, Langevin steps 1, r = 0.1, clip, "
            "12 network evaluations per sample, 288 network evaluations, seed 0",
        ),
        (
            db.SamplerChoice("ode"),
            11,
            "ode, T = 6 of 40, heun, clip, 11 network evaluations per sample, "
            "264 network evaluations, seed 0",
        ),
    ],
)
def test_other_samplers_are_scored_and_their_evaluations_counted(
    small_model, reference, settings, monkeypatch, choice, each, words
):
    of = dataclasses.replace(settings, samples=db.SampleSettings(sampler=choice))
    monkeypatch.setattr(features, "_WORTH_MEASURING", {"samples": 100, "features": 1000})
    costs = []
    monkeypatch.setattr(fid, "cost_lines", lambda cost: costs.append(cost) or ["seconds"])
    notes = []
    listener = db.RunListener(note=notes.append)
    model = small_model.respaced(6)
    report = db.evaluate_fid(model, [reference], of, listener=listener)
    assert "seconds" in notes
    assert report.summary["num_evaluations"] == N * each
    assert costs[0].num_evaluations == each
    assert costs[0].with_timesteps(3).num_evaluations == round(each / 2)
    samples = db.generate_samples(model, N, settings=of.samples, progress=False).images
    assert report.summary["samples"]["sha256"] == samples.sha256
    assert dict(fid_facts(report.summary))["sampler"] == words


def test_every_score_is_there_with_its_interval(whole):
    for name in ("fid", "fid_infinity", "inception_score", "kid", "precision", "recall"):
        assert whole.summary[name] is not None
    for name in ("fid", "fid_infinity", "inception_score", "kid", "precision"):
        assert whole.summary[f"{name}_half_width"] >= 0
    assert whole.summary["recall_half_width"] is None  # of so few samples it is not known
    assert whole.summary["name"].startswith("FD[")
    assert any("24 samples are few" in line for line in whole.summary["warnings"])


def test_samples_from_a_file_score_the_same(small_model, reference, settings, whole, tmp_path):
    made = db.generate_samples(small_model, N, out=tmp_path / "samples")
    given = db.load_images(made.folder / "samples.npz")
    again = db.evaluate_fid(given, [reference], settings)
    for name in ("fid", "fid_half_width", "fid_infinity", "kid", "precision", "recall"):
        assert again.summary[name] == whole.summary[name]
    assert again.summary["checkpoint"] is again.summary["sampler"] is None
    assert again.summary["protocol"]["eight_bit"] == "as given"


def test_a_reference_may_be_its_moments_alone(
    small_model, reference, network, settings, whole, tmp_path
):
    known = feature_statistics(network(reference.pixels).features)
    np.savez(tmp_path / "stats.npz", mu=known.mean, sigma=known.covariance)
    stats = db.read_statistics(tmp_path / "stats.npz", num_features=6)
    made = db.generate_samples(small_model, N, out=tmp_path / "samples")
    samples = db.load_images(made.folder / "samples.npz")
    result = db.evaluate_fid(samples, [stats, reference], settings).summary
    assert result["fid"] == pytest.approx(whole.summary["fid"], rel=1e-6)
    assert result["kid"] is result["precision"] is result["num_reference"] is None
    assert [of["num_reference"] for of in result["references"]] == [None, 60]
    assert result["references"][1]["kid"] == whole.summary["kid"]


def test_a_set_against_itself(reference, settings):
    result = db.evaluate_fid(reference, [reference], settings).summary
    assert abs(result["fid"]) < 1e-6
    assert result["precision"] == result["recall"] == 1
    assert any("likely the images of the reference themselves" in w for w in result["warnings"])
    assert any("60 samples are also in crops" in line for line in result["warnings"])


def test_copies_and_other_sizes_are_said(reference, settings):
    twice = dataclasses.replace(reference, pixels=reference.pixels.repeat(2, 0)[:60])
    small = dataclasses.replace(reference, pixels=reference.pixels[:, :, :6])
    result = db.evaluate_fid(twice, [small], settings).summary["warnings"]
    assert any("30 samples are copies of others" in line for line in result)
    assert any("8x8 gray" in line and "8x6 gray" in line for line in result)


@pytest.mark.parametrize(
    ("protocol", "splits", "eight_bit"),
    [("clean", 10, "round"), ("ddpm", 1, "round"), ("adm", 1, "truncate"), ("edm", None, "round")],
)
def test_a_protocol_is_what_it_says(
    small_model, reference, network_file, protocol, splits, eight_bit
):
    named = PROTOCOLS[protocol]
    network = load_feature_network(network_file, resize=named.resize, device=CPU)
    result = db.evaluate_fid(small_model, [reference], db.FidSettings(network, named, 10)).summary
    of = result["protocol"]
    assert (of["id"], of["inception_splits"], of["eight_bit"]) == (protocol, splits, eight_bit)
    assert (result["inception_score"] is None) == (splits is None)
    splits_of_all = {"clean": 10, "ddpm": 1, "adm": 10, "edm": -1}
    assert len(named.splits_of(50_000)) - 1 == splits_of_all[protocol]
    other = PROTOCOLS["clean" if protocol != "clean" else "ddpm"]
    with pytest.raises(db.InputError, match="`protocol="):
        db.evaluate_fid(small_model, [reference], db.FidSettings(network, other, 10))


# ---- what is kept


def test_a_folder_holds_what_memory_does(small_model, reference, settings, whole, tmp_path):
    result = db.evaluate_fid(small_model, [reference], settings, out=tmp_path / "run")
    assert scores(result) == scores(whole)
    assert scores(whole) == {
        name: of
        for name, of in read_record(tmp_path / "run" / "summary.json").items()
        if name != "seconds"
    }
    page = db.write_report(tmp_path / "run")
    assert whole.summary["name"] in page.read_text()


def test_more_samples_go_on_with_those_there_are(small_model, reference, settings, whole, tmp_path):
    out, calls = tmp_path / "run", []
    few = dataclasses.replace(settings, num_generated=10)
    first = db.evaluate_fid(small_model, [reference], few, batch_size=5, out=out)
    assert first.summary["num_generated"] == 10
    real = UNet.body

    def counted(network, x_t, *arguments):
        calls.append(len(x_t))
        return real(network, x_t, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UNet, "body", counted)
        more = db.evaluate_fid(small_model, [reference], settings, batch_size=5, out=out)
    assert sum(calls) == (N - 10) * small_model.schedule.num_timesteps
    assert more.summary["fid"] == pytest.approx(whole.summary["fid"], rel=1e-3)


def test_a_reference_is_known_by_its_content(reference, settings, monkeypatch, tmp_path):
    seen = []
    real = settings.network._features
    monkeypatch.setattr(
        settings.network, "_features", lambda rgb: seen.append(len(rgb)) or real(rgb)
    )
    monkeypatch.setenv("DDPMBENCH_CACHE", str(tmp_path / "cache"))
    samples = dataclasses.replace(
        reference, pixels=reference.pixels[::2].copy(), ids=reference.ids[:30], labels=None
    )
    first = db.evaluate_fid(samples, [reference], settings)
    assert sum(seen) == 30 + 60
    renamed = dataclasses.replace(reference, source="another name")
    second = db.evaluate_fid(samples, [renamed], settings)
    assert sum(seen) == 30 + 60 + 30
    assert second.summary["fid"] == first.summary["fid"]
    changed = dataclasses.replace(reference, pixels=255 - reference.pixels)
    db.evaluate_fid(samples, [changed], settings)
    assert sum(seen) == 30 + 60 + 30 + 30 + 60


def test_features_of_other_networks_and_resizers_are_kept_apart(
    reference, network_file, tmp_path, monkeypatch
):
    monkeypatch.setenv("DDPMBENCH_CACHE", str(tmp_path / "cache"))
    other = write_network(tmp_path / "other.pt", num_features=6, num_classes=9, seed=1)
    result, reference = set(), reference.subset(24)
    for path in (network_file, other):
        for protocol in (PROTOCOLS["clean"], PROTOCOLS["ddpm"]):
            network = load_feature_network(path, resize=protocol.resize, device=CPU)
            settings = db.FidSettings(network, protocol)
            summary = db.evaluate_fid(reference.subset(12), reference, settings).summary
            known = feature_statistics(network(reference.pixels).features)
            features = network(reference.pixels[:12]).features
            assert summary["fid"] == pytest.approx(
                frechet_distance(feature_statistics(features), known), rel=1e-4
            )
            result.add(summary["fid"])
    assert len(result) == 4


def test_a_damaged_part_of_the_cache_is_made_again(reference, settings, tmp_path, monkeypatch):
    monkeypatch.setenv("DDPMBENCH_CACHE", str(tmp_path / "cache"))
    first = db.evaluate_fid(reference.subset(30), reference, settings)
    (part,) = (tmp_path / "cache").rglob("*.npz")
    content = bytearray(part.read_bytes())
    content[300] ^= 1
    part.write_bytes(content)
    again = db.evaluate_fid(reference.subset(30), reference, settings)
    assert scores(again) == scores(first)


def test_fewer_samples_do_not_replace_more(small_model, reference, settings, tmp_path):
    few = dataclasses.replace(settings, num_generated=9)
    db.evaluate_fid(small_model, reference, few, out=tmp_path / "run")
    fewer = dataclasses.replace(settings, num_generated=8)
    with pytest.raises(db.InputError, match="holds 9 samples, more than the 8"):
        db.evaluate_fid(small_model, reference, fewer, out=tmp_path / "run")


def test_samples_of_another_size_have_a_page(reference, settings, tmp_path):
    rgb = dataclasses.replace(
        reference, pixels=reference.pixels[:20].repeat(3, 1), ids=reference.ids[:20], labels=None
    )
    rgb.pixels.setflags(write=False)
    result = db.evaluate_fid(rgb, reference, settings, out=tmp_path / "run")
    assert result.summary["fid"] >= 0
    assert not (tmp_path / "run" / "nearest.npz").exists()
    assert "8x8 RGB" in db.write_report(tmp_path / "run").read_text()


def test_what_takes_long_is_measured_in_batches_that_fit(
    small_model, reference, settings, monkeypatch
):
    real, costs = UNet.body, []

    def small_memory(network, x_t, *arguments):
        if len(x_t) > 3:
            raise MemoryError
        return real(network, x_t, *arguments)

    monkeypatch.setattr(UNet, "body", small_memory)
    monkeypatch.setattr(features, "_WORTH_MEASURING", {"samples": 100, "features": 1000})
    monkeypatch.setattr(fid, "cost_lines", lambda cost: costs.append(cost) or [])
    db.evaluate_fid(small_model.respaced(10), reference, settings, progress=False)
    (cost,) = costs
    assert cost.num_samples == N
    assert cost.sampling > 0


def test_another_run_is_refused_the_folder(small_model, reference, settings, tmp_path):
    out = tmp_path / "run"
    few = dataclasses.replace(settings, num_generated=4)
    db.evaluate_fid(small_model, [reference], few, out=out)
    for change in (
        {"samples": db.SampleSettings(seed=1)},
        {"protocol": dataclasses.replace(few.protocol, id="other")},
    ):
        with pytest.raises(db.InputError, match="holds another run"):
            db.evaluate_fid(small_model, [reference], dataclasses.replace(few, **change), out=out)
    with pytest.raises(db.InputError, match="holds another run"):
        db.evaluate_fid(small_model, [reference, reference], few, out=out)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"references": []}, "`references`: name at least one"),
        ({"num_generated": 1}, "`num_generated=1`"),
        ({"one": True}, "crops: a distance takes at least 2"),
    ],
)
def test_what_cannot_be_scored_is_refused(small_model, reference, settings, arguments, words):
    references = arguments.get("references", [reference])
    if "one" in arguments:
        references = [reference.subset(1)]
    count = arguments.get("num_generated", N)
    with pytest.raises(db.InputError, match=words):
        db.evaluate_fid(small_model, references, dataclasses.replace(settings, num_generated=count))


# ---- processes


@pytest.fixture(scope="module")
def command(small_checkpoint, reference, network_file, tmp_path_factory):
    data = tmp_path_factory.mktemp("data") / "crops.npz"
    np.savez(data, arr_0=reference.pixels.transpose(0, 2, 3, 1))
    return [
        *("fid", "--ckpt", str(small_checkpoint), "--data", str(data)),
        *("--num-generated", str(N), "--feature-network", str(network_file)),
        *("--batch-size", "4", "--protocol", "adm"),
    ]


@pytest.fixture(scope="module")
def uninterrupted(command, tmp_path_factory):
    out = tmp_path_factory.mktemp("fid") / "run"
    assert ddpmbench(*command, "--out", out).returncode == 0
    return out


def same_run(one, other):
    for name in ("samples.npz", "per_image.csv", "fid_against_n.csv", "influence.npz"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    summaries = []
    for folder in (one, other):
        summaries.append(read_record(folder / "summary.json"))
        del summaries[-1]["seconds"]
    assert summaries[0] == summaries[1]


def test_the_number_of_processes_changes_nothing(command, uninterrupted, tmp_path, monkeypatch):
    monkeypatch.setenv("DDPMBENCH_CACHE", str(tmp_path / "cache"))
    for result in ranks(3, *command, "--out", tmp_path / "run"):
        assert result.returncode == 0, result.stderr
    same_run(tmp_path / "run", uninterrupted)


def test_killed_at_random_points_the_scores_are_the_same(
    command, uninterrupted, tmp_path, monkeypatch
):
    monkeypatch.setenv("DDPMBENCH_CACHE", str(tmp_path / "cache"))
    out, chance, stages = tmp_path / "run", random.Random(1), set()
    for _ in range(10):
        wanted = len(list(out.glob("shards/*"))) + chance.randint(0, 2)
        running = Command(*command, "--out", out, setup=slow_samples)
        running.wait_until(lambda wanted=wanted: len(list(out.glob("shards/*"))) >= wanted)
        time.sleep(chance.uniform(0, 0.05))
        if running.kill() == -signal.SIGKILL:
            stages.add(frozenset(path.name[:5] for path in out.glob("shards/*")))
    assert len(stages) >= 2
    assert ddpmbench(*command, "--out", out).returncode == 0
    same_run(out, uninterrupted)


def test_features_that_are_not_finite_are_refused(reference, settings, monkeypatch, tmp_path):
    real = type(settings.network).__call__

    def broken(self, pixels):
        result = real(self, pixels)
        result.features[0, 0] = np.nan
        return result

    monkeypatch.setenv("DDPMBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(type(settings.network), "__call__", broken)
    with pytest.raises(db.InputError, match=r"`feature_network=stand-in\.pt`: .* not finite"):
        db.evaluate_fid(reference, [reference], settings)


def test_a_cache_that_cannot_be_written_is_named(reference, settings, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("DDPMBENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(db.InputError, match=f"^DDPMBENCH_CACHE {tmp_path / 'file'}"):
        db.evaluate_fid(reference, [reference], settings)


# ---- what is printed


def test_each_stage_is_printed_with_the_folder_that_resumes_it(
    small_model, reference, settings, tmp_path, capsys
):
    few, out = dataclasses.replace(settings, num_generated=4), tmp_path / "run"
    for is_new in (True, False):
        db.evaluate_fid(small_model, [reference], few, out=out)
        message = capsys.readouterr().err
        for stage in ("samples", "features of the samples"):
            assert (f"4 images: {stage}; to resume: `out={out}`\n" in message) == is_new
        assert (f"All images are in {out} already" in message) != is_new


def test_notes_of_samples_and_of_references_are_said_once(reference, settings, network, tmp_path):
    known, stats = feature_statistics(network(reference.pixels).features), tmp_path / "stats.npz"
    images = reference.pixels.transpose(0, 2, 3, 1)
    np.savez(stats, mu=known.mean, sigma=known.covariance, arr_0=images)
    folder = tmp_path / "samples"
    folder.mkdir()
    for k, image in enumerate(images[:6]):
        Image.fromarray(image.squeeze()).save(folder / f"{k}.png")
    (folder / "read.me").write_text("of other things")
    notes = []
    samples, _ = load_samples(folder)
    listener = db.RunListener(note=notes.append)
    db.evaluate_fid(samples, [load_reference(stats)], settings, listener=listener)
    assert sum("passed over besides the images" in note for note in notes) == 1
    assert sum(f"`data={stats}`: mu and sigma are the reference" in note for note in notes) == 1
    with pytest.raises(db.InputError, match="`num_images=5`: does not apply to the mu and sigma"):
        load_reference(stats, num_images=5)


# ---- where the networks lie


def test_the_features_are_computed_where_the_samples_are(
    small_model, reference, settings, network_file, monkeypatch
):
    """Seen without a GPU: of the two networks the other is told, too, where the run is."""
    elsewhere, moved = torch.device("meta"), []

    class Moved(Exception):
        pass

    def to(network, device):
        moved.append(device)
        raise Moved

    network = load_feature_network(network_file, resize="clean")
    monkeypatch.setattr(type(network), "to", to)
    monkeypatch.setattr("ddpmbench.execution.session.resolve_device", lambda *of: elsewhere)
    model = dataclasses.replace(small_model, network=copy.deepcopy(small_model.network))
    with pytest.raises(Moved):
        db.evaluate_fid(
            model, [reference], dataclasses.replace(settings, network=network), device="auto"
        )
    assert moved == [elsewhere]


def test_a_feature_network_moves_whole(network_file):
    meta, moved = torch.device("meta"), []

    class Module:
        def to(self, device):
            moved.append(device)
            return self

    network = load_feature_network(network_file, resize="clean")
    network._network = Module()
    assert network.to(meta) is network
    # The weights of the classes are the module's.
    assert [*moved, network._device] == [meta] * 2


def test_a_reference_is_converted_as_its_refusal_says(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    for k, image in enumerate(pixels):
        Image.fromarray(image, "RGBA").save(tmp_path / f"{k}.png")
    with pytest.raises(db.InputError, match="`convert=rgb`"):
        load_reference(tmp_path)
    assert load_reference(tmp_path, convert="rgb").shape == (3, 8, 8)
