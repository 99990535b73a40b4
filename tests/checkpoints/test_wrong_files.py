"""A corpus of files that are no DDPM, or no whole one: one line each, and none of them loads."""

import dataclasses
import itertools
import json
import os
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from peers import (
    OPENAI_FLAGS,
    SMALL_UNET,
    diffusers_unet,
    edit_json,
    openai_weights,
    pesser_weights,
    refused,
    save_flat,
    save_pipeline,
)
from PIL import Image
from safetensors.torch import save_file
from score_sde_files import training_state
from unet_configs import SMALL_CONFIG

from ddpmbench import CheckpointSettings, load_checkpoint
from ddpmbench.unet.unet import UNet

IS_OPENAI = {"model_flags": OPENAI_FLAGS}
IS_PESSER = {"schedule": "linear:1000", "variance": "fixed_large"}
OPENAI = openai_weights()
DIFFUSERS = diffusers_unet(SMALL_UNET).state_dict()
with torch.random.fork_rng():
    torch.manual_seed(0)
    PESSER = pesser_weights(UNet(SMALL_CONFIG))
DIFFUSERS_FILE = "diffusion_pytorch_model.safetensors"
SCORE = training_state("vp_one_level")
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-4}]}


@dataclasses.dataclass(frozen=True)
class Wrong:
    """A file that is none.

    Attributes:
        name: what it is.
        make: writes it into a folder and returns its path.
        words: what the line must hold besides the path.
        settings: those that would do for a file of the kind that it is taken for.
        unsettled: whether nothing is wrong but that settings are missing or others.
        raw: whether a whole model is beside it, which `weights="raw"` reads.
        own: whether its network is whole and only its meaning wrong, which `network` cannot
            show.
    """

    name: str
    make: Callable[[Path], Path]
    words: tuple[str, ...]
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unsettled: bool = False
    raw: bool = False
    own: bool = False


def saved(content, name="model.pt", **how):
    """Written by torch.save."""

    def make(folder):
        torch.save(content() if callable(content) else content, folder / name, **how)
        return folder / name

    return make


def holding(content, name="model.pt"):
    """Of these bytes."""

    def make(folder):
        (folder / name).write_bytes(content)
        return folder / name

    return make


def picture(folder):
    Image.new("RGB", (8, 8)).save(folder / "model.png")
    return (folder / "model.png").rename(folder / "model.pt")


def cut(make, share):
    """The first bytes of a file, this share of them."""

    def made(folder):
        path = make(folder)
        os.truncate(path, int(share * path.stat().st_size))
        return path

    return made


def with_spoiled_table(make):
    """An archive whose table of contents is overwritten."""

    def made(folder):
        path = make(folder)
        path.write_bytes(path.read_bytes().replace(b"PK\1\2", b"XX\1\2"))
        return path

    return made


def archive(*members, compression=zipfile.ZIP_STORED):
    def make(folder):
        with zipfile.ZipFile(folder / "model.pt", "w", compression) as file:
            for name in members:
                file.writestr(name, b"\0" * 10_000)
        return folder / "model.pt"

    return make


def program(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # people have such files, though torch advises against it
        torch.jit.save(torch.jit.script(torch.nn.Identity()), folder / "model.pt")
    return folder / "model.pt"


def safetensors(weights, name="model.safetensors", **how):
    def make(folder):
        save_file({key: w.contiguous().clone() for key, w in weights.items()}, folder / name, **how)
        return folder / name

    return make


def promising(shape):
    """A safetensors file whose header declares more than there is."""
    tensor = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * int(np.prod(shape))]}
    text = json.dumps({"temb.dense.0.weight": tensor}).encode()
    return holding(struct.pack("<Q", len(text)) + text + b"\0" * 64, "model.safetensors")


def flat(change):
    """A folder of diffusers with something done to it."""

    def make(folder):
        save_flat(folder / "model", diffusers_unet(SMALL_UNET))
        change(folder / "model")
        return folder / "model"

    return make


def inside_a_pipeline(folder):
    save_pipeline(folder / "model", diffusers_unet(SMALL_UNET))
    return folder / "model" / "unet"


CORPUS = [
    # no checkpoint
    Wrong("a page", holding(b"<!doctype html>404", "m.ckpt"), ("not a file written by",)),
    Wrong("a picture", picture, ("not a file written by torch.save",)),
    Wrong(
        "a pointer of Git LFS",
        holding(b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "m.safetensors"),
        ("Git LFS", "git lfs pull"),
    ),
    Wrong("an archive", archive("a.txt"), ("not one written by torch.save",)),
    Wrong(
        "an archive that may unpack to any size",
        archive("a/data.pkl", compression=zipfile.ZIP_DEFLATED),
        ("compressed archive", "save it again"),
    ),
    Wrong("an archive with a name of torch's", archive("a/data.pkl"), ("truncated or damaged",)),
    Wrong("TorchScript", program, ("TorchScript", "state_dict()")),
    Wrong(
        "a state dict whose table of contents is spoiled",
        with_spoiled_table(saved(OPENAI)),
        ("truncated or damaged; copy",),
        IS_OPENAI,
    ),
    *(
        Wrong(f"{share:.1%} of {name}", cut(make, share), ("again",), IS_OPENAI)
        for share in (0.0, 0.001, 0.99)
        for name, make in {
            "a state dict": saved(OPENAI),
            "one in torch's old form": saved(OPENAI, _use_new_zipfile_serialization=False),
            "safetensors": safetensors(OPENAI),
        }.items()
    ),
    Wrong("a whole module", saved(lambda: torch.nn.Linear(2, 2)), ("Linear", "state_dict()")),
    Wrong("a tensor", saved(torch.zeros(3)), ("Tensor", "not a state dict")),
    Wrong("safetensors that promise 4 TB", promising([2**20, 2**20]), ("not a whole",), IS_PESSER),
    Wrong(
        "a record too deep to be parsed",
        safetensors({"w": torch.ones(1)}, metadata={"ddpmbench": "[" * 100_000}),
        ("too deep",),
    ),
    # renamed
    Wrong("safetensors called .pt", safetensors(PESSER, "m.pt"), ("rename it",), IS_PESSER),
    Wrong(
        "a state dict called .safetensors",
        saved(PESSER, "m.safetensors"),
        ("rename it to .pt",),
        IS_PESSER,
    ),
    # other things
    Wrong("no weights", saved({}), ("holds no weights",)),
    Wrong("an optimizer", saved(OPTIMIZER, "opt500000.pt"), ("optimizer",)),
    Wrong(
        "a shadow of torch_ema",
        saved({"decay": 0.99, "shadow_params": list(OPENAI.values())}),
        ("holds no weights with names",),
        IS_OPENAI,
    ),
    Wrong(
        "a shadow beside its model",
        saved({"model": OPENAI, "ema": {"shadow_params": list(OPENAI.values())}}),
        ("ema/shadow_params", "`weights=raw`"),
        IS_OPENAI,
        raw=True,
    ),
    Wrong(
        "two models",
        saved({"net_a": OPENAI, "net_b": {**OPENAI, "out.0.bias": torch.ones(32)}}),
        ("net_a", "net_b"),
        IS_OPENAI,
    ),
    Wrong(
        "LoRA of peft",
        saved({"base_model.model.mid_block.to_q.lora_A.weight": torch.zeros(4, 4)}),
        ("mid_block.to_q.lora_A.weight", "`network=FILE.py:NAME`"),
    ),
    # other networks
    Wrong(
        "a latent diffusion model",
        saved(
            {
                "state_dict": {
                    **{f"model.diffusion_model.{name}": w for name, w in OPENAI.items()},
                    "first_stage_model.encoder.conv_in.weight": torch.zeros(3),
                }
            }
        ),
        ("latents", "first_stage_model"),
        IS_OPENAI,
        own=True,
    ),
    Wrong(
        "a network with cross attention",
        saved({**OPENAI, "input_blocks.1.1.transformer_blocks.0.norm.weight": torch.zeros(3)}),
        ("left over",),
        IS_OPENAI,
    ),
    Wrong(
        "a classifier of guided-diffusion",
        saved({name: w for name, w in OPENAI.items() if "output_blocks" not in name}),
        ("classifier",),
        IS_OPENAI,
    ),
    Wrong("an upsampler", saved(lambda: openai_weights(images=6)), ("upsampler",), IS_OPENAI),
    # not whole
    Wrong(
        "openai beside betas without numbers",
        saved(
            {
                **{name: w for name, w in OPENAI.items() if name != "out.0.bias"},
                "betas": torch.ones(9, device="meta"),
            }
        ),
        ("betas has no numbers",),
        IS_OPENAI,
    ),
    Wrong(
        "pesser beside betas that declare 4 TB",
        saved({"model": PESSER, "betas": torch.ones(1).as_strided([2**40], [0])}),
        ("`schedule=",),
        unsettled=True,
    ),
    Wrong(
        "openai without flags", saved(OPENAI), ("pass `model_flags='--image_size ",), unsettled=True
    ),
    Wrong(
        "score_sde without flags", saved(SCORE), ("pass `model_flags='--config",), unsettled=True
    ),
    Wrong(
        "openai with another's flags",
        saved(OPENAI),
        ("--num_channels 128", "32"),
        {"model_flags": "--image_size 32"},
        unsettled=True,
    ),
    Wrong(
        "pesser without a schedule",
        saved(PESSER, "model.ckpt"),
        ("`schedule=", "`variance="),
        unsettled=True,
    ),
    Wrong(
        "pesser with an autoencoder's stem",
        saved({**PESSER, "conv_in.weight": torch.zeros(64, 1, 3, 3)}, "model.ckpt"),
        ("conv_in.weight is [64, 1, 3, 3]",),
        IS_PESSER,
    ),
    # native and diffusers
    Wrong(
        "native without its record",
        safetensors({"network.time_1.weight": torch.zeros(3)}),
        ("not a whole network", "network.time_1.weight"),
    ),
    Wrong(
        "native of a later version",
        safetensors({"schedule.betas": torch.zeros(3)}, metadata={"ddpmbench": '{"format": 9}'}),
        ("install a newer ddpmbench",),
    ),
    Wrong(
        "diffusers in Lightning",
        saved({"state_dict": {f"unet.{name}": w for name, w in DIFFUSERS.items()}}),
        ("copy its config.json and scheduler_config.json beside it",),
    ),
    Wrong(
        "diffusers without a scheduler",
        flat(lambda folder: (folder / "scheduler_config.json").unlink()),
        ("schedule",),
    ),
    Wrong(
        "diffusers without weights",
        flat(lambda folder: (folder / DIFFUSERS_FILE).unlink()),
        (DIFFUSERS_FILE, "copy them there"),
    ),
    Wrong(
        "diffusers, half of its weights",
        flat(lambda folder: cut(lambda folder: folder / DIFFUSERS_FILE, 0.5)(folder)),
        (DIFFUSERS_FILE, "again"),
    ),
    *(
        Wrong(
            f"diffusers, {content} in {name}",
            flat(lambda folder, file=name, text=content: (folder / file).write_bytes(text)),
            (name,),
        )
        for name in ("scheduler_config.json", "config.json")
        for content in (b"", b"{", b"[1]", b"\xff\xfe", b"{}\n{}")
    ),
    Wrong(
        "diffusers of more channels than memory",
        flat(lambda folder: edit_json(folder / "config.json", block_out_channels=[2**20, 2**21])),
        ("linear_1.weight", str(2**20)),
    ),
    Wrong(
        "diffusers of more layers than memory",
        flat(lambda folder: edit_json(folder / "config.json", layers_per_block=10_000_000)),
        ("config.json", "num_blocks 10,000,000", "correct"),
    ),
    Wrong("diffusers, unet/ alone", inside_a_pipeline, ("scheduler_config.json", "pass ")),
    Wrong(
        "diffusers with text",
        flat(lambda folder: edit_json(folder / "config.json", _class_name="UNet2DConditionModel")),
        ("_class_name",),
    ),
    Wrong(
        "diffusers of flow matching",
        flat(
            lambda folder: edit_json(
                folder / "scheduler_config.json", _class_name="FlowMatchEulerDiscreteScheduler"
            )
        ),
        ("_class_name",),
    ),
]
OWN = """
from torch import empty, nn

def build(shapes):
    network = nn.Module()
    for name, shape in shapes.items():
        *path, leaf = name.split(".")
        inner = network
        for part in path:
            if part not in inner._modules:
                inner.add_module(part, nn.Module())
            inner = inner._modules[part]
        inner.register_parameter(leaf, nn.Parameter(empty(shape)))
    return network

def openai(): return build({openai})
def pesser(): return build({pesser})
"""


def shapes(weights):
    return {name: tuple(weight.shape) for name, weight in weights.items()}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """What is said with a network of one's own that has the very weights of a family's."""
    path = tmp_path_factory.mktemp("own") / "net.py"
    path.write_text(
        OWN.replace("{openai}", repr(shapes(OPENAI))).replace("{pesser}", repr(shapes(PESSER)))
    )

    def said(name):
        return {
            **IS_PESSER,
            "network": f"{path}:{name}",
            "prediction": "eps",
            "time_input": "index",
        }

    return said


@pytest.mark.parametrize("wrong", CORPUS, ids=lambda wrong: wrong.name)
def test_a_wrong_file_is_one_line_that_names_it_whatever_is_said_of_it(wrong, tmp_path, own):
    """What its family's files need, and a network of one's own with the same weights."""
    path = wrong.make(tmp_path)
    with refused(path, *wrong.words):
        load_checkpoint(path, CheckpointSettings(**wrong.settings))
    if wrong.unsettled:
        return
    same = own("pesser" if wrong.settings is IS_PESSER else "openai")
    for said, weights in itertools.product(({}, IS_OPENAI, IS_PESSER, same), (None, "ema", "raw")):
        settings = CheckpointSettings(**said, weights=weights)
        is_own = wrong.own and said == own("openai") and weights != "ema"
        if is_own or (wrong.raw and weights == "raw" and said in (IS_OPENAI, own("openai"))):
            holds(load_checkpoint(path, settings), OPENAI)
            continue
        with refused():
            load_checkpoint(path, settings)


def holds(checkpoint, weights):
    """Whether its network has all these numbers and no others, whatever it calls them.

    Queries, keys and values may lie in other places of one weight, and pixels in no dimensions.
    """
    mine = checkpoint.network.state_dict().values()
    ours, theirs = (
        torch.cat([weight.flatten() for weight in result]).sort().values
        for result in (mine, weights.values())
    )
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("weights", [OPENAI, PESSER], ids=["openai", "pesser"])
def test_what_the_corpus_is_made_of_is_read_where_nothing_is_wrong(weights, tmp_path, own):
    path = saved(weights)(tmp_path)
    is_openai = weights is OPENAI
    for said in (IS_OPENAI if is_openai else IS_PESSER, own("openai" if is_openai else "pesser")):
        holds(load_checkpoint(path, CheckpointSettings(**said)), weights)
