"""The weights of a user's own network: located in a file, loaded, refused if random."""

import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddpmbench.checkpoints.network_weights import (
    ALL_ZERO,
    NOT_FINITE,
    all_zero,
    some_weights,
)
from ddpmbench.checkpoints.schedule_tables import ScheduleTables
from ddpmbench.checkpoints.state_dicts import StateDict, find_state
from ddpmbench.checkpoints.weights import FileError, is_plain, kind_of, why_not_plain
from ddpmbench.errors import InputError
from ddpmbench.user_code import (
    UserFile,
    calling,
    restored_process_state,
    user_file,
)

_BATCH_COUNT = "num_batches_tracked"
"""The buffer of a batch normalization that has no effect in evaluation."""


def weights_in_file(
    file: UserFile,
    network: nn.Module,
    content: Mapping[str, object],
    path: Path,
    weights: str | None,
) -> StateDict:
    """The state dict in a file that has the network's names."""
    names = list(network.state_dict())
    if not names:
        raise InputError(
            f"{file.who}: gives a network without weights to load, as a frozen one is; if its code "
            f"loads them, leave out `ckpt={path}`"
        )
    needed = [n for n, _ in network.named_parameters()] or [
        name for name in names if not name.endswith(_BATCH_COUNT)
    ]
    # Otherwise the first: loading it reports the missing weights.
    for known in (needed, needed[:1]):
        match = _find(needed, known, content, path, weights) if known else None
        if match is not None:
            return match
    return StateDict(dict(content), kind=weights)


def _find(
    names: Sequence[str],
    needed: Sequence[str],
    content: Mapping[str, object],
    path: Path,
    weights: str | None,
) -> StateDict | None:
    """The weights with the network's names, or with these minus a common prefix.

    An adapter that holds the trained network as `self.net` has names `net.x` for the file's x.
    """
    for prefix in ("", *_common_prefixes(names)):
        known = [name.removeprefix(prefix) for name in needed]
        match = find_state(content, path=path, known=[known], weights=weights)
        if match is None:
            continue
        if not prefix:
            return match
        if other := other_weights(match):
            raise InputError(
                f"{path}: {other[0]} is beside the network's weights, and so its names are not "
                f"those of the network without {prefix}; a function of `network` that takes the "
                "content of the file, NAME(state), can choose them"
            )
        named = {prefix + name: value for name, value in match.weights.items()}
        return dataclasses.replace(match, weights=named, added=prefix)
    return None


def _common_prefixes(names: Sequence[str]) -> Iterator[str]:
    """Common prefixes of the names, of whole parts, the shortest first."""
    first, *others = names
    parts = first.split(".")[:-1]
    for count in range(1, len(parts) + 1):
        prefix = ".".join(parts[:count]) + "."
        if not all(name.startswith(prefix) for name in others):
            return
        yield prefix


def other_weights(state: StateDict) -> list[str]:
    """Names of other tensors that may be a network's: neither tables nor single numbers."""
    tables = ScheduleTables.within(state.beside).names
    return [name for name, t in state.beside.items() if t.numel() > 1 and name not in tables]


def load_into(file: UserFile, network: nn.Module, state: StateDict, path: Path) -> None:
    """Load weights into the network, as float32: one for each parameter and buffer, and no others.

    Tables of a schedule beside them do not count as weights.

    Raises:
        InputError: one is missing, left over, of another shape, or of another kind of number.
    """
    tensors = {n: value for n, value in state.weights.items() if isinstance(value, Tensor)}
    # A module's extra state may be anything.
    expected = {n: t for n, t in network.state_dict().items() if isinstance(t, Tensor)}
    tables = ScheduleTables.within({n: t for n, t in tensors.items() if n not in expected})
    weights = {name: tensor for name, tensor in tensors.items() if name not in tables.names}
    for name, wanted in expected.items():
        if name not in weights:
            continue
        if name.endswith(_BATCH_COUNT):
            weights[name] = _batch_count(weights[name], wanted)
        # A weight of another shape may declare more than fits into memory.
        if weights[name].shape == wanted.shape:
            weights[name] = _as_wanted(weights[name], wanted, f"{path}: {name}", file.who)
    # Tensors from torch.inference_mode cannot be written to.
    assign = any(p.is_meta or p.is_inference() for p in network.parameters())

    def load() -> tuple[list[str], list[str]]:
        missing, unexpected = network.load_state_dict(weights, strict=False, assign=assign)
        return missing, unexpected

    missing, unexpected = calling(load, f"{file.who}: {path} does not fit")
    if not missing and not unexpected:
        return
    sides = (("missing", missing), ("left over", unexpected))
    mismatch = "; ".join(f"{some_weights(names)} {side}" for side, names in sides if names)
    kind = {"ema": "averaged weights", "raw": "last weights", None: "weights"}[state.kind]
    where = f" ({state.where})" if state.where else ""
    other = ", or pass `weights=raw`" if state.kind == "ema" and not state.alone else ""
    raise InputError(
        f"{path}: {mismatch}; its {kind}{where} are not the weights of {file.who}: register "
        "buffers that the code computes with persistent=False; a function of `network` that takes "
        f"the content of the file, NAME(state), can choose and join weights{other}"
    )


def _batch_count(count: Tensor, wanted: Tensor) -> Tensor:
    """Zero in place of a batch count that is averaged, cast, or of shape (1,)."""
    is_other = count.is_floating_point() or count.shape != wanted.shape
    return torch.zeros_like(wanted) if is_other and count.numel() == wanted.numel() == 1 else count


def _as_wanted(tensor: Tensor, wanted: Tensor, named: str, who: str) -> Tensor:
    """A weight in the network's type, which must be the same kind of number.

    Copying would silently convert integers to floats, and drop imaginary parts.
    """
    is_float = wanted.is_floating_point()
    if tensor.is_meta or tensor.layout != torch.strided or tensor.is_quantized:
        raise InputError(f"{named} {why_not_plain(tensor)}")
    if tensor.is_floating_point() != is_float or tensor.is_complex() != wanted.is_complex():
        raise InputError(
            f"{named} is {kind_of(tensor)}, and {who} has {kind_of(wanted)} there; save it as "
            f"{kind_of(wanted)}"
        )
    if is_float and not is_plain(tensor):
        raise InputError(f"{named} {why_not_plain(tensor)}")
    return tensor.float() if is_float else tensor


# ---- numbers that were not trained

_OTHER_SEED = 7919


def refuse_untrained(file: UserFile, network: nn.Module, path: Path | None = None) -> None:
    """Refuse weights or buffers that are random, not finite, or all zero."""
    if all_zero(network.parameters()):
        raise FileError(path or file.who, ALL_ZERO)
    if (name := not_finite(network)) is None:
        return
    if path is None:
        raise InputError(
            f"{file.who}: {name} holds NaN or infinite weights, or random ones that its code does "
            "not load; pass the file of its weights as `ckpt=FILE`, or load all of them in the "
            "function"
        )
    if name in network.state_dict():
        raise FileError(path, f"{name} {NOT_FINITE}")
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
    """Run the file again with other random numbers, and refuse values that differ.

    torch's random floating-point numbers need no second run; they are NaN in the first.
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
    """All numbers that the network may use, by name.

    Parameters, buffers and attributes of the modules, tensors and arrays of their classes and of
    the files that were run, also in lists and dicts.
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
    """Add the values of some kinds, also in lists and dicts, which may contain themselves."""
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
    # A NaN in use shows in the output.
    is_nan = one.is_floating_point() and bool(one.isnan().any())
    return is_nan or torch.equal(one, other)
