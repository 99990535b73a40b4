"""The flags of improved-diffusion and guided-diffusion, which say what their files do not."""

import dataclasses
import shlex
from collections.abc import Callable
from fractions import Fraction

from ddpmbench.errors import InputError

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
                f"--model-flags: --image_size {self.image_size} has no channel multiples of its "
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
                "--model-flags: add --rescale_timesteps True (improved-diffusion's default) or "
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
        raise InputError(f"--model-flags: {error}") from error
    if len(words) == 1 and not words[0].startswith("-"):
        if words[0] not in PRESETS:
            raise InputError(f"--model-flags {words[0]}: choose from {', '.join(sorted(PRESETS))}")
        words = shlex.split(PRESETS[words[0]])
    values: dict[str, object] = {}
    ignored: dict[str, None] = {}
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise InputError(f"--model-flags: {word} is not a flag; write --flag value")
        name, equals, value = word[2:].partition("=")
        if name in _UPSAMPLERS:
            raise InputError(f"--model-flags: --{name} is an upsampler's, which cannot be read")
        if name not in _KINDS and name not in _IGNORED:
            raise InputError(
                f"--model-flags: --{name} is no flag of improved-diffusion or guided-diffusion"
            )
        if not equals:
            if not words or words[0].startswith("--"):
                raise InputError(f"--model-flags: --{name} lacks its value")
            value = words.pop(0)
        if name in _IGNORED:
            ignored[name] = None
            continue
        try:
            values[name] = _KINDS[name](value)
        except (ValueError, ZeroDivisionError) as error:
            raise InputError(f"--model-flags: --{name} {value} cannot be read") from error
    flags = ModelFlags(given=frozenset(values), ignored=tuple(ignored))
    flags = dataclasses.replace(flags, **values)  # type: ignore[arg-type]
    for name in ("image_size", "num_channels", "num_heads", "num_res_blocks", "diffusion_steps"):
        if getattr(flags, name) < 1:
            raise InputError(f"--model-flags: --{name} must be at least 1")
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


def _schedule(text: str) -> str:
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
    "noise_schedule": _schedule,
    "timestep_respacing": str,
    "predict_xstart": _boolean,
    "rescale_timesteps": _boolean,
    "use_scale_shift_norm": _boolean,
    "resblock_updown": _boolean,
    "use_new_attention_order": _boolean,
    "clip_denoised": _boolean,
}
