"""A corpus of files that are no DDPM, or no whole one: one line each, and none of them loads."""

import dataclasses
import json
import struct
import warnings
import zipfile
from collections.abc import Callable
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
    save_flat,
    save_pipeline,
)
from PIL import Image
from safetensors.torch import save_file
from score_sde_files import training_state
from unet_configs import SMALL_CONFIG

from ddpmbench import CheckpointSettings, load_checkpoint
from ddpmbench.errors import InputError
from ddpmbench.unet.unet import UNet

FOR_OPENAI = ("--model-flags", OPENAI_FLAGS)
FOR_PESSER = ("--schedule", "linear:1000", "--variance", "fixed_large")
MIDDLE = "middle_block.0.out_layers.3.weight"
OPENAI = openai_weights()
DIFFUSERS = diffusers_unet(SMALL_UNET).state_dict()
with torch.random.fork_rng():
    torch.manual_seed(0)
    PESSER = pesser_weights(UNet(SMALL_CONFIG))
SCORE = training_state("vp_one_level")
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-4}]}


@dataclasses.dataclass(frozen=True)
class Wrong:
    """A file that is none.

    Attributes:
        name: what it is.
        make: writes it into a folder and returns its path.
        words: what the line must hold besides the path.
        options: those that would do for a file of the kind that it is taken for.
        unsettled: whether nothing is wrong but that options are missing or others.
        raw: whether a whole model is beside it, which `--weights raw` reads.
        own: whether its network is whole and only its meaning wrong, which `--network` cannot
            show.
    """

    name: str
    make: Callable[[Path], Path]
    words: tuple[str, ...]
    options: tuple[str, ...] = ()
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


def with_middle(weight):
    """The weights of OPENAI with another one in the middle; None takes it out."""
    weights = {**OPENAI, MIDDLE: weight}
    return {name: w for name, w in weights.items() if w is not None}


def openai(name, change, *words):
    """A file of OPENAI with its middle weight changed."""
    content = with_middle(change(OPENAI[MIDDLE]))
    return Wrong(f"openai {name}", saved(content), (MIDDLE, *words), FOR_OPENAI)


def picture(folder):
    Image.new("RGB", (8, 8)).save(folder / "model.png")
    return (folder / "model.png").rename(folder / "model.pt")


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


def huge():
    """Weights that declare 2^10 numbers in each dimension and hold one."""
    return {
        name: torch.ones(1).as_strided([2**10] * weight.ndim, [0] * weight.ndim)
        for name, weight in PESSER.items()
    }


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
        FOR_OPENAI,
    ),
    Wrong("a whole module", saved(lambda: torch.nn.Linear(2, 2)), ("Linear", "state_dict()")),
    Wrong("a tensor", saved(torch.zeros(3)), ("Tensor", "not a state dict")),
    Wrong("safetensors that promise 4 TB", promising([2**20, 2**20]), ("not a whole",), FOR_PESSER),
    Wrong("tensors that declare 4 TB each", saved(huge), ("holds 1 numbers",), FOR_PESSER),
    # renamed
    Wrong("safetensors called .pt", safetensors(PESSER, "m.pt"), ("rename it",), FOR_PESSER),
    Wrong(
        "a state dict called .safetensors",
        saved(PESSER, "m.safetensors"),
        ("rename it to .pt",),
        FOR_PESSER,
    ),
    # other things
    Wrong("no weights", saved({}), ("holds no weights",)),
    Wrong("an optimizer", saved(OPTIMIZER, "opt500000.pt"), ("optimizer",)),
    Wrong(
        "a shadow of torch_ema",
        saved({"decay": 0.99, "shadow_params": list(OPENAI.values())}),
        ("holds no weights with names",),
        FOR_OPENAI,
    ),
    Wrong(
        "a shadow beside its model",
        saved({"model": OPENAI, "ema": {"shadow_params": list(OPENAI.values())}}),
        ("ema/shadow_params", "--weights raw"),
        FOR_OPENAI,
        raw=True,
    ),
    Wrong(
        "two models",
        saved({"net_a": OPENAI, "net_b": {**OPENAI, "out.0.bias": torch.ones(32)}}),
        ("net_a", "net_b"),
        FOR_OPENAI,
    ),
    Wrong(
        "LoRA of peft",
        saved({"base_model.model.mid_block.to_q.lora_A.weight": torch.zeros(4, 4)}),
        ("mid_block.to_q.lora_A.weight", "--network"),
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
        FOR_OPENAI,
        own=True,
    ),
    Wrong(
        "a network with cross attention",
        saved({**OPENAI, "input_blocks.1.1.transformer_blocks.0.norm.weight": torch.zeros(3)}),
        ("left over",),
        FOR_OPENAI,
    ),
    Wrong(
        "a classifier of guided-diffusion",
        saved({name: w for name, w in OPENAI.items() if "output_blocks" not in name}),
        ("classifier",),
        FOR_OPENAI,
    ),
    Wrong("an upsampler", saved(lambda: openai_weights(images=6)), ("upsampler",), FOR_OPENAI),
    # not whole
    Wrong(
        "openai, a weight more",
        saved({**OPENAI, "middle_block.3.weight": torch.zeros(3)}),
        ("middle_block.3.weight", "left over"),
        FOR_OPENAI,
    ),
    openai("a weight short", lambda middle: None),
    openai("of another shape", lambda middle: middle[:1], "the network takes"),
    openai("with a NaN", lambda middle: middle * torch.nan, "NaN"),
    openai("beyond float16", lambda middle: (1e6 * middle).half(), "infinite"),
    openai("in 4 bits", lambda w: w.byte().view(torch.float4_e2m1fn_x2), "float4_e2m1fn_x2"),
    openai("in integers", lambda middle: middle.int(), "int32"),
    Wrong(
        "openai beside betas without numbers",
        saved({**with_middle(None), "betas": torch.ones(9, device="meta")}),
        (MIDDLE,),
        FOR_OPENAI,
    ),
    Wrong(
        "pesser beside betas that declare 4 TB",
        saved({"model": PESSER, "betas": torch.ones(1).as_strided([2**40], [0])}),
        ("--schedule",),
        unsettled=True,
    ),
    Wrong(
        "openai without numbers",
        saved(lambda: openai_weights(device="meta")),
        ("has no numbers (meta device)",),
        FOR_OPENAI,
    ),
    Wrong("openai without flags", saved(OPENAI), ("--model-flags",), unsettled=True),
    Wrong("score_sde without flags", saved(SCORE), ("--model-flags",), unsettled=True),
    Wrong(
        "openai with another's flags",
        saved(OPENAI),
        ("--num_channels 128", "32"),
        ("--model-flags", "--image_size 32"),
        unsettled=True,
    ),
    Wrong(
        "pesser without a schedule",
        saved(PESSER, "model.ckpt"),
        ("--schedule", "--variance"),
        unsettled=True,
    ),
    Wrong(
        "pesser, a weight short",
        saved({n: w for n, w in PESSER.items() if n != "mid.attn_1.k.bias"}, "model.ckpt"),
        ("mid.attn_1.k.bias", "missing"),
        FOR_PESSER,
    ),
    Wrong(
        "pesser with an autoencoder's stem",
        saved({**PESSER, "conv_in.weight": torch.zeros(64, 1, 3, 3)}, "model.ckpt"),
        ("conv_in.weight is [64, 1, 3, 3]",),
        FOR_PESSER,
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
        "diffusers, other weights",
        flat(
            safetensors(
                {**DIFFUSERS, "mid_block.more": torch.zeros(1)},
                "diffusion_pytorch_model.safetensors",
            )
        ),
        ("mid_block.more",),
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
every_wrong_file = pytest.mark.parametrize("wrong", CORPUS, ids=[wrong.name for wrong in CORPUS])


@pytest.fixture
def place(tmp_path):
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


@every_wrong_file
def test_a_wrong_file_is_one_line_that_names_it(wrong, place, refused):
    path = wrong.make(place)
    line = refused("nll", "--ckpt", path, *wrong.options)
    for word in (str(path), *wrong.words):
        assert word in line


# ---- whatever is said of them

IS_OPENAI = {"model_flags": OPENAI_FLAGS}
IS_PESSER = {"schedule": "linear:1000", "variance": "fixed_large"}
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


not_unsettled = pytest.mark.parametrize(
    "wrong", [wrong for wrong in CORPUS if not wrong.unsettled], ids=lambda wrong: wrong.name
)


@not_unsettled
def test_no_settings_make_it_a_model(wrong, place, own):
    """Neither what its family's files need, nor a network of one's own with the same weights."""
    path = wrong.make(place)
    same = own("pesser" if wrong.options == FOR_PESSER else "openai")
    for said in ({}, IS_OPENAI, IS_PESSER, same):
        for weights in (None, "ema", "raw"):
            settings = CheckpointSettings(**said, weights=weights)
            is_own = wrong.own and said == own("openai") and weights != "ema"
            if is_own or (wrong.raw and weights == "raw" and said in (IS_OPENAI, own("openai"))):
                holds(load_checkpoint(path, settings), OPENAI)
                continue
            with pytest.raises(InputError):
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
def test_what_the_corpus_is_made_of_is_read_where_nothing_is_wrong(weights, place, own):
    path = saved(weights)(place)
    is_openai = weights is OPENAI
    for said in (IS_OPENAI if is_openai else IS_PESSER, own("openai" if is_openai else "pesser")):
        holds(load_checkpoint(path, CheckpointSettings(**said)), weights)
