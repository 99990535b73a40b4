"""`fid` takes folders of images of several sizes: each is resized by the protocol alone."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from feature_networks import write_network
from PIL import Image

import ddpmbench as db
from ddpmbench.data import pixel_store
from ddpmbench.execution.features import compute_features
from ddpmbench.execution.store import MemoryStore, gathered
from ddpmbench.execution.stored_images import NearestImages
from ddpmbench.execution.worker import Worker
from ddpmbench.metrics.feature_networks import load_feature_network
from ddpmbench.metrics.scores import PROTOCOLS

CPU = torch.device("cpu")
SHAPES = [(8, 8, 3), (12, 9, 3), (8, 8)]  # as files go round: two sizes, and gray
N = 21


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDPMBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def network_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("network") / "stand-in.pt"
    return write_network(path, num_features=6, num_classes=9)


@pytest.fixture(scope="module", params=["clean", "ddpm"])
def settings(request, network_file):
    protocol = PROTOCOLS[request.param]
    network = load_feature_network(network_file, resize=protocol.resize, device=CPU)
    return db.FidSettings(network, protocol)


def pictures(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, SHAPES[k % 3], np.uint8) for k in range(N)]


def save(folder, images):
    folder.mkdir()
    for index, image in images:
        Image.fromarray(image).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return save(tmp_path_factory.mktemp("mixed") / "images", enumerate(pictures()))


def features(settings, images, store=None, rows=4):
    store = MemoryStore() if store is None else store
    compute_features(settings.network, images, store, Worker.of(CPU, (3, 8, 8), batch_size=rows))
    return gathered(store, "features", len(images))


@pytest.mark.parametrize("rows", [1, 4, 64])
def test_features_are_those_of_folders_of_one_size(settings, mixed, tmp_path, rows):
    result = db.load_images(mixed, any_size=True)
    assert list(result.ids) == [f"{k}.png" for k in range(N)]  # in natural order
    images, expected = pictures(), np.empty((N, 6), np.float32)
    for k in range(3):
        of_one = range(k, N, 3)
        folder = save(tmp_path / str(k), ((index, images[index]) for index in of_one))
        expected[list(of_one)] = features(settings, db.load_images(folder), rows=rows)
    assert expected.std(axis=0).min() > 1e-4
    np.testing.assert_allclose(features(settings, result, rows=rows), expected, atol=1e-6)


def test_images_of_one_size_are_read_as_ever(tmp_path):
    folder = save(tmp_path / "f", enumerate(pictures()[::3]))
    plain, taken = db.load_images(folder), db.load_images(folder, any_size=True)
    assert taken.sha256 == plain.sha256
    assert taken.notes == plain.notes == ()
    np.testing.assert_array_equal(taken.pixels, plain.pixels)


def test_the_hash_is_of_sizes_and_pixels(tmp_path):
    def hash_of(name, images):
        return db.load_images(save(tmp_path / name, enumerate(images)), any_size=True).sha256

    images = pictures()[:3]
    turned = [images[0], images[1].reshape(9, 12, 3), images[2]]
    changed = [images[0], 255 - images[1], images[2]]
    assert len({hash_of(str(k), of) for k, of in enumerate((images, turned, changed))}) == 3
    whole = db.load_images(tmp_path / "0", any_size=True)
    first = db.load_images(tmp_path / "0", any_size=True, num_images=2)
    assert whole.subset(2).sha256 == first.sha256
    assert whole.subset(1).shape == (3, 8, 8)


def test_a_large_set_lies_in_a_file(mixed, monkeypatch):
    expected = db.load_images(mixed, any_size=True)
    monkeypatch.setattr(pixel_store, "IN_MEMORY", 100)
    result = db.load_images(mixed, any_size=True)
    base = result.pixels
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert isinstance(base, np.memmap)
    assert result.sha256 == expected.sha256
    for one, picture in zip(result.part(0, N), pictures(), strict=True):
        np.testing.assert_array_equal(one.transpose(1, 2, 0).squeeze(), picture)


def test_a_run_scores_samples_and_references_of_several_sizes(settings, mixed, tmp_path):
    other = save(tmp_path / "other", enumerate(pictures(seed=1)))
    report = db.evaluate_fid(other, mixed, settings, out=tmp_path / "run")
    assert report.summary["fid"] > 0
    assert report.summary["protocol"]["channels"] == "RGB, gray repeated"
    assert report.summary["references"][0]["shapes"] == report.summary["samples"]["shapes"] == 3
    assert not any("resizing differs" in line for line in report.summary["warnings"])
    table = pd.read_csv(tmp_path / "run" / "per_image.csv")
    assert list(table.image_id) == [f"{k}.png" for k in range(N)]
    nearest = NearestImages.read(tmp_path / "run" / "nearest.npz")
    assert nearest.references.shape == (8, 4, 3, 8, 8)
    np.testing.assert_array_equal(nearest.samples[0], pictures(seed=1)[0].transpose(2, 0, 1))
    assert db.write_report(tmp_path / "run").exists()
    itself = db.evaluate_fid(mixed, mixed, settings).summary
    assert abs(itself["fid"]) < 1e-6
    assert any(f"{N} samples are also in" in line for line in itself["warnings"])


def test_skipping_keeps_every_size(mixed):
    (mixed / "bad.png").write_bytes(b"")
    result = db.load_images(mixed, any_size=True, on_bad="skip")
    (mixed / "bad.png").unlink()
    assert (len(result), len(result.skipped)) == (N, 1)


def test_others_refuse_and_name_both_ways(small_model, mixed):
    with pytest.raises(db.InputError, match=r"`on_bad=skip` .*fid takes"):
        db.load_images(mixed)
    taken = db.load_images(mixed, any_size=True)
    with pytest.raises(db.InputError, match="of 2 sizes from 8x8 to 9x12, gray and RGB, which"):
        db.evaluate_nll(small_model, taken)
    assert db.load_images(mixed, on_bad="skip").shape == (3, 8, 8)


def test_conversion_leaves_sizes(mixed):
    at_once = db.load_images(mixed, any_size=True, convert="gray")
    later = db.load_images(db.load_images(mixed, any_size=True), any_size=True, convert="gray")
    assert at_once.channels == {1}
    assert at_once.sha256 == later.sha256
    assert dataclasses.replace(at_once, source="x").sha256 == at_once.sha256
