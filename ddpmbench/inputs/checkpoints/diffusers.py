"""The family of diffusers: a folder of a UNet2DModel and a DDPMScheduler."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ddpmbench.errors import InputError
from ddpmbench.inputs.checkpoints.attention_rows import join_attention
from ddpmbench.inputs.checkpoints.checkpoint import Checkpoint
from ddpmbench.inputs.checkpoints.diffusers_files import (
    NETWORKS,
    Layout,
    WeightFiles,
    find_layout,
    relative,
    weight_map,
)
from ddpmbench.inputs.checkpoints.diffusers_network import read_network
from ddpmbench.inputs.checkpoints.diffusers_scheduler import (
    DEFAULT,
    Conventions,
    UnsaidError,
    read_scheduler,
)
from ddpmbench.inputs.checkpoints.schedule_option import NO_TABLES, read_schedule
from ddpmbench.inputs.checkpoints.settings import CheckpointSettings
from ddpmbench.inputs.checkpoints.states import StateDict
from ddpmbench.inputs.checkpoints.unsettled import UnsettledError
from ddpmbench.inputs.checkpoints.weights import (
    build_unet,
    check_blob,
    check_outputs,
    only_tensors,
    read_state,
    rounding_notes,
    sha256_of,
    unet_names,
)
from ddpmbench.process.prediction import Prediction, Variance

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


TELLING = (("time_embedding.linear_1.weight", "conv_norm_out.weight"),)
"""Names that tell this family under any prefix; all of a row must be there."""


def is_diffusers(names: Mapping[str, object]) -> bool:
    """Whether a state dict has the names of diffusers' UNet2DModel."""
    return set(TELLING[0]) <= set(names)


def read_diffusers(
    folder: Path,
    *,
    source: str,
    settings: CheckpointSettings,
    chosen: WeightFiles | None = None,
    state: StateDict | None = None,
) -> Checkpoint:
    """The checkpoint in a folder written by diffusers.

    Args:
        folder: holds `config.json`, `scheduler_config.json` and the weights, or the same in
            `unet/` and `scheduler/`; averaged weights may be beside them in `unet_ema/`.
        source: the path or hub id as the user gave it.
        settings: what the scheduler does not say, and which weights to read.
        chosen: the weights to read; None leaves the choice to what is there.
        state: what is read of the file chosen, where it holds more than one state dict.

    Raises:
        InputError: there are several sets of weights that differ; or a file is missing or damaged,
            or says something this package cannot express; the line names the file and the field.

    Source: diffusers' UNet2DModel and DDPMScheduler.
    """
    layout = find_layout(folder, weights=settings.weights, chosen=chosen)
    scheduler = layout.scheduler
    if not scheduler.is_file() and folder.resolve().name in NETWORKS:
        raise InputError(
            f"{scheduler}: missing, so nothing says the noise schedule; pass "
            f"{folder.resolve().parent}"
        )
    config, image_size = read_network(layout.config)
    found, weights, sha256, equal = _read_candidates(layout, folder, state)
    said_by, kind = found.path, found.kind if state is None else state.kind or found.kind
    conventions = _conventions(scheduler, settings, said_by, weights)
    variance = settings.variance
    said = scheduler if variance is None else f"--variance {variance}: {layout.config}"
    check_outputs(config, conventions.variance, source=said)
    names = {name: their_name(name) for name in unet_names(config, source=str(layout.config))}
    weights = join_attention(
        weights,
        names.values(),
        parts=("to_q", "to_k", "to_v"),
        output="to_out.0",
        source=said_by,
    )
    network = build_unet(config, weights, source=str(said_by), names=names)
    return Checkpoint(
        network=network,
        schedule=conventions.schedule,
        prediction=conventions.prediction,
        variance=conventions.variance,
        clip=conventions.clip,
        weights=kind,
        part="" if state is None or state.alone else state.where,
        where="" if state is None else state.where,
        files=tuple(map(str, found.files)),
        channels=config.in_channels,
        image_size=image_size,
        size_multiple=config.size_multiple,
        num_classes=config.num_classes,
        family="diffusers",
        source=source,
        sha256=sha256,
        notes=(*layout.notes, *equal, *conventions.notes),
        sources=conventions.sources,
    )


def _conventions(
    scheduler: Path, settings: CheckpointSettings, file: Path, weights: dict[str, Tensor]
) -> Conventions:
    """What the scheduler's file says, or the options where there is none.

    `file` and `weights` are for whoever asks what is known where something is left open.
    """
    try:
        if scheduler.is_file():
            return read_scheduler(scheduler, settings)
        if None in (settings.schedule, settings.prediction, settings.variance):
            raise _nothing_said(scheduler, settings)
    except UnsaidError as error:
        raise UnsettledError(
            str(error), family="diffusers", path=file, weights=weights, missing=error.options
        ) from error
    said = (str(settings.schedule), str(settings.prediction), str(settings.variance))
    return Conventions(
        schedule=read_schedule(said[0]),
        prediction=Prediction(said[1]),
        variance=Variance(said[2]),
        clip=True,
        notes=(f"no {scheduler}; as the options say: {', '.join(said)}",),
        sources={"clip": DEFAULT},
    )


def _nothing_said(scheduler: Path, settings: CheckpointSettings) -> UnsaidError:
    """The error for a folder without a scheduler, which a training leaves behind."""
    options = {
        NO_TABLES.example: settings.schedule,
        "--prediction eps": settings.prediction,
        "--variance fixed_small": settings.variance,
    }
    missing = tuple(option for option, said in options.items() if said is None)
    return UnsaidError(
        f"{scheduler}: missing, so nothing says the noise schedule; copy it there from where the "
        f"model came, or say how it was trained: {' '.join(missing)}, or whatever else it was",
        *missing,
    )


def _read_candidates(
    layout: Layout, folder: Path, state: StateDict | None
) -> tuple[WeightFiles, dict[str, Tensor], str, list[str]]:
    """The weights, if all candidates hold the same, their SHA-256 and what to note of them.

    Where some hold them rounded, those that are not are read.
    """
    found, *others = layout.candidates
    weights, sha256 = _read_weights(found, state)
    notes = [*(state.notes if state is not None else rounding_notes(weights))]
    equal = []
    for other in others:
        theirs, their_sha256 = _read_weights(other)
        if not _same_weights(weights, theirs):
            names = ", ".join(relative(each.path, folder) for each in layout.candidates)
            raise InputError(
                f"{folder}: holds sets of weights that differ: {names}; pass the one to read: "
                f"--ckpt {found.path}, or --ckpt {other.path}"
            )
        rounded = ", rounded" if _bytes_of(theirs) != _bytes_of(weights) else ""
        if _bytes_of(theirs) > _bytes_of(weights):
            found, other = other, found
            weights, sha256, notes = theirs, their_sha256, [*rounding_notes(theirs)]
        equal.append(f"{relative(other.path, folder)}{rounded}")
    if equal:
        notes.append(
            f"weights: {relative(found.path, folder)} is read; the same are in {', '.join(equal)}"
        )
    return found, weights, sha256, notes


def _bytes_of(weights: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in weights.values())


def _same_weights(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two sets are the same, or one is the other rounded."""
    if one.keys() != other.keys():
        return False
    for name, a in one.items():
        narrow, wide = sorted((a, other[name]), key=Tensor.element_size)
        if narrow.numel() != wide.numel() or not torch.equal(
            wide.to(narrow.dtype).flatten(), narrow.flatten()
        ):
            return False
    return True


def _read_weights(
    found: WeightFiles, state: StateDict | None = None
) -> tuple[dict[str, Tensor], str]:
    """All weights, those of attention under the names of today, and the SHA-256 of their file.

    Of shards it is that of the lines that `sha256sum` prints of them, in the order of their names.
    """
    weights: dict[str, Tensor] = {}
    lines = []
    places = None if found.index is None else weight_map(found.index)
    for file in found.files:
        part = only_tensors(read_state(file) if state is None else state.weights, source=str(file))
        digest = sha256_of(file)
        check_blob(file, digest)
        lines.append(f"{digest}  {file.name}\n")
        if places is not None:
            said = {name for name, place in places.items() if place == file.name}
            if wrong := sorted(said ^ set(part)):
                does = "has no" if wrong[0] in said else "has a"
                assert found.index is not None
                raise InputError(
                    f"{file}: {does} weight {wrong[0]}, unlike what {found.index.name} says; copy "
                    "or download both again"
                )
        weights |= part
    weights = _named_as_now(weights)
    if found.index is None:
        return weights, digest
    return weights, hashlib.sha256("".join(lines).encode()).hexdigest()


def their_name(name: str) -> str:
    """What diffusers calls a weight of `network.unet.UNet`.

    Queries, keys and values are one `qkv` in the name; diffusers has to_q, to_k and to_v.
    """
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _named_as_now(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights, those of attention under the names of today."""
    old = re.compile(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.")
    return {
        old.sub(lambda found: f"{found[1]}.{_OLD_ATTENTION[found[2]]}.", name): tensor
        for name, tensor in weights.items()
    }
