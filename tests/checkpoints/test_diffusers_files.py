"""Folders of diffusers by their files: shards, variants, averaged weights, the scheduler above."""

import json
import shutil
import subprocess
import warnings

import pytest
import torch
from peers import (
    SMALL_UNET,
    DDPMScheduler,
    diffusers_unet,
    edit_json,
    refused,
    same_weights,
    save_flat,
    save_pipeline,
)

from ddpmbench import CheckpointSettings, load_checkpoint
from ddpmbench.checkpoints.settings import MissingSettingsError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers.training_utils import EMAModel

STEM = "diffusion_pytorch_model"
EMA, RAW = CheckpointSettings(weights="ema"), CheckpointSettings(weights="raw")


@pytest.fixture(scope="module")
def peer():
    return diffusers_unet(SMALL_UNET)


@pytest.fixture(scope="module")
def whole(peer, tmp_path_factory):
    return load_checkpoint(save_flat(tmp_path_factory.mktemp("whole"), peer))


@pytest.fixture(params=[True, False], ids=["safetensors", "bin"])
def sharded(request, peer, tmp_path):
    """The folder that diffusers itself writes in files of at most 100 KB, and its index."""
    DDPMScheduler().save_pretrained(tmp_path)
    peer.save_pretrained(tmp_path, max_shard_size="100KB", safe_serialization=request.param)
    kind = "safetensors" if request.param else "bin"
    return tmp_path, tmp_path / f"{STEM}.{kind}.index.json", kind


# ---- shards


def test_shards_are_the_file_they_were(sharded, whole):
    folder, _, kind = sharded
    files = sorted(folder.glob(f"*.{kind}"))
    assert len(files) > 2
    checkpoint = load_checkpoint(folder)
    assert same_weights(checkpoint, whole)


def test_the_hash_of_shards_is_sha256sums_own(sharded):
    folder, _, kind = sharded
    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum here")
    command = f"sha256sum *.{kind} | sha256sum"
    ran = subprocess.run(
        ["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=True
    )
    assert load_checkpoint(folder).sha256 == ran.stdout.split()[0]


def test_a_shard_that_is_gone(sharded):
    folder, index, kind = sharded
    gone = sorted(folder.glob(f"*.{kind}"))[1]
    gone.unlink()
    with refused(gone, "missing", index.name):
        load_checkpoint(folder)


@pytest.mark.parametrize("place", ["../outside", "/etc/outside", "deeper/outside", "..", "", 3])
def test_an_index_that_leaves_its_folder(sharded, place):
    folder, index, kind = sharded
    name = f"{place}.{kind}" if place and place != ".." and place != 3 else place
    (folder / "deeper").mkdir()
    for outside in (folder.parent, folder / "deeper"):
        torch.save({}, outside / f"outside.{kind}")
    places = json.loads(index.read_text())["weight_map"]
    edit_json(index, weight_map={**places, "conv_in.weight": name})
    with refused(index, "conv_in.weight", "own folder"):
        load_checkpoint(folder)


@pytest.mark.parametrize("fields", [{"weight_map": None}, {"weight_map": {}}, {"weight_map": [1]}])
def test_an_index_without_a_map(sharded, fields):
    folder, index, _ = sharded
    edit_json(index, **fields)
    with refused(index, "weight_map"):
        load_checkpoint(folder)


def test_a_shard_that_is_not_what_the_index_says(sharded):
    folder, index, kind = sharded
    places = json.loads(index.read_text())["weight_map"]
    first, second = sorted(set(places.values()))[:2]
    weight = next(name for name, file in places.items() if file == first)
    edit_json(index, weight_map={**places, weight: second})
    with refused(first, weight, index.name):
        load_checkpoint(folder)
    edit_json(index, weight_map={n: file for n, file in places.items() if n != weight})
    with refused(first, weight, index.name):
        load_checkpoint(folder)
    other = "safetensors" if kind == "bin" else "bin"
    shutil.copy(folder / first, folder / f"other.{other}")
    edit_json(index, weight_map={**places, weight: f"other.{other}"})
    with refused(f"other.{other}", index.name):
        load_checkpoint(folder)


# ---- variants


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "50KB"}], ids=["whole", "shards"])
@pytest.mark.parametrize("safe", [True, False])
def test_a_variant_alone_is_read_and_said(peer, tmp_path, shards, safe):
    half = diffusers_unet(SMALL_UNET).half()
    half.save_pretrained(tmp_path, variant="fp16", safe_serialization=safe, **shards)
    DDPMScheduler().save_pretrained(tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    assert torch.equal(checkpoint.network.conv_in.weight, half.conv_in.weight.float())
    variant, rounded = checkpoint.notes
    assert "only their variant fp16" in variant
    assert "float16" in rounded
    peer.save_pretrained(tmp_path)
    plain = load_checkpoint(tmp_path)
    assert torch.equal(plain.network.conv_in.weight, peer.conv_in.weight)
    if shards:  # save_pretrained removes those that it finds there, but for their index
        (note,) = plain.notes
        assert "fp16.json" in note
        return
    (note,) = plain.notes
    assert "fp16" in note
    assert "the same are in" in note
    assert note.endswith(", rounded")


# ---- averaged weights


@pytest.fixture
def training(peer, tmp_path):
    """What diffusers' train_unconditional.py leaves: checkpoint-500/ in the folder of its model."""
    raw = diffusers_unet(SMALL_UNET, seed=1)
    average = EMAModel(
        peer.parameters(), model_cls=type(peer), model_config=peer.config, use_ema_warmup=True
    )
    folder = tmp_path / "ddpm-model" / "checkpoint-500"
    average.save_pretrained(folder / "unet_ema")
    raw.save_pretrained(folder / "unet")
    for name in ("optimizer.bin", "scheduler.bin", "random_states_0.pkl"):
        torch.save({"state": {}, "param_groups": []}, folder / name)
    save_pipeline(tmp_path / "ddpm-model", peer, DDPMScheduler(beta_schedule="squaredcos_cap_v2"))
    return folder, raw


def test_a_folder_of_the_training_script(training, peer):
    folder, raw = training
    averaged, last = load_checkpoint(folder), load_checkpoint(folder, RAW)
    assert torch.equal(averaged.network.conv_in.weight, peer.conv_in.weight)
    assert torch.equal(last.network.conv_in.weight, raw.conv_in.weight)
    assert (averaged.weights, last.weights) == ("ema", "raw")
    assert any("EMA (unet_ema/)" in note for note in averaged.notes)
    assert any("raw (unet/)" in note for note in last.notes)
    assert averaged.schedule.name == "cosine"
    assert any(str(folder.parent / "scheduler") in note for note in averaged.notes)
    assert load_checkpoint(folder, EMA).sha256 == averaged.sha256 != last.sha256


SAID = {"schedule": "cosine:500", "prediction": "eps", "variance": "fixed_large"}


def test_the_scheduler_of_a_training_is_nowhere(training):
    folder, _ = training
    shutil.rmtree(folder.parent / "scheduler")
    path = folder / "scheduler" / "scheduler_config.json"
    for missing in (("schedule",), ("prediction", "variance"), tuple(SAID)):
        said = {name: value for name, value in SAID.items() if name not in missing}
        with pytest.raises(MissingSettingsError, match="missing") as caught:
            load_checkpoint(folder, CheckpointSettings(**said))
        assert str(path) in str(caught.value)
        assert tuple(caught.value.missing) == missing
        assert all(f"`{n}={v}`" in str(caught.value) for n, v in caught.value.missing.items())
    checkpoint = load_checkpoint(folder, CheckpointSettings(**SAID))
    assert (checkpoint.schedule.name, checkpoint.schedule.num_timesteps) == ("cosine", 500)
    assert (checkpoint.prediction, checkpoint.variance) == ("eps", "fixed_large")
    assert any(str(path) in note and "cosine:500" in note for note in checkpoint.notes)


def test_a_pipeline_takes_no_scheduler_from_above_it(peer, tmp_path):
    save_pipeline(tmp_path / "above", peer)
    save_pipeline(tmp_path / "above" / "model", peer)
    shutil.rmtree(tmp_path / "above" / "model" / "scheduler")
    with refused(tmp_path / "above" / "model" / "scheduler", "missing"):
        load_checkpoint(tmp_path / "above" / "model")


@pytest.mark.parametrize("name", ["unet", "unet_ema"])
def test_the_networks_folder_alone_names_the_one_to_pass(training, name):
    folder, _ = training
    with refused(folder / name, f"pass {folder}"):
        load_checkpoint(folder / name)


def test_weights_that_a_folder_does_not_have(training, peer, tmp_path):
    folder, _ = training
    flat = save_flat(tmp_path / "flat", peer)
    for settings in (EMA, RAW):
        with refused(f"`weights={settings.weights}`", flat):
            load_checkpoint(flat, settings)
    assert load_checkpoint(flat).weights is None
    shutil.rmtree(folder / "unet")
    assert load_checkpoint(folder).weights == load_checkpoint(folder, EMA).weights == "ema"
    with refused("`weights=raw`", folder, "averaged"):
        load_checkpoint(folder, RAW)
