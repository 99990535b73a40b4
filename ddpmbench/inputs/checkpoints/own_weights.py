"""Weights of a file in a network of the user's own: all of them, as they are, and finite."""

from pathlib import Path

import torch
from torch import Tensor, nn

from ddpmbench.errors import InputError
from ddpmbench.inputs.checkpoints.own_code import calling
from ddpmbench.inputs.checkpoints.plain import is_plain, kind_of
from ddpmbench.inputs.checkpoints.schedule_tables import ScheduleTables
from ddpmbench.inputs.checkpoints.states import StateDict
from ddpmbench.inputs.checkpoints.weights import some_weights

BATCH_COUNT = "num_batches_tracked"
"""The buffer of a batch normalization whose value changes nothing in evaluation."""


def load_own(network: nn.Module, state_dict: StateDict, path: Path, option: str) -> None:
    """Put weights into the network, whose own code may have its say in it.

    Args:
        network: receives the weights, as float32; may be on the meta device.
        state_dict: a tensor for every parameter and buffer of the network, and no other but
            tables of a schedule.
        path: the file to name in an error.
        option: what `--network` says.

    Raises:
        InputError: one is missing, left over, of another shape, or of another kind of number.
    """
    tensors = {n: value for n, value in state_dict.weights.items() if isinstance(value, Tensor)}
    expected = network.state_dict()
    # Tables of the schedule beside the weights are read where they are needed.
    tables = ScheduleTables.among({n: t for n, t in tensors.items() if n not in expected})
    weights = {name: tensor for name, tensor in tensors.items() if name not in tables.names}
    weights |= _batch_counts(weights, expected)
    for name, wanted in expected.items():
        # what has another shape is named by torch, and may declare more than there is memory for
        if (
            isinstance(wanted, Tensor)  # a module may keep anything as its extra state
            and name in weights
            and weights[name].shape == wanted.shape
        ):
            weights[name] = _as_wanted(weights[name], wanted, f"{path}: {name}", option)
    # What was made in torch.inference_mode cannot be written to.
    assign = any(p.is_meta or p.is_inference() for p in network.parameters())
    try:
        missing, unexpected = calling(
            lambda: network.load_state_dict(weights, strict=False, assign=assign),
            f"--network {option}: {path} does not fit",
        )
    except InputError as error:
        # torch names every shape in one long text
        if (what := _other_shapes(weights, expected)) is None:
            raise
        raise InputError(f"--network {option}: {path} does not fit: {what}") from error
    if missing or unexpected:
        sides = (("missing", missing), ("left over", unexpected))
        what = "; ".join(f"{some_weights(names)} {side}" for side, names in sides if names)
        raise InputError(f"{path}: {what}; these are not the weights of --network {option}")


def _batch_counts(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """In place of counts of batches that are averages, casts or of shape (1,)."""
    return {
        name: torch.zeros(wanted.shape, dtype=wanted.dtype)
        for name, wanted in expected.items()
        if name.endswith(BATCH_COUNT)
        and (count := weights.get(name)) is not None
        and count.numel() == wanted.numel() == 1
        and (count.is_floating_point() or count.shape != wanted.shape)
    }


def _other_shapes(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> str | None:
    """The first weight of another shape, and how many there are; None if there is none."""
    names = [
        name
        for name, wanted in expected.items()
        if name in weights and isinstance(wanted, Tensor) and weights[name].shape != wanted.shape
    ]
    if not names:
        return None
    found, wanted = list(weights[names[0]].shape), list(expected[names[0]].shape)
    more = f" (and {len(names) - 1} more are of other sizes)" if len(names) > 1 else ""
    return f"{names[0]} is {found}, the network takes {wanted}{more}"


def check_finite(network: nn.Module, source: object) -> None:
    """Refuse weights and buffers that are NaN or infinite; a mask's may be -inf.

    Args:
        network: with its weights.
        source: the file or the code that they are from, to name in an error.

    Raises:
        InputError: naming the first of them.
    """
    parameters = dict(network.named_parameters())
    for name, tensor in {**network.state_dict(), **parameters}.items():
        if not isinstance(tensor, Tensor) or nn.parameter.is_lazy(tensor) or tensor.is_meta:
            continue
        finite = tensor.detach().isfinite()
        if name not in parameters:
            finite |= tensor == -torch.inf
        if not bool(finite.all()):
            raise InputError(f"{source}: {name} holds NaN or infinite weights")


def _as_wanted(tensor: Tensor, wanted: Tensor, named: str, option: str) -> Tensor:
    """A weight as the network computes with it; of another kind of number it is not one.

    Copying would make floats of integers, and drop imaginary parts, without a word.
    """
    is_float = wanted.is_floating_point()
    if tensor.is_floating_point() != is_float or tensor.is_complex() != wanted.is_complex():
        raise InputError(
            f"{named} is {kind_of(tensor)}, and --network {option} has {kind_of(wanted)} there; "
            f"save it as {kind_of(wanted)}"
        )
    if is_float and not is_plain(tensor):
        raise InputError(
            f"{named} is no plain floating-point tensor ({kind_of(tensor)}); save the weights as "
            "float32"
        )
    return tensor.float() if is_float else tensor
