"""Why a file or folder is not read as a checkpoint, and the remedy."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ddpmbench.checkpoints.diffusers_files import is_model, weights_within
from ddpmbench.checkpoints.native import TRAINED
from ddpmbench.checkpoints.settings import OWN
from ddpmbench.checkpoints.state_dicts import StateDict
from ddpmbench.checkpoints.weights import containers
from ddpmbench.errors import listed

FAMILIES = "native, diffusers, openai, pesser, lucidrains, score_sde, tensorflow"
BESIDE = "copy its config.json and scheduler_config.json"
"""The remedy for weights without their folder."""
_SHARD = re.compile(r"-\d+-of-\d+")
_LATENT = ("first_stage_model.", "cond_stage_model.", "conditioner.")


def file_problem(path: Path, content: Mapping[str, object]) -> str:
    """Why no family reads a file, to complete a line that begins with its path."""
    if {"state", "param_groups"} <= set(content):
        return "an optimizer's state, not a model; pass the file of the model that it trained"
    names = [
        name
        for place in containers(content)
        if not place.is_list and place.optimizer is None
        for name, value in place.items.items()
        if isinstance(value, Tensor)
    ]
    if not names:
        return (
            "holds no weights with names; save the network's state dict: "
            "torch.save(model.state_dict(), PATH)"
        )
    if _SHARD.search(path.name):
        return (
            "one of several files that hold the weights together; the others, their index "
            f"(.index.json) and config.json must lie beside it: {BESIDE} and pass the folder"
        )
    return (
        f"not a whole network of a family that is read ({FAMILIES}): its first weight is "
        f"{names[0]}; {OWN} if it is a network of your own"
    )


def latents_problem(state: StateDict) -> str | None:
    """Why a state dict with known names is not a model of images; None if it may be one."""
    part = next((name for name in state.beside if name.startswith(_LATENT)), None)
    if part is None:
        return None
    return (
        f"a model of an autoencoder's latents ({part.split('.')[0]} is beside it), not of images; "
        "it has no likelihood in bits/dim of pixels"
    )


def sharded_problem(folder: Path) -> str | None:
    """The remedy for a checkpoint written by several processes; None for any other folder."""
    if (folder / ".metadata").is_file():
        return (
            "a distributed checkpoint of PyTorch; gather it with python -m torch.distributed."
            f"checkpoint.format_utils dcp_to_torch {folder} FILE.pt, and pass FILE.pt"
        )
    if (script := folder / "zero_to_fp32.py").is_file():
        return (
            f"a checkpoint of DeepSpeed; gather it with python {script} {folder} OUT, and pass "
            "the file that this writes"
        )
    return None


def folder_problem(folder: Path) -> str:
    """Why a folder is not read, to complete a line that begins with its path."""
    for place in (folder, *sorted(filter(Path.is_dir, folder.iterdir()))):
        if (problem := sharded_problem(place)) is not None:
            return problem
    for depth in ("*", "*/*"):
        places = sorted(folder.glob(depth))
        models = [p for p in places if is_model(p) or (p / TRAINED).is_file()]
        if models:
            return f"holds no model itself; pass a folder in it: {listed([*map(str, models)])}"
    files = weights_within(folder)
    if not files:
        return "holds no config.json of a diffusers model, and no file of weights"
    return (
        f"holds no config.json of a diffusers model; {BESIDE} into {files[0].parent}, or pass a "
        f"file of another family itself: {listed([*map(str, files)])}"
    )
