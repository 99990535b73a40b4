"""Loading exactly the weights of a network, under the names that a project gives them."""

import contextlib
import itertools
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ddpmbench.checkpoints.schedule_tables import ScheduleTables
from ddpmbench.checkpoints.state_dicts import StateDict
from ddpmbench.checkpoints.weights import (
    AGAIN,
    OWN,
    FileError,
    first_line,
    kind_of,
    naming,
    numbers_held,
    why_not_dense,
    why_not_plain,
)
from ddpmbench.diffusion.process import Variance
from ddpmbench.errors import InputError
from ddpmbench.unet.unet import UNet, UNetConfig
from ddpmbench.user_code import UserFile, calling


def only_tensors(state: Mapping[str, object], *, source: str) -> dict[str, Tensor]:
    """A state dict that holds only dense floating-point tensors, and single numbers of any type.

    Raises:
        InputError: an item is something else, or declares more numbers than the file holds.
    """
    tensors = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise FileError(source, f"{name} is a {kind}, not a tensor; save the state dict alone")
        held = numbers_held(value)
        if held is not None and value.numel() > held:
            raise FileError(
                source,
                f"{name} is {list(value.shape)}, but the file holds {held} numbers for it; it is "
                "no checkpoint",
            )
        if value.ndim and (why := why_not_plain(value)) is not None:
            raise FileError(source, f"{name} {why}")
        tensors[name] = value
    return tensors


def shape_of(
    weights: Mapping[str, Tensor], name: str, dimensions: int, *, source: object
) -> tuple[int, ...]:
    """The shape of a weight that determines the architecture, with a given number of dimensions.

    Raises:
        InputError: it is missing, or has another number of dimensions or no elements.
    """
    if name not in weights:
        raise FileError(source, f"weight {name} missing; the file is not whole")
    shape = tuple(weights[name].shape)
    if len(shape) != dimensions or not all(shape):
        raise FileError(source, f"{name} is {list(shape)}, which no such network has; {OWN}")
    return shape


def check_outputs(config: UNetConfig, variance: Variance, *, source: object) -> None:
    """Refuse a variance without an output of the network, or an output that no variance uses."""
    has_variance = config.out_channels == 2 * config.in_channels
    if variance.is_learned != has_variance:
        other = Variance.LEARNED_RANGE if has_variance else Variance.FIXED_LARGE
        raise FileError(
            source,
            f"the variance is {variance}, but the network outputs {config.out_channels} channels "
            f"for images of {config.in_channels}; pass `variance={other}`, or as it was trained",
        )


def load_weights(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    *,
    source: object,
    names: Mapping[str, str] | None = None,
) -> None:
    """Load weights, which must match in names and shapes and be finite.

    Args:
        network: receives the weights, as float32; may be on the meta device.
        weights: of `only_tensors`, one for every parameter and buffer, and no others.
        source: the file to name in an error.
        names: from the network's names to those in `weights`; None if they are equal.

    Raises:
        InputError: one is missing, left over, of another shape, or not finite; or all are zero.
    """
    expected = network.state_dict()
    theirs = {name: names[name] if names is not None else name for name in expected}
    if missing := sorted(set(theirs.values()) - set(weights)):
        raise FileError(source, f"{some_weights(missing)} missing; the file is not whole")
    if extra := sorted(set(weights) - set(theirs.values())):
        raise FileError(source, f"{some_weights(extra)} left over; it holds another network")
    state = {}
    for name, wanted in expected.items():
        tensor = weights[theirs[name]]
        if tensor.shape != wanted.shape:
            shapes = (
                f"is {list(tensor.shape)}, the network takes {list(wanted.shape)}; the settings or "
                "the configuration beside it are of another network"
            )
            raise FileError(source, f"{theirs[name]} {shapes}")
        state[name] = tensor.float().contiguous()  # torch has no isfinite for 8-bit floats
        if not bool(state[name].isfinite().all()):
            raise FileError(source, f"{theirs[name]} {NOT_FINITE}")
    if all_zero(state[name] for name, _ in network.named_parameters()):
        raise FileError(source, ALL_ZERO)
    network.load_state_dict(state, assign=any(w.is_meta for w in expected.values()))


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
        if name.endswith(BATCH_COUNT):
            weights[name] = _batch_count(weights[name], wanted)
        # A weight of another shape may declare more than fits into memory.
        if weights[name].shape == wanted.shape:
            weights[name] = _as_wanted(weights[name], wanted, f"{path}: {name}", file.who)
    # Tensors from torch.inference_mode cannot be written to.
    assign = any(p.is_meta or p.is_inference() for p in network.parameters())
    missing, unexpected = calling(
        lambda: list(network.load_state_dict(weights, strict=False, assign=assign)),
        f"{file.who}: {path} does not fit",
    )
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
    kinds = [(t.is_floating_point(), t.is_complex()) for t in (tensor, wanted)]
    why = why_not_dense(tensor)
    if why is None and kinds[0] != kinds[1]:
        theirs = kind_of(wanted)
        why = f"is {kind_of(tensor)}, and {who} has {theirs} there; save it as {theirs}"
    if why is not None:
        raise InputError(f"{named} {why}")
    return tensor.float() if wanted.is_floating_point() else tensor


BATCH_COUNT = "num_batches_tracked"
"""The buffer of a batch normalization that has no effect in evaluation."""
ALL_ZERO = "all weights are zero; take trained ones"
NOT_FINITE = (
    "holds NaN or infinite weights; take those of an earlier step, or save them again as float32"
)


def all_zero(tensors: Iterable[Tensor]) -> bool:
    """Whether no tensor has a number but 0, and there are some; False if one has no numbers yet."""
    known = list(tensors)
    if any(nn.parameter.is_lazy(tensor) or tensor.is_meta for tensor in known):
        return False
    return bool(known) and not any(bool(tensor.any()) for tensor in known)


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


def some_weights(names: list[str]) -> str:
    """The first of these weights, and the number of others."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"weight {names[0]}{more}"


Renames = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]
"""Patterns in our names and their replacements, applied in order."""

# Attention layers, which are 1x1 convolutions in some files.
_ATTENTION = re.compile(r"\battentions?\..*\b(qkv|out)\.")


def rename(name: str, renames: Renames) -> str:
    """The project's name for a weight of `unet.unet.UNet`."""
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def build_unet(
    config: UNetConfig,
    weights: Mapping[str, Tensor],
    renames: Renames = (),
    *,
    parts: tuple[str, ...] = ("qkv",),
    source: object,
) -> UNet:
    """The U-Net with the weights of a file, in evaluation mode.

    Args:
        config: the network's configuration.
        weights: all weights of the file, under its names.
        renames: from our names to the file's; empty if they are equal.
        parts: the file's name for `qkv`, the queries, keys and values of attention, or for each of
            the three.
        source: the file to name in an error.

    Raises:
        InputError: the configuration is invalid, or does not match the weights.
    """
    try:
        # the meta device allocates nothing before the shapes are checked against the file
        with naming(source), torch.device("meta"):
            network = UNet(config)
    except (RuntimeError, OverflowError) as error:
        problem = f"no network can be as large as it says ({first_line(error)})"
        raise FileError(source, problem) from error
    weights, names = dict(weights), {}
    for name in network.state_dict():
        names[name] = rename(name, renames)
        if renames and _ATTENTION.search(name):
            of_qkv = parts if ".qkv." in name else ("",)
            stored = [names[name].replace(".qkv.", f".{part}.") for part in of_qkv]
            if missing := [part for part in stored if part not in weights]:
                raise FileError(source, f"{some_weights(missing)} missing; the file is not whole")
            weights[names[name]] = _joined({part: weights.pop(part) for part in stored}, source)
    load_weights(network, weights, source=source, names=names)
    return network.eval()


def _joined(parts: Mapping[str, Tensor], source: object) -> Tensor:
    """Queries, keys and values in one tensor; a 1x1 convolution as a matrix."""
    matrices = [rows.flatten(1) if rows.ndim > 2 else rows for rows in parts.values()]
    try:
        return torch.cat(matrices) if len(matrices) > 1 else matrices[0]
    except RuntimeError as error:
        raise FileError(
            source, f"{', '.join(parts)} are not parts of one matrix; {AGAIN}"
        ) from error


def renamed_weights(
    network: UNet, renames: Renames, *, parts: tuple[str, ...]
) -> dict[str, Tensor]:
    """The inverse of `build_unet`: the weights of our U-Net in the project's names and layout."""
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
    """The number of weights named `pattern`, with 0, 1, ... for {}, up to the first gap."""
    return next(number for number in itertools.count() if pattern.format(number) not in weights)


@contextlib.contextmanager
def importing(extra: str, source: str | Path, why: str) -> Iterator[None]:
    """Context in which a package of an extra is imported, without its warnings.

    Raises:
        InputError: the package is missing.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImportError as error:
        raise FileError(
            source,
            f"{why}, which cannot be imported ({first_line(error)}): "
            f"pip install 'ddpmbench[{extra}]'",
        ) from error
