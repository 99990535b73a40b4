"""Models of the Hugging Face Hub, from a cache laid out as its client does, without a network."""

import hashlib
import shutil

import huggingface_hub
import pytest
from huggingface_hub import constants
from peers import SMALL_UNET, diffusers_unet, refused, save_flat, save_pipeline

from ddpmbench.inputs.checkpoints import load_checkpoint

COMMIT = "0" * 40


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put_into(cache, folder, name="somebody--small-ddpm"):
    """Lay out a saved folder as a model in the cache; returns its snapshot."""
    model = cache / f"models--{name}"
    snapshot = model / "snapshots" / COMMIT
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    (model / "blobs").mkdir()
    for file in folder.rglob("*"):
        if file.is_file():
            blob = model / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
            shutil.copy(file, blob)
            link = snapshot / file.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)
    return snapshot


@pytest.mark.parametrize("save", [save_flat, save_pipeline])
def test_a_model_in_the_cache(cache, tmp_path, save):
    put_into(cache, save(tmp_path / "saved", diffusers_unet(SMALL_UNET)))
    checkpoint = load_checkpoint("somebody/small-ddpm")
    assert checkpoint.source == "somebody/small-ddpm"
    assert checkpoint.sha256 == load_checkpoint(tmp_path / "saved").sha256


def test_weights_that_are_not_those_of_their_name(cache, tmp_path):
    snapshot = put_into(cache, save_flat(tmp_path / "saved", diffusers_unet(SMALL_UNET)))
    blob = (snapshot / "diffusion_pytorch_model.safetensors").resolve()
    other = save_flat(tmp_path / "other", diffusers_unet(SMALL_UNET, seed=1))
    shutil.copy(other / "diffusion_pytorch_model.safetensors", blob)
    with refused(blob, "SHA-256"):
        load_checkpoint("somebody/small-ddpm")


def test_a_model_that_is_not_in_the_cache():
    with refused("somebody/other-ddpm", "HF_HUB_OFFLINE"):
        load_checkpoint("somebody/other-ddpm")


def test_whatever_the_client_raises_is_one_line(monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("the line is down\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with refused("somebody/small-ddpm", "the line is down"):
        load_checkpoint("somebody/small-ddpm")


def test_a_path_object_is_never_a_hub_id(tmp_path):
    with refused("no such file or folder"):
        load_checkpoint(tmp_path / "somebody" / "small-ddpm")
