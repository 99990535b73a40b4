"""What must hold of a tensor from a file before anything is computed with it.

A file may declare any tensor: without numbers, with one number for any shape, or of a kind that
arithmetic is not written for.
"""

import torch
from torch import Tensor

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
