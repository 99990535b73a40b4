"""Files of weights, read without running code from them."""

import contextlib
import dataclasses
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
from torch import Tensor

from ddpmbench.checksums import damaged_record
from ddpmbench.errors import InputError
from ddpmbench.files import JOINED, is_alone

_PACKED = {getattr(torch, "float4_e2m1fn_x2", None)}
"""Types with several numbers per element, which torch does not convert."""


def why_not_plain(tensor: Tensor) -> str | None:
    """Why a tensor is not dense and of a floating-point type, with the remedy; None if it is."""
    if (why := why_not_dense(tensor)) is not None or tensor.is_floating_point():
        return why
    return f"is no floating-point tensor ({kind_of(tensor)}); save the weights as float32"


def why_not_dense(tensor: Tensor) -> str | None:
    """Why a tensor does not hold a number per element, with the remedy; None if it does."""
    if tensor.is_meta:
        return "has no numbers (meta device); save the weights of a network that is on a real one"
    if tensor.layout != torch.strided:
        return f"is sparse ({kind_of(tensor)}); save it with .to_dense()"
    if tensor.is_quantized:
        return f"is quantized ({kind_of(tensor)}); save it with .dequantize()"
    if tensor.dtype in _PACKED:
        return f"is packed ({kind_of(tensor)}); save the weights as float32"
    return None


def numbers_held(tensor: Tensor) -> int | None:
    """The number of elements in a tensor's memory; None if it is not dense.

    It is less than its shape declares if a stride is 0; a copy takes the memory of the shape.
    """
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        return None
    return tensor.untyped_storage().nbytes() // tensor.element_size()


def kind_of(tensor: Tensor) -> str:
    """The type of a tensor in torch's spelling: `int8`, or `float32, sparse_coo`."""
    names = [str(tensor.dtype), *([] if tensor.layout == torch.strided else [str(tensor.layout)])]
    return ", ".join(name.removeprefix("torch.") for name in names)


MAX_DEPTH = 64
_NUMBERS = "biufc"


@dataclasses.dataclass(frozen=True)
class Container:
    """A dict or list in a file.

    Attributes:
        keys: its path from the outermost dict.
        items: its items by name or position; NumPy arrays as tensors.
        is_list: whether it is a list.
        optimizer: the length of the path to the enclosing optimizer, if any.
    """

    keys: tuple[str, ...]
    items: dict[str, object]
    is_list: bool
    optimizer: int | None


def containers(content: object, *, apart: re.Pattern[str] | None = None) -> Iterator[Container]:
    """Every dict and list in a file, outer ones first; each is visited once.

    Args:
        content: from `read_state`, or a part of it.
        apart: a pattern; items below a key that matches are visited again there.

    Raises:
        InputError: they are nested deeper than by any training code.
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
                f"its dicts and lists are nested more than {MAX_DEPTH} deep; save the state "
                "dict alone: torch.save(model.state_dict(), PATH)"
            )
        named = value.items() if isinstance(value, Mapping) else enumerate(value)
        items = {str(name): _as_tensor(item) for name, item in named}
        if optimizer is None and "param_groups" in items:
            optimizer = len(keys)
        yield Container(keys, items, not isinstance(value, Mapping), optimizer)
        inner = [(name, item) for name, item in items.items() if not isinstance(item, Tensor)]
        waiting += [((*keys, name), item, matched, optimizer) for name, item in reversed(inner)]


def tensors_in(content: object) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested dicts and lists, with its path joined by dots; each once."""
    for path, value in leaves_in(content):
        if isinstance(value, Tensor):
            yield path, value


def leaves_in(content: object) -> Iterator[tuple[str, object]]:
    """Every item that is not a dict or list; a list of floats counts as one item."""
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


_CODE = re.compile(r"b1|[iu][1248]|f[248]|c8|c16|[US]\d{1,6}")  # types that torch has, and text
_SCALARS = (
    *("bool_", "float16", "float32", "float64", "complex64", "complex128"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
)
_MODULES = ("numpy.core", "numpy._core")  # before and since NumPy 2


class _Dtype:
    """A stand-in for `numpy.dtype`; the byte order is in its state."""

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
        numbers = _numbers(dtype, raw, math.prod(shape))
        state = (1, shape, numbers.dtype, bool(column_major), numbers.tobytes())
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
    """The buffer of an array without elements."""
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
"""Stand-ins for `torch.serialization.safe_globals` that build only numbers."""


_SAVE = "save one: torch.save(model.state_dict(), PATH)"
AGAIN = "copy or download it again"
OWN = "build it with `network=FILE.py:NAME`"
"""The remedy for a network of no known family."""
DAMAGED = f"truncated or damaged; {AGAIN}"
_LFS = b"version https://git-lfs"
_LONGEST_HEADER = 100_000_000


class FileError(InputError):
    """A problem with a file: the message is the file, the problem and its remedy.

    Attributes:
        source: the file, or other beginning of the message.
        problem: the rest of the message.
    """

    def __init__(self, source: object, problem: object) -> None:
        super().__init__(f"{source}: {problem}")
        self.source, self.problem = str(source), str(problem)


def _other_format(path: Path) -> str | None:
    """The problem of a file whose first bytes are not those of weights; None if they may be."""
    with path.open("rb") as file:
        start = file.read(len(_LFS))
    if start == _LFS:
        return "a pointer of Git LFS, not the file itself; fetch it with git lfs pull"
    is_archive = start[:2] == b"PK"
    if path.suffix == ".safetensors":
        return "written by torch.save, not safetensors; rename it to .pt" if is_archive else None
    # safetensors begins with the length of its JSON header
    if 0 < int.from_bytes(start[:8], "little") < _LONGEST_HEADER and start[8:10] == b'{"':
        return "a safetensors file; rename it to .safetensors"
    if not is_archive:
        if start[:1] == b"\x80":
            return None
        return "not a file written by torch.save; unpack it first if it is packed"
    try:
        with zipfile.ZipFile(path) as archive:
            return _other_archive(archive)
    except (zipfile.BadZipFile, RuntimeError, ValueError, OverflowError, EOFError, struct.error):
        return DAMAGED


def _other_archive(archive: zipfile.ZipFile) -> str | None:
    """The problem of an archive that torch.save did not write; None if it may have."""
    members = archive.infolist()
    names = [member.filename for member in members]
    problems = (
        (not is_alone(archive), f"not a single file of torch.save: it {JOINED}"),
        (
            any(name.endswith("/constants.pkl") for name in names),
            "a TorchScript program, which is run and not read; let a function of your own load "
            "it, `network=FILE.py:NAME` without `ckpt`: def NAME(): return torch.jit.load(PATH); "
            "or save its weights: torch.save(torch.jit.load(PATH).state_dict(), NEW)",
        ),
        (
            bool(names) and all(name.endswith(".npy") for name in names),
            "arrays of NumPy (npz), not weights; pass images as `data`",
        ),
        (
            not any(name.endswith("/data.pkl") for name in names),
            "a zip archive, but not one written by torch.save; unpack it and pass a file in it",
        ),
        (  # may unpack to any size
            any(member.compress_type != zipfile.ZIP_STORED for member in members),
            "a compressed archive, which torch.save does not write; save it again with torch",
        ),
    )
    if problem := next((problem for is_so, problem in problems if is_so), None):
        return problem
    damaged = damaged_record(archive)
    return damaged and f"damaged: record {damaged} does not have its checksum; {AGAIN}"


def check_blob(file: Path, sha256: str) -> None:
    """Compare the hash of a file in the Hub's cache to its name.

    Args:
        file: in the cache, a link to a blob named by its SHA-256; any other file passes.
        sha256: of the file's content.

    Raises:
        InputError: they differ.
    """
    blob = file.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", blob) and blob != sha256:
        raise FileError(
            file.resolve(),
            f"damaged: its SHA-256 is {sha256[:12]}...; delete it and download it again",
        )


@contextlib.contextmanager
def naming(source: object) -> Iterator[None]:
    """Context that prefixes an InputError with a file's name, unless it names the file already."""
    try:
        yield
    except InputError as error:
        if isinstance(error, FileError) and error.source == str(source):
            raise
        raise FileError(source, error) from error


def read_state(path: Path) -> dict[str, object]:
    """The content of a weights file, without running code from it.

    Args:
        path: a .safetensors file, or anything written by `torch.save`.

    Raises:
        InputError: the file is empty, truncated, not a file of weights, or requires running code.
    """
    try:
        is_empty = path.stat().st_size == 0
        problem = f"an empty file; {AGAIN}" if is_empty else _other_format(path)
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    if problem is not None:
        raise FileError(path, problem)
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise FileError(
                path,
                f"not a whole safetensors file ({first_line(error)}); {AGAIN}",
            ) from error
    state = _named(_read_torch(path))
    if not isinstance(state, dict):
        raise FileError(path, f"holds a {type(state).__name__}, not a state dict; {_SAVE}")
    with naming(path):
        for _ in containers(state):
            pass  # refuses files nested too deep
    return {str(name): value for name, value in state.items()}


def _named(content: object) -> object:
    """A training state saved as a list, as by ermongroup/ddim, as a dict.

    Source: ermongroup/ddim, runners/diffusion.py.
    """
    if not isinstance(content, list | tuple) or not any(isinstance(v, dict) for v in content):
        return content
    names = ["model", "optimizer", "epoch", "step", "ema"]
    optimizer = content[1] if 4 <= len(content) <= len(names) else None
    if not isinstance(optimizer, dict) or "param_groups" not in optimizer:
        names = list(map(str, range(len(content))))
    return dict(zip(names, content, strict=False))


def _read_torch(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of old formats and pickles
            with torch.serialization.safe_globals(SAFE_GLOBALS):
                return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        if name is None and "Unsupported" not in str(error):
            raise FileError(path, DAMAGED) from error
        raise FileError(
            path,
            f"holds {name[1] if name else 'objects besides tensors'}, which only running code "
            "from the file could read; save its state dict alone: "
            "torch.save(model.state_dict(), PATH)",
        ) from error
    except Exception as error:  # torch.load raises many kinds of errors on damaged bytes
        raise FileError(path, DAMAGED) from error


def rounding_notes(weights: Mapping[str, object]) -> tuple[str, ...]:
    """A note for each low precision of the saved weights."""
    tensors = [value for value in weights.values() if isinstance(value, Tensor)]
    small = {t.dtype for t in tensors if t.is_floating_point() and t.element_size() < 4}
    names = sorted(str(dtype).removeprefix("torch.") for dtype in small)
    return tuple(f"weights are {name}, rounded when they were saved" for name in names)


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the name of its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
