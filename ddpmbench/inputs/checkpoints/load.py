"""From a path or a hub id to a checkpoint: which family it is, told by its layout and names."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ddpmbench import assets
from ddpmbench.errors import InputError
from ddpmbench.inputs.checkpoints import hub
from ddpmbench.inputs.checkpoints.checkpoint import Checkpoint
from ddpmbench.inputs.checkpoints.diffusers import read_diffusers
from ddpmbench.inputs.checkpoints.native import is_native, read_native
from ddpmbench.inputs.checkpoints.openai import is_openai, read_openai
from ddpmbench.inputs.checkpoints.pesser import is_pesser, read_pesser
from ddpmbench.inputs.checkpoints.settings import CheckpointSettings
from ddpmbench.inputs.checkpoints.weights import read_state

DEFAULT = "default"
"""The source that names the checkpoint in the package."""
TRAINED = "checkpoint.safetensors"
"""What a training run calls its checkpoint."""


def load_checkpoint(
    source: str | Path = DEFAULT, settings: CheckpointSettings | None = None
) -> Checkpoint:
    """The checkpoint in a file, a folder or a model on the Hugging Face Hub.

    Nothing in it is run: weights are read with safetensors or `torch.load(weights_only=True)`.

    Args:
        source: a native file or the folder of a training run, a state dict of improved-diffusion
            or guided-diffusion, a folder of diffusers, or a hub id `owner/name`; "default" is
            the one in the package.
        settings: what is said of it besides.

    Raises:
        InputError: the source is missing, damaged, of no family that is read, or does not say
            something that an option has to settle.
    """
    settings = settings or CheckpointSettings()
    try:
        checkpoint = _load(source, settings)
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({error.strerror or error})") from error
    return checkpoint.with_conventions(
        prediction=settings.prediction, variance=settings.variance, clip=settings.clip
    )


def _load(source: str | Path, settings: CheckpointSettings) -> Checkpoint:
    path = assets.CHECKPOINT if source == DEFAULT else Path(source)
    name = str(source)
    if not path.exists():
        if not isinstance(source, str) or not hub.is_hub_id(source):
            raise InputError(f"--ckpt {source}: no such file or folder")
        path = hub.download(source)
    if is_native(path / TRAINED):
        path = path / TRAINED
    if path.is_dir():
        _refuse_flags(settings.model_flags, name)
        checkpoint = read_diffusers(path, source=name, settings=settings)
    elif is_native(path):
        _refuse_flags(settings.model_flags, name)
        checkpoint = dataclasses.replace(read_native(path), source=name)
    else:
        state = read_state(path)
        if is_pesser(state):
            _refuse_flags(settings.model_flags, name)
            checkpoint = read_pesser(path, state, source=name, settings=settings)
        elif is_openai(state):
            checkpoint = read_openai(path, state, source=name, settings=settings)
        else:
            raise InputError(f"{path}: {_what_it_is(path, state)}")
    return checkpoint


def _refuse_flags(model_flags: str | None, source: str) -> None:
    if model_flags is not None:
        raise InputError(
            f"--model-flags: {source} says what it is itself; the flags are for state dicts of "
            "improved-diffusion and guided-diffusion"
        )


def _what_it_is(path: Path, state: Mapping[str, object]) -> str:
    """Why a weights file that no reader takes is not taken, and what to do."""
    if {"state", "param_groups"} <= set(state):
        return f"an optimizer's state, not a model; {_model_beside(path)}"
    if {"step", "model", "ema"} <= set(state):
        return "of lucidrains/denoising-diffusion-pytorch; this family is not read yet"
    if any(name.startswith(("down_blocks.", "conv_norm_out.")) for name in state):
        return f"the weights of a diffusers folder alone; pass the folder: {path.parent}"
    for name, value in state.items():
        if isinstance(value, dict) and any(isinstance(item, Tensor) for item in value.values()):
            return (
                f"a state dict inside a dict; save it alone: "
                f'torch.save(torch.load(PATH)["{name}"], NEW)'
            )
    if any(name.startswith("module.") for name in state):
        return "saved from DataParallel; strip module. from its names and save it again"
    first = next(iter(state), None)
    found = "it is empty" if first is None else f"its first weight is {first}"
    return f"of no family that is read (native, diffusers, openai): {found}"


def _model_beside(path: Path) -> str:
    step = path.stem.removeprefix("opt")
    names = [*sorted(path.parent.glob(f"ema_*_{step}.pt")), path.parent / f"model{step}.pt"]
    found = next((name for name in names if name.is_file()), None)
    if found is not None:
        return f"the model beside it is {found.name}"
    return f"pass the model beside it: ema_RATE_{step}.pt or model{step}.pt"
