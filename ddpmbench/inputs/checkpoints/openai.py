"""The family of openai/improved-diffusion and openai/guided-diffusion: a bare state dict."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ddpmbench.errors import InputError
from ddpmbench.inputs.checkpoints.checkpoint import Checkpoint, TimeInput
from ddpmbench.inputs.checkpoints.openai_flags import PRESETS, ModelFlags, parse_flags
from ddpmbench.inputs.checkpoints.openai_shapes import Shapes, listed, read_shapes, shown
from ddpmbench.inputs.checkpoints.settings import CheckpointSettings
from ddpmbench.inputs.checkpoints.unsettled import UnsettledError
from ddpmbench.inputs.checkpoints.weights import (
    build_unet,
    naming,
    only_tensors,
    sha256_of,
    unet_names,
)
from ddpmbench.network.unet_config import UNetConfig
from ddpmbench.process.prediction import Prediction, Variance
from ddpmbench.process.schedule import NoiseSchedule

# Our names -> theirs.
_TOP = {
    "time_1.": "time_embed.0.",
    "time_2.": "time_embed.2.",
    "classes.": "label_emb.",
    "conv_in.": "input_blocks.0.0.",
    "middle.block_1.": "middle_block.0.",
    "middle.attention.": "middle_block.1.",
    "middle.block_2.": "middle_block.2.",
    "norm_out.": "out.0.",
    "conv_out.": "out.2.",
}
_LAYERS = {
    "norm_1": "in_layers.0",
    "conv_1": "in_layers.2",
    "time": "emb_layers.1",
    "norm_2": "out_layers.0",
    "conv_2": "out_layers.3",
    "shortcut": "skip_connection",
    "out": "proj_out",
}


TELLING = (
    ("input_blocks.0.0.weight", "time_embed.0.weight"),
    ("middle_block.0.in_layers.0.weight", "out.2.weight"),
)
"""Names that tell this family under any prefix; all of a row must be there."""


def is_openai(names: Mapping[str, object]) -> bool:
    """Whether a state dict has the names of this family."""
    return any(name.startswith("input_blocks.") for name in names) and any(
        name.startswith("time_embed.") for name in names
    )


def read_openai(
    path: Path,
    state: Mapping[str, object],
    *,
    source: str,
    settings: CheckpointSettings,
) -> Checkpoint:
    """The checkpoint in a state dict of either project.

    Args:
        path: the file the state dict came from.
        state: what it holds.
        source: the path as the user gave it.
        settings: its `model_flags` may be absent if the file has the name of a published one.

    Raises:
        InputError: the flags are missing, contradict the weights, or ask for what this package
            cannot express; or the weights are not whole.

    Source: Nichol & Dhariwal 2021; Dhariwal & Nichol 2021; the projects' script_util.py.
    """
    weights = only_tensors(state, source=str(path))
    shapes = read_shapes(weights, path)
    notes = []
    model_flags = settings.model_flags
    if model_flags is None and path.stem in PRESETS:
        model_flags = path.stem
        notes.append(f"flags of the published {path.stem}: {PRESETS[path.stem]}")
    if model_flags is None or not model_flags.strip():
        raise UnsettledError(
            f"{path}: says nothing of heads, schedule and steps; pass --model-flags with the "
            "flags it was trained with (--image_size, --num_heads, --diffusion_steps, "
            f"--noise_schedule, ...) or a published file's name; its weights have {shapes}",
            family="openai",
            path=path,
            weights=weights,
            missing=(f'--model-flags "{_flags_to_fill(shapes)}"',),
        )
    flags = parse_flags(model_flags)
    if flags.ignored:
        notes.append(f"--model-flags: ignored {', '.join('--' + name for name in flags.ignored)}")
    config = network_config(flags, shapes, path)
    names = {name: _their_name(name, config) for name in unet_names(config, source=str(path))}
    for name, tensor in weights.items():
        if re.search(r"\.(qkv|proj_out)\.weight$", name):
            weights[name] = tensor.flatten(1)
    if not flags.use_new_attention_order:
        for name in weights:
            if ".qkv." in name:
                weights[name] = _queries_first(weights[name], config, f"{path}: {name}")
    network = build_unet(config, weights, source=str(path), names=names)
    rescales = flags.rescales(resblock_updown=shapes.resampling == "block")
    if flags.rescale_timesteps is None and flags.diffusion_steps != 1000:
        project = "improved-diffusion" if rescales else "guided-diffusion"
        notes.append(f"--model-flags: --rescale_timesteps {rescales}, the default of {project}")
    return Checkpoint(
        network=network,
        schedule=_schedule(flags),
        prediction=Prediction.X_START if flags.predict_xstart else Prediction.EPSILON,
        variance=_variance(flags),
        clip=flags.clip_denoised,
        time_input=TimeInput.RESCALED_1000 if rescales else TimeInput.INDEX,
        channels=config.in_channels,
        image_size=flags.image_size,
        size_multiple=config.size_multiple,
        num_classes=config.num_classes,
        family="openai",
        source=source,
        sha256=sha256_of(path),
        notes=tuple(notes),
    )


def _flags_to_fill(shapes: Shapes) -> str:
    """The flags of a file: what its weights say, and placeholders where they do not.

    The resolutions that have attention are those of the size that stands there in place of the
    file's own.
    """
    size = max(32, 2 ** len(shapes.channels))
    attended = [str(size >> level) for level, yes in enumerate(shapes.attention) if yes]
    return (
        f"--image_size {size} --num_heads 1 --use_new_attention_order False "
        "--diffusion_steps 1000 --noise_schedule linear "
        f"--channel_mult {listed(shapes.multiples)} "
        f"--attention_resolutions {','.join(attended) or 2 * size} {shapes.flags}"
    )


def network_config(flags: ModelFlags, shapes: Shapes, path: Path) -> UNetConfig:
    """The network that flags and weights agree on.

    Raises:
        InputError: they contradict each other; the line names the flag with both values.
    """
    _check(flags, shapes, path)
    by_channels = flags.num_head_channels != -1
    with naming(path):
        return config_of(
            shapes,
            head_channels=flags.num_head_channels if by_channels else 0,
            num_heads=flags.num_heads,
        )


def config_of(shapes: Shapes, *, head_channels: int = 0, num_heads: int = 1) -> UNetConfig:
    """The network of these shapes.

    Args:
        shapes: what the weights say.
        head_channels: channels of an attention head; 0 if `num_heads` counts.
        num_heads: attention heads. No shape depends on either.

    Raises:
        InputError: it is no network.
    """
    return UNetConfig(
        **dataclasses.asdict(shapes),
        head_channels=head_channels,
        num_heads=num_heads,
        symmetric_padding=True,
        cosine_first=True,
        frequency_shift=0.0,
        norm_eps=1e-5,
    )


def _check(flags: ModelFlags, shapes: Shapes, path: Path) -> None:
    """Refuse flags that contradict the weights or that our U-Net cannot express."""
    size = flags.image_size
    heights = tuple(size >> level for level in range(len(shapes.channels)))
    rates = {size // height for height in flags.attention_resolutions}
    attended = tuple(h for level, h in enumerate(heights) if 2**level in rates)
    attended_in_file = tuple(h for h, yes in zip(heights, shapes.attention, strict=True) if yes)
    multiples = "channel_mult" if flags.channel_mult is not None else "image_size"
    for name, asked, found in (
        ("num_channels", flags.num_channels, shapes.model_channels),
        ("num_res_blocks", flags.num_res_blocks, shapes.num_blocks),
        ("learn_sigma", flags.learn_sigma, shapes.out_channels != shapes.in_channels),
        ("class_cond", flags.class_cond, shapes.num_classes > 0),
        ("use_scale_shift_norm", flags.use_scale_shift_norm, shapes.scale_shift),
        ("resblock_updown", flags.resblock_updown, shapes.resampling == "block"),
        (multiples, flags.multiples, shapes.multiples),
        ("attention_resolutions", attended, attended_in_file),
    ):
        if asked != found:
            how = "has" if name in flags.given else "leaves the default"
            given, weights = shown(asked), shown(found)
            if name == "image_size":
                given = f"{size} (channel multiples {given})"
                weights = f"channel multiples {weights}"
            raise InputError(
                f"{path}: --model-flags {how} --{name} {given}, the weights say {weights}"
            )
    if flags.num_head_channels == -1 and flags.num_heads_upsample not in (-1, flags.num_heads):
        raise InputError(
            f"--model-flags: --num_heads_upsample {flags.num_heads_upsample} differs from "
            f"--num_heads {flags.num_heads}, which cannot be read"
        )
    for width in shapes.attended:
        name = "num_heads" if flags.num_head_channels == -1 else "num_head_channels"
        heads = getattr(flags, name)
        if heads < 1 or width % heads:
            raise InputError(f"--model-flags: --{name} {heads} does not divide {width} channels")


def _schedule(flags: ModelFlags) -> NoiseSchedule:
    if flags.noise_schedule == "cosine":
        schedule = NoiseSchedule.cosine(flags.diffusion_steps)
    else:
        schedule = NoiseSchedule.linear(flags.diffusion_steps)
    asked = flags.timestep_respacing
    if not asked:
        return schedule
    if (steps := re.fullmatch(r"ddim(\d+)", asked)) is not None:
        raise InputError(
            f"--model-flags: --timestep_respacing {asked} is of a sampler, not of the model; leave "
            f"it out, and pass --timesteps {steps[1]}, to sample and fid also --sampler ddim"
        )
    counts = asked.split(",")
    if not all(re.fullmatch(r"[0-9]{1,7}", count) for count in counts) or counts == ["1"]:
        raise InputError(
            f"--model-flags: --timestep_respacing {asked}: only a number of steps from 2 to "
            f"{flags.diffusion_steps}, or one for each of several sections, can be read"
        )
    with naming(f"--model-flags: --timestep_respacing {asked}"):
        return schedule.in_sections([int(count) for count in counts])


def _variance(flags: ModelFlags) -> Variance:
    if flags.learn_sigma:
        return Variance.LEARNED_RANGE
    return Variance.FIXED_SMALL if flags.sigma_small else Variance.FIXED_LARGE


def _queries_first(rows: Tensor, config: UNetConfig, source: str) -> Tensor:
    """Rows ordered by head, then query, key, value, as ours: by query, key, value, then head."""
    heads = config.heads(len(rows) // 3)
    if not heads or len(rows) % (3 * heads):
        raise InputError(f"{source} is {list(rows.shape)}, which {heads} heads do not divide")
    split = rows.view(heads, 3, len(rows) // (3 * heads), *rows.shape[1:])
    return split.transpose(0, 1).reshape(rows.shape)


def _their_name(name: str, config: UNetConfig) -> str:
    """The file's name of one of our weights: its blocks are numbered through all resolutions."""
    per_level = config.num_blocks + 1
    for ours, theirs in _TOP.items():
        if name.startswith(ours):
            return theirs + _leaf(name.removeprefix(ours))
    match = re.fullmatch(
        r"(down|up)\.(\d+)\.(?:blocks|(attentions)|(resample))\.(\d*)\.?(.+)", name
    )
    assert match is not None
    way, level, attention, resample, index, rest = match.groups()
    if way == "down":
        if resample:
            return f"input_blocks.{(int(level) + 1) * per_level}.0.{_leaf(rest, conv='op')}"
        number, position = 1 + int(level) * per_level + int(index), 1 if attention else 0
        return f"input_blocks.{number}.{position}.{_leaf(rest)}"
    if resample:
        number = (int(level) + 1) * per_level - 1
        position = 2 if config.attention[-1 - int(level)] else 1
        return f"output_blocks.{number}.{position}.{_leaf(rest)}"
    number, position = int(level) * per_level + int(index), 1 if attention else 0
    return f"output_blocks.{number}.{position}.{_leaf(rest)}"


def _leaf(name: str, *, conv: str = "conv") -> str:
    layer, dot, rest = name.partition(".")
    return {**_LAYERS, "conv": conv}.get(layer, layer) + dot + rest
