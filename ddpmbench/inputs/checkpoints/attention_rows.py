"""Attention as several codes save it, query, key and value apart, put together as ours is."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ddpmbench.errors import InputError


def join_attention(
    weights: Mapping[str, Tensor],
    wanted: Iterable[str],
    *,
    parts: tuple[str, str, str],
    output: str,
    source: object,
) -> dict[str, Tensor]:
    """A file's weights with queries, keys and values as the rows of one `qkv`.

    Its layers on every pixel may be convolutions; ours are matrices.

    Args:
        weights: the file's.
        wanted: the names that its weights are to have, `qkv` in those to be joined.
        parts: what the file calls query, key and value in place of `qkv`.
        output: what it calls the layer after them.
        source: the file to name in an error.

    Raises:
        InputError: one of the three is missing.
    """
    result = dict(weights)
    for name in sorted(wanted):
        if ".qkv." in name:
            theirs = [name.replace(".qkv.", f".{part}.") for part in parts]
            if missing := [part for part in theirs if part not in result]:
                raise InputError(f"{source}: weight {missing[0]} missing; the file is not whole")
            result[name] = torch.cat([_matrix(result.pop(part)) for part in theirs])
        elif name.endswith(f".{output}.weight") and name in result:
            result[name] = _matrix(result[name])
    return result


def _matrix(weight: Tensor) -> Tensor:
    """A layer on every pixel, written as a matrix or as a convolution of one pixel."""
    return weight.flatten(1) if weight.ndim > 2 else weight
