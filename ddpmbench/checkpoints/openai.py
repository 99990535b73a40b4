"""The family of openai/improved-diffusion and openai/guided-diffusion: a bare state dict."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

from torch import Tensor

from ddpmbench.checkpoints.flags import MODELS, ModelFlags, flag_error, parse_flags
from ddpmbench.checkpoints.network_weights import Renames, build_unet, shape_of
from ddpmbench.checkpoints.settings import CheckpointFile, Family, MissingSettingsError
from ddpmbench.checkpoints.weights import OWN, FileError, naming
from ddpmbench.diffusion.model import Checkpoint, TimeInput
from ddpmbench.diffusion.process import Prediction
from ddpmbench.unet.unet import Resampling, UNetConfig


def read_openai(file: CheckpointFile) -> Checkpoint:
    """The checkpoint in a state dict of either project.

    Raises:
        MissingSettingsError: `model_flags` is not given, and the file name is not a published one.
        InputError: the flags contradict the weights or are not supported by this package, or
            weights are missing.

    Source: Nichol & Dhariwal 2021; Dhariwal & Nichol 2021; the projects' script_util.py.
    """
    path, weights = file.path, file.weights
    shapes = read_shapes(weights, path)
    notes = []
    model_flags = file.settings.model_flags
    if model_flags is None and path.stem in MODELS:
        model_flags = path.stem
        notes.append(f"flags of the published {path.stem}: {MODELS[path.stem]}")
    if model_flags is None or not model_flags.strip():
        raise MissingSettingsError(
            f"{path}: says nothing of heads, schedule and steps",
            {"model_flags": _flags_to_fill(shapes)},
            path=path,
            weights=weights,
            config=shapes,
            hint="or the name of a published file",
        )
    flags = parse_flags(model_flags)
    if flags.ignored:
        notes.append(f"`model_flags`: ignored {', '.join('--' + name for name in flags.ignored)}")
    config = network_config(flags, shapes, path)
    if not flags.use_new_attention_order:
        for name, rows in weights.items():
            if ".qkv." in name:
                weights[name] = _queries_first(rows, config, f"{path}: {name}")
    rescales = flags.rescales(resblock_updown=shapes.resampling == "block")
    if flags.rescale_timesteps is None and flags.diffusion_steps != 1000:
        project = "improved-diffusion" if rescales else "guided-diffusion"
        notes.append(f"`model_flags`: --rescale_timesteps {rescales}, the default of {project}")
    return Checkpoint(
        network=build_unet(config, weights, _renames(config), source=path),
        schedule=flags.schedule,
        prediction=Prediction.X_START if flags.predict_xstart else Prediction.EPSILON,
        variance=flags.variance,
        clip=flags.clip_denoised,
        time_input=TimeInput.RESCALED_1000 if rescales else TimeInput.INDEX,
        channels=config.in_channels,
        image_size=flags.image_size,
        size_multiple=config.size_multiple,
        num_classes=config.num_classes,
        notes=tuple(notes),
    )


def _multiples(config: UNetConfig) -> tuple[Fraction, ...]:
    """Channels at each resolution, as multiples of `model_channels`."""
    return tuple(Fraction(width, config.model_channels) for width in config.channels)


def read_shapes(weights: Mapping[str, Tensor], path: Path) -> UNetConfig:
    """The network as far as the shapes determine it, with one attention head.

    A resolution ends where the upward path doubles it.

    Raises:
        InputError: a required weight is missing, the network is a classifier or an upsampler, or
            our U-Net cannot express it.
    """
    shape = functools.partial(shape_of, weights, source=path)
    if not any(name.startswith("output_blocks.") for name in weights):
        raise FileError(path, "a classifier, without output_blocks; pass the diffusion model")
    in_channels = shape("input_blocks.0.0.weight", 4)[1]
    if in_channels == 6:
        raise FileError(path, "an upsampler, which takes a second image; it cannot be read")
    total = 1 + max(_numbers(weights, r"output_blocks\.(\d+)\."))
    conv = _numbers(weights, r"output_blocks\.(\d+)\.[12]\.conv\.")
    block = _numbers(weights, r"output_blocks\.(\d+)\.[12]\.in_layers\.")
    down = _numbers(weights, r"input_blocks\.(\d+)\.")
    without = set(range(max(down))) - down  # pooling has no weights, but a module number
    resampling: Resampling = "block" if block else "pool" if without and not conv else "conv"
    ends = block or {number - 1 for number in without} if resampling != "conv" else conv
    per_level = 1 + min(ends, default=total - 1)
    if per_level < 2 or total % per_level:
        raise FileError(path, f"its {total} output_blocks do not divide into resolutions; {OWN}")
    firsts = range(total - per_level, -1, -per_level)  # from the image's resolution down
    channels = tuple(shape(f"output_blocks.{j}.0.out_layers.3.weight", 4)[0] for j in firsts)
    embedding = shape("output_blocks.0.0.emb_layers.1.weight", 2)[0]
    conditional = "label_emb.weight" in weights
    with naming(path):
        return UNetConfig(
            in_channels=in_channels,
            out_channels=shape("out.2.weight", 4)[0],
            model_channels=shape("time_embed.0.weight", 2)[1],
            channels=channels,
            num_blocks=per_level - 1,
            attention=tuple(f"output_blocks.{j}.1.qkv.weight" in weights for j in firsts),
            num_classes=shape("label_emb.weight", 2)[0] if conditional else 0,
            scale_shift=embedding == 2 * channels[-1],
            resampling=resampling,
            symmetric_padding=True,
            cosine_first=True,
            frequency_shift=0.0,
            norm_eps=1e-5,
        )


def _numbers(weights: Mapping[str, Tensor], pattern: str) -> set[int]:
    matches = (re.match(pattern, name) for name in weights)
    # Block numbers have few digits; more are a mistake or an attack on the memory.
    return {int(match[1]) for match in matches if match and len(match[1]) <= 4}


def _listed(values: tuple[object, ...]) -> str:
    """Values in the format of the projects' flags."""
    return ",".join(str(float(v) if isinstance(v, Fraction) and v % 1 else v) for v in values)


def _flags_to_fill(shapes: UNetConfig) -> str:
    """The flags that the weights determine, and placeholders for the others.

    The resolutions with attention are those of the placeholder's image size.
    """
    size = max(32, 2 ** len(shapes.channels))
    attended = [str(size >> level) for level, yes in enumerate(shapes.attention) if yes]
    updown = " --resblock_updown True" if shapes.resampling == "block" else ""
    return (
        f"--image_size {size} --num_heads 1 --use_new_attention_order False "
        "--diffusion_steps 1000 --noise_schedule linear "
        f"--channel_mult {_listed(_multiples(shapes))} "
        f"--attention_resolutions {','.join(attended) or 2 * size} "
        f"--num_channels {shapes.model_channels} --num_res_blocks {shapes.num_blocks} "
        f"--learn_sigma {shapes.out_channels != shapes.in_channels} "
        f"--class_cond {shapes.num_classes > 0} --use_scale_shift_norm {shapes.scale_shift}{updown}"
    )


def network_config(flags: ModelFlags, shapes: UNetConfig, path: Path) -> UNetConfig:
    """The network of the flags, checked against the weights.

    Raises:
        InputError: they contradict each other; the message names the flag with both values.
    """
    _check(flags, shapes, path)
    return dataclasses.replace(
        shapes, head_channels=max(flags.num_head_channels, 0), num_heads=flags.num_heads
    )


def _check(flags: ModelFlags, shapes: UNetConfig, path: Path) -> None:
    """Refuse flags that contradict the weights or that our U-Net cannot express."""
    size, num_levels = flags.image_size, len(shapes.channels)
    rates = {size // height for height in flags.attention_resolutions}
    attention = [2**level in rates for level in range(num_levels)]
    attended, attended_in_file = (
        tuple(size >> level for level, yes in enumerate(levels) if yes)
        for levels in (attention, shapes.attention)
    )
    for name, flag, stored in (
        ("num_channels", flags.num_channels, shapes.model_channels),
        ("num_res_blocks", flags.num_res_blocks, shapes.num_blocks),
        ("learn_sigma", flags.learn_sigma, shapes.out_channels != shapes.in_channels),
        ("class_cond", flags.class_cond, shapes.num_classes > 0),
        ("use_scale_shift_norm", flags.use_scale_shift_norm, shapes.scale_shift),
        ("resblock_updown", flags.resblock_updown, shapes.resampling == "block"),
        ("channel_mult", flags.multiples, _multiples(shapes)),
        ("attention_resolutions", attended, attended_in_file),
    ):
        if flag != stored:
            how = "has" if name in flags.given else "leaves the default"
            given, weights = (
                (_listed(value) or "none") if isinstance(value, tuple) else str(value)
                for value in (flag, stored)
            )
            raise FileError(
                path,
                f"`model_flags` {how} --{name} {given}, the weights say {weights}; pass the flags "
                "of its own training",
            )
    if flags.num_head_channels == -1 and flags.num_heads_upsample not in (-1, flags.num_heads):
        raise flag_error(
            f"--num_heads_upsample {flags.num_heads_upsample} differs from --num_heads "
            f"{flags.num_heads}; {OWN}"
        )
    name = "num_heads" if flags.num_head_channels == -1 else "num_head_channels"
    heads = getattr(flags, name)
    pairs = zip(shapes.channels, shapes.attention, strict=True)
    for width in (*(width for width, attends in pairs if attends), shapes.channels[-1]):
        if heads < 1 or width % heads:
            raise flag_error(
                f"--{name} {heads} does not divide {width} channels; pass that of the training"
            )


def _queries_first(rows: Tensor, config: UNetConfig, source: str) -> Tensor:
    """Rows reordered from head, then query, key, value to ours: query, key, value, then head."""
    heads = config.heads(sum(rows.shape[:1]) // 3)
    try:
        return rows.reshape(heads, 3, -1, *rows.shape[1:]).transpose(0, 1).flatten(0, 2)
    except RuntimeError as error:
        problem = f"is {list(rows.shape)}, which {heads} heads do not divide; correct the flags"
        raise FileError(source, problem) from error


def _renames(config: UNetConfig) -> Renames:
    """Our names -> theirs, where blocks are numbered across resolutions."""
    per_level = config.num_blocks + 1

    def down(match: re.Match[str]) -> str:
        number = int(match[1]) * per_level + int(match[3]) + 1
        return f"input_blocks.{number}.{int(match[2] == 'attentions')}."

    def up(match: re.Match[str]) -> str:
        number = int(match[1]) * per_level + int(match[3])
        return f"output_blocks.{number}.{int(match[2] == 'attentions')}."

    def halved(match: re.Match[str]) -> str:
        return f"input_blocks.{(int(match[1]) + 1) * per_level}.0."

    def doubled(match: re.Match[str]) -> str:
        level = int(match[1])
        position = 1 + config.attention[-1 - level]
        return f"output_blocks.{(level + 1) * per_level - 1}.{position}."

    return (
        (r"^time_1\.", "time_embed.0."),
        (r"^time_2\.", "time_embed.2."),
        (r"^classes\.", "label_emb."),
        (r"^conv_in\.", "input_blocks.0.0."),
        (r"^norm_out\.", "out.0."),
        (r"^conv_out\.", "out.2."),
        (r"\.norm_1\.", ".in_layers.0."),
        (r"\.conv_1\.", ".in_layers.2."),
        (r"\.time\.", ".emb_layers.1."),
        (r"\.norm_2\.", ".out_layers.0."),
        (r"\.conv_2\.", ".out_layers.3."),
        (r"\.shortcut\.", ".skip_connection."),
        (r"\.out\.", ".proj_out."),
        (r"^middle\.block_1\.", "middle_block.0."),
        (r"^middle\.attention\.", "middle_block.1."),
        (r"^middle\.block_2\.", "middle_block.2."),
        (r"^(down\.\d+\.resample)\.conv\.", r"\1.op."),
        (r"^down\.(\d+)\.resample\.", halved),
        (r"^up\.(\d+)\.resample\.", doubled),
        (r"^down\.(\d+)\.(blocks|attentions)\.(\d+)\.", down),
        (r"^up\.(\d+)\.(blocks|attentions)\.(\d+)\.", up),
    )


OPENAI = Family(
    name="openai",
    projects="improved-diffusion or guided-diffusion",
    read=read_openai,
    names=(
        ("input_blocks.0.0.weight", "time_embed.0.weight"),
        ("middle_block.0.in_layers.0.weight", "out.2.weight"),
    ),
    takes_flags=True,
    stated_by=("its name says", "rename it"),
)
