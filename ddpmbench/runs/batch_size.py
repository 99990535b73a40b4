"""How many rows share a network call."""

import math
from collections.abc import Callable
from typing import TypeVar

import torch

from ddpmbench.errors import InputError

T = TypeVar("T")

PIXELS_PER_BATCH = {"cpu": 48 * 28 * 28, "cuda": 2048 * 32 * 32, "mps": 256 * 32 * 32}
"""Where `--batch-size auto` starts: pixels of one channel that share a network call."""


def rows_at_first(device: torch.device, image_shape: tuple[int, ...]) -> int:
    """What `--batch-size auto` starts with, for images of (C, H, W)."""
    return max(1, PIXELS_PER_BATCH[device.type] // math.prod(image_shape[1:]))


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
        self.rows = option if option is not None else rows_at_first(device, image_shape)

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
                if not is_out_of_memory(error):
                    raise
            if self._is_fixed or self.rows == 1:
                raise InputError(
                    f"--batch-size {self.rows}: does not fit into memory; choose a smaller one"
                )
            self.rows //= 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._warn(f"out of memory: going on with --batch-size {self.rows}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is that of memory that is not there, whatever its kind is."""
    return (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or "out of memory" in str(error)
        or "can't allocate memory" in str(error)
    )
