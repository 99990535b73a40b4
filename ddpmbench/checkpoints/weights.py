"""Reading weights safely, and putting them into a network only where all of them fit."""

import contextlib
import dataclasses
import hashlib
import math
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ddpmbench.diffusion.process import Variance
from ddpmbench.errors import InputError
from ddpmbench.unet.unet import UNet, UNetConfig

_PACKED = {getattr(torch, "float4_e2m1fn_x2", None)}
"""Kinds of floating-point numbers, several of which are one element; torch converts none."""


def is_plain(tensor: Tensor) -> bool:
    """Whether it holds its floating-point numbers one by one, of whatever precision."""
    return (
        tensor.layout == torch.strided
        and not tensor.is_meta
        and not tensor.is_quantized
        and tensor.is_floating_point()
        and tensor.dtype not in _PACKED
    )


def numbers_held(tensor: Tensor) -> int | None:
    """How many numbers there is memory for; None where they do not lie one by one.

    Fewer than the shape declares where a stride is 0; the memory is taken when it is copied.
    """
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        return None
    return tensor.untyped_storage().nbytes() // tensor.element_size()


def kind_of(tensor: Tensor) -> str:
    """What it holds, as torch calls it: `int8`, or `float32, sparse_coo`."""
    names = [str(tensor.dtype), *([] if tensor.layout == torch.strided else [str(tensor.layout)])]
    return ", ".join(name.removeprefix("torch.") for name in names)


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


_CODE = re.compile(r"[biufc]\d{1,2}|[US]\d{1,6}")
_SCALARS = (
    *("bool_", "float16", "float32", "float64", "complex64", "complex128"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
)
_MODULES = ("numpy.core", "numpy._core")  # before NumPy 2, and from then on


class _Dtype:
    """What a pickle says of a dtype, its byte order in its state."""

    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        if not isinstance(code, str) or not _CODE.fullmatch(code):
            raise pickle.UnpicklingError("Unsupported: GLOBAL numpy.dtype of other than numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">", "="):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray[Any, Any]):
    def __new__(cls) -> Self:
        return super().__new__(cls, 0, np.int8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, column_major, raw = state
        found = _numbers(dtype, raw, math.prod(shape))
        state = (1, shape, found.dtype, bool(column_major), found.tobytes())
        super().__setstate__(state)  # type: ignore[arg-type]


def _numbers(dtype: object, raw: object, count: int) -> NDArray[Any]:
    if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes):
        raise pickle.UnpicklingError("Unsupported: GLOBAL numpy.ndarray of other than numbers")
    if len(raw) != count * dtype.dtype.itemsize:
        raise pickle.UnpicklingError("an array of another length than it says")
    return np.frombuffer(raw, dtype.dtype)


def _reconstruct(kind: object, shape: object, code: object) -> _Array:
    if kind is not _Array:
        raise pickle.UnpicklingError("Unsupported: GLOBAL numpy.ndarray of a kind of its own")
    return _Array()


def _scalar(dtype: object, raw: object) -> object:
    number: object = _numbers(dtype, raw, 1)[0]
    return number


def _no_bytes() -> bytes:
    """What an array without elements is made of."""
    return b""


SAFE_GLOBALS: list[Any] = [
    (_Dtype, "numpy.dtype"),
    (_Array, "numpy.ndarray"),
    (np.bool_, "numpy.bool"),
    (_no_bytes, "builtins.bytes"),
    (_no_bytes, "__builtin__.bytes"),
    *((getattr(np, name), f"numpy.{name}") for name in _SCALARS),
    *((_reconstruct, f"{module}.multiarray._reconstruct") for module in _MODULES),
    *((_scalar, f"{module}.multiarray.scalar") for module in _MODULES),
]
"""For `torch.serialization.safe_globals`: what stands here for each name of NumPy."""


DAMAGED = "truncated or damaged; copy or download it again"
"""What is said of a file that begins as one of the kind and goes on otherwise."""
_LFS = b"version https://git-lfs"
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7z",
}
_HEADER_LENGTH = 8  # safetensors begins with the length of its JSON header, which begins with {
_LONGEST_HEADER = 100_000_000
_DAMAGE = (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error)
"""What zipfile raises where an archive is cut, or its table of contents spoiled."""


def refusal(path: Path) -> str | None:
    """Why a file cannot be weights under its name, and what to do; None if it may be.

    Args:
        path: a file that is not empty.
    """
    with path.open("rb") as file:
        start = file.read(len(_LFS))
    is_safetensors = _is_safetensors(start)
    if start == _LFS:
        return "a pointer of Git LFS, not the file itself; fetch it with git lfs pull"
    if packed := next(
        (kind for magic, kind in _COMPRESSED.items() if start.startswith(magic)), None
    ):
        return f"a file packed with {packed}; unpack it first"
    if path.suffix == ".safetensors":
        if start[:2] == b"PK":
            return "written by torch.save, not safetensors; rename it to .pt"
    elif is_safetensors:
        return "a safetensors file; rename it to .safetensors"
    elif start[:2] == b"PK":
        return _archive(path)
    return None


def _is_safetensors(start: bytes) -> bool:
    length = int.from_bytes(start[:_HEADER_LENGTH], "little")
    return 0 < length < _LONGEST_HEADER and start[_HEADER_LENGTH : _HEADER_LENGTH + 2] == b'{"'


def _archive(path: Path) -> str | None:
    """Why what begins as a zip archive is not what `torch.save` writes."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except _DAMAGE:
        return DAMAGED
    names = [info.filename for info in infos]
    if any(name.endswith("/constants.pkl") for name in names):
        return (
            "a TorchScript program, which is run and not read; let a function of your own load "
            "it, --network FILE.py:NAME without --ckpt: def NAME(): return torch.jit.load(PATH); "
            "or save its weights: torch.save(torch.jit.load(PATH).state_dict(), NEW)"
        )
    if not any(name.endswith("/data.pkl") for name in names):
        if names and all(name.endswith(".npy") for name in names):
            return "arrays of NumPy (npz), not weights; images are passed with --data"
        return "a zip archive, but not one written by torch.save; unpack it and pass a file in it"
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
        # torch.save compresses nothing; what is compressed may take any amount of memory
        return "a compressed archive, which torch.save does not write; save it again with torch"
    return None


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
    if (why := refusal(path)) is not None:
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
    damaged = f"{path}: {DAMAGED}"
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
