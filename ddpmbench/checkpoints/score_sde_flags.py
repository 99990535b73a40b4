"""The configurations of yang-song/score_sde_pytorch: files by name, and flags."""

import dataclasses
import shlex
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from ddpmbench.checkpoints.settings import OWN
from ddpmbench.checkpoints.weights import FileError
from ddpmbench.diffusion.model import TimeInput
from ddpmbench.diffusion.parameterization import Process
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError

# Published configurations with a supported network -> their training.sde, training.continuous and
# model.name.
PRESETS = {
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
        family = Process.SUB_VP if self.sde == "subvpsde" else Process.VP
        return schedule.in_family(family), TimeInput.ONE_BASED


def _boolean(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _one_of(*choices: str) -> Callable[[str], str]:
    return dict(zip(choices, choices, strict=True)).__getitem__


_READERS: Mapping[str, Callable[[str], object]] = {
    "training.sde": _one_of("vpsde", "subvpsde", "vesde"),
    "training.continuous": _boolean,
    "model.name": _one_of("ddpm", "ncsnpp"),
    "model.nonlinearity": _one_of("swish"),
    "model.scale_by_sigma": _boolean,
    "model.skip_rescale": _boolean,
    "model.resblock_type": _one_of("ddpm", "biggan"),
    "model.fir": _boolean,
    "model.beta_min": float,
    "model.beta_max": float,
    "data.centered": _boolean,
    "data.image_size": int,
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
    words = _words(text)
    is_preset = bool(words) and not words[0].startswith("-")
    given = _of_preset(words.pop(0)) if is_preset else {}
    for word in words:
        name, equals, value = word.removeprefix("--config.").partition("=")
        if not word.startswith("--config.") or name not in _READERS or not equals:
            raise InputError(
                f"`model_flags`: {word} is no setting that the file leaves open; choose from "
                f"{', '.join(f'--config.{known}=' for known in _READERS)}"
            )
        try:
            given[name] = _READERS[name](value)
        except (KeyError, ValueError) as error:
            raise InputError(f"`model_flags`: {word}: no value that is read; {OWN}") from error
    if missing := [name for name in _REQUIRED if name not in given]:
        raise InputError(
            f"`model_flags`: add {' '.join(f'--config.{name}=' for name in missing)} as it was "
            f"trained, or name its configuration: {', '.join(PRESETS)}"
        )
    config, notes = _completed(given)
    return config, () if is_preset else notes


def _words(text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError(f"`model_flags`: {error}") from error
    if words[:1] == ["--config"]:
        del words[0]
    if words and words[0].startswith("--config="):
        words[0] = words[0].removeprefix("--config=")
    return words


def _of_preset(path: str) -> dict[str, Any]:
    name = path.removesuffix(".py").rpartition("configs/")[-1]
    if name not in PRESETS:
        if "ncsn" in name:
            raise InputError(
                f"`model_flags={path}`: its network is not the U-Net of ddpmbench (NCSN, or NCSN++ "
                f"with filters that resample); {OWN}"
            )
        raise InputError(f"`model_flags={path}`: choose from {', '.join(PRESETS)}")
    sde, continuous, network = PRESETS[name]
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
        raise InputError("`model_flags`: add --config.model.skip_rescale= as it was trained")
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
        raise InputError(f"`model_flags`: {problem}, is not read; {OWN}")
    notes = [f"--config.{name}={value}" for name, value in absent.items()]
    fields = {name.partition(".")[2]: value for name, value in values.items()}
    fields.pop("nonlinearity", None)  # which has a single value
    if network == "ddpm":
        fields.pop("skip_rescale", None)  # which its blocks do not have
    line = f"`model_flags`: taken as every configuration of it has them: {', '.join(notes)}"
    return Config(**fields), (line,) if notes else ()
