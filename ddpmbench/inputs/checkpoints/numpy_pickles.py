"""Numbers and arrays of NumPy in a pickle, read without NumPy's own reconstruction.

NumPy rebuilds what a pickle describes in C, and trusts the description of its dtype. Here only
plain numbers and text are rebuilt, from bytes of exactly the length that they take.
"""

import math
import pickle
import re
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

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
