"""Reading weights safely, and putting them into a network only where all of them fit."""

import contextlib
import hashlib
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ddpmbench.errors import InputError
from ddpmbench.inputs.checkpoints import disguised
from ddpmbench.inputs.checkpoints.nested import containers
from ddpmbench.inputs.checkpoints.numpy_pickles import SAFE_GLOBALS
from ddpmbench.inputs.checkpoints.plain import is_plain, kind_of, numbers_held
from ddpmbench.network.unet import UNet
from ddpmbench.network.unet_config import UNetConfig
from ddpmbench.process.prediction import Variance


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_blob(file: Path, sha256: str) -> None:
    """Compare the hash of a file in the Hub's cache with the one it is stored under.

    Args:
        file: in the cache a link to a blob named by its SHA-256; any other file passes.
        sha256: of what the file holds.

    Raises:
        InputError: they differ.
    """
    blob = file.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", blob) and blob != sha256:
        raise InputError(
            f"{file.resolve()}: damaged: its SHA-256 is {sha256[:12]}...; delete it and download "
            "it again"
        )


@contextlib.contextmanager
def naming(source: object) -> Iterator[None]:
    """Put the file's name before an InputError raised inside, where it is not there yet."""
    try:
        yield
    except InputError as error:
        if str(source) in str(error):
            raise
        raise InputError(f"{source}: {error}") from error


def read_state(path: Path) -> dict[str, object]:
    """What a weights file holds, without running code from it.

    Args:
        path: a .safetensors file, or anything written by `torch.save`.

    Raises:
        InputError: the file is empty, truncated, no weights file, or needs code to be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(2)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if not start:
        raise InputError(f"{path}: an empty file; copy or download it again")
    if (why := disguised.refusal(path)) is not None:
        raise InputError(f"{path}: {why}")
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{path}: not a whole safetensors file ({_line(error)}); copy or download it again"
            ) from error
    state = _named(_read_torch(path, start))
    if not isinstance(state, dict):
        raise InputError(f"{path}: holds a {type(state).__name__}, not a state dict")
    with naming(path):
        for _ in containers(state):
            pass  # too deep a file is refused before anything else looks into it
    return {str(name): value for name, value in state.items()}


def _named(content: object) -> object:
    """A list of what training holds, as ermongroup/ddim and others save it, by names.

    Source: ermongroup/ddim, runners/diffusion.py.
    """
    if not isinstance(content, list | tuple) or not any(isinstance(v, dict) for v in content):
        return content
    names = ["model", "optimizer", "epoch", "step", "ema"]
    optimizer = content[1] if 4 <= len(content) <= len(names) else None
    if not isinstance(optimizer, dict) or "param_groups" not in optimizer:
        names = list(map(str, range(len(content))))
    return dict(zip(names, content, strict=False))


def _read_torch(path: Path, start: bytes) -> object:
    """What `torch.save` wrote; `start` is the first two bytes, which tell its two formats."""
    damaged = f"{path}: {disguised.DAMAGED}"
    if start != b"PK" and start[:1] != b"\x80":
        raise InputError(f"{path}: not a file written by torch.save")
    try:
        with warnings.catch_warnings():
            # torch warns of old formats and pickles; that they can be read is all that matters
            warnings.simplefilter("ignore")
            with torch.serialization.safe_globals(SAFE_GLOBALS):
                return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found is None and "Unsupported" not in str(error):
            raise InputError(damaged) from error
        what = found.group(1) if found else "objects besides tensors"
        raise InputError(
            f"{path}: holds {what}, which only running code from the file could read; "
            "save its state dict alone: torch.save(model.state_dict(), PATH)"
        ) from error
    except Exception as error:  # torch.load raises whatever the damaged bytes lead to
        raise InputError(damaged) from error


def rounding_notes(weights: Mapping[str, object]) -> tuple[str, ...]:
    """That weights were saved in a low precision, a line for each that there is."""
    tensors = [value for value in weights.values() if isinstance(value, Tensor)]
    small = {t.dtype for t in tensors if t.is_floating_point() and t.element_size() < 4}
    names = sorted(str(dtype).removeprefix("torch.") for dtype in small)
    return tuple(f"weights are {name}, rounded when they were saved" for name in names)


def only_tensors(state: Mapping[str, object], *, source: str) -> dict[str, Tensor]:
    """The same state dict, known to hold nothing but tensors.

    Raises:
        InputError: it holds something else; the line names it.
    """
    tensors = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(f"{source}: {name} is a {type(value).__name__}, not a tensor")
        held = numbers_held(value)
        if held is not None and value.numel() > held:
            raise InputError(
                f"{source}: {name} is {list(value.shape)}, but the file holds {held} numbers "
                "for it; it is no checkpoint"
            )
        tensors[name] = value
    return tensors


def shape_of(
    weights: Mapping[str, Tensor], name: str, dimensions: int, *, source: object
) -> tuple[int, ...]:
    """The shape of a weight that decides what the network is.

    Args:
        weights: the file's weights.
        name: the weight's name in them.
        dimensions: how many it must have.
        source: the file to name in an error.

    Raises:
        InputError: it is missing, or has another number of dimensions or no elements.
    """
    if name not in weights:
        raise InputError(f"{source}: weight {name} missing; the file is not whole")
    found = tuple(weights[name].shape)
    if len(found) != dimensions or not all(found):
        raise InputError(f"{source}: {name} is {list(found)}, which no such network has")
    return found


def build_unet(
    config: UNetConfig,
    weights: Mapping[str, Tensor],
    *,
    source: str,
    names: Mapping[str, str] | None = None,
) -> UNet:
    """The U-Net with the weights of a file in it, in evaluation mode.

    Args:
        config: the network's configuration.
        weights: the file's weights under the file's names.
        source: the file to name in an error.
        names: the file's name of each of our weights; the same names if absent.

    Raises:
        InputError: the configuration is no network, or the weights are not all of it.
    """
    network = _unallocated(config, source)
    load_weights(network, weights, source=source, names=names)
    return network.eval()


def unet_names(config: UNetConfig, *, source: str) -> list[str]:
    """The names of the U-Net's weights; raises InputError if the configuration is none."""
    return list(_unallocated(config, source).state_dict())


def _unallocated(config: UNetConfig, source: str) -> UNet:
    # on the meta device nothing is allocated before the shapes are known to be the file's
    try:
        with naming(source), torch.device("meta"):
            return UNet(config)
    except (RuntimeError, OverflowError) as error:
        raise InputError(
            f"{source}: no network can be as large as it says ({_line(error)})"
        ) from error


def check_outputs(config: UNetConfig, variance: Variance, *, source: object) -> None:
    """Refuse a variance the network has no output for, or an output that no variance takes."""
    if variance.is_learned != (config.out_channels == 2 * config.in_channels):
        raise InputError(
            f"{source}: the variance is {variance}, but the network outputs "
            f"{config.out_channels} channels for images of {config.in_channels}"
        )


def load_weights(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    *,
    source: str,
    names: Mapping[str, str] | None = None,
) -> None:
    """Load weights that must fit name by name, shape by shape, and be finite.

    Args:
        network: receives the weights, as float32; may be on the meta device.
        weights: a tensor for every parameter and buffer of the network, and no other.
        source: the file to name in an error.
        names: the name in `weights` of each of the network's own; the same names if absent.

    Raises:
        InputError: one is missing, left over, of another shape, or not finite.
    """
    expected = network.state_dict()
    theirs = {name: names[name] if names is not None else name for name in expected}
    if missing := sorted(set(theirs.values()) - set(weights)):
        raise InputError(f"{source}: {some_weights(missing)} missing; the file is not whole")
    if extra := sorted(set(weights) - set(theirs.values())):
        raise InputError(f"{source}: {some_weights(extra)} left over; it holds another network")
    state = {}
    for name, wanted in expected.items():
        tensor = weights[theirs[name]]
        if tensor.shape != wanted.shape:
            raise InputError(
                f"{source}: {theirs[name]} is {list(tensor.shape)}, the network takes "
                f"{list(wanted.shape)}"
            )
        if not is_plain(tensor):
            raise InputError(
                f"{source}: {theirs[name]} is no plain floating-point tensor ({kind_of(tensor)}); "
                "save the weights as float32"
            )
        state[name] = tensor.float().contiguous()  # isfinite is not written for 8 bits
        if not bool(state[name].isfinite().all()):
            raise InputError(f"{source}: {theirs[name]} holds NaN or infinite weights")
    network.load_state_dict(state, assign=any(w.is_meta for w in expected.values()))


def some_weights(names: list[str]) -> str:
    """The first of so many names of weights, and how many more there are."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"weight {names[0]}{more}"


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
