"""Feature networks: clean-fid's own features, of any image, whoever its neighbors are."""

import itertools
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from feature_networks import write_network
from PIL import Image

from ddpmbench.data.load import load_images
from ddpmbench.errors import InputError
from ddpmbench.metrics.feature_networks import image_features, load_feature_network
from ddpmbench.metrics.frechet import frechet_distance
from ddpmbench.metrics.statistics import feature_statistics

CPU = torch.device("cpu")
RESIZERS = ("clean", "legacy_tensorflow")


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    return write_network(tmp_path_factory.mktemp("network") / "stand-in.pt")


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    smooth = rng.integers(0, 256, (7, 3, 5, 6), np.uint8)
    return np.kron(smooth, np.ones((1, 1, 8, 6), np.uint8))  # 40x36


@pytest.mark.parametrize("resize", RESIZERS)
@pytest.mark.parametrize("shape", ["whole", "small", "both"])
def test_features_are_those_of_clean_fids_pipeline(
    stand_in, pictures, tmp_path, monkeypatch, resize, shape
):
    from cleanfid import fid, inception_torchscript

    small = pictures[:, :, ::5, ::4]
    pixels = {"whole": pictures, "small": small, "both": [*pictures[:2], *small[2:4], pictures[4]]}
    pixels = pixels[shape]
    for index, picture in enumerate(pixels):
        Image.fromarray(picture.transpose(1, 2, 0)).save(tmp_path / f"{index}.png")
    real = torch.jit.load

    def load(path):
        assert path.endswith("inception-2015-12-05.pt")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return real(str(stand_in))

    with monkeypatch.context() as patch:
        patch.setattr(torch.jit, "load", load)
        wrapper = inception_torchscript.InceptionV3W(
            "/nowhere", download=False, resize_inside=resize != "clean"
        )
    theirs = fid.get_folder_features(
        str(tmp_path),
        model=wrapper,
        mode=resize,
        num_workers=0,
        device=CPU,
        shuffle=False,
        # It batches what it does not resize before the network as it is.
        batch_size=1 if shape == "both" else 128,
        verbose=False,
    )
    ours = load_feature_network(stand_in, resize=resize, device=CPU)(pixels).features
    assert ours.std() > 1e-3
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("resize", RESIZERS)
def test_an_images_features_do_not_depend_on_its_neighbors(stand_in, pictures, resize):
    network = load_feature_network(stand_in, resize=resize, device=CPU)
    pixels = np.concatenate([pictures] * 10)[:64]
    whole = network(pixels)
    for size in (1, 3):
        for start in range(0, 12, size):
            part = network(pixels[start : start + size])
            rows = slice(start, start + size)
            np.testing.assert_allclose(part.features, whole.features[rows], atol=1e-5)
            np.testing.assert_allclose(part.logits, whole.logits[rows], atol=1e-4)


def test_gray_is_repeated(stand_in):
    network = load_feature_network(stand_in, resize="clean", device=CPU)
    gray = load_images("fashion-mnist:test", num_images=4).pixels
    np.testing.assert_array_equal(network(gray).features, network(gray.repeat(3, 1)).features)


def test_logits_are_of_the_same_forward_without_a_bias(stand_in, pictures):
    network = load_feature_network(stand_in, resize="legacy_tensorflow", device=CPU)
    found = network(pictures)
    x = torch.from_numpy(pictures).float()
    with torch.inference_mode():
        p = network._network.base(x, no_output_bias=True)
    expected = torch.from_numpy(found.logits).softmax(1)
    torch.testing.assert_close(expected, p.double(), atol=1e-6, rtol=0)
    assert found.logits.dtype == np.float64
    assert found.logits.shape == (7, 1008)


def test_only_inception_is_called_fid(stand_in, monkeypatch):
    network = load_feature_network(stand_in, resize="clean", device=CPU)
    assert network.label == f"FD[{network.sha256[:12]}]"
    monkeypatch.setattr("ddpmbench.metrics.feature_networks.INCEPTION_SHA256", network.sha256)
    genuine = load_feature_network(stand_in, resize="clean", device=CPU)
    assert (genuine.label, genuine.name) == ("FID", "inception-2015-12-05")


def test_other_numbers_of_features_and_classes(tmp_path, pictures):
    path = write_network(tmp_path / "small.pt", num_features=12, num_classes=5)
    found = {
        resize: load_feature_network(path, resize=resize, device=CPU)(pictures)
        for resize in RESIZERS
    }
    for one in found.values():
        assert (one.features.shape, one.logits.shape) == ((7, 12), (7, 5))


class WithoutOutput(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def bad_files(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.script(WithoutOutput()).save(str(folder / "interface.pt"))
    torch.save({"weight": torch.zeros(3)}, folder / "weights.pt")
    (folder / "empty.pt").write_bytes(b"")
    (folder / "text.pt").write_text("no network")
    whole = write_network(folder / "whole.pt", num_features=8, num_classes=3).read_bytes()
    (folder / "cut.pt").write_bytes(whole[: len(whole) // 2])
    np.savez(folder / "arrays.pt.npz", a=np.zeros(3))
    (folder / "arrays.pt.npz").rename(folder / "arrays.pt")
    return ["interface.pt", "weights.pt", "empty.pt", "text.pt", "cut.pt", "arrays.pt"]


def test_files_that_hold_no_such_network_are_named(tmp_path):
    names = bad_files(tmp_path)
    assert len(names) == 6
    for name in names:
        with pytest.raises(InputError) as refusal:
            load_feature_network(tmp_path / name, resize="clean", device=CPU)
        assert f"`feature_network={tmp_path / name}`:" in str(refusal.value)
        assert "miniz" not in str(refusal.value)
        assert len(str(refusal.value)) < 300 + len(str(tmp_path))
    with pytest.raises(InputError, match=r"`feature_network=nothing\.pt`: there is no such file"):
        load_feature_network("nothing.pt", resize="clean", device=CPU)
    with pytest.raises(InputError, match=r"`inception=.*`: applies only to"):
        load_feature_network("x.pt", resize="clean", device=CPU, inception=tmp_path)


# ---- a real network


@pytest.fixture(scope="module")
def efficientnet():
    return load_feature_network("efficientnet-lite0", resize="clean", device=CPU)


def test_the_real_network_ranks_what_people_rank(efficientnet):
    count = 12
    images = load_images("fashion-mnist:test", num_images=2 * count).pixels
    reference = feature_statistics(efficientnet(images[count:]).features)
    rng = np.random.default_rng(0)

    def noised(spread):
        noise = spread * rng.normal(size=images[:count].shape)
        return np.clip(images[:count] + noise, 0, 255).round().astype(np.uint8)

    distances = [
        frechet_distance(feature_statistics(efficientnet(pixels).features), reference)
        for pixels in (images[:count], noised(8.0), noised(20.0), of_a_photograph(count, rng))
    ]
    for nearer, farther in itertools.pairwise(distances):
        assert farther > 1.05 * nearer
    assert efficientnet.label == "FD[579344248a93]"


def of_a_photograph(count, rng):
    """Real pixels of another kind: parts of the picture that comes with matplotlib, halved."""
    path = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    with Image.open(path) as picture:
        whole = np.asarray(picture.convert("L"))
    corners = rng.integers(0, np.array(whole.shape) - 56, (count, 2))
    return np.stack([whole[y : y + 56 : 2, x : x + 56 : 2] for y, x in corners])[:, None]


def test_the_real_network_sees_what_is_there(efficientnet):
    path = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    with Image.open(path) as picture:
        whole = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
    found = efficientnet(whole[None])
    assert (found.features.shape, found.logits.shape) == ((1, 1280), (1, 1000))
    p = torch.from_numpy(found.logits).softmax(1)[0]
    military_uniform = 652  # of ImageNet's classes
    assert p.argmax() == military_uniform
    assert p[military_uniform] > 0.4


def test_the_real_network_is_not_resized_otherwise():
    with pytest.raises(InputError, match="protocol=clean"):
        load_feature_network("efficientnet-lite0", resize="legacy_tensorflow", device=CPU)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 8, 8, 1), np.uint8),  # channels last
        np.zeros((2, 8, 8, 3), np.uint8),
        np.zeros((2, 4, 8, 8), np.uint8),
        np.zeros((2, 8, 8), np.uint8),
        np.zeros((2, 1, 8, 8)),
        torch.zeros(2, 1, 8, 8, dtype=torch.uint8),
        "fashion-mnist:test",
        None,
    ],
    ids=lambda images: str(getattr(images, "shape", images)),
)
def test_images_of_another_layout_or_range_are_refused(images):
    with pytest.raises(InputError, match=r"`images`: holds .*; give uint8 arrays \(C, H, W\)"):
        image_features(pytest.fail, images)


def test_the_name_of_a_network_is_not_one():
    with pytest.raises(InputError, match="`load_feature_network` returns"):
        image_features("efficientnet-lite0", load_images("fashion-mnist:test", num_images=2))
