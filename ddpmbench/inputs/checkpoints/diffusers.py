"""The family of diffusers: a folder of a UNet2DModel and a DDPMScheduler."""

import dataclasses
import re
from pathlib import Path

import torch
from torch import Tensor

from ddpmbench.errors import InputError
from ddpmbench.inputs.checkpoints.checkpoint import Checkpoint
from ddpmbench.inputs.checkpoints.diffusers_network import read_network
from ddpmbench.inputs.checkpoints.diffusers_scheduler import read_scheduler
from ddpmbench.inputs.checkpoints.fields import read_object
from ddpmbench.inputs.checkpoints.settings import CheckpointSettings
from ddpmbench.inputs.checkpoints.weights import (
    build_unet,
    check_outputs,
    only_tensors,
    read_state,
    sha256_of,
    unet_names,
)
from ddpmbench.process.prediction import Prediction, Variance

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
# Our names -> theirs, applied in this order.
_RENAMES = (
    (r"^time_(\d)\.", r"time_embedding.linear_\1."),
    (r"^classes\.", "class_embedding."),
    (r"^norm_out\.", "conv_norm_out."),
    (r"^(down|up)\.(\d+)\.blocks\.", r"\1_blocks.\2.resnets."),
    (r"^(down|up)\.(\d+)\.attentions\.", r"\1_blocks.\2.attentions."),
    (r"^(down|up)\.(\d+)\.resample\.", r"\1_blocks.\2.\1samplers.0."),
    (r"^middle\.block_1\.", "mid_block.resnets.0."),
    (r"^middle\.block_2\.", "mid_block.resnets.1."),
    (r"^middle\.attention\.", "mid_block.attentions.0."),
    (r"\.(norm|conv)_(\d)\.", r".\1\2."),
    (r"\.time\.", ".time_emb_proj."),
    (r"\.shortcut\.", ".conv_shortcut."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.out\.", r"\1.to_out.0."),
)
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Where a folder keeps its three files."""

    config: Path
    scheduler: Path
    weights: Path


def read_diffusers(folder: Path, *, source: str, settings: CheckpointSettings) -> Checkpoint:
    """The checkpoint in a folder written by diffusers.

    Args:
        folder: holds `config.json`, `scheduler_config.json` and the weights, or the same in
            `unet/` and `scheduler/`.
        source: the path or hub id as the user gave it.
        settings: what the scheduler does not say.

    Raises:
        InputError: a file is missing or damaged, or says something this package cannot express;
            the line names the file and the field.

    Source: diffusers' UNet2DModel and DDPMScheduler.
    """
    layout = _find(folder)
    config, image_size = read_network(layout.config)
    prediction = None if settings.prediction is None else Prediction(settings.prediction)
    variance = None if settings.variance is None else Variance(settings.variance)
    conventions = read_scheduler(layout.scheduler, prediction=prediction, variance=variance)
    said_by = layout.scheduler if variance is None else f"--variance {variance}: {layout.config}"
    check_outputs(config, conventions.variance, source=said_by)
    weights = only_tensors(read_state(layout.weights), source=str(layout.weights))
    names = {name: their_name(name) for name in unet_names(config, source=str(layout.config))}
    weights = _joined(weights, set(names.values()), layout.weights)
    network = build_unet(config, weights, source=str(layout.weights), names=names)
    return Checkpoint(
        network=network,
        schedule=conventions.schedule,
        prediction=conventions.prediction,
        variance=conventions.variance,
        clip=conventions.clip,
        channels=config.in_channels,
        image_size=image_size,
        size_multiple=config.size_multiple,
        num_classes=config.num_classes,
        family="diffusers",
        source=source,
        sha256=sha256_of(layout.weights),
        notes=conventions.notes,
    )


def weights_file(folder: Path) -> Path | None:
    """The weights `read_diffusers` reads; None if there are none."""
    base = folder / "unet" if (folder / "unet").is_dir() else folder
    return next((base / name for name in WEIGHTS if (base / name).is_file()), None)


def _find(folder: Path) -> _Layout:
    """Where the files are; refuses a folder that lacks one, or is of another kind of pipeline."""
    schedulers = [folder / "scheduler_config.json"]
    network = folder
    if (folder / "unet").is_dir():
        network = folder / "unet"
        schedulers = [folder / n / schedulers[0].name for n in ("scheduler", "noise_scheduler")]
    config = network / "config.json"
    if not config.is_file():
        files = sorted(p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".pt"))
        remedy = f"; pass the file itself: {folder / files[0]}" if files else ""
        raise InputError(f"{folder}: holds no config.json of a diffusers model{remedy}")
    index = folder / "model_index.json"
    if index.is_file():
        for name, value in read_object(index).items():
            known = name.startswith("_") or name in ("unet", "scheduler", "noise_scheduler")
            if not known and value not in (None, [None, None]):
                raise InputError(
                    f"{index}: the pipeline has a {name} besides unet and scheduler; only "
                    "models of the images themselves can be read"
                )
    scheduler = next((path for path in schedulers if path.is_file()), None)
    if scheduler is None:
        above = folder.parent / "model_index.json"
        remedy = (
            f"pass {folder.parent}"
            if above.is_file()
            else "copy it there from where the model came"
        )
        raise InputError(f"{schedulers[0]}: missing, so nothing says the noise schedule; {remedy}")
    weights = weights_file(folder)
    if weights is None:
        raise InputError(f"{network}: holds neither {WEIGHTS[0]} nor {WEIGHTS[1]}")
    return _Layout(config, scheduler, weights)


def their_name(name: str) -> str:
    """What diffusers calls a weight of `network.unet.UNet`.

    Queries, keys and values are one `qkv` in the name; diffusers has to_q, to_k and to_v.
    """
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _joined(weights: dict[str, Tensor], wanted: set[str], path: Path) -> dict[str, Tensor]:
    """The file's weights with queries, keys and values as the rows of one `qkv`."""
    old = re.compile(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.")
    result = {
        old.sub(lambda found: f"{found[1]}.{_OLD_ATTENTION[found[2]]}.", name): tensor
        for name, tensor in weights.items()
    }
    for name in sorted(wanted):
        if ".qkv." in name:
            parts = [name.replace(".qkv.", f".{part}.") for part in ("to_q", "to_k", "to_v")]
            if missing := [part for part in parts if part not in result]:
                raise InputError(f"{path}: weight {missing[0]} missing; the file is not whole")
            result[name] = torch.cat([_matrix(result.pop(part)) for part in parts])
        elif ".to_out.0.weight" in name and name in result:
            result[name] = _matrix(result[name])
    return result


def _matrix(weight: Tensor) -> Tensor:
    """A layer on every pixel, written as a matrix or as a convolution of one pixel."""
    return weight.flatten(1) if weight.ndim > 2 else weight
