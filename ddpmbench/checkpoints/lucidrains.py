"""The family of lucidrains/denoising-diffusion-pytorch: files of its Trainer or its classes."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ddpmbench.checkpoints.network_weights import (
    count,
    importing,
    load_weights,
    shape_of,
)
from ddpmbench.checkpoints.settings import CheckpointFile, Family
from ddpmbench.checkpoints.weights import OWN, FileError, naming
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.parameterization import Process
from ddpmbench.diffusion.process import Prediction, Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError

PACKAGE = "denoising-diffusion-pytorch"
_NETWORK = "model."
_ABOUT = {
    "learned_variance": "a LearnedGaussianDiffusion, which is trained on the noise whatever its "
    "objective",
    "self_condition": "self-conditioned: its own prediction is zeros here, as in half of its "
    "training",
}
"""Notes on properties of the network."""
_HEAD_CHANNELS = 32
"""The default before version 1.9; those networks have no memory keys."""


def read_lucidrains(file: CheckpointFile) -> Checkpoint:
    """The checkpoint in a state dict of a GaussianDiffusion, as the package's Trainer saves it.

    The schedule is read from its buffers, the parameterization from the weight of its loss. The
    package samples with the posterior variance, and clips. The network is the package's own; with
    self-conditioning it gets zeros for its own prediction.

    Raises:
        MissingSettingsError: no loss weight fits, and `prediction` is not given.
        InputError: the network is not the package's `Unet`, weights are missing, the package is
            missing or of a version with another network, or a variance learned in VP is requested
            for another process.

    Source: the package's denoising_diffusion_pytorch.py and learned_gaussian_diffusion.py.
    """
    path, settings, tensors = file.path, file.settings, file.weights
    version = version_in(file.content)
    weights = {
        name.removeprefix(_NETWORK): tensor
        for name, tensor in tensors.items()
        if name.startswith(_NETWORK)
    }
    arguments = read_arguments(weights, path)
    schedule = read_schedule(tensors, path=path)
    network = build_unet(arguments, weights, path=path, version=version)
    values, notes = file.settle(
        {"prediction": lambda: _prediction(arguments, schedule, tensors, path)},
        weights=weights,
        examples={"prediction": "v"},
        hint="eps, x_start or v",
    )
    learned = arguments.learned_variance
    process = Process((settings.process or Process.VP).partition(":")[0])
    if learned and process is not Process.VP:
        raise FileError(
            path,
            f"`process={settings.process}`: its learned variance lies between those of the VP "
            "process that it was trained on, and means nothing in another; leave it out",
        )
    if learned and schedule.num_timesteps > 1:
        network = RangeFromZero(
            network,
            log_beta=float(schedule.betas[0].log()),
            log_posterior=float(schedule.posterior_variance[1].log()),
        )
    by = "" if version in (None, installed_version()) else f", written by {version}"
    return Checkpoint(
        network=network,
        schedule=schedule,
        prediction=values["prediction"],
        variance=Variance.LEARNED_RANGE if learned else Variance.FIXED_SMALL,
        channels=arguments.channels,
        size_multiple=arguments.size_multiple,
        notes=(
            f"network run by {PACKAGE} {installed_version()}{by}",
            *notes,
            *(line for has, line in _ABOUT.items() if getattr(arguments, has)),
            "not in the file, taken as the package has it by default: "
            f"auto_normalize True (else `data_range=0,1`), {_UNDETERMINED[_generation(weights)]}",
        ),
    )


def version_in(content: Mapping[str, object]) -> str | None:
    """The version of the package that wrote a file; None if not stated."""
    version = content.get("version")
    if isinstance(version, str) and re.fullmatch(r"\d+(\.\d+)+", version):
        return version
    return None


@dataclasses.dataclass(frozen=True)
class UnetArguments:
    """The arguments of the package's `Unet`; tuples have one entry per resolution."""

    dim: int
    init_dim: int
    out_dim: int
    channels: int
    self_condition: bool
    dim_mults: tuple[int, ...]
    full_attn: tuple[bool, ...]
    attn_heads: tuple[int, ...]
    attn_dim_head: tuple[int, ...]

    @property
    def learned_variance(self) -> bool:
        """Whether the output has a second set of channels, for the variance."""
        return self.out_dim == 2 * self.channels

    @property
    def size_multiple(self) -> int:
        """Height and width of an image must be divisible by this."""
        return int(2 ** (len(self.dim_mults) - 1))


def read_arguments(weights: Mapping[str, Tensor], path: Path) -> UnetArguments:
    """The arguments of the network with these weights.

    Raises:
        InputError: they are not those of the package's unconditional two-dimensional `Unet`.
    """
    if "classes_emb.weight" in weights:
        raise FileError(path, f"its network depends on classes, which is not read; {OWN}")
    shape = functools.partial(shape_of, weights, source=path)
    dim = shape("time_mlp.1.weight", 2)[1]
    init_dim, inputs, *_ = shape("init_conv.weight", 4)
    out_dim = shape("final_conv.weight", 4)[0]
    self_condition = inputs == 2 * out_dim
    if not self_condition and out_dim not in (inputs, 2 * inputs):
        raise FileError(
            path,
            f"the network gives {out_dim} channels for {inputs}, which no GaussianDiffusion of "
            f"{PACKAGE} takes; {OWN}",
        )
    multiples, attention = [], []
    for level in range(max(1, count(weights, "downs.{}.0.block1.proj.weight"))):
        last = f"downs.{level}.3.weight"
        width = shape(last if last in weights else f"downs.{level}.3.1.weight", 4)[0]
        multiples.append(width // dim)
        attention.append(_attention(weights, f"downs.{level}.2", path))
    full, heads, head_channels = zip(*attention, strict=True)
    return UnetArguments(
        dim=dim,
        init_dim=init_dim,
        out_dim=out_dim,
        channels=inputs // 2 if self_condition else inputs,
        self_condition=self_condition,
        dim_mults=tuple(multiples),
        full_attn=full,
        attn_heads=heads,
        attn_dim_head=head_channels,
    )


def _attention(weights: Mapping[str, Tensor], name: str, path: Path) -> tuple[bool, int, int]:
    """Whether attention is full, the number of heads, and their channels."""
    if f"{name}.fn.fn.to_qkv.weight" in weights:
        name += ".fn.fn"
    full = f"{name}.to_out.weight" in weights
    if f"{name}.mem_kv" in weights:
        _, heads, *last = shape_of(weights, f"{name}.mem_kv", 4, source=path)
        return full, heads, last[1 if full else 0]
    rows = shape_of(weights, f"{name}.to_qkv.weight", 4, source=path)[0]
    return full, rows // (3 * _HEAD_CHANNELS), _HEAD_CHANNELS


_LOG_FLOOR = -46.051701859880914  # log 1e-20


def build_unet(
    arguments: UnetArguments, weights: Mapping[str, Tensor], *, path: Path, version: str | None
) -> nn.Module:
    """The installed package's network with these weights, in evaluation mode.

    It maps x_t (B, C, H, W) and time (B,) to (B, C, H, W), or (B, 2C, H, W).

    Raises:
        InputError: the package is missing or of a version with another network, or the weights
            are not whole.
    """
    with importing("lucidrains", path, f"its network runs through {PACKAGE}"):
        from denoising_diffusion_pytorch import Unet
    installed, generation = installed_version(), _generation(weights)
    # From 2.0 on equal names mean the same function. Before, attention and convolutions changed
    # without new names, so only the version that wrote a file can read it.
    if generation != "2" and version is None:
        raise FileError(
            path,
            f"its network is of {PACKAGE} before 2.0, but it does not say of which version, and "
            f"they differ; {OWN}",
        )
    install = f"{PACKAGE}=={version}" if version else f"'{PACKAGE}>=2'"
    other = FileError(
        path,
        f"its network is that of {PACKAGE} {version or 'from 2.0 on'}, the installed {installed} "
        f"has another: pip install {install}",
    )
    try:
        with torch.device("meta"):  # allocates nothing before shapes are checked
            network: nn.Module = Unet(**_accepted(arguments, Unet))
    except (AssertionError, TypeError, ValueError, RuntimeError) as error:
        raise other from error
    names = network.state_dict()
    if _generation(names) != generation or (
        version not in (None, installed) and (generation != "2" or set(names) != set(weights))
    ):
        raise other
    load_weights(network, weights, source=str(path))
    return network.eval()


def installed_version() -> str:
    """The installed version of the package."""
    return importlib.metadata.version(PACKAGE)


class RangeFromZero(nn.Module):
    """A network whose variance at t = 1 is interpolated as in the package.

    At t = 1, where the posterior variance is 0, the package interpolates between log 1e-20 and
    log beta, and `Variance.LEARNED_RANGE` between the log posterior variance of t = 2 and log beta.
    This module maps the output so that the latter gives the same variance. A respaced schedule has
    another t = 2, and so a variance at t = 1 between the network's and beta.
    """

    def __init__(self, network: nn.Module, *, log_beta: float, log_posterior: float) -> None:
        super().__init__()
        self.network = network
        self._stretch = (log_beta - _LOG_FLOOR) / (log_beta - log_posterior)

    def forward(self, x_t: Tensor, time: Tensor) -> Tensor:
        """The network's output, (B, 2C, H, W)."""
        output, value = self.network(x_t, time).float().chunk(2, dim=1)
        at_first = (time == 0).view(-1, 1, 1, 1)
        value = torch.where(at_first, 1 - (1 - value) * self._stretch, value)
        return torch.cat([output, value], dim=1)


def _generation(weights: Mapping[str, object]) -> str:
    """The versions of the package whose network has these names."""
    if "downs.0.0.block1.norm.g" in weights:
        return "2"
    return "1.9 to 1.11" if "mid_attn.mem_kv" in weights else "before 1.9"


# Arguments that no shape determines in these versions, with the values used.
_UNDETERMINED = {
    "2": "sinusoidal_pos_emb_theta 10000",
    "1.9 to 1.11": "sinusoidal_pos_emb_theta 10000, resnet_block_groups 8",
    "before 1.9": (
        f"sinusoidal_pos_emb_theta 10000, resnet_block_groups 8, attn_dim_head {_HEAD_CHANNELS}"
    ),
}


def _accepted(arguments: UnetArguments, unet: type[nn.Module]) -> dict[str, object]:
    """The arguments that the installed version takes.

    Raises:
        ValueError: it lacks one that does not have the default value.
    """
    built_in = {"attn_heads": 4, "attn_dim_head": _HEAD_CHANNELS, "full_attn": False}
    known = inspect.signature(unet).parameters
    result: dict[str, object] = {}
    for field in dataclasses.fields(arguments):
        value = getattr(arguments, field.name)
        if field.name in ("attn_heads", "attn_dim_head") and len(set(value)) == 1:
            value = value[0]
        if field.name in known:
            result[field.name] = value
        elif set(value if isinstance(value, tuple) else [value]) != {built_in.get(field.name)}:
            raise ValueError(f"{field.name} = {value}")
    return result


_ULP = 2.0**-23
"""Largest relative difference of two float32 roundings of one number."""
_ROUNDING = 5e-7
"""Tolerance, in float32, of beta plus the ratio of two products against 1."""
_NAMED: dict[str, Callable[[int], NoiseSchedule]] = {
    "linear": NoiseSchedule.linear,
    "cosine": NoiseSchedule.cosine,
    "sigmoid": NoiseSchedule.sigmoid,
}
_AGREEMENT = 1e-3
"""Relative tolerance of a loss weight."""


def read_schedule(buffers: Mapping[str, Tensor], *, path: Path) -> NoiseSchedule:
    """The schedule in the buffers `betas` and `alphas_cumprod`, which are float32.

    A named schedule that rounds to them is used in float64. In any other, beta has a relative error
    of 6e-8, and 1 - beta of 2e-7: where beta is large, 1 - beta is the ratio of two cumulative
    products, because the difference would cancel.

    Raises:
        InputError: a buffer is missing or invalid, or the two contradict each other.
    """
    lengths = [shape_of(buffers, n, 1, source=path)[0] for n in ("betas", "alphas_cumprod")]
    if lengths[0] != lengths[1]:
        raise FileError(path, "betas and alphas_cumprod differ in length; the file is not whole")
    betas, alphas_cumprod = buffers["betas"].double(), buffers["alphas_cumprod"].double()
    previous = torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod[:-1]])
    remaining = alphas_cumprod / previous
    wrong = ~((remaining - (1 - betas)).abs() <= _ROUNDING)
    if bool(wrong.any()):
        raise FileError(
            path,
            f"betas and alphas_cumprod contradict each other at t = {1 + int(wrong.nonzero()[0])}; "
            "they were changed or rounded after the training, copy the file again",
        )
    with naming(path):
        return _named(NoiseSchedule.from_betas(torch.where(betas > 0.5, 1 - remaining, betas)))


def _named(schedule: NoiseSchedule) -> NoiseSchedule:
    """The named schedule that rounds to this one; else this one."""
    for name, make in _NAMED.items():
        with contextlib.suppress(InputError):  # too few timesteps for a schedule of that name
            known = make(schedule.num_timesteps)
            off = (schedule.betas / known.betas - 1).abs()
            if bool((off <= _ULP).all()):
                return known
            # The package's sigmoid has float32 ends, which matters where little of the data is
            # left.
            if name == "sigmoid" and bool((off[:-1] < 1e-2).all()):
                return NoiseSchedule.from_betas(schedule.betas, name=name)
    return schedule


def read_prediction(schedule: NoiseSchedule, loss_weight: Tensor | None) -> Prediction | None:
    r"""The parameterization, from the loss weights over t; None if none fits.

    .. math::
        w_\epsilon = s / \text{snr}, \qquad w_{x_0} = s, \qquad w_v = s / (\text{snr} + 1),
        \qquad s = \min(\text{snr}, \gamma)

    with gamma infinite by default.

    Source: Hang et al. 2023; GaussianDiffusion of the package.
    """
    if loss_weight is None or loss_weight.shape != schedule.snr.shape:
        return None
    weight, snr = loss_weight.double(), schedule.snr
    implied = {
        Prediction.EPSILON: weight * snr,
        Prediction.X_START: weight,
        Prediction.V: weight * (snr + 1),
    }
    fitting = [prediction for prediction, values in implied.items() if _is_clipped(values, snr)]
    return fitting[0] if len(fitting) == 1 else None


def _is_clipped(values: Tensor, snr: Tensor) -> bool:
    """Whether the values are min(snr, gamma) of some gamma."""
    expected = snr.clamp(max=float(values.max()))
    return bool(((values - expected).abs() <= _AGREEMENT * expected).all())


def _prediction(
    arguments: UnetArguments, schedule: NoiseSchedule, tensors: Mapping[str, Tensor], path: Path
) -> Prediction:
    """The parameterization; a network with a variance is trained on the noise."""
    if arguments.learned_variance:
        return Prediction.EPSILON
    prediction = read_prediction(schedule, tensors.get("loss_weight"))
    if prediction is None:
        raise FileError(
            path,
            "does not say what the network predicts (its loss_weight is that of no objective)",
        )
    return prediction


LUCIDRAINS = Family(
    name="lucidrains",
    projects="denoising-diffusion-pytorch",
    read=read_lucidrains,
    names=(("betas", "model.init_conv.weight"),),
    stated_by=("the network's buffers say", "copy it again"),
)
