"""What is no file of weights whatever its name: refused at once, in one line."""

import gzip
import os
import shutil
import zipfile

import numpy as np
import pytest
import torch
from peers import OPENAI_FLAGS, SMALL_UNET, diffusers_unet, openai_weights, refused, save_pipeline
from safetensors.torch import load_file, save_file

from ddpmbench import CheckpointSettings, load_checkpoint


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["unet/config.json", "scheduler/scheduler_config.json", "weights"])
def test_a_pipe_in_a_folder_is_no_file_of_it(name, here):
    folder = save_pipeline(here / "model", diffusers_unet(SMALL_UNET))
    name = "unet/diffusion_pytorch_model.safetensors" if name == "weights" else name
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with refused(folder):
        load_checkpoint(folder)


@pytest.mark.parametrize("source", ["", "  "])
def test_an_empty_name_is_not_the_current_folder(source, here):
    save_pipeline(here, diffusers_unet(SMALL_UNET))
    with refused("`ckpt` is empty"):
        load_checkpoint(source)
    load_checkpoint(".")


def test_archives_say_what_they_are(here):
    np.savez(here / "a.npz", x=np.zeros(3))
    shutil.copy("a.npz", "npz.pt")
    with zipfile.ZipFile("zip.pt", "w") as archive:
        archive.writestr("weights.pt", b"")
    with gzip.open("gzip.pt", "wb") as file:
        file.write(b"weights")
    for name, words in {"npz": "`data`", "zip": "unpack it", "gzip": "unpack it"}.items():
        with refused(f"{name}.pt", words):
            load_checkpoint(f"{name}.pt")


def test_control_characters_of_names_in_a_file_do_not_reach_the_terminal(here):
    content = {"mo\x1b[2Jdel": openai_weights(), "cri\x07tic": {"w": torch.ones(2, 2)}}
    torch.save(content, here / "model.pt")
    notes = load_checkpoint(here / "model.pt", CheckpointSettings(model_flags=OPENAI_FLAGS)).notes
    assert "\\x1b" in "".join(notes)
    assert "\\x07" in "".join(notes)
    assert "".join(notes).isprintable()


def test_shapes_of_more_numbers_than_the_file_holds_are_not_compared(here):
    """Two sets of a trillion numbers each, which are one number in memory."""
    names = ("temb.dense.0.weight", "conv_in.weight")
    huge = torch.zeros(1).expand(10**6, 10**6)
    torch.save({key: dict.fromkeys(names, huge) for key in ("one", "two")}, here / "model.pt")
    with refused("model.pt", "several sets"):
        load_checkpoint("model.pt")


def test_a_native_file_in_low_precision_says_so(small_checkpoint, here):
    from safetensors import safe_open

    with safe_open(small_checkpoint, framework="pt") as file:
        metadata = file.metadata()
    weights = load_file(small_checkpoint)
    half = {n: w if n == "schedule.betas" else w.half() for n, w in weights.items()}
    save_file(half, here / "half.safetensors", metadata=metadata)
    assert any("float16" in note for note in load_checkpoint("half.safetensors").notes)
    assert not load_checkpoint(small_checkpoint).notes
