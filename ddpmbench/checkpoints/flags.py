"""The flags of other projects' training commands, and their meaning.

Those of improved-diffusion and guided-diffusion, and the configurations of score_sde_pytorch.
"""

import dataclasses
import re
import shlex
import typing
from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
import numpy as np
from torch import Tensor

from ddpmbench.checkpoints.weights import OWN, FileError, naming
from ddpmbench.diffusion.model import TimeInput
from ddpmbench.diffusion.parameterization import Process, Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError


def flag_error(problem: object) -> InputError:
    """An error about `model_flags`."""
    return InputError(f"`model_flags`: {problem}")


Count: TypeAlias = Annotated[int, msgspec.Meta(ge=1, lt=10**9)]
CountOrDefault: TypeAlias = Annotated[int, msgspec.Meta(ge=-1, lt=10**9)]
_BOOLEANS = {
    **dict.fromkeys(("true", "yes", "t", "y", "1"), True),
    **dict.fromkeys(("false", "no", "f", "n", "0"), False),
}
"""Words that the projects take for a boolean."""


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise flag_error(error) from error


def _number(text: str) -> int | float | str:
    """The number that Python reads, as the projects do, or else the text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _values(words: list[str], prefix: str, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """The values of flags, `--flag value` or `--flag=value`; the last of a flag counts.

    Args:
        words: the words of a command.
        prefix: of every flag.
        kinds: the type of a value, by flag; a tuple's items stand between commas.
    """
    values, rest = {}, iter(words)
    for word in rest:
        name, equals, text = word.removeprefix(prefix).partition("=")
        if not word.startswith(prefix) or name not in kinds:
            raise flag_error(
                f"{word} is no setting that the file leaves open; correct it or leave it out"
            )
        text = text if equals else next(rest, "--")
        if text.startswith("--"):
            raise flag_error(f"{prefix}{name}: expected one argument")
        kind = kinds[name]
        value: object = text
        if typing.get_origin(kind) is tuple:
            value = [_number(item) for item in text.split(",")] if text else []
        elif bool in (kind, *typing.get_args(kind)):
            value = _BOOLEANS.get(text.lower(), text)
        elif kind is not str and typing.get_origin(kind) is not Literal:
            value = _number(text)
        try:
            values[name] = msgspec.convert(value, kind, dec_hook=lambda kind, item: kind(str(item)))
        except (msgspec.ValidationError, ZeroDivisionError) as error:
            choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
            why = f", only {', '.join(choices)}" if choices else f" ({error})".replace("`", "")
            raise flag_error(f"{prefix}{name}: {text} cannot be read{why}") from error
    return values


# ---- improved-diffusion and guided-diffusion

# Published files -> the flags published with them (the README of either project). Where the
# projects' defaults differ, that of the file's project is written out.
MODELS = {
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
MODELS["cifar10_uncond_vlb_50M_500K"] = MODELS["cifar10_uncond_50M_500K"]
MODELS["imagenet64_uncond_vlb_100M_1500K"] = MODELS["imagenet64_uncond_100M_1500K"]
MODELS["lsun_uncond_100M_2400K_bs64"] = MODELS["lsun_uncond_100M_1200K_bs128"]

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
        channel_mult: empty for the default of the image size.
        rescale_timesteps: None if not given; see `rescales`.
        given: the names of the flags that were given.
        ignored: given flags without an effect here.
    """

    image_size: Count = 64
    num_channels: Count = 128
    num_res_blocks: Count = 2
    num_heads: Count = 4
    num_heads_upsample: CountOrDefault = -1
    num_head_channels: CountOrDefault = -1
    attention_resolutions: tuple[Count, ...] = (16, 8)
    channel_mult: tuple[Fraction, ...] = ()
    learn_sigma: bool = False
    sigma_small: bool = False
    class_cond: bool = False
    diffusion_steps: Count = 1000
    noise_schedule: Literal["linear", "cosine"] = "linear"
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
        if self.channel_mult:
            return self.channel_mult
        if self.image_size not in _CHANNEL_MULT:
            raise flag_error(
                f"--image_size {self.image_size} has no channel multiples of its own; add "
                "--channel_mult"
            )
        return tuple(map(Fraction, _CHANNEL_MULT[self.image_size].split(",")))

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
        size = None if self.channel_mult else self.image_size
        guided = bool(resblock_updown or self.given & _GUIDED_ONLY or size in _GUIDED_SIZES)
        improved = bool(self.given & _IMPROVED_ONLY or size in _IMPROVED_SIZES)
        if guided == improved:
            raise flag_error(
                "add --rescale_timesteps True (improved-diffusion's default) or False "
                "(guided-diffusion's); these flags do not tell which project trained it"
            )
        return improved


def parse_flags(text: str) -> ModelFlags:
    """The flags in the projects' own spelling, or those of a published file by its name.

    Args:
        text: any number of `--flag value` or `--flag=value`, the last of a kind counts; or a name
            in `MODELS`.

    Raises:
        InputError: a flag is of neither project, or its value has another type.
    """
    words = _words(text)
    if len(words) == 1 and not words[0].startswith("-"):
        if words[0] not in MODELS:
            choices = ", ".join(sorted(MODELS))
            raise InputError(f"`model_flags={words[0]}`: choose from {choices}")
        words = shlex.split(MODELS[words[0]])
    kinds = {each.name: each.type for each in dataclasses.fields(ModelFlags)}
    del kinds["given"], kinds["ignored"]
    values = _values(words, "--", {**dict.fromkeys(_IGNORED, str), **kinds})
    ignored = tuple(name for name in values if name in _IGNORED)
    values = {name: value for name, value in values.items() if name not in ignored}
    return ModelFlags(**values, given=frozenset(values), ignored=ignored)


# ---- score_sde_pytorch

# Published configurations with a supported network -> their training.sde, training.continuous and
# model.name.
CONFIGURATIONS = {
    **dict.fromkeys(
        ("vp/ddpm/cifar10", "vp/ddpm/bedroom", "vp/ddpm/church", "vp/ddpm/celebahq"),
        ("vpsde", False, "ddpm"),
    ),
    "vp/ddpm/cifar10_continuous": ("vpsde", True, "ddpm"),
    "vp/cifar10_ddpmpp": ("vpsde", False, "ncsnpp"),
    "vp/cifar10_ddpmpp_continuous": ("vpsde", True, "ncsnpp"),
    "vp/cifar10_ddpmpp_deep_continuous": ("vpsde", True, "ncsnpp"),
    "subvp/cifar10_ddpm_continuous": ("subvpsde", True, "ddpm"),
    "subvp/cifar10_ddpmpp_continuous": ("subvpsde", True, "ncsnpp"),
    "subvp/cifar10_ddpmpp_deep_continuous": ("subvpsde", True, "ncsnpp"),
    "ve/cifar10_ddpm": ("vesde", False, "ddpm"),
}
CONTINUOUS_LEVELS = 999
"""The largest time input, at t = 1, of a network trained in continuous time."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of a configuration that the file does not state.

    Attributes:
        sde: "vpsde", "subvpsde" or "vesde".
        continuous: whether the network was trained at all times, or at `num_scales` of them.
        name: "ddpm" or "ncsnpp".
        centered: whether the images are in [-1, 1], not in [0, 1].
        scale_by_sigma: whether the output is divided by the noise level.
        skip_rescale: whether sums are divided by sqrt(2), in "ncsnpp".
        resblock_type: "ddpm" or "biggan"; None if not stated.
        fir: whether blocks resample with filters; None if not stated.
        beta_min: variance added per unit of time at the beginning.
        beta_max: the same at the end.
        image_size: height and width; None if not stated.
    """

    sde: str
    continuous: bool
    name: str
    centered: bool
    scale_by_sigma: bool
    skip_rescale: bool = False
    resblock_type: str | None = None
    fir: bool | None = None
    beta_min: float = 0.1
    beta_max: float = 20.0
    image_size: int | None = None

    @property
    def is_biggan(self) -> bool:
        """Whether blocks are BigGAN's, which resample; the default in "ncsnpp"."""
        return self.name == "ncsnpp" and self.resblock_type != "ddpm"

    def process(self, sigmas: Tensor, path: object) -> tuple[NoiseSchedule, TimeInput]:
        r"""The forward process and the network's time input.

        In continuous time, with the levels where the time input is a whole number,

        .. math::
            \log \bar\alpha(t) = -\beta_{min} t - \tfrac12 (\beta_{max} - \beta_{min}) t^2,
            \qquad t = i / 999

        Args:
            sigmas: the file's buffer of noise levels, from the largest down.
            path: the file to name in an error.

        Raises:
            InputError: the logarithms of the levels are not evenly spaced.

        Source: Song et al. 2021, appendices B and C.
        """
        total = len(sigmas)
        if self.sde == "vesde":
            levels = sigmas.double().flip(0).numpy()
            if self.centered is False:
                levels = 2 * levels  # for images in [-1, 1]
            if total < 2 or not 0 < levels[0] < levels[-1] < np.inf:
                raise FileError(path, "its sigmas are no noise levels that fall")
            first, last = float(levels[0]), float(levels[-1])
            if not np.allclose(levels, np.geomspace(first, last, total), rtol=1e-6, atol=0):
                raise FileError(path, f"its sigmas are no geometric sequence; {OWN}")
            schedule = NoiseSchedule.variance_exploding(total, sigma_min=first, sigma_max=last)
            return schedule, TimeInput.REVERSED_INDEX
        if not self.continuous:
            start, end = self.beta_min / total, self.beta_max / total
            linear = NoiseSchedule.linear(total, beta_start=start, beta_end=end)
            return linear, TimeInput.INDEX
        time = np.arange(CONTINUOUS_LEVELS + 1) / CONTINUOUS_LEVELS
        integral = self.beta_min * time + 0.5 * (self.beta_max - self.beta_min) * time**2
        schedule = NoiseSchedule.from_betas(
            -np.expm1(-np.diff(integral)),
            name=f"linear in continuous time ({self.beta_min:g} to {self.beta_max:g})",
        )
        process = Process.SUB_VP if self.sde == "subvpsde" else Process.VP
        return schedule.in_family(process), TimeInput.ONE_BASED


_KINDS = {
    "training.sde": Literal["vpsde", "subvpsde", "vesde"],
    "training.continuous": bool,
    "model.name": Literal["ddpm", "ncsnpp"],
    "model.nonlinearity": Literal["swish"],
    "model.resblock_type": Literal["ddpm", "biggan"],
    **dict.fromkeys(("model.scale_by_sigma", "model.skip_rescale", "model.fir"), bool),
    **dict.fromkeys(("model.beta_min", "model.beta_max"), float),
    "data.centered": bool,
    "data.image_size": Count,
}
_REQUIRED = ("training.sde", "training.continuous", "model.name")
EXAMPLE = "--config.training.sde=SDE --config.training.continuous=BOOL --config.model.name=NAME"
"""Required flags, with placeholders."""


def parse_config(text: str) -> tuple[Config, tuple[str, ...]]:
    """The configuration that flags describe, and notes on inferred settings.

    Args:
        text: the name of a configuration, such as `vp/ddpm/cifar10`, also with `--config` as in the
            project's command, and flags that change it, such as `--config.model.beta_max=20`; or
            only flags.

    Raises:
        InputError: a name or flag is unknown, has an invalid value, or is missing.
    """
    words = _words(re.sub(r"^\s*--config[ =]", "", text))
    is_preset = bool(words) and not words[0].startswith("-")
    given = _of_preset(words.pop(0)) if is_preset else {}
    given |= _values(words, "--config.", _KINDS)
    if missing := [name for name in _REQUIRED if name not in given]:
        raise flag_error(
            f"add {' '.join(f'--config.{name}=' for name in missing)} as it was trained, or name "
            f"its configuration: {', '.join(CONFIGURATIONS)}"
        )
    config, notes = _completed(given)
    return config, () if is_preset else notes


def _of_preset(path: str) -> dict[str, Any]:
    name = path.removesuffix(".py").rpartition("configs/")[-1]
    if name not in CONFIGURATIONS:
        raise InputError(
            f"`model_flags={path}`: choose from {', '.join(CONFIGURATIONS)}; a network that is not "
            f"the U-Net (NCSN, NCSN++ with filters): {OWN}"
        )
    sde, continuous, network = CONFIGURATIONS[name]
    values: dict[str, Any] = {
        "training.sde": sde,
        "training.continuous": continuous,
        "model.name": network,
        "data.centered": sde != "vesde",
        "model.scale_by_sigma": sde == "vesde",
        "data.image_size": 32 if "cifar10" in name else 256,
    }
    if network == "ncsnpp":
        values |= {"model.skip_rescale": True, "model.fir": False}
    return values


def _completed(given: dict[str, Any]) -> tuple[Config, tuple[str, ...]]:
    """The configuration, completed by the settings that all of its kind share."""
    sde, network = given["training.sde"], given["model.name"]
    is_ve = sde == "vesde"
    defaults: dict[str, Any] = {"data.centered": not is_ve, "model.scale_by_sigma": is_ve}
    if not is_ve:
        defaults |= {"model.beta_min": 0.1, "model.beta_max": 20.0}
    if network == "ncsnpp" and "model.skip_rescale" not in given:
        raise flag_error("add --config.model.skip_rescale= as it was trained")
    absent = {name: value for name, value in defaults.items() if name not in given}
    values = {**defaults, **given}
    problem = None
    if is_ve and values["training.continuous"]:
        problem = "a VE process in continuous time, whose network has Fourier features"
    elif sde == "subvpsde" and not values["training.continuous"]:
        problem = "a sub-VP process at discrete times"
    elif not is_ve and (not values["data.centered"] or values["model.scale_by_sigma"]):
        problem = "a VP process of images that are not centered, or of an output that is scaled"
    elif not 0 < values.get("model.beta_min", 1) <= values.get("model.beta_max", 1) < 1000:
        problem = "betas that do not rise from a positive one"
    if problem is not None:
        raise flag_error(f"{problem}, is not read; {OWN}")
    notes = [f"--config.{name}={value}" for name, value in absent.items()]
    fields = {name.partition(".")[2]: value for name, value in values.items()}
    fields.pop("nonlinearity", None)  # which has a single value
    if network == "ddpm":
        fields.pop("skip_rescale", None)  # which its blocks do not have
    line = f"`model_flags`: taken as every configuration of it has them: {', '.join(notes)}"
    return Config(**fields), (line,) if notes else ()
