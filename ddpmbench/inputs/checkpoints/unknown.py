"""What a file or folder is that no reader takes, and what to do."""

import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ddpmbench.inputs.checkpoints.diffusers_files import NETWORKS, is_model, other_weights_in
from ddpmbench.inputs.checkpoints.file_names import model_beside
from ddpmbench.inputs.checkpoints.lucidrains import other_lucidrains
from ddpmbench.inputs.checkpoints.nested import containers
from ddpmbench.inputs.refusals import listed

FAMILIES = "native, diffusers, openai, pesser, lucidrains"
DISTRIBUTED = ".metadata"
"""The file that tells a folder of torch.distributed.checkpoint."""
BESIDE = "copy its config.json and scheduler_config.json"
"""What weights without their folder need."""
_SHARD = re.compile(r"-\d+-of-\d+")
_DIGITS = re.compile(r"(\d+)")
_LATENT = ("first_stage_model.", "cond_stage_model.", "conditioner.")


def what_it_is(path: Path, content: Mapping[str, object]) -> str:
    """Why a file is not read, as the rest of a line that begins with its path.

    Args:
        path: the file.
        content: what it holds.
    """
    if {"state", "param_groups"} <= set(content):
        return f"an optimizer's state, not a model; {model_beside(path)}"
    names = _names(content)
    if (why := other_lucidrains(names)) is not None:
        return why
    if (averages := _without_names(content)) is not None:
        return (
            f"averaged weights without names ({averages}), which only the training code can put "
            "back into its network; save that network's state dict: "
            "torch.save(model.state_dict(), PATH)"
        )
    if any("lora_" in name or ".lora." in name for name in names):
        return "an adapter (LoRA), not a model; merge it into its model and save that"
    if any(name.startswith("network.time_1.") for name in names):
        return "a native file that has lost its record; copy it again from where it was written"
    if _SHARD.search(path.name):
        return (
            "one of several files that hold the weights together; the others, their index "
            f"(.index.json) and config.json must lie beside it: {BESIDE} and pass the folder"
        )
    if any("encoder.down" in name for name in names):
        return "an autoencoder, not a diffusion model"
    if any("down_blocks." in name or "conv_norm_out." in name for name in names):
        return (
            "not the whole network of diffusers' UNet2DModel; save it again: "
            "unet.save_pretrained(FOLDER), and the scheduler likewise"
        )
    first = next(iter(names), None)
    if first is None:
        return "holds no weights" if content else "it is empty, and so no model"
    return (
        f"of no family that is read ({FAMILIES}): its first weight is {first}; a network of your "
        "own is read with --network FILE.py:NAME"
    )


def latent(content: Mapping[str, object], weights: Mapping[str, object]) -> str | None:
    """Why a state dict of a known grammar is no model of images; None if it may be one.

    Args:
        content: the dict that it was in.
        weights: the state dict.
    """
    if any("transformer_blocks." in name for name in weights):
        return "a network with cross attention (of latent diffusion); only DDPMs can be read"
    if found := next((name for name in content if name.startswith(_LATENT)), None):
        return (
            f"a model of an autoencoder's latents ({found.split('.')[0]} is beside it), not of "
            "images; it has no likelihood in bits/dim of pixels"
        )
    return None


def distributed(folder: Path) -> str:
    """What to do with a folder that torch.distributed.checkpoint has written, likewise."""
    return (
        "a distributed checkpoint of PyTorch; gather it with python -m "
        f"torch.distributed.checkpoint.format_utils dcp_to_torch {folder} FILE.pt, and pass FILE.pt"
    )


def what_folder_is(folder: Path) -> str:
    """Why a folder is not read, as the rest of a line that begins with its path."""
    inside = [path for path in folder.iterdir() if path.is_dir()]
    for place in (folder, *sorted(inside)):
        if (place / DISTRIBUTED).is_file():
            return distributed(place)
        if (place / "zero_to_fp32.py").is_file():
            return (
                f"a checkpoint of DeepSpeed; gather it with python {place / 'zero_to_fp32.py'} "
                f"{place} OUT, and pass the file that this writes"
            )
    deeper = [path for place in inside for path in place.iterdir() if path.is_dir()]
    if models := sorted(filter(_is_readable, inside), key=_by_number) or sorted(
        filter(_is_readable, deeper), key=_by_number
    ):
        more = f" ({len(models)} folders in it can be read)" if models[1:] else ""
        return f"holds no model itself; pass the folder in it: {models[-1]}{more}"
    for place in inside:
        if place.name in NETWORKS and other_weights_in(place):
            return f"{place.name}/config.json is missing; copy it there from where they came"
    files = [folder / name for name in other_weights_in(folder)] or [
        place / name for place in sorted(inside, key=_by_number) for name in other_weights_in(place)
    ][-1:]
    if any(_SHARD.search(file.name) for file in files) or (files and _is_of_diffusers(files[0])):
        return (
            f"holds no config.json that says what {files[0].name} is; {BESIDE} into "
            f"{files[0].parent}, or build it with --network FILE.py:NAME"
        )
    if not files:
        return "holds no config.json of a diffusers model, and no file of weights"
    if len(files) > 1:
        names = listed([file.name for file in files])
        return f"holds no config.json of a diffusers model; pass a file in it: {names}"
    return f"holds no config.json of a diffusers model; pass the file itself: {files[0]}"


def _is_readable(folder: Path) -> bool:
    return is_model(folder) or (folder / "checkpoint.safetensors").is_file()


def _by_number(folder: Path) -> list[tuple[int, str]]:
    """Sorts checkpoint-1000 behind checkpoint-500."""
    return [
        (int(part), "") if part.isdecimal() else (0, part) for part in _DIGITS.split(str(folder))
    ]


def _is_of_diffusers(path: Path) -> bool:
    if path.suffix != ".safetensors":
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return {"conv_in.weight", "conv_norm_out.weight"} <= set(file.keys())
    except (SafetensorError, OSError):
        return False


def _names(content: Mapping[str, object]) -> list[str]:
    """The names of all tensors but those of optimizers."""
    return [
        name
        for place in containers(content)
        if not place.is_list and place.optimizer is None
        for name, value in place.items.items()
        if isinstance(value, Tensor)
    ]


def _without_names(content: Mapping[str, object]) -> str | None:
    """Where a list of tensors is that an average may be; None if there is none."""
    for place in containers(content):
        tensors = any(isinstance(value, Tensor) for value in place.items.values())
        if place.is_list and place.optimizer is None and tensors:
            return "/".join(place.keys)
    return None
