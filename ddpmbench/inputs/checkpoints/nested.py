"""What training code saves: dicts and lists, however deep the tensors lie in them."""

import dataclasses
import re
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from ddpmbench.errors import InputError

MAX_DEPTH = 64
_NUMBERS = "biufc"


@dataclasses.dataclass(frozen=True)
class Container:
    """A dict or list of a file.

    Attributes:
        keys: those that lead to it.
        items: what it holds, by name or position; an array of NumPy is a tensor here.
        is_list: whether it is a list.
        optimizer: how many of the keys lead to the optimizer that it is a part of; None if it is
            of none.
    """

    keys: tuple[str, ...]
    items: dict[str, object]
    is_list: bool
    optimizer: int | None


def containers(content: object, *, apart: re.Pattern[str] | None = None) -> Iterator[Container]:
    """Every dict and list in a file, the outer ones first; one that holds itself is entered once.

    Args:
        content: what `read_state` gave, or a part of it.
        apart: what is there several times is entered once more below keys that match this.

    Raises:
        InputError: they lie deeper than any training code puts them.
    """
    seen: set[tuple[int, bool]] = set()
    waiting: list[tuple[tuple[str, ...], object, bool, int | None]] = [((), content, False, None)]
    while waiting:
        keys, value, matched, optimizer = waiting.pop()
        matched = matched or bool(apart and keys and apart.search(keys[-1]))
        if (id(value), matched) in seen or not isinstance(value, Mapping | list | tuple):
            continue
        seen.add((id(value), matched))
        if len(keys) > MAX_DEPTH:
            raise InputError(
                f"its dicts and lists lie more than {MAX_DEPTH} deep; save the state dict alone: "
                "torch.save(model.state_dict(), PATH)"
            )
        named = value.items() if isinstance(value, Mapping) else enumerate(value)
        items = {str(name): _as_tensor(item) for name, item in named}
        if optimizer is None and "param_groups" in items:
            optimizer = len(keys)
        yield Container(keys, items, not isinstance(value, Mapping), optimizer)
        inner = [(name, item) for name, item in items.items() if not isinstance(item, Tensor)]
        waiting += [((*keys, name), item, matched, optimizer) for name, item in reversed(inner)]


def tensors_in(content: object) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of nested dicts and lists, under its path, its parts joined with dots.

    A dict or list that is there twice is gone through where it is first.

    Args:
        content: what `read_state` gave, or a part of it.
    """
    for path, value in leaves_in(content):
        if isinstance(value, Tensor):
            yield path, value


def leaves_in(content: object) -> Iterator[tuple[str, object]]:
    """The same of everything that is no dict or list; a list of fractions is one leaf."""
    for container in containers(content):
        if container.is_list and _is_row(list(container.items.values())):
            continue
        for name, value in container.items.items():
            if not isinstance(value, Mapping | list | tuple) or _is_row(value):
                yield ".".join((*container.keys, name)), value


def _is_row(content: object) -> bool:
    return (
        isinstance(content, list | tuple)
        and len(content) > 1
        and all(type(item) is float for item in content)
    )


def _as_tensor(value: object) -> object:
    if isinstance(value, np.ndarray) and value.dtype.kind in _NUMBERS:
        native = value.astype(value.dtype.newbyteorder("="))
        return torch.from_numpy(np.ascontiguousarray(native).reshape(value.shape))
    return value
