"""The precision that a `--precision` option names, on the device that there is."""

import torch
from torch.nn.functional import conv2d, group_norm, scaled_dot_product_attention

from ddpmbench.errors import InputError
from ddpmbench.network.precision import Precision

AUTO = "auto"
_TENSOR_CORES = (8, 0)
"""The least compute capability whose products of float32 can be rounded to TF32."""


def resolve_precision(
    name: str, device: torch.device, *, on_cuda: Precision = Precision.FP16
) -> Precision:
    """The precision that an option names.

    Args:
        name: a `Precision`, or "auto": strict float32 on the CPU and MPS, `on_cuda` on CUDA.
        device: where the network runs.
        on_cuda: what suits the question there; likelihood wants the mantissa of float16.

    Raises:
        InputError: there is no such precision, or not on this device.
    """
    if name == AUTO:
        return on_cuda if device.type == "cuda" else Precision.FP32
    if name not in set(Precision):
        raise InputError(f"--precision {name}: choose {', '.join(Precision)} or {AUTO}")
    precision = Precision(name)
    if precision is Precision.TF32 and not _has_tf32(device):
        raise InputError(
            f"--precision tf32: rounds the products of CUDA devices from Ampere on, and this run "
            f"is on {device}; choose fp32"
        )
    if precision.dtype is not torch.float32 and not _computes_in(precision.dtype, device):
        raise InputError(
            f"--precision {name}: {device} cannot compute a network in it; choose fp32"
        )
    return precision


def _has_tf32(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _TENSOR_CORES


def _computes_in(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kinds of layers that a U-Net is made of have this type on the device."""
    x = torch.linspace(-1, 1, 2 * 8 * 4 * 4, device=device, dtype=dtype).reshape(2, 8, 4, 4)
    try:
        h = group_norm(conv2d(x, x[:1, :, :3, :3].expand(8, 8, 3, 3), padding=1), 4)
        h = torch.nn.functional.silu(h).flatten(2)
        h = scaled_dot_product_attention(h, h, h) @ h.transpose(1, 2)
        return bool(h.isfinite().all())
    except (RuntimeError, NotImplementedError):
        return False
