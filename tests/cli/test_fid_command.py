"""`sample` and `fid`: what they print, and what they refuse before they begin."""

import hashlib
import json

import numpy as np
import pytest
from feature_networks import write_network
from PIL import Image

from ddpmbench.execution.features import Cost
from ddpmbench.report.text import cost_lines
from ddpmbench.unet.unet import UNet


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DDPMBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DDPMBENCH_INCEPTION", raising=False)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp("network") / "stand-in.pt"
    return write_network(path, num_features=6, num_classes=4)


@pytest.fixture
def fid(invoke, small_checkpoint, small_npz, network):
    def call(*arguments):
        common = ["--ckpt", small_checkpoint, "--data", small_npz, "--feature-network", network]
        return invoke("fid", *common, "--num-generated", 8, *arguments)

    return call


@pytest.mark.usefixtures("pages", "sketched")
def test_a_run_prints_scores_and_leaves_a_page(fid, tmp_path):
    status, printed, message = fid("--out", tmp_path / "run")
    assert status == 0
    assert printed.startswith("FD[")
    assert "is not FID" in printed
    assert (tmp_path / "run" / "report.html").exists()
    assert "8 images: samples" in message
    assert f"--out {tmp_path / 'run'}" in message
    again = fid("--out", tmp_path / "run", "--format", "json")
    assert json.loads(again[1])["num_generated"] == 8
    quiet = fid("--out", tmp_path / "run", "--format", "quiet")
    assert float(quiet[1]) == json.loads(again[1])["fid"]
    rows = fid("--out", tmp_path / "run", "--format", "csv")[1].splitlines()
    assert len(rows) == 2
    assert "images: samples" not in again[2]


def test_published_weights_are_fetched_once_and_their_distance_is_called_fid(
    invoke, completed, small_checkpoint, small_npz, network, tmp_path, monkeypatch
):
    content = network.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    for name, value in {
        "metrics.feature_weights.INCEPTION_URL": network.as_uri(),
        "metrics.feature_weights.INCEPTION_BYTES": len(content),
        "metrics.feature_weights.INCEPTION_SHA256": digest,
        "metrics.feature_networks.INCEPTION_SHA256": digest,
    }.items():
        monkeypatch.setattr(f"ddpmbench.{name}", value)
    command = ["fid", "--ckpt", small_checkpoint, "--data", small_npz, "--num-generated", 4]
    printed, _ = completed(*command, "--out", tmp_path / "run")
    assert printed.startswith("FID ")
    assert printed.splitlines()[0].endswith("(ddpm)")
    assert "is not FID" not in printed
    kept = tmp_path / "cache" / "inception" / "inception-2015-12-05.pt"
    assert kept.read_bytes() == content
    monkeypatch.setattr("ddpmbench.metrics.feature_weights.INCEPTION_URL", "file:///nothing")
    assert invoke(*command, "--out", tmp_path / "again")[1].split()[1] == printed.split()[1]


def test_two_runs_compare(completed, fid, tmp_path):
    for seed in (0, 1):
        options = ("--seed", seed, "--variance", "fixed_small")
        status, _, message = fid("--out", tmp_path / f"seed-{seed}", *options)
        assert status == 0, message
        assert "Note: --variance fixed_small overrides fixed_large" in message
    runs = [tmp_path / f"seed-{seed}" for seed in (0, 1)]
    printed, _ = completed("compare", *runs, "--out", tmp_path / "compared")
    assert "seed-1" in printed
    assert (tmp_path / "compared" / "report.html").exists()


def test_samples_are_made_and_made_again(invoke, completed, small_checkpoint, tmp_path):
    command = ["sample", "--ckpt", small_checkpoint, "-n", 5, "--out", tmp_path / "run"]
    printed, message = completed(*command)
    assert printed.startswith("5 samples, 8x8 gray")
    assert np.load(tmp_path / "run" / "samples.npz")["arr_0"].shape == (5, 8, 8, 1)
    assert (tmp_path / "run" / "figures" / "samples.png").exists()
    assert "5 images, 40 network evaluations each" in message
    path = invoke(*command, "--format", "quiet")[1].strip()
    assert path == str(tmp_path / "run" / "samples.npz")
    assert json.loads(invoke(*command, "--format", "json")[1])["num_samples"] == 5


def test_a_note_of_samples_is_printed_once(completed, small_npz, network, tmp_path):
    with np.load(small_npz) as archive:
        for index, image in enumerate(archive["arr_0"]):
            Image.fromarray(image.squeeze()).save(tmp_path / f"{index}.png")
    (tmp_path / "read.me").write_text("of other things")
    known = ("--samples", tmp_path, "--data", small_npz, "--feature-network", network)
    _, message = completed("fid", *known, "--out", tmp_path / "run")
    assert message.count("passed over besides the images") == 1


def test_first_images_of_statistics_are_refused(refused, network, small_npz, tmp_path):
    np.savez(tmp_path / "stats.npz", mu=np.zeros(6), sigma=np.eye(6))
    command = ("fid", "--samples", small_npz, "--feature-network", network)
    line = refused(*command, "--data", tmp_path / "stats.npz", "--num-images", 5)
    assert "--num-images 5: does not apply to the mu and sigma of" in line


def test_images_beside_statistics_are_noted(completed, network, small_npz, tmp_path):
    with np.load(small_npz) as archive:
        images = archive["arr_0"]
    np.savez(tmp_path / "stats.npz", mu=np.zeros(6), sigma=np.eye(6), arr_0=images)
    known = ("--feature-network", network, "--data", tmp_path / "stats.npz")
    _, message = completed("fid", "--samples", small_npz, *known, "--out", tmp_path / "run")
    note = f"Note: --data {tmp_path / 'stats.npz'}: mu and sigma are the reference"
    assert message.count(note) == 1


def test_a_reference_must_be_named_for_what_is_not_the_default(refused, small_npz, network):
    line = refused("fid", "--samples", small_npz, "--feature-network", network)
    assert "--data: name the real images" in line


def test_a_cache_that_cannot_be_written_is_named(fid, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("DDPMBENCH_CACHE", str(tmp_path / "file"))
    status, _, message = fid("--out", tmp_path / "run")
    assert status == 2
    assert f"Error: DDPMBENCH_CACHE {tmp_path / 'file'}" in message


def test_without_weights_nothing_is_sampled(refused, monkeypatch):
    monkeypatch.setattr(
        "ddpmbench.metrics.feature_weights.INCEPTION_URL", "http://127.0.0.1:1/nothing"
    )
    monkeypatch.setattr(UNet, "forward", None)
    assert "inception" in refused("fid")


def test_a_long_run_says_what_it_takes_and_what_cheaper_ones_cost():
    cost = Cost(
        0.001, 0.02, num_samples=50_000, num_timesteps=1000, num_evaluations=1000, num_images=60_000
    )
    whole, steps, samples = cost_lines(cost)
    assert "About 14.2 h on this device" in whole
    assert "`timesteps=250` 3.8 h" in steps
    assert "the respaced sampler" in steps
    assert "`num_generated=10000` 2.9 h" in samples
    assert "biased" in samples
    assert cost_lines(Cost(0.001, 0.02, 10, 50, 50, 100)) == []


@pytest.mark.parametrize("option", ["--samples", "--data"])
def test_a_missing_file_is_named_before_the_feature_network_is_loaded(
    invoke, small_npz, tmp_path, monkeypatch, option
):
    monkeypatch.setattr("ddpmbench.cli.samples._network", None)
    paths = {"--samples": small_npz, "--data": small_npz, option: tmp_path / "nope.npz"}
    status, _, message = invoke("fid", *(part for pair in paths.items() for part in pair))
    assert status == 2
    assert "nope.npz" in message
