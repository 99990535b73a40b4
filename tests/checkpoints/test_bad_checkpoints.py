"""Files that are no checkpoint, or no whole one: one line each, and nothing in them runs."""

import json
import os
import pickle
import struct
import tarfile
import zipfile

import pytest
import torch
from peers import SMALL_UNET, diffusers_unet, openai_weights, refused, save_flat
from safetensors.torch import load_file, save_file

from ddpmbench.checkpoints import CheckpointSettings, load_checkpoint

FLAGS = (
    "--image_size 8 --num_channels 32 --num_res_blocks 1 --channel_mult 1,2 "
    "--attention_resolutions 4 --learn_sigma True"
)


class RunsCode:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return (os.mkdir, (str(self.canary),))


@pytest.fixture
def openai_file(tmp_path):
    torch.save(openai_weights(), tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.fixture
def folder(tmp_path):
    return save_flat(tmp_path / "model", diffusers_unet(SMALL_UNET))


@pytest.mark.parametrize("source", ["nowhere.pt", "folder/nowhere.pt", "a/b/c", "nowhere"])
def test_a_path_that_does_not_exist(source):
    with refused(source, "no such file or folder"):
        load_checkpoint(source)


def test_a_folder_without_a_config(tmp_path):
    with refused(tmp_path, "config.json"):
        load_checkpoint(tmp_path)
    (tmp_path / "checkpoint.safetensors").touch()
    with refused(tmp_path, "pass a file of another family itself", "checkpoint.safetensors"):
        load_checkpoint(tmp_path)
    for name in "dcba":
        (tmp_path / f"{name}.pt").touch()
    with refused(tmp_path, "a.pt", "c.pt and 2 more"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["optim.pt", "opt500000.pt"])
def test_an_optimizer_is_no_model(tmp_path, name):
    torch.save({"state": {}, "param_groups": []}, tmp_path / name)
    with refused(tmp_path / name, "an optimizer's state, not a model; pass the file of the model"):
        load_checkpoint(tmp_path / name)


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_torch_file(tmp_path, old_format, share):
    path = tmp_path / "model.pt"
    torch.save(openai_weights(), path, _use_new_zipfile_serialization=not old_format)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with refused(path, "again"):
        load_checkpoint(path, CheckpointSettings(model_flags=FLAGS))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_safetensors_file(folder, share):
    path = folder / "diffusion_pytorch_model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with refused(path):
        load_checkpoint(folder)
    with refused(path):
        load_checkpoint(path)


@pytest.mark.parametrize("header", [{"shape": [2**40, 2**20]}, {"shape": [2**62]}, {}])
def test_a_safetensors_header_that_promises_more_than_the_file(tmp_path, header):
    tensor = {"dtype": "F32", "shape": [4], "data_offsets": [0, 2**62], **header}
    text = json.dumps({"conv_in.weight": tensor}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with refused(path, "not a whole safetensors file"):
        load_checkpoint(path)
    path.write_bytes(struct.pack("<Q", 2**60) + text)
    with refused(path, "not a whole safetensors file"):
        load_checkpoint(path)


def test_a_config_that_promises_more_than_memory(folder):
    values = json.loads((folder / "config.json").read_text())
    values["block_out_channels"] = [2**20, 2**21]
    (folder / "config.json").write_text(json.dumps(values))
    with refused(folder, "time_embedding.linear_1.weight", str(2**20)):
        load_checkpoint(folder)


@pytest.mark.parametrize("how", ["zip", "old", "pickle", "text pickle"])
def test_code_in_a_file_does_not_run(tmp_path, how):
    path, canary = tmp_path / "model.pt", tmp_path / "canary"
    state = {**openai_weights(), "extra": RunsCode(canary)}
    if how in ("zip", "old"):
        torch.save(state, path, _use_new_zipfile_serialization=how == "zip")
    else:
        payload = {"extra": RunsCode(canary)}
        path.write_bytes(pickle.dumps(payload, protocol=4 if how == "pickle" else 0))
    with refused(path):
        load_checkpoint(path, CheckpointSettings(model_flags=FLAGS))
    assert not canary.exists()
    pickle.loads(pickle.dumps(RunsCode(canary)))  # it is a canary: unpickled, it sings
    assert canary.exists()


def test_code_in_the_bin_of_a_diffusers_folder_does_not_run(folder, tmp_path):
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    path = folder / "diffusion_pytorch_model.bin"
    torch.save({"conv_in.weight": RunsCode(tmp_path / "canary")}, path)
    with refused(path, "mkdir", "running code"):
        load_checkpoint(folder)
    assert not (tmp_path / "canary").exists()


def test_a_whole_module_needs_its_class(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    with refused(tmp_path / "model.pt", "torch.nn.modules.linear.Linear", "state_dict()"):
        load_checkpoint(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.pt", b""),
        ("model.pt", b"a text"),
        ("model.pt", b"<!doctype html><html>404</html>"),
        ("model.pt", b"\x80"),
        ("model.safetensors", b""),
        ("model.safetensors", b"a text that is long enough"),
    ],
)
def test_what_is_no_weights_file(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with refused(path):
        load_checkpoint(path)


@pytest.mark.parametrize("inside", ["a.txt", "folder/a.txt"])
def test_archives_that_are_no_checkpoint(tmp_path, inside):
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(inside, "text")
    with refused(path, "not one written by torch.save"):
        load_checkpoint(path)
    (tmp_path / "text").write_text("text")
    with tarfile.open(path, "w") as archive:
        archive.add(tmp_path / "text", "text")
    with refused(path, "not a file written by torch.save"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ([1, 2], "list"),
        (torch.zeros(3), "Tensor"),
        ({}, "no weights"),
        ({"fc.weight": torch.zeros(3)}, "fc.weight"),
        ({"state_dict": {"fc.weight": torch.zeros(3)}, "epoch": 3}, "fc.weight"),
        ({"module.conv.weight": torch.zeros(3)}, "`network="),
        ({"temb.dense.0.weight": torch.zeros(3)}, "temb.dense.0.weight"),
        ({"step": 3, "model": {}, "opt": {}, "ema": {}}, "no weights"),
    ],
)
def test_families_that_are_not_read(tmp_path, content, word):
    torch.save(content, tmp_path / "model.pt")
    with refused(tmp_path / "model.pt", word):
        load_checkpoint(tmp_path / "model.pt")


def test_a_network_too_deep_to_be_built(folder):
    values = json.loads((folder / "config.json").read_text())
    values["layers_per_block"] = 10_000_000
    (folder / "config.json").write_text(json.dumps(values))
    with refused(folder / "config.json", "num_blocks 10,000,000", "correct them"):
        load_checkpoint(folder)


def test_a_record_too_deep_to_be_parsed(tmp_path):
    path = tmp_path / "deep.safetensors"
    save_file({"w": torch.ones(1)}, path, metadata={"ddpmbench": "[" * 100_000})
    with refused(path, "too deep"):
        load_checkpoint(path)


@pytest.mark.parametrize("wrong", ["nan", "inf", "missing", "extra", "shape", "not a tensor"])
def test_weights_that_are_not_the_network(openai_file, wrong):
    weights = torch.load(openai_file, weights_only=True)
    name = "middle_block.0.out_layers.3.weight"
    match wrong:
        case "nan" | "inf":
            weights[name][0, 0, 0, 0] = float(wrong)
        case "missing":
            del weights[name]
        case "extra":
            name = "middle_block.3.weight"
            weights[name] = torch.zeros(1)
        case "shape":
            weights[name] = weights[name][:1]
        case "not a tensor":
            weights[name] = 3
    torch.save(weights, openai_file)
    with refused(openai_file, name):
        load_checkpoint(openai_file, CheckpointSettings(model_flags=FLAGS))


@pytest.mark.parametrize("wrong", ["nan", "missing", "extra"])
def test_diffusers_weights_that_are_not_the_network(folder, wrong):
    path = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    name = "mid_block.attentions.0.to_k.weight"
    match wrong:
        case "nan":
            name = "conv_out.bias"
            weights[name][0] = float("nan")
        case "missing":
            del weights[name]
        case "extra":
            name = "mid_block.extra"
            weights[name] = torch.zeros(1)
    save_file(weights, path)
    with refused(path, name):
        load_checkpoint(folder)


def test_a_folder_without_a_schedule(folder):
    (folder / "scheduler_config.json").unlink()
    with refused(folder / "scheduler_config.json", "schedule"):
        load_checkpoint(folder)


def test_a_folder_without_weights(folder):
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    with refused(folder, "diffusion_pytorch_model.bin"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["config.json", "scheduler_config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"{}\n{}"])
def test_broken_json(folder, name, content):
    (folder / name).write_bytes(content)
    with refused(folder / name):
        load_checkpoint(folder)
