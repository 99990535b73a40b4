"""Reading weights safely, and putting them into a network only where all of them fit."""

import hashlib
import pickle
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ddpmbench.errors import InputError


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_state(path: Path) -> dict[str, object]:
    """What a weights file holds, without running code from it.

    Args:
        path: a .safetensors file, or anything written by `torch.save`.

    Raises:
        InputError: the file is truncated, no weights file, or needs code to be read.
    """
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: not a whole safetensors file ({error})") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if zipfile.is_zipfile(path) or b"Unsupported" in str(error).encode():
            raise InputError(
                f"{path}: holds objects besides tensors, which only running code from the file "
                "could read; save its state dict alone: torch.save(model.state_dict(), PATH)"
            ) from error
        raise InputError(f"{path}: not a file written by torch.save") from error
    except Exception as error:  # torch.load raises whatever the damaged bytes lead to
        raise InputError(f"{path}: truncated or damaged; copy or download it again") from error
    if not isinstance(state, dict):
        raise InputError(f"{path}: holds a {type(state).__name__}, not a state dict")
    return state


def load_weights(network: nn.Module, weights: dict[str, Tensor], *, source: str) -> None:
    """Load weights that must fit name by name, shape by shape, and be finite.

    Args:
        network: receives the weights, as float32.
        weights: a tensor for every parameter and buffer of the network, and no other.
        source: the file to name in an error.

    Raises:
        InputError: one is missing, left over, of another shape, or not finite.
    """
    expected = network.state_dict()
    if missing := sorted(set(expected) - set(weights)):
        raise InputError(f"{source}: {_some(missing)} missing; the file is not whole")
    if extra := sorted(set(weights) - set(expected)):
        raise InputError(f"{source}: {_some(extra)} left over; it holds another network")
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            raise InputError(
                f"{source}: {name} is {list(tensor.shape)}, the network takes "
                f"{list(expected[name].shape)}"
            )
        if not bool(tensor.isfinite().all()):
            raise InputError(f"{source}: {name} holds NaN or infinite weights")
    network.load_state_dict({name: tensor.float() for name, tensor in weights.items()})


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 1} more weights" if len(names) > 1 else ""
    return f"weight {names[0]}{more}"
