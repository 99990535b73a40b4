"""The family of openai/improved-diffusion and openai/guided-diffusion: a bare state dict."""

import dataclasses
import functools
import re
import shlex
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path

from torch import Tensor

from ddpmbench.checkpoints.settings import CheckpointSettings, MissingSettingsError
from ddpmbench.checkpoints.weights import (
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
    """The fields of `UNetConfig` that can be read from the weights."""

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
    def attended(self) -> tuple[int, ...]:
        """Channels of every layer that has attention."""
        pairs = zip(self.channels, self.attention, strict=True)
        return (*(channels for channels, yes in pairs if yes), self.channels[-1])

    @property
    def multiples(self) -> tuple[Fraction, ...]:
        """Channels at each resolution, as multiples of `model_channels`."""
        return tuple(Fraction(width, self.model_channels) for width in self.channels)

    @property
    def flags(self) -> str:
        """What the weights say, in the projects' own spelling."""
        updown = " --resblock_updown True" if self.resampling == "block" else ""
        return (
            f"--num_channels {self.model_channels} --num_res_blocks {self.num_blocks} "
            f"--learn_sigma {self.out_channels != self.in_channels} "
            f"--class_cond {self.num_classes > 0} --use_scale_shift_norm {self.scale_shift}{updown}"
        )

    def __str__(self) -> str:
        return f"{self.flags}, channel multiples {listed(self.multiples)}"


def read_shapes(weights: Mapping[str, Tensor], path: Path) -> Shapes:
    """What the weights say; the resolutions are told apart by where the way up doubles.

    Raises:
        InputError: a weight that decides it is missing, or the file is of a classifier or an
            upsampler.
    """
    shape = functools.partial(shape_of, weights, source=path)
    if not any(name.startswith("output_blocks.") for name in weights):
        raise InputError(f"{path}: a classifier, not a diffusion model: it has no output_blocks")
    in_channels = shape("input_blocks.0.0.weight", 4)[1]
    out_channels = shape("out.2.weight", 4)[0]
    if in_channels == 6:
        raise InputError(f"{path}: an upsampler, which takes a second image; it cannot be read")
    total = 1 + max(_numbers(weights, r"output_blocks\.(\d+)\."))
    conv = _numbers(weights, r"output_blocks\.(\d+)\.[12]\.conv\.")
    block = _numbers(weights, r"output_blocks\.(\d+)\.[12]\.in_layers\.")
    down = _numbers(weights, r"input_blocks\.(\d+)\.")
    without = set(range(max(down))) - down  # pooling has no weights, only a number
    resampling: Resampling = "block" if block else "pool" if without and not conv else "conv"
    ends = block or {number - 1 for number in without} if resampling != "conv" else conv
    per_level = 1 + min(ends, default=total - 1)
    if per_level < 2 or total % per_level:
        raise InputError(f"{path}: its {total} output_blocks do not divide into resolutions")
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
    found = (re.match(pattern, name) for name in weights)
    # A block's number has few digits; more are a mistake or an attack on the memory.
    return {int(match[1]) for match in found if match and len(match[1]) <= 4}


def listed(values: tuple[object, ...]) -> str:
    """Values as the projects' flags list them."""
    return ",".join(str(float(v) if isinstance(v, Fraction) and v % 1 else v) for v in values)


def shown(value: object) -> str:
    """A value as the projects' flags spell it."""
    return (listed(value) or "none") if isinstance(value, tuple) else str(value)


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

    Attributes:
        image_size: height and width.
        num_channels: channels the multiples below multiply.
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
            InputError: it matters, was not given, and the project whose default it would be
                cannot be told from the other flags.
        """
        if self.rescale_timesteps is not None or self.diffusion_steps == 1000:
            return bool(self.rescale_timesteps)
        own_multiples = self.channel_mult is None
        guided = resblock_updown or bool(self.given & _GUIDED_ONLY)
        guided = guided or (own_multiples and self.image_size in _GUIDED_SIZES)
        improved = bool(self.given & _IMPROVED_ONLY)
        improved = improved or (own_multiples and self.image_size in _IMPROVED_SIZES)
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
        InputError: a flag is neither project's, or its value is none of its kind.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError(f"`model_flags`: {error}") from error
    if len(words) == 1 and not words[0].startswith("-"):
        if words[0] not in PRESETS:
            raise InputError(f"`model_flags={words[0]}`: choose from {', '.join(sorted(PRESETS))}")
        words = shlex.split(PRESETS[words[0]])
    values: dict[str, object] = {}
    ignored: dict[str, None] = {}
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise InputError(f"`model_flags`: {word} is not a flag; write --flag value")
        name, equals, value = word[2:].partition("=")
        if name in _UPSAMPLERS:
            raise InputError(f"`model_flags`: --{name} is an upsampler's, which cannot be read")
        if name not in _KINDS and name not in _IGNORED:
            raise InputError(
                f"`model_flags`: --{name} is no flag of improved-diffusion or guided-diffusion"
            )
        if not equals:
            if not words or words[0].startswith("--"):
                raise InputError(f"`model_flags`: --{name} lacks its value")
            value = words.pop(0)
        if name in _IGNORED:
            ignored[name] = None
            continue
        try:
            values[name] = _KINDS[name](value)
        except (ValueError, ZeroDivisionError) as error:
            raise InputError(f"`model_flags`: --{name} {value} cannot be read") from error
    flags = ModelFlags(given=frozenset(values), ignored=tuple(ignored))
    flags = dataclasses.replace(flags, **values)  # type: ignore[arg-type]
    for name in ("image_size", "num_channels", "num_heads", "num_res_blocks", "diffusion_steps"):
        if getattr(flags, name) < 1:
            raise InputError(f"`model_flags`: --{name} must be at least 1")
    return flags


def _boolean(text: str) -> bool:
    """As the projects' own scripts read it."""
    if text.lower() in ("yes", "true", "t", "y", "1"):
        return True
    if text.lower() in ("no", "false", "f", "n", "0"):
        return False
    raise ValueError(text)


def _fractions(text: str) -> tuple[Fraction, ...]:
    return tuple(Fraction(part) for part in text.split(","))


def _resolutions(text: str) -> tuple[int, ...]:
    found = tuple(int(part) for part in text.split(","))
    if min(found) < 1:
        raise ValueError(text)
    return found


def _schedule_name(text: str) -> str:
    if text not in ("linear", "cosine"):
        raise ValueError(text)
    return text


_KINDS: dict[str, Callable[[str], object]] = {
    "image_size": int,
    "num_channels": int,
    "num_res_blocks": int,
    "num_heads": int,
    "num_heads_upsample": int,
    "num_head_channels": int,
    "attention_resolutions": _resolutions,
    "channel_mult": lambda text: _fractions(text) if text else None,
    "learn_sigma": _boolean,
    "sigma_small": _boolean,
    "class_cond": _boolean,
    "diffusion_steps": int,
    "noise_schedule": _schedule_name,
    "timestep_respacing": str,
    "predict_xstart": _boolean,
    "rescale_timesteps": _boolean,
    "use_scale_shift_norm": _boolean,
    "resblock_updown": _boolean,
    "use_new_attention_order": _boolean,
    "clip_denoised": _boolean,
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
                f"{path}: `model_flags` {how} --{name} {given}, the weights say {weights}"
            )
    if flags.num_head_channels == -1 and flags.num_heads_upsample not in (-1, flags.num_heads):
        raise InputError(
            f"`model_flags`: --num_heads_upsample {flags.num_heads_upsample} differs from "
            f"--num_heads {flags.num_heads}, which cannot be read"
        )
    for width in shapes.attended:
        name = "num_heads" if flags.num_head_channels == -1 else "num_head_channels"
        heads = getattr(flags, name)
        if heads < 1 or width % heads:
            raise InputError(f"`model_flags`: --{name} {heads} does not divide {width} channels")


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
            f"`model_flags`: --timestep_respacing {asked} is of a sampler, not of the model; leave "
            f"it out, and pass `timesteps={steps[1]}`, to sample and fid also `sampler=ddim`"
        )
    counts = asked.split(",")
    if not all(re.fullmatch(r"[0-9]{1,7}", count) for count in counts) or counts == ["1"]:
        raise InputError(
            f"`model_flags`: --timestep_respacing {asked}: only a number of steps from 2 to "
            f"{flags.diffusion_steps}, or one for each of several sections, can be read"
        )
    with naming(f"`model_flags`: --timestep_respacing {asked}"):
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
