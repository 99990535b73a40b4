"""Files that are no checkpoint, or no whole one: one line each, and nothing in them runs.

The kinds of files that go wrong are in the corpus of test_wrong_files.py.
"""

import os
import pickle
import zipfile

import pytest
import torch
from peers import (
    OPENAI_FLAGS,
    SMALL_UNET,
    diffusers_unet,
    openai_weights,
    refused,
    save_flat,
)
from safetensors.torch import load_file
from torch.utils.serialization.config import save as save_config

from ddpmbench import CheckpointSettings, load_checkpoint


class RunsCode:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return (os.mkdir, (str(self.canary),))


@pytest.fixture
def folder(tmp_path):
    return save_flat(tmp_path / "model", diffusers_unet(SMALL_UNET))


@pytest.mark.parametrize("source", ["nowhere.pt", "folder/nowhere.pt", "a/b/c", "nowhere"])
def test_a_path_that_does_not_exist(source):
    with refused(f"{source}: no such file or folder; correct the path, or name owner/name"):
        load_checkpoint(source)


def test_a_folder_of_files_names_them(tmp_path):
    with refused(tmp_path, "config.json", "pass the folder or the file"):
        load_checkpoint(tmp_path)
    for name in "dcba":
        (tmp_path / f"{name}.pt").touch()
    with refused(tmp_path, "a.pt", "c.pt and 1 more"):
        load_checkpoint(tmp_path)


@pytest.fixture
def save_options():
    """Options of torch.save, which are put back."""
    alignment = save_config.storage_alignment
    yield save_config
    save_config.storage_alignment = alignment
    torch.serialization.set_crc32_options(True)


@pytest.mark.parametrize("alignment", [64, 4096])
@pytest.mark.parametrize("kind", ["pt", "pipeline"])
def test_a_flipped_bit_of_a_weight_is_found_by_the_checksum_of_its_record(
    folder, kind, alignment, save_options
):
    save_options.storage_alignment = alignment
    path = folder / ("model.pt" if kind == "pt" else "diffusion_pytorch_model.bin")
    source, state = path, openai_weights()
    if kind == "pipeline":
        saved = path.with_suffix(".safetensors")
        source, state = folder, load_file(saved)
        saved.unlink()
    torch.save(state, path)
    settings = CheckpointSettings(
        **({"model_flags": OPENAI_FLAGS, "schedule": "linear:1000"} if kind == "pt" else {})
    )
    load_checkpoint(source, settings)
    content = bytearray(path.read_bytes())
    _, weight = max(state.items(), key=lambda item: item[1].numel())
    content[content.index(weight.numpy().tobytes()) + 4] ^= 1  # of a mantissa
    path.write_bytes(content)
    assert torch.load(path, weights_only=True).keys() == state.keys()  # torch finds nothing
    with refused(path, f"damaged: record {path.stem}/data/", "have its checksum; copy"):
        load_checkpoint(source, settings)


@pytest.mark.parametrize("how", ["no checksums", "old"])
def test_a_file_without_checksums_is_read(tmp_path, how, save_options):
    torch.serialization.set_crc32_options(how != "no checksums")
    path, state = tmp_path / "model.pt", openai_weights()
    torch.save(state, path, _use_new_zipfile_serialization=how != "old")
    if how == "no checksums":
        assert not any(record.CRC for record in zipfile.ZipFile(path).infolist())
    settings = CheckpointSettings(model_flags=OPENAI_FLAGS, schedule="linear:1000")
    assert load_checkpoint(path, settings).channels == 3


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
        load_checkpoint(path, CheckpointSettings(model_flags=OPENAI_FLAGS))
    assert not canary.exists()
    pickle.loads(pickle.dumps(RunsCode(canary)))  # it is a canary: unpickled, it sings
    assert canary.exists()
