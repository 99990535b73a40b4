"""The device a run computes on, its precision, and how many rows share a network call."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn

from ddpmbench.errors import InputError

T = TypeVar("T")

PRECISION = "fp32"
"""What networks compute in: strict float32."""
PIXELS_PER_BATCH = {"cpu": 48 * 28 * 28, "cuda": 2048 * 32 * 32, "mps": 256 * 32 * 32}
"""Where `--batch-size auto` starts: pixels of one channel that share a network call."""


def resolve_device(name: str, local_rank: int = 0) -> torch.device:
    """The device a `--device` option names.

    Args:
        name: "auto" (CUDA, then MPS, then the CPU), "cpu", "cuda", "cuda:1" or "mps".
        local_rank: which process on this machine asks; each has a CUDA device of its own as
            long as there are enough.

    Raises:
        InputError: there is no such device here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return _cuda_of(local_rank)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not (kind == "cuda" and index.isdigit())):
        raise InputError(f"--device {name}: choose auto, cpu, cuda, cuda:N or mps")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(index or 0) >= count:
            raise InputError(
                f"--device {name}: this machine has {count} CUDA devices; use --device auto"
            )
        if not index:
            return _cuda_of(local_rank)
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"--device {name}: this machine has no MPS device; use --device auto")
    return torch.device(name)


def _cuda_of(local_rank: int) -> torch.device:
    return torch.device("cuda", local_rank % torch.cuda.device_count())


@contextlib.contextmanager
def strict_float32() -> Iterator[None]:
    """Inside, float32 means float32: products and convolutions are rounded to nothing less."""
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
            switch.fp32_precision = "ieee"
        yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Inside, the network is in evaluation mode; afterwards every part is as it was."""
    training = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, was_training in training.items():
            module.training = was_training


def device_name(device: torch.device) -> str:
    """What the device calls itself, with the number of threads where it is the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else "mps"


class BatchSize:
    """How many rows share a network call; halves itself when they do not fit into memory.

    Attributes:
        rows: the number at present.
    """

    def __init__(
        self,
        option: int | None,
        *,
        device: torch.device,
        image_shape: tuple[int, ...],
        warn: Callable[[str], None],
    ) -> None:
        """Begin with the number asked for, or with one that suits the device.

        Args:
            option: rows a call; None for "auto".
            device: where the network runs.
            image_shape: (C, H, W).
            warn: told when the number is halved.
        """
        self._is_fixed = option is not None
        self._warn = warn
        pixels = PIXELS_PER_BATCH[device.type] // math.prod(image_shape[1:])
        self.rows = option if option is not None else max(1, pixels)

    def attempt(self, compute: Callable[[int], T]) -> T:
        """What `compute` returns for the largest number of rows that fits.

        Args:
            compute: called with a number of rows.

        Raises:
            InputError: the number was asked for, or a single row, and does not fit.
        """
        while True:
            try:
                return compute(self.rows)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
            if self._is_fixed or self.rows == 1:
                raise InputError(
                    f"--batch-size {self.rows}: does not fit into memory; choose a smaller one"
                )
            self.rows //= 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._warn(f"out of memory: going on with --batch-size {self.rows}")


def _is_out_of_memory(error: BaseException) -> bool:
    return (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or "out of memory" in str(error)
        or "can't allocate memory" in str(error)
    )
