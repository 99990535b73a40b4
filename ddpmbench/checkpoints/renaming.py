"""Weights of the U-Net under the names that another project gives them."""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ddpmbench.checkpoints.weights import FileError, build_unet, some_weights, unet_names
from ddpmbench.unet.unet import UNet, UNetConfig

Renames = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]
"""Pattern in a name of ours and its replacement, applied one after the other."""

# The layers of attention, which are convolutions of one pixel in some files.
_ATTENTION = re.compile(r"\battentions?\..*\b(qkv|out)\.")


def rename(name: str, renames: Renames) -> str:
    """The project's name of a weight of `unet.unet.UNet`."""
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def load_renamed(
    config: UNetConfig,
    weights: Mapping[str, Tensor],
    renames: Renames,
    *,
    parts: tuple[str, ...] = ("qkv",),
    source: object,
) -> UNet:
    """The U-Net with the weights of a file, in evaluation mode.

    Args:
        config: the network's configuration.
        weights: all of the file's, under its names.
        renames: from our names to the file's.
        parts: what the file calls `qkv`, the queries, keys and values of attention, or each of
            the three.
        source: the file to name in an error.

    Raises:
        InputError: the configuration is no network, or the weights are not all of it.
    """
    weights, names = dict(weights), {}
    for name in unet_names(config, source=str(source)):
        names[name] = rename(name, renames)
        if _ATTENTION.search(name):
            of_qkv = parts if ".qkv." in name else ("",)
            stored = [names[name].replace(".qkv.", f".{part}.") for part in of_qkv]
            if missing := [part for part in stored if part not in weights]:
                raise FileError(source, f"{some_weights(missing)} missing; the file is not whole")
            weights[names[name]] = _joined({part: weights.pop(part) for part in stored}, source)
    return build_unet(config, weights, source=str(source), names=names)


def _joined(parts: Mapping[str, Tensor], source: object) -> Tensor:
    """Queries, keys and values in one tensor; a convolution of one pixel as a matrix."""
    matrices = [rows.flatten(1) if rows.ndim > 2 else rows for rows in parts.values()]
    try:
        return torch.cat(matrices) if len(matrices) > 1 else matrices[0]
    except RuntimeError as error:
        raise FileError(source, f"{', '.join(parts)} are not parts of one matrix") from error


def renamed_weights(
    network: UNet, renames: Renames, *, parts: tuple[str, ...]
) -> dict[str, Tensor]:
    """The inverse of `load_renamed`: the weights of our U-Net as the project's files have them."""
    weights = {}
    for name, tensor in network.state_dict().items():
        theirs = rename(name, renames)
        if ".qkv." not in name:
            weights[theirs] = tensor
            continue
        for part, rows in zip(parts, tensor.chunk(len(parts)), strict=True):
            weights[theirs.replace(".qkv.", f".{part}.")] = rows.clone()
    return weights


def count(weights: Mapping[str, Tensor], pattern: str) -> int:
    """The number of numbered weights, from 0 on without a gap.

    Args:
        weights: by name.
        pattern: the name, with {} for the number.
    """
    return next(number for number in itertools.count() if pattern.format(number) not in weights)
