"""The device of a run, its precision, and process settings that apply during a run only."""

import contextlib
import ctypes
import functools
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import conv2d, group_norm, scaled_dot_product_attention

from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.errors import InputError, instance_of
from ddpmbench.unet.timed_unet import Precision

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt, from malloc.h
_MOST = 2**31 - 1


def available_memory() -> int:
    """Bytes available without swapping; all memory where the system does not report it."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        text = ""
    if match := re.search(r"^MemAvailable: +(\d+) kB$", text, re.MULTILINE):
        return int(match[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@contextlib.contextmanager
def keeping_memory() -> Iterator[None]:
    """Within, freed memory is kept for the next network evaluation, if glibc is the C library.

    By default glibc returns large blocks to the system at once. Every activation of the network
    then begins with page faults, which on a CPU take much of a small network's time.

    Afterwards the memory is returned. glibc does not reveal its earlier thresholds; they are set to
    those of the environment, or to the ones that glibc itself reaches in a process that frees large
    blocks.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    _keepers.append(None)
    if not libc.mallopt(_MMAP_THRESHOLD, 2**30):
        libc.mallopt(_MMAP_THRESHOLD, 2**25)  # the most that older versions accept
    libc.mallopt(_TRIM_THRESHOLD, _MOST)
    try:
        yield
    finally:
        _keepers.pop()
        if not _keepers:
            libc.mallopt(_MMAP_THRESHOLD, _from_environment("MALLOC_MMAP_THRESHOLD_", 2**25))
            libc.mallopt(_TRIM_THRESHOLD, _from_environment("MALLOC_TRIM_THRESHOLD_", 2**26))
            libc.malloc_trim(0)


_keepers: list[None] = []
"""One entry per active block of `keeping_memory`; they may be nested."""


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def _from_environment(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default


def resolve_device(name: str | torch.device, local_rank: int = 0) -> torch.device:
    """The device that a name stands for.

    Args:
        name: "auto" (CUDA, then MPS, then the CPU), "cpu", "cuda", "cuda:1" or "mps".
        local_rank: of this process on this machine; processes have a CUDA device each while there
            are enough.

    Raises:
        InputError: there is no such device here.
    """
    if isinstance(name, torch.device):
        name = str(name)
    instance_of("device", name, str, "name auto, cpu, cuda, cuda:N or mps")
    if name == "auto":
        if torch.cuda.is_available():
            return _cuda_of(local_rank)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not (kind == "cuda" and index.isdigit())):
        raise InputError(f"`device={name}`: choose auto, cpu, cuda, cuda:N or mps")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(index or 0) >= count:
            raise InputError(f"`device={name}`: this machine has {count} CUDA devices; choose auto")
        if not index:
            return _cuda_of(local_rank)
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"`device={name}`: this machine has no MPS device; choose auto")
    return torch.device(name)


def _cuda_of(local_rank: int) -> torch.device:
    return torch.device("cuda", local_rank % torch.cuda.device_count())


AUTO = "auto"
_TENSOR_CORES = (8, 0)
"""The lowest compute capability that supports TF32."""


def resolve_precision(
    name: str, device: torch.device, *, on_cuda: Precision = Precision.FP16
) -> Precision:
    """The precision that a name stands for.

    Args:
        name: a `Precision`, or "auto": strict float32 on the CPU and MPS, `on_cuda` on CUDA. For
            the bound, see `settled_precision`.
        device: where the network is evaluated.
        on_cuda: the choice of "auto" on CUDA; a likelihood needs the mantissa of float16.

    Raises:
        InputError: there is no such precision, or the device does not support it.
    """
    if name == AUTO:
        return on_cuda if device.type == "cuda" else Precision.FP32
    if name not in set(Precision):
        raise InputError(f"`precision={name}`: choose {', '.join(Precision)} or {AUTO}")
    precision = Precision(name)
    if precision is Precision.TF32 and not _has_tf32(device):
        raise InputError(
            f"`precision=tf32`: rounds the products of CUDA devices from Ampere on, and this run "
            f"is on {device}; choose fp32"
        )
    if precision.dtype is not torch.float32 and not _computes_in(precision.dtype, device):
        raise InputError(
            f"`precision={name}`: {device} cannot compute a network in it; choose fp32"
        )
    return precision


def _has_tf32(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _TENSOR_CORES


def _computes_in(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the device supports the layers of a U-Net in this type."""
    x = torch.linspace(-1, 1, 2 * 8 * 4 * 4, device=device, dtype=dtype).reshape(2, 8, 4, 4)
    try:
        h = group_norm(conv2d(x, x[:1, :, :3, :3].expand(8, 8, 3, 3), padding=1), 4)
        h = torch.nn.functional.silu(h).flatten(2)
        h = scaled_dot_product_attention(h, h, h) @ h.transpose(1, 2)
        return bool(h.isfinite().all())
    except (RuntimeError, NotImplementedError):
        return False


_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}
"""Names of the instructions that multiply in bfloat16: those of x86, then that of Arm."""


@functools.cache
def has_native_bfloat16() -> bool:
    """Whether the CPU multiplies in bfloat16; False where the system does not report it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return not _BFLOAT16.isdisjoint(text.split())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, of any type, means that memory ran out."""
    return (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or "out of memory" in str(error)
        or "can't allocate memory" in str(error)
    )


@contextlib.contextmanager
def products_of(precision: Precision) -> Iterator[None]:
    """Within, products and convolutions of float32 are in full precision, or in TF32."""
    backends: Any = torch.backends
    switches = [
        backends.cuda.matmul,
        backends.cudnn.conv,
        backends.mkldnn.matmul,
        backends.mkldnn.conv,
    ]
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            is_rounded = precision is Precision.TF32 and switch in switches[:2]
            switch.fp32_precision = "tf32" if is_rounded else "ieee"
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


def strict_float32() -> contextlib.AbstractContextManager[None]:
    """Within, products and convolutions of float32 are in full precision."""
    return products_of(Precision.FP32)


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Within, the network is in evaluation mode; afterwards every module is as it was."""
    training = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, was_training in training.items():
            module.training = was_training


@contextlib.contextmanager
def evaluating_checkpoint(checkpoint: Checkpoint) -> Iterator[None]:
    """Within, its network is in evaluation mode, and the user's code can import its own modules.

    Every evaluation of a checkpoint's network belongs inside.
    """
    with checkpoint.running(), evaluating(checkpoint.network):
        yield


def device_name(device: torch.device) -> str:
    """The name of the device, with the number of threads of a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {cpu_threads()}" if device.type == "cpu" else "mps"


def cpu_threads() -> str:
    """Description of the number of threads that PyTorch uses on the CPU."""
    number = torch.get_num_threads()
    return f"{number} thread{'' if number == 1 else 's'}"
