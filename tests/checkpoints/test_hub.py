"""Models of the Hugging Face Hub, from a cache laid out as its client does, without a network."""

import hashlib
import shutil

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import filter_repo_objects
from peers import SMALL_UNET, DDPMScheduler, diffusers_unet, refused, save_flat, save_pipeline
from safetensors.torch import load_file, save_file

from ddpmbench import CheckpointSettings, load_checkpoint

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


# ---- what is asked for


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A repository whose files arrive in a snapshot only where a pattern asks for them."""
    repository, snapshot = tmp_path / "remote", tmp_path / "snapshot"
    snapshot.mkdir()

    def download(name, *, allow_patterns):
        names = [str(p.relative_to(repository)) for p in repository.rglob("*") if p.is_file()]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repository / name, snapshot / name)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)

    def arrived():
        names = {str(p.relative_to(snapshot)) for p in snapshot.rglob("*") if p.is_file()}
        return sorted(name for name in names if not name.endswith(".json"))

    return repository, arrived


SHARDS, PICKLED = {"max_shard_size": "100KB"}, {"safe_serialization": False}
WAYS = [{}, SHARDS, PICKLED, {"variant": "fp16", **PICKLED}]
"""How weights are saved."""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("place", ["", "unet"])
def test_pickled_weights_are_downloaded_only_where_there_are_no_others(remote, way, place):
    repository, arrived = remote
    network = diffusers_unet(SMALL_UNET)
    network.save_pretrained(repository / place, **way)
    files = [f"{place}/{f.name}".strip("/") for f in (repository / place).iterdir()]
    torch.save(network.state_dict(), repository / place / "diffusion_pytorch_model.bin")
    DDPMScheduler().save_pretrained(repository / (place and "scheduler"))
    load_checkpoint("somebody/small-ddpm")
    expected = {name for name in files if not name.endswith(".json")}
    if way.keys() >= PICKLED.keys():
        expected.add(f"{place}/diffusion_pytorch_model.bin".strip("/"))
    assert set(arrived()) == expected


def test_pickled_weights_are_read_before_a_rounded_variant(remote):
    repository, _ = remote
    network = diffusers_unet(SMALL_UNET)
    network.save_pretrained(repository, **PICKLED)
    diffusers_unet(SMALL_UNET).half().save_pretrained(repository, variant="fp16")
    DDPMScheduler().save_pretrained(repository)
    checkpoint = load_checkpoint("somebody/small-ddpm")
    (file,) = checkpoint.files
    assert file.endswith("diffusion_pytorch_model.bin")
    assert any("fp16.safetensors, rounded" in note for note in checkpoint.notes)


@pytest.mark.parametrize("way", WAYS[:3])
def test_averaged_weights_come_with_the_others(remote, way):
    repository, _ = remote
    save_pipeline(repository, diffusers_unet(SMALL_UNET))
    diffusers_unet(SMALL_UNET, seed=1).save_pretrained(repository / "unet_ema", **way)
    assert load_checkpoint("somebody/small-ddpm").weights == "ema"
    raw = load_checkpoint("somebody/small-ddpm", CheckpointSettings(weights="raw"))
    assert raw.weights == "raw"
    assert raw.sha256 == load_checkpoint(repository, CheckpointSettings(weights="raw")).sha256


@pytest.mark.parametrize("variant", ["ema", "non_ema"])
def test_both_kinds_come_where_they_are_variants(remote, variant):
    repository, _ = remote
    save_pipeline(repository, diffusers_unet(SMALL_UNET))
    diffusers_unet(SMALL_UNET, seed=1).save_pretrained(repository / "unet", variant=variant)
    for kind in ("ema", "raw"):
        read = load_checkpoint("somebody/small-ddpm", CheckpointSettings(weights=kind))
        assert read.files[0].endswith(f"{variant}.safetensors") == (
            kind == ("ema" if variant == "ema" else "raw")
        )
    assert load_checkpoint("somebody/small-ddpm").weights == "ema"


def test_a_damaged_shard_in_the_cache(cache, tmp_path):
    peer = diffusers_unet(SMALL_UNET)
    DDPMScheduler().save_pretrained(tmp_path / "saved")
    peer.save_pretrained(tmp_path / "saved", max_shard_size="100KB")
    snapshot = put_into(cache, tmp_path / "saved")
    assert (
        load_checkpoint("somebody/small-ddpm").sha256 == load_checkpoint(tmp_path / "saved").sha256
    )
    blob = sorted(snapshot.glob("*.safetensors"))[-1].resolve()
    save_file({name: weight + 1 for name, weight in load_file(blob).items()}, blob)
    with refused(blob, "SHA-256"):
        load_checkpoint("somebody/small-ddpm")


def test_a_model_that_is_not_in_the_cache():
    with refused("somebody/other-ddpm", "HF_HUB_OFFLINE", "pass a folder with its files"):
        load_checkpoint("somebody/other-ddpm")


def test_whatever_the_client_raises_is_one_line(monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("the line is down\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with refused("somebody/small-ddpm", "the line is down", "try again"):
        load_checkpoint("somebody/small-ddpm")


def test_a_path_object_is_never_a_hub_id(tmp_path):
    with refused("no such file or folder"):
        load_checkpoint(tmp_path / "somebody" / "small-ddpm")
