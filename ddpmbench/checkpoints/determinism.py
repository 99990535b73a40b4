"""Numbers in a user's network that were not trained: random ones that no file holds, and NaN."""

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddpmbench.errors import InputError
from ddpmbench.user_code import UserFile, restored_process_state, user_file

_OTHER_SEED = 7919


def refuse_untrained(file: UserFile, network: nn.Module, path: Path | None = None) -> None:
    """Refuse a weight or a buffer that is random, or not finite in the file.

    Args:
        file: the user's.
        network: with its weights.
        path: the file that they are from; None where the code loads them.
    """
    if (name := not_finite(network)) is None:
        return
    if path is None:
        raise InputError(
            f"{file.who}: {name} holds NaN or infinite weights, or random ones that its code does "
            "not load; pass the file of its weights as `ckpt=FILE`, or load all of them in the "
            "function"
        )
    if name in network.state_dict():
        raise InputError(f"{path}: {name} holds NaN or infinite weights")
    raise InputError(
        f"{file.who}: {name} is random and in no file, and so it is not what was trained; "
        "register it as a buffer that is saved, or draw it with "
        "generator=torch.Generator().manual_seed(SEED)"
    )


def not_finite(network: nn.Module) -> str | None:
    """The first parameter or buffer with NaN or infinite numbers; a mask's may be -inf."""
    parameters, saved = dict(network.named_parameters()), network.state_dict()
    for name, tensor in {**saved, **parameters, **dict(network.named_buffers())}.items():
        if not isinstance(tensor, Tensor) or nn.parameter.is_lazy(tensor) or tensor.is_meta:
            continue
        allowed = tensor.detach().isfinite()
        if name not in parameters:
            allowed |= tensor == -torch.inf if name in saved else tensor.isinf()
        if not bool(allowed.all()):
            return name
    return None


def refuse_random(
    file: UserFile, network: nn.Module, build: Callable[[UserFile], nn.Module]
) -> None:
    """Run the file once more from other random numbers, and refuse what differs: it is in no file.

    Floating-point numbers of torch need no second run; they are NaN in the first.

    Args:
        file: as it was run first.
        network: that it built.
        build: builds it from the file as it is run now.
    """
    first = _numbers_of(network, file)
    with restored_process_state():
        torch.manual_seed(_OTHER_SEED)
        np.random.seed(_OTHER_SEED)
        random.seed(_OTHER_SEED)
        with user_file(file.code.name) as again:
            second = _numbers_of(build(again), again)
    for name, value in first.items():
        if name not in second or not _same(value, second[name]):
            raise InputError(
                f"{file.who}: {name} is random and in no file, so that it is not what was trained; "
                "save it as a buffer, compute it from a seed, or move what the network does not "
                'use under if __name__ == "__main__":'
            )


def _numbers_of(network: nn.Module, file: UserFile) -> dict[str, Any]:
    """All numbers that a call may use, by name.

    Parameters, buffers and attributes of the modules, tensors and arrays of their classes, and
    those of the files that were run, in lists and dicts too.
    """
    numbers: dict[str, Any] = dict(network.named_parameters())
    numbers |= dict(network.named_buffers())
    for prefix, module in network.named_modules():
        _gather(numbers, vars(module), prefix, (Tensor, np.ndarray, float, int))
        _gather(numbers, vars(type(module)), type(module).__name__, (Tensor, np.ndarray))
    for name, values in file.namespaces().items():
        _gather(numbers, values, name, (Tensor, np.ndarray))
    return numbers


def _gather(
    numbers: dict[str, Any],
    values: Mapping[str, object],
    prefix: str,
    kinds: tuple[type, ...],
    outer: tuple[int, ...] = (),
) -> None:
    """Add the values of some kinds, also those in lists and dicts, which may hold themselves."""
    for key, value in values.items():
        name = f"{prefix}.{key}" if prefix else key
        if isinstance(value, kinds):
            numbers.setdefault(name, value)
        elif isinstance(value, dict | list | tuple) and not key.startswith("_"):
            inner = value if isinstance(value, dict) else dict(enumerate(value))
            if id(value) not in outer:
                named = {str(k): v for k, v in inner.items()}
                _gather(numbers, named, name, kinds, (*outer, id(value)))


def _same(one: Any, other: Any) -> bool:  # noqa: ANN401 - tensors, arrays or numbers
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and one.tobytes() == other.tobytes()
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return bool(one == other or (one != one and other != other))
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.is_meta or one.layout is not torch.strided or one.is_quantized:
        return True
    # NaN shows in the output, where it is used.
    is_nan = one.is_floating_point() and bool(one.isnan().any())
    return is_nan or torch.equal(one, other)
