"""Who says what of a checkpoint."""

import dataclasses

import numpy as np
import pytest
import torch
from peers import pesser_weights

import ddpmbench as db
from ddpmbench.checkpoints.native import write_native
from ddpmbench.checkpoints.provenance import what_is_open, what_is_said
from ddpmbench.unet.unet import UNet, UNetConfig

FILE, FAMILY = "the file", "its family"
UNIT, LEVELS = {"data_range": db.DataRange(0.0, 1.0)}, {"data_range": db.DataRange(levels=32)}


@pytest.mark.parametrize(
    ("written", "given", "who"),
    [
        ({}, {}, (FAMILY, FAMILY, FAMILY)),
        ({"clip": False}, {}, (FILE, FAMILY, FAMILY)),
        (UNIT, {}, (FAMILY, FILE, FILE)),
        (LEVELS, {}, (FAMILY, FILE, FILE)),
        ({}, {"clip": False}, ("--clip/--no-clip", FAMILY, FAMILY)),
        ({}, {"levels": 32}, (FAMILY, FAMILY, "--levels")),
        ({}, {"data_range": (0.0, 1.0)}, (FAMILY, "--data-range", FAMILY)),
        (UNIT, {"levels": 32}, (FAMILY, FILE, "--levels")),
        (LEVELS, {"data_range": (0.0, 1.0)}, (FAMILY, "--data-range", FILE)),
    ],
)
def test_a_native_file_says_what_is_not_the_custom(small_model, tmp_path, written, given, who):
    path = tmp_path / "model.safetensors"
    write_native(path, dataclasses.replace(small_model, **written))
    settings = db.CheckpointSettings(**given)
    said = what_is_said(db.load_checkpoint(path, settings), settings)
    by = {item.what: item.by for item in said}
    assert (by["clip"], by["data range"], by["levels"]) == who


def test_options_are_in_the_words_of_a_file_that_can_be_read(small_model):
    given = db.CheckpointSettings(clip=True, data_range=(0.0, 1.0), levels=32)
    model = small_model.with_conventions(clip=True, data_range=db.DataRange(0.0, 1.0, 32))
    read = {item.what: item for item in what_is_said(model, given)}
    found = what_is_open(("--schedule linear:1000",), (), given)
    assert [item.what for item in found] == ["schedule", "clip", "data range", "levels"]
    assert all(item == read[item.what] for item in found[1:])


def test_levels_are_no_data_range():
    (found,) = what_is_open((), (), db.CheckpointSettings(levels=32))
    assert (found.what, found.value, found.by) == ("levels", "32", "--levels")


def test_what_stands_in_a_wrapped_file_is_not_its_published_name(tmp_path):
    path = tmp_path / "mine.ckpt"
    config = UNetConfig(
        in_channels=1,
        out_channels=1,
        model_channels=32,
        channels=(32,),
        num_blocks=1,
        attention=(False,),
    )
    weights = pesser_weights(UNet(config))
    state = {f"{prefix}.{n}": t for prefix in ("model", "ema_model") for n, t in weights.items()}
    state["betas"] = torch.from_numpy(np.linspace(1e-4, 0.02, 1000)).float()
    torch.save({"state_dict": state}, path)
    settings = db.CheckpointSettings(variance="fixed_large")
    said = what_is_said(db.load_checkpoint(path, settings), settings)
    by = {item.what: item.by for item in said}
    assert (by["schedule"], by["weights"]) == (FILE, FILE)
