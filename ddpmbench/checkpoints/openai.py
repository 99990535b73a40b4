"""The family of openai/improved-diffusion and openai/guided-diffusion: a bare state dict."""

import dataclasses
import functools
import re
import shlex
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpmbench.checkpoints.settings import CheckpointSettings, MissingSettingsError
from ddpmbench.checkpoints.weights import (
    FileError,
    build_unet,
    naming,
    only_tensors,
    sha256_of,
    shape_of,
    unet_names,
)
from ddpmbench.diffusion.model import Checkpoint, TimeInput
from ddpmbench.diffusion.process import Prediction, Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError
from ddpmbench.unet.unet import Resampling, UNetConfig


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The fields of `UNetConfig` that the shapes of the weights determine."""

    in_channels: int
    out_channels: int
    model_channels: int
    channels: tuple[int, ...]
    num_blocks: int
    attention: tuple[bool, ...]
    num_classes: int
    scale_shift: bool
    resampling: Resampling

    @property
    def multiples(self) -> tuple[Fraction, ...]:
        """Channels at each resolution, as multiples of `model_channels`."""
        return tuple(Fraction(width, self.model_channels) for width in self.channels)

    @property
    def flags(self) -> str:
        """The flags that the weights determine, in the projects' own spelling."""
        updown = " --resblock_updown True" if self.resampling == "block" else ""
        return (
            f"--num_channels {self.model_channels} --num_res_blocks {self.num_blocks} "
            f"--learn_sigma {self.out_channels != self.in_channels} "
            f"--class_cond {self.num_classes > 0} --use_scale_shift_norm {self.scale_shift}{updown}"
        )

    def __str__(self) -> str:
        return f"{self.flags}, channel multiples {_listed(self.multiples)}"


def read_shapes(weights: Mapping[str, Tensor], path: Path) -> Shapes:
    """The network's shapes; a resolution ends where the way up doubles it.

    Raises:
        InputError: a weight that is needed is missing, or the network is a classifier or an
            upsampler.
    """
    shape = functools.partial(shape_of, weights, source=path)
    if not any(name.startswith("output_blocks.") for name in weights):
        raise FileError(path, "a classifier, not a diffusion model: it has no output_blocks")
    in_channels = shape("input_blocks.0.0.weight", 4)[1]
    out_channels = shape("out.2.weight", 4)[0]
    if in_channels == 6:
        raise FileError(path, "an upsampler, which takes a second image; it cannot be read")
    total = 1 + max(_numbers(weights, r"output_blocks\.(\d+)\."))
    conv = _numbers(weights, r"output_blocks\.(\d+)\.[12]\.conv\.")
    block = _numbers(weights, r"output_blocks\.(\d+)\.[12]\.in_layers\.")
    down = _numbers(weights, r"input_blocks\.(\d+)\.")
    without = set(range(max(down))) - down  # pooling has no weights, only a number
    resampling: Resampling = "block" if block else "pool" if without and not conv else "conv"
    ends = block or {number - 1 for number in without} if resampling != "conv" else conv
    per_level = 1 + min(ends, default=total - 1)
    if per_level < 2 or total % per_level:
        raise FileError(path, f"its {total} output_blocks do not divide into resolutions")
    firsts = range(total - per_level, -1, -per_level)  # from the image's resolution down
    channels = tuple(shape(f"output_blocks.{j}.0.out_layers.3.weight", 4)[0] for j in firsts)
    embedding = shape("output_blocks.0.0.emb_layers.1.weight", 2)[0]
    conditional = "label_emb.weight" in weights
    return Shapes(
        in_channels=in_channels,
        out_channels=out_channels,
        model_channels=shape("time_embed.0.weight", 2)[1],
        channels=channels,
        num_blocks=per_level - 1,
        attention=tuple(f"output_blocks.{j}.1.qkv.weight" in weights for j in firsts),
        num_classes=shape("label_emb.weight", 2)[0] if conditional else 0,
        scale_shift=embedding == 2 * channels[-1],
        resampling=resampling,
    )


def _numbers(weights: Mapping[str, Tensor], pattern: str) -> set[int]:
    matches = (re.match(pattern, name) for name in weights)
    # A block's number has few digits; more are a mistake or an attack on the memory.
    return {int(match[1]) for match in matches if match and len(match[1]) <= 4}


def _listed(values: tuple[object, ...]) -> str:
    """Values as the projects' flags list them."""
    return ",".join(str(float(v) if isinstance(v, Fraction) and v % 1 else v) for v in values)


def _shown(value: object) -> str:
    """A value as the projects' flags spell it."""
    return (_listed(value) or "none") if isinstance(value, tuple) else str(value)


# Published files -> the flags published with them (the README of either project). Where the
# projects' defaults differ, the default of the file's own project is written out.
PRESETS = {
    "cifar10_uncond_50M_500K": "--image_size 32 --num_channels 128 --num_res_blocks 3 "
    "--learn_sigma True --diffusion_steps 4000 --noise_schedule cosine --rescale_timesteps True",
    "imagenet64_uncond_100M_1500K": "--image_size 64 --num_channels 128 --num_res_blocks 3 "
    "--learn_sigma True --diffusion_steps 4000 --noise_schedule cosine --rescale_timesteps True",
    "imagenet64_cond_270M_250K": "--image_size 64 --num_channels 192 --num_res_blocks 3 "
    "--learn_sigma True --class_cond True --diffusion_steps 4000 --noise_schedule cosine "
    "--rescale_timesteps False",
    "lsun_uncond_100M_1200K_bs128": "--image_size 256 --num_channels 128 --num_res_blocks 2 "
    "--num_heads 1 --learn_sigma True --use_scale_shift_norm False --attention_resolutions 16 "
    "--diffusion_steps 1000 --noise_schedule linear --rescale_timesteps False",
}
# The same network and process, trained on another objective or at another learning rate.
PRESETS["cifar10_uncond_vlb_50M_500K"] = PRESETS["cifar10_uncond_50M_500K"]
PRESETS["imagenet64_uncond_vlb_100M_1500K"] = PRESETS["imagenet64_uncond_100M_1500K"]
PRESETS["lsun_uncond_100M_2400K_bs64"] = PRESETS["lsun_uncond_100M_1200K_bs128"]

# Flags of the projects' scripts that change neither the network nor the process.
_IGNORED_WORDS = """
    anneal_lr batch_size classifier_attention_resolutions classifier_depth classifier_path
    classifier_pool classifier_resblock_updown classifier_scale classifier_use_fp16
    classifier_use_scale_shift_norm classifier_width data_dir dropout ema_rate eval_interval
    fp16_scale_growth iterations log_interval lr lr_anneal_steps microbatch model_path noised
    num_samples rescale_learned_sigmas resume_checkpoint save_interval schedule_sampler
    use_checkpoint use_ddim use_fp16 use_kl val_data_dir weight_decay
"""
_IGNORED = frozenset(_IGNORED_WORDS.split())
_UPSAMPLERS = ("large_size", "small_size", "base_samples")
_GUIDED_ONLY = {"channel_mult", "num_head_channels", "resblock_updown", "use_new_attention_order"}
_IMPROVED_ONLY = {"sigma_small"}
_CHANNEL_MULT = {
    32: "1,2,2,2",
    64: "1,2,3,4",
    128: "1,1,2,3,4",
    256: "1,1,2,2,4,4",
    512: "0.5,1,1,2,2,4,4",
}
_GUIDED_SIZES, _IMPROVED_SIZES = (128, 512), (32,)


@dataclasses.dataclass(frozen=True)
class ModelFlags:
    """The flags that determine the network and the process, with the projects' defaults.

    `parse_flags` reads each field by its type.

    Attributes:
        image_size: height and width.
        num_channels: channels that `channel_mult` multiplies.
        num_res_blocks: residual blocks at each resolution on the way down.
        num_heads: attention heads, where `num_head_channels` is -1.
        num_heads_upsample: attention heads on the way up; -1 for the same.
        num_head_channels: channels of a head; -1 if `num_heads` counts.
        attention_resolutions: the heights that have attention.
        channel_mult: multiples of the channels at each resolution; None: as the size has it.
        learn_sigma: whether the variance is learned.
        sigma_small: whether a fixed variance is the smaller.
        class_cond: whether the network is conditioned on a class.
        diffusion_steps: T.
        noise_schedule: "linear" or "cosine".
        timestep_respacing: number of steps to keep, or one for each of several sections; empty
            for all.
        predict_xstart: whether the network outputs x_start and not the noise.
        rescale_timesteps: whether the network's time runs to 1000 whatever T; None if not given.
        use_scale_shift_norm: whether the time scales and shifts the normalizations.
        resblock_updown: whether residual blocks resample.
        use_new_attention_order: whether the rows of a qkv are split before the heads.
        clip_denoised: whether x_start is clamped.
        given: the names of the flags that were given.
        ignored: those given that change nothing here.
    """

    image_size: int = 64
    num_channels: int = 128
    num_res_blocks: int = 2
    num_heads: int = 4
    num_heads_upsample: int = -1
    num_head_channels: int = -1
    attention_resolutions: tuple[int, ...] = (16, 8)
    channel_mult: tuple[Fraction, ...] | None = None
    learn_sigma: bool = False
    sigma_small: bool = False
    class_cond: bool = False
    diffusion_steps: int = 1000
    noise_schedule: str = "linear"
    timestep_respacing: str = ""
    predict_xstart: bool = False
    rescale_timesteps: bool | None = None
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    clip_denoised: bool = True
    given: frozenset[str] = frozenset()
    ignored: tuple[str, ...] = ()

    @property
    def multiples(self) -> tuple[Fraction, ...]:
        """The channel multiples, given or the size's own."""
        if self.channel_mult is not None:
            return self.channel_mult
        if self.image_size not in _CHANNEL_MULT:
            raise InputError(
                f"`model_flags`: --image_size {self.image_size} has no channel multiples of its "
                "own; add --channel_mult"
            )
        return _fractions(_CHANNEL_MULT[self.image_size])

    def rescales(self, *, resblock_updown: bool) -> bool:
        """Whether the network's time is rescaled to run to 1000.

        Args:
            resblock_updown: whether the file's residual blocks resample, which only
                guided-diffusion has.

        Raises:
            InputError: it matters, was not given, and the other flags do not identify the
                project, whose default it would be.
        """
        if self.rescale_timesteps is not None or self.diffusion_steps == 1000:
            return bool(self.rescale_timesteps)
        size = self.image_size if self.channel_mult is None else None
        guided = bool(resblock_updown or self.given & _GUIDED_ONLY or size in _GUIDED_SIZES)
        improved = bool(self.given & _IMPROVED_ONLY or size in _IMPROVED_SIZES)
        if guided == improved:
            raise InputError(
                "`model_flags`: add --rescale_timesteps True (improved-diffusion's default) or "
                "False (guided-diffusion's); these flags do not tell which project trained it"
            )
        return improved


def parse_flags(text: str) -> ModelFlags:
    """The flags in the projects' own spelling, or those of a published file by its name.

    Args:
        text: `--flag value` or `--flag=value`, any number of them, the last of a kind counts; or
            a name in `PRESETS`.

    Raises:
        InputError: a flag is of neither project, or its value has another type.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise _flag_error(error) from error
    if len(words) == 1 and not words[0].startswith("-"):
        if words[0] not in PRESETS:
            choices = ", ".join(sorted(PRESETS))
            raise InputError(f"`model_flags={words[0]}`: choose from {choices}")
        words = shlex.split(PRESETS[words[0]])
    values: dict[str, object] = {}
    ignored: dict[str, None] = {}
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise _flag_error(f"{word} is not a flag; write --flag value")
        name, equals, value = word[2:].partition("=")
        if name in _UPSAMPLERS:
            raise _flag_error(f"--{name} is an upsampler's, which cannot be read")
        if name not in _PARSERS and name not in _IGNORED:
            raise _flag_error(f"--{name} is no flag of improved-diffusion or guided-diffusion")
        if not equals:
            if not words or words[0].startswith("--"):
                raise _flag_error(f"--{name} lacks its value")
            value = words.pop(0)
        if name in _IGNORED:
            ignored[name] = None
            continue
        try:
            values[name] = _PARSERS[name](value)
        except (KeyError, ValueError, ZeroDivisionError) as error:
            raise _flag_error(f"--{name} {value} cannot be read") from error
    given: dict[str, Any] = {**values, "given": frozenset(values), "ignored": tuple(ignored)}
    flags = ModelFlags(**given)
    for name in ("image_size", "num_channels", "num_heads", "num_res_blocks", "diffusion_steps"):
        if getattr(flags, name) < 1:
            raise _flag_error(f"--{name} must be at least 1")
    return flags


def _flag_error(problem: object) -> InputError:
    return InputError(f"`model_flags`: {problem}")


# As the projects' own scripts read it.
_BOOLEANS = {
    **dict.fromkeys(("yes", "true", "t", "y", "1"), True),
    **dict.fromkeys(("no", "false", "f", "n", "0"), False),
}


def _fractions(text: str) -> tuple[Fraction, ...]:
    return tuple(Fraction(part) for part in text.split(","))


def _resolutions(text: str) -> tuple[int, ...]:
    heights = tuple(int(part) for part in text.split(","))
    if min(heights) < 1:
        raise ValueError(text)
    return heights


_BY_TYPE: dict[object, Callable[[str], object]] = {
    int: int,
    str: str,
    bool: lambda text: _BOOLEANS[text.lower()],
}
_PARSERS: dict[str, Callable[[str], object]] = {
    **{f.name: _BY_TYPE[f.type] for f in dataclasses.fields(ModelFlags) if f.type in _BY_TYPE},
    "attention_resolutions": _resolutions,
    "channel_mult": lambda text: _fractions(text) if text else None,
    "noise_schedule": {"linear": "linear", "cosine": "cosine"}.__getitem__,
    "rescale_timesteps": _BY_TYPE[bool],
}


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
"""Weights of this family under any prefix; a file has all of a row."""


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
        state: the state dict.
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
        raise MissingSettingsError(
            f"{path}: says nothing of heads, schedule and steps; pass `model_flags`, the "
            "flags it was trained with (--image_size, --num_heads, --diffusion_steps, "
            f"--noise_schedule, ...) or a published file's name; its weights have {shapes}",
            family="openai",
            path=path,
            weights=weights,
            missing={"model_flags": _flags_to_fill(shapes)},
        )
    flags = parse_flags(model_flags)
    if flags.ignored:
        notes.append(f"`model_flags`: ignored {', '.join('--' + name for name in flags.ignored)}")
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
        notes.append(f"`model_flags`: --rescale_timesteps {rescales}, the default of {project}")
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
    """The flags that the weights determine, and placeholders for all others.

    The resolutions with attention are those of the placeholder's image size.
    """
    size = max(32, 2 ** len(shapes.channels))
    attended = [str(size >> level) for level, yes in enumerate(shapes.attention) if yes]
    return (
        f"--image_size {size} --num_heads 1 --use_new_attention_order False "
        "--diffusion_steps 1000 --noise_schedule linear "
        f"--channel_mult {_listed(shapes.multiples)} "
        f"--attention_resolutions {','.join(attended) or 2 * size} {shapes.flags}"
    )


def network_config(flags: ModelFlags, shapes: Shapes, path: Path) -> UNetConfig:
    """The network of the flags, checked against the weights.

    Raises:
        InputError: they contradict each other; the line names the flag with both values.
    """
    _check(flags, shapes, path)
    with naming(path):
        return config_of(
            shapes, head_channels=max(flags.num_head_channels, 0), num_heads=flags.num_heads
        )


def config_of(shapes: Shapes, *, head_channels: int = 0, num_heads: int = 1) -> UNetConfig:
    """The network of these shapes.

    Args:
        shapes: from `read_shapes`.
        head_channels: channels of an attention head; 0 if `num_heads` counts.
        num_heads: attention heads. No shape depends on either.

    Raises:
        InputError: our U-Net cannot express it.
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
    for name, asked, stored in (
        ("num_channels", flags.num_channels, shapes.model_channels),
        ("num_res_blocks", flags.num_res_blocks, shapes.num_blocks),
        ("learn_sigma", flags.learn_sigma, shapes.out_channels != shapes.in_channels),
        ("class_cond", flags.class_cond, shapes.num_classes > 0),
        ("use_scale_shift_norm", flags.use_scale_shift_norm, shapes.scale_shift),
        ("resblock_updown", flags.resblock_updown, shapes.resampling == "block"),
        (multiples, flags.multiples, shapes.multiples),
        ("attention_resolutions", attended, attended_in_file),
    ):
        if asked != stored:
            how = "has" if name in flags.given else "leaves the default"
            given, weights = _shown(asked), _shown(stored)
            if name == "image_size":
                given = f"{size} (channel multiples {given})"
                weights = f"channel multiples {weights}"
            raise FileError(
                path, f"`model_flags` {how} --{name} {given}, the weights say {weights}"
            )
    if flags.num_head_channels == -1 and flags.num_heads_upsample not in (-1, flags.num_heads):
        raise _flag_error(
            f"--num_heads_upsample {flags.num_heads_upsample} differs from --num_heads "
            f"{flags.num_heads}, which cannot be read"
        )
    name = "num_heads" if flags.num_head_channels == -1 else "num_head_channels"
    heads = getattr(flags, name)
    pairs = zip(shapes.channels, shapes.attention, strict=True)
    for width in (*(width for width, attends in pairs if attends), shapes.channels[-1]):
        if heads < 1 or width % heads:
            raise _flag_error(f"--{name} {heads} does not divide {width} channels")


def _schedule(flags: ModelFlags) -> NoiseSchedule:
    make = NoiseSchedule.cosine if flags.noise_schedule == "cosine" else NoiseSchedule.linear
    schedule = make(flags.diffusion_steps)
    respacing = flags.timestep_respacing
    if not respacing:
        return schedule
    if (steps := re.fullmatch(r"ddim(\d+)", respacing)) is not None:
        raise _flag_error(
            f"--timestep_respacing {respacing} is of a sampler, not of the model; leave it out, "
            f"and pass `timesteps={steps[1]}`, to sample and fid also `sampler=ddim`"
        )
    counts = respacing.split(",")
    if not all(re.fullmatch(r"[0-9]{1,7}", count) for count in counts) or counts == ["1"]:
        raise _flag_error(
            f"--timestep_respacing {respacing}: only a number of steps from 2 to "
            f"{flags.diffusion_steps}, or one for each of several sections, can be read"
        )
    with naming(f"`model_flags`: --timestep_respacing {respacing}"):
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
    match = re.fullmatch(r"(down|up)\.(\d+)\.(blocks|attentions|resample)\.(\d*)\.?(.+)", name)
    assert match is not None
    way, kind, rest = match[1], match[3], match[5]
    level, is_down = int(match[2]), way == "down"
    if kind == "resample":
        number = (level + 1) * per_level - (not is_down)
        position = 0 if is_down else 1 + config.attention[-1 - level]
    else:
        number = level * per_level + int(match[4]) + is_down
        position = int(kind == "attentions")
    leaf = _leaf(rest, conv="op" if is_down and kind == "resample" else "conv")
    return f"{'input' if is_down else 'output'}_blocks.{number}.{position}.{leaf}"


def _leaf(name: str, *, conv: str = "conv") -> str:
    layer, dot, rest = name.partition(".")
    return {**_LAYERS, "conv": conv}.get(layer, layer) + dot + rest
