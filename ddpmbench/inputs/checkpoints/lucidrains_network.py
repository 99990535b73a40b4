"""The U-Net of lucidrains' package, as the installed version has it, with a file's weights."""

import dataclasses
import importlib.metadata
import inspect
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ddpmbench.errors import InputError
from ddpmbench.inputs.checkpoints.lucidrains_arguments import (
    HEAD_CHANNELS,
    OWN,
    PACKAGE,
    UnetArguments,
)
from ddpmbench.inputs.checkpoints.weights import load_weights, naming

_LOG_FLOOR = -46.051701859880914  # log 1e-20


def build_unet(
    arguments: UnetArguments, weights: Mapping[str, Tensor], *, path: Path, version: str | None
) -> nn.Module:
    """The installed package's network with these weights in it, in evaluation mode.

    Called with x_t (B, C, H, W) and time (B,); gives (B, C, H, W), or (B, 2C, H, W).

    Args:
        arguments: what `read_arguments` found.
        weights: the network's own names and tensors.
        path: the file to name in an error.
        version: of the package that wrote the file; None if it does not say.

    Raises:
        InputError: the package is missing or of a version whose network is another, or the
            weights are not whole.
    """
    unet = _imported(path)
    generation = _generation(weights)
    # From 2.0 on the same names are the same function. Before, attention and convolutions changed
    # without a change of names, so only the version that wrote a file is known to read it.
    if generation != "2" and version is None:
        raise InputError(
            f"{path}: its network is of {PACKAGE} before 2.0, but it does not say of which "
            f"version, and they differ; {OWN}"
        )
    install = f"{PACKAGE}=={version}" if version else f"'{PACKAGE}>=2'"
    other = InputError(
        f"{path}: its network is that of {PACKAGE} {version or 'from 2.0 on'}, the installed "
        f"{installed_version()} has another: pip install {install}"
    )
    try:
        with torch.device("meta"):  # nothing is allocated before the shapes are the file's
            network: nn.Module = unet(**_accepted(arguments, unet))
    except (AssertionError, TypeError, ValueError, RuntimeError) as error:
        raise other from error
    is_same = generation == "2" or version == installed_version()
    names = network.state_dict()
    is_another = version not in (None, installed_version()) and set(names) != set(weights)
    if _generation(names) != generation or is_another or not is_same:
        raise other
    with naming(path):
        load_weights(network, weights, source=str(path))
    return network.eval()


def installed_version() -> str:
    """The version of the package on this machine."""
    return importlib.metadata.version(PACKAGE)


def unsaid_arguments(weights: Mapping[str, Tensor]) -> str:
    """What the shapes of the network do not tell, with the value that is taken for it."""
    values = ["sinusoidal_pos_emb_theta 10000"]
    if _generation(weights) != "2":
        values.append("resnet_block_groups 8")
    if _generation(weights) == "before 1.9":
        values.append(f"attn_dim_head {HEAD_CHANNELS}")
    return ", ".join(values)


class RangeFromZero(nn.Module):
    """A network whose variance at t = 1 is interpolated from the package's lower end.

    The package interpolates between log 1e-20 and log beta at t = 1, where the posterior variance
    is 0; `Variance.LEARNED_RANGE` between that of t = 2 and beta. The value that gives the same
    variance in the latter is handed on. A respaced schedule has another t = 2, and so a variance
    at t = 1 that lies between the network's and beta.
    """

    def __init__(self, network: nn.Module, *, log_beta: float, log_posterior: float) -> None:
        super().__init__()
        self.network = network
        self._stretch = (log_beta - _LOG_FLOOR) / (log_beta - log_posterior)

    def forward(self, x_t: Tensor, time: Tensor) -> Tensor:
        """As the network, (B, 2C, H, W)."""
        output, value = self.network(x_t, time).float().chunk(2, dim=1)
        at_first = (time == 0).view(-1, 1, 1, 1)
        value = torch.where(at_first, 1 - (1 - value) * self._stretch, value)
        return torch.cat([output, value], dim=1)


def _imported(path: Path) -> type[nn.Module]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what its imports warn of is not ours to mend
            from denoising_diffusion_pytorch import Unet
    except ImportError as error:
        raise InputError(
            f"{path}: its network runs through {PACKAGE}, which cannot be imported ({error}): "
            "pip install 'ddpmbench[lucidrains]'"
        ) from error
    unet: type[nn.Module] = Unet
    return unet


def _generation(weights: Mapping[str, object]) -> str:
    """Which versions of the package have a network with such names."""
    if "downs.0.0.block1.norm.g" in weights:
        return "2"
    return "1.9 to 1.11" if "mid_attn.mem_kv" in weights else "before 1.9"


def _accepted(arguments: UnetArguments, unet: type[nn.Module]) -> dict[str, object]:
    """The arguments that this version knows, one number where it may not know several.

    Raises:
        ValueError: it does not know one that is not what it has built in.
    """
    built_in = {"attn_heads": 4, "attn_dim_head": HEAD_CHANNELS, "full_attn": False}
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
