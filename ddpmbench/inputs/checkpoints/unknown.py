"""What a weights file is that no reader takes, and what to do."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ddpmbench.inputs.checkpoints.file_names import model_beside

FAMILIES = "native, diffusers, openai, pesser"
_LATENT = ("first_stage_model.", "cond_stage_model.", "conditioner.")


def what_it_is(path: Path, content: Mapping[str, object]) -> str:
    """Why a file is not read, as the rest of a line that begins with its path.

    Args:
        path: the file.
        content: what it holds.
    """
    if {"state", "param_groups"} <= set(content):
        return f"an optimizer's state, not a model; {model_beside(path)}"
    if {"step", "model", "ema"} <= set(content):
        return "of lucidrains/denoising-diffusion-pytorch; this family is not read yet"
    names = _names(content)
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
    if any("down_blocks." in name or "conv_norm_out." in name for name in names):
        if any(name.startswith(("down_blocks.", "conv_norm_out.")) for name in content):
            return f"the weights of a diffusers folder alone; pass the folder: {path.parent}"
        return (
            "a network of diffusers in another code's file, which does not say what it is; save "
            "it with its configuration: unet.save_pretrained(FOLDER), and the scheduler likewise"
        )
    if any("encoder.down." in name for name in names):
        return "an autoencoder, not a diffusion model"
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


def _names(content: Mapping[str, object], depth: int = 3) -> list[str]:
    """The names of all tensors, down to some depth."""
    names = []
    for name, value in content.items():
        if isinstance(value, Tensor):
            names.append(str(name))
        elif isinstance(value, Mapping) and depth and "param_groups" not in value:
            names += _names(value, depth - 1)
    return names


def _without_names(content: Mapping[str, object]) -> str | None:
    """Where a list of tensors is that an average may be; None if there is none."""
    for name, value in content.items():
        if isinstance(value, list | tuple) and any(isinstance(item, Tensor) for item in value):
            return str(name)
        if isinstance(value, Mapping) and "param_groups" not in value:
            inner = _without_names(value)
            if inner is not None:
                return f"{name}/{inner}"
    return None
