"""The family of diffusers: a folder of a UNet2DModel and a DDPMScheduler."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ddpmbench.checkpoints.diffusers_files import (
    AVERAGING,
    BESIDE,
    NETWORKS,
    Layout,
    WeightFiles,
    find_layout,
    is_model,
    model_folder,
    read_file,
    read_shards,
    relative,
    set_of,
)
from ddpmbench.checkpoints.diffusers_scheduler import Fields, read_scheduler
from ddpmbench.checkpoints.diffusers_score import is_score_scheduler, read_score_network
from ddpmbench.checkpoints.network_weights import (
    Renames,
    build_unet,
    check_outputs,
    only_tensors,
    renamed_weights,
)
from ddpmbench.checkpoints.settings import CheckpointFile, Family
from ddpmbench.checkpoints.state_dicts import StateDict
from ddpmbench.checkpoints.weights import OWN, FileError, naming, rounding_notes
from ddpmbench.diffusion.model import Checkpoint, ImageSize
from ddpmbench.errors import InputError
from ddpmbench.files import sha256_of
from ddpmbench.unet.unet import Resampling, UNet, UNetConfig

_CLASSES = ("UNet2DModel", "UNetModel", "UNetUnconditionalModel")
# The defaults of UNet2DModel.
_DEFAULTS: dict[str, object] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ("DownBlock2D", *["AttnDownBlock2D"] * 3),
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": (*["AttnUpBlock2D"] * 3, "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
_UNSHAPED = (
    *("freq_shift", "flip_sin_to_cos", "norm_eps", "norm_num_groups", "attention_head_dim"),
    "downsample_padding",
)
"""Fields that no shape of a weight determines, so that another value would load, too."""
# Field -> the values that our U-Net can express.
_ALLOWED: dict[str, tuple[object, ...]] = {
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "act_fn": ("silu", "swish"),
    "add_attention": (True,),
    "class_embed_type": (None,),
}
_OLD_NAMES = {"down_blocks": "down_block_types", "up_blocks": "up_block_types"}
# Kind of block -> whether it has attention, and its resampling; None: given by the type field.
_DOWN: dict[str, tuple[bool, Resampling | None]] = {
    "DownBlock2D": (False, "conv"),
    "AttnDownBlock2D": (True, None),
    "ResnetDownsampleBlock2D": (False, "block"),
}
_UP: dict[str, tuple[bool, Resampling | None]] = {
    "UpBlock2D": (False, "conv"),
    "AttnUpBlock2D": (True, None),
    "ResnetUpsampleBlock2D": (False, "block"),
}
_RESAMPLING: dict[str, Resampling] = {"conv": "conv", "resnet": "block"}


def read_network(path: Path) -> tuple[UNetConfig, ImageSize | None, tuple[str, ...]]:
    """The network of a `config.json`, its image size, and notes on fields it lacks.

    Raises:
        InputError: the file is damaged, or describes a network that our U-Net cannot express; the
            message names the field.

    Source: diffusers' UNet2DModel and its documented defaults.
    """
    fields = Fields.read(path, _DEFAULTS, _OLD_NAMES, remedy=f"; correct it, or {OWN}")
    if fields.values.get("_class_name") not in _CLASSES:
        raise fields.refusal("_class_name", "only UNet2DModel can be read")
    for name in sorted(fields.given - set(_DEFAULTS) - AVERAGING):
        if not name.startswith("_") and fields.values[name] is not None:
            raise fields.refusal(
                name, "not a field of UNet2DModel, so that the network may depend on it"
            )
    channels = fields.get("block_out_channels", tuple[int, ...])
    if not channels:
        raise fields.refusal("block_out_channels", "must name at least one resolution")
    groups = fields.get("norm_num_groups", int)
    for name, allowed in _ALLOWED.items():
        fields.require(name, allowed)
    fields.require("time_embedding_dim", (None, 4 * channels[0]))
    shift = fields.values["resnet_time_scale_shift"] == "scale_shift"
    # with scale_shift and null, diffusers' middle attention has no normalization
    fields.require("attn_norm_num_groups", (groups,) if shift else (None, groups))
    attention, resampling = _blocks(fields, len(channels))
    if resampling == "conv":
        fields.require("downsample_padding", (0, 1))
    head_channels = _optional_integer(fields, "attention_head_dim")
    attended = [width for width, yes in zip(channels, attention, strict=True) if yes]
    if head_channels and any(width % head_channels for width in (channels[-1], *attended)):
        raise fields.refusal("attention_head_dim", f"does not divide the channels {channels}")
    with naming(path):
        config = UNetConfig(
            in_channels=fields.get("in_channels", int),
            out_channels=fields.get("out_channels", int),
            model_channels=channels[0],
            channels=channels,
            num_blocks=fields.get("layers_per_block", int),
            attention=attention,
            head_channels=head_channels,
            num_classes=_optional_integer(fields, "num_class_embeds"),
            scale_shift=shift,
            resampling=resampling,
            symmetric_padding=fields.values["downsample_padding"] == 1,
            cosine_first=fields.get("flip_sin_to_cos", bool),
            frequency_shift=fields.get("freq_shift", float),
            norm_groups=groups,
            norm_eps=fields.get("norm_eps", float),
            dropout=fields.get("dropout", float),
        )
    lacking = [f"{name} {_DEFAULTS[name]}" for name in _UNSHAPED if name not in fields.given]
    line = f"not in {path.name}, taken as diffusers has it by default: {', '.join(lacking)}"
    return config, _image_size(fields), (line,) if lacking else ()


def _blocks(fields: Fields, depth: int) -> tuple[tuple[bool, ...], Resampling]:
    """The resolutions with attention, and the resampling of all."""
    attention: dict[str, list[bool]] = {}
    resampling: dict[str, Resampling] = {}
    for way, kinds in (("down", _DOWN), ("up", _UP)):
        field = f"{way}_block_types"
        types = [name.removeprefix("UNetRes") for name in fields.get(field, tuple[str, ...])]
        if len(types) != depth:
            raise fields.refusal(field, f"must be {depth} long, like block_out_channels")
        if unknown := [name for name in types if name not in kinds]:
            raise fields.refusal(field, f"{unknown[0]} cannot be read")
        attention[way] = [kinds[name][0] for name in types]
        # the last block of either path does not resample
        for name in types[:-1]:
            kind = kinds[name][1]
            if kind is None:
                fields.require(f"{way}sample_type", tuple(_RESAMPLING))
                kind = _RESAMPLING[str(fields.values[f"{way}sample_type"])]
            if resampling.setdefault("", kind) != kind:
                raise fields.refusal(field, "resamples in more than one way, which cannot be read")
    if attention["down"] != attention["up"][::-1]:
        raise fields.refusal("up_block_types", "does not mirror down_block_types")
    return tuple(attention["down"]), resampling.get("", "conv")


def _optional_integer(fields: Fields, name: str) -> int:
    """A field that is a positive number; 0 if it is null."""
    if fields.values[name] is None:
        return 0
    if (value := fields.get(name, int)) < 1:
        raise fields.refusal(name, "must be null or at least 1")
    return value


def _image_size(fields: Fields) -> ImageSize | None:
    size = fields.values["sample_size"]
    if size is None:
        return None
    if isinstance(size, list):
        sides = fields.get("sample_size", tuple[int, ...])
    else:
        sides = 2 * (fields.get("sample_size", int),)
    if len(sides) != 2 or min(sides) < 1:
        raise fields.refusal("sample_size", "must be a number from 1 on, or a height and a width")
    return sides[0] if sides[0] == sides[1] else (sides[0], sides[1])


# Our names -> theirs.
_RENAMES: Renames = (
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
_PARTS = ("to_q", "to_k", "to_v")
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def model_at(path: Path) -> Path | None:
    """The folder of a model, or a file of one of its sets of weights; None if neither."""
    return path if is_model(path) or set_of(path) is not None else None


def read_diffusers(file: CheckpointFile) -> Checkpoint:
    """The checkpoint in a folder written by diffusers.

    The folder holds `config.json`, `scheduler_config.json` and the weights, or the same in `unet/`
    and `scheduler/`; averaged weights may be beside them in `unet_ema/`.

    Raises:
        InputError: several sets of weights differ; or a file is missing or damaged, or states
            something that this package cannot express; the message names the file and the field.

    Source: diffusers' UNet2DModel and DDPMScheduler.
    """
    path, settings, state = file.path, file.settings, file.state
    folder, chosen = _folder_of(path, state)
    layout = find_layout(folder, weights=settings.weights, chosen=chosen)
    scheduler = layout.scheduler
    if not scheduler.is_file() and folder.resolve().name in NETWORKS:
        raise FileError(
            scheduler,
            f"missing, so nothing says the noise schedule; pass {folder.resolve().parent}",
        )
    if is_score_scheduler(scheduler):
        files, weights, sha256, equal = _read_candidates(layout, folder, state)
        checkpoint = read_score_network(
            layout.config, scheduler, weights, file=files.path, sha256=sha256, settings=settings
        )
    else:
        config, image_size, notes = read_network(layout.config)
        files, weights, sha256, equal = _read_candidates(layout, folder, state)
        place = dataclasses.replace(file, path=files.path)
        conventions = read_scheduler(scheduler, place, weights=weights)
        notes = (*notes, *conventions.pop("notes"))
        stated_by = str(scheduler)
        if settings.variance is not None:
            stated_by = f"{layout.config}: `variance={settings.variance}`"
        check_outputs(config, conventions["variance"], source=stated_by)
        checkpoint = Checkpoint(
            network=build_unet(config, weights, _RENAMES, parts=_PARTS, source=files.path),
            **conventions,
            channels=config.in_channels,
            image_size=image_size,
            size_multiple=config.size_multiple,
            num_classes=config.num_classes,
            sha256=sha256,
            notes=notes,
        )
    return dataclasses.replace(
        checkpoint,
        weights=files.kind,
        files=tuple(map(str, files.files)),
        notes=(*layout.notes, *equal, *checkpoint.notes),
    )


def _folder_of(path: Path, state: StateDict | None) -> tuple[Path, WeightFiles | None]:
    """The model's folder, and the set of weights to read if the user named a file."""
    if state is not None:
        if not (path.parent / "config.json").is_file():
            raise InputError(
                f"{path}: weights of diffusers' UNet2DModel without its configuration; {BESIDE} "
                f"beside it, into {path.parent}, or {OWN}"
            )
        return model_folder(path.parent), WeightFiles((path,), kind=state.kind)
    folder, chosen = set_of(path) or (path, None)
    return folder if is_model(folder) else path.parent, chosen


def _read_candidates(
    layout: Layout, folder: Path, state: StateDict | None
) -> tuple[WeightFiles, dict[str, Tensor], str, list[str]]:
    """The weights if all candidates agree, their SHA-256, and notes.

    If one set is a rounded copy of another, the exact one is read.
    """
    files, *others = layout.candidates
    weights, sha256 = _read_weights(files, state)
    notes = [*(() if state is not None else rounding_notes(weights))]
    equal = []
    for other in others:
        theirs, their_sha256 = _read_weights(other)
        if not _same_weights(weights, theirs):
            names = ", ".join(relative(each.path, folder) for each in layout.candidates)
            raise FileError(
                folder,
                f"holds sets of weights that differ: {names}; pass the one to read: "
                f"`ckpt={files.path}`, or `ckpt={other.path}`",
            )
        rounded = ", rounded" if _bytes_of(theirs) != _bytes_of(weights) else ""
        if _bytes_of(theirs) > _bytes_of(weights):
            files, other = other, files
            weights, sha256, notes = theirs, their_sha256, [*rounding_notes(theirs)]
        equal.append(f"{relative(other.path, folder)}{rounded}")
    if equal:
        notes.append(
            f"weights: {relative(files.path, folder)} is read; the same are in {', '.join(equal)}"
        )
    return files, weights, sha256, notes


def _bytes_of(weights: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in weights.values())


def _same_weights(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two sets are equal, up to the rounding of one of them."""
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
    files: WeightFiles, state: StateDict | None = None
) -> tuple[dict[str, Tensor], str]:
    """All weights, with current names of attention weights, and the SHA-256 of the files."""
    if files.index is not None:
        weights, sha256 = read_shards(files.index)
    elif state is None:
        weights, sha256 = read_file(files.path)
    else:
        weights = only_tensors(state.weights, source=str(files.path))
        sha256 = sha256_of(files.path)
    old = re.compile(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.")
    return {
        old.sub(lambda match: f"{match[1]}.{_OLD_ATTENTION[match[2]]}.", name): tensor
        for name, tensor in weights.items()
    }, sha256


def diffusers_weights(network: UNet) -> dict[str, Tensor]:
    """The weights of our U-Net under diffusers' names and in its shapes."""
    return renamed_weights(network, _RENAMES, parts=_PARTS)


DIFFUSERS = Family(
    name="diffusers",
    read=read_diffusers,
    names=(("time_embedding.linear_1.weight", "conv_norm_out.weight"),),
    find=model_at,
    stated_by=("its scheduler says", "correct it"),
)
