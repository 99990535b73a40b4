"""The flags of openai/improved-diffusion and openai/guided-diffusion, and their meaning."""

import argparse
import dataclasses
import re
import shlex
from collections.abc import Callable
from fractions import Fraction
from typing import NoReturn

from ddpmbench.checkpoints.weights import naming
from ddpmbench.diffusion.process import Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError

# Published files -> the flags published with them (the README of either project). Where the
# projects' defaults differ, that of the file's project is written out.
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
# The same network and process, trained with another objective or learning rate.
PRESETS["cifar10_uncond_vlb_50M_500K"] = PRESETS["cifar10_uncond_50M_500K"]
PRESETS["imagenet64_uncond_vlb_100M_1500K"] = PRESETS["imagenet64_uncond_100M_1500K"]
PRESETS["lsun_uncond_100M_2400K_bs64"] = PRESETS["lsun_uncond_100M_1200K_bs128"]

# Flags of the projects' scripts that affect neither network nor process.
_IGNORED_WORDS = """
    anneal_lr batch_size classifier_attention_resolutions classifier_depth classifier_path
    classifier_pool classifier_resblock_updown classifier_scale classifier_use_fp16
    classifier_use_scale_shift_norm classifier_width data_dir dropout ema_rate eval_interval
    fp16_scale_growth iterations log_interval lr lr_anneal_steps microbatch model_path noised
    num_samples rescale_learned_sigmas resume_checkpoint save_interval schedule_sampler
    use_checkpoint use_ddim use_fp16 use_kl val_data_dir weight_decay
"""
_IGNORED = _IGNORED_WORDS.split()
_CHANNEL_MULT = {
    32: "1,2,2,2",
    64: "1,2,3,4",
    128: "1,1,2,3,4",
    256: "1,1,2,2,4,4",
    512: "0.5,1,1,2,2,4,4",
}
# Flags and sizes that only one of the projects has.
_GUIDED_ONLY = {"channel_mult", "num_head_channels", "resblock_updown", "use_new_attention_order"}
_IMPROVED_ONLY = {"sigma_small"}
_GUIDED_SIZES, _IMPROVED_SIZES = (128, 512), (32,)


@dataclasses.dataclass(frozen=True)
class ModelFlags:
    """The flags that determine the network and the process, with the projects' names and defaults.

    Attributes:
        channel_mult: None for the default of the image size.
        rescale_timesteps: None if not given; see `rescales`.
        given: the names of the flags that were given.
        ignored: given flags without an effect here.
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
        """The channel multiples, as given or by default of the image size."""
        if self.channel_mult is not None:
            return self.channel_mult
        if self.image_size not in _CHANNEL_MULT:
            raise flag_error(
                f"--image_size {self.image_size} has no channel multiples of its own; add "
                "--channel_mult"
            )
        return _fractions(_CHANNEL_MULT[self.image_size])

    @property
    def variance(self) -> Variance:
        """The variance of the reverse process."""
        if self.learn_sigma:
            return Variance.LEARNED_RANGE
        return Variance.FIXED_SMALL if self.sigma_small else Variance.FIXED_LARGE

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule, with the timesteps that `timestep_respacing` keeps."""
        is_cosine = self.noise_schedule == "cosine"
        schedule = (NoiseSchedule.cosine if is_cosine else NoiseSchedule.linear)(
            self.diffusion_steps
        )
        respacing = self.timestep_respacing
        if not respacing:
            return schedule
        if (steps := re.fullmatch(r"ddim(\d+)", respacing)) is not None:
            raise flag_error(
                f"--timestep_respacing {respacing} is of a sampler, not of the model; leave it "
                f"out, and pass `timesteps={steps[1]}`, to sample and fid also `sampler=ddim`"
            )
        counts = respacing.split(",")
        if not all(re.fullmatch(r"[0-9]{1,7}", count) for count in counts) or counts == ["1"]:
            raise flag_error(
                f"--timestep_respacing {respacing}: only a number of steps from 2 to "
                f"{self.diffusion_steps}, or one for each of several sections, can be read"
            )
        with naming(f"`model_flags`: --timestep_respacing {respacing}"):
            return schedule.in_sections([int(count) for count in counts])

    def rescales(self, *, resblock_updown: bool) -> bool:
        """Whether the network's time input is rescaled to run up to 1000.

        Args:
            resblock_updown: whether the file's residual blocks resample, which only
                guided-diffusion has.

        Raises:
            InputError: the flag matters but is not given, and the others do not identify the
                project with its default.
        """
        if self.rescale_timesteps is not None or self.diffusion_steps == 1000:
            return bool(self.rescale_timesteps)
        size = self.image_size if self.channel_mult is None else None
        guided = bool(resblock_updown or self.given & _GUIDED_ONLY or size in _GUIDED_SIZES)
        improved = bool(self.given & _IMPROVED_ONLY or size in _IMPROVED_SIZES)
        if guided == improved:
            raise flag_error(
                "add --rescale_timesteps True (improved-diffusion's default) or False "
                "(guided-diffusion's); these flags do not tell which project trained it"
            )
        return improved


def flag_error(problem: object) -> InputError:
    """An error about `model_flags`."""
    return InputError(f"`model_flags`: {problem}")


def parse_flags(text: str) -> ModelFlags:
    """The flags in the projects' own spelling, or those of a published file by its name.

    Args:
        text: any number of `--flag value` or `--flag=value`, the last of a kind counts; or a name
            in `PRESETS`.

    Raises:
        InputError: a flag is of neither project, or its value has another type.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise flag_error(error) from error
    if len(words) == 1 and not words[0].startswith("-"):
        if words[0] not in PRESETS:
            choices = ", ".join(sorted(PRESETS))
            raise InputError(f"`model_flags={words[0]}`: choose from {choices}")
        words = shlex.split(PRESETS[words[0]])
    values = vars(_parser().parse_args(words))
    ignored = tuple(name for name in values if name in _IGNORED)
    values = {name: value for name, value in values.items() if name not in ignored}
    return ModelFlags(**values, given=frozenset(values), ignored=ignored)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise flag_error(message.removeprefix("argument "))


def _parser() -> argparse.ArgumentParser:
    """A parser that returns only the given flags."""
    parser = _Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for field in dataclasses.fields(ModelFlags):
        if field.name not in ("given", "ignored"):
            kind = _TYPES.get(field.name) or _TYPES[field.type]
            parser.add_argument(f"--{field.name}", type=kind)
    for name in _IGNORED:
        parser.add_argument(f"--{name}")
    return parser


# As in the projects' scripts.
_BOOLEANS = {
    **dict.fromkeys(("yes", "true", "t", "y", "1"), True),
    **dict.fromkeys(("no", "false", "f", "n", "0"), False),
}


def _boolean(text: str) -> bool:
    if text.lower() not in _BOOLEANS:
        raise argparse.ArgumentTypeError(f"{text} is neither True nor False")
    return _BOOLEANS[text.lower()]


def _whole(text: str, least: int = 1) -> int:
    if not re.fullmatch(r"-?[0-9]{1,9}", text) or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text} is no whole number of at least {least}")
    return int(text)


def _fractions(text: str) -> tuple[Fraction, ...]:
    try:
        return tuple(Fraction(part) for part in text.split(","))
    except (ValueError, ZeroDivisionError) as error:
        raise argparse.ArgumentTypeError(f"{text} are no numbers") from error


def _named_schedule(text: str) -> str:
    if text not in ("linear", "cosine"):
        raise argparse.ArgumentTypeError(f"{text} cannot be read, only linear and cosine")
    return text


_TYPES: dict[object, Callable[[str], object]] = {
    bool: _boolean,
    int: _whole,
    str: str,
    "num_heads_upsample": lambda text: _whole(text, -1),
    "num_head_channels": lambda text: _whole(text, -1),
    "attention_resolutions": lambda text: tuple(map(_whole, text.split(","))),
    "channel_mult": lambda text: _fractions(text) if text else None,
    "noise_schedule": _named_schedule,
    "rescale_timesteps": _boolean,
}
"""Parsers by a flag's name or type."""
