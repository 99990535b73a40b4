"""What code of the user's may set of the process, so that it is as it was afterwards."""

import contextlib
import dataclasses
import io
import os
import random
import sys
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
import torch


@dataclasses.dataclass(frozen=True)
class TorchDefaults:
    """What every tensor made after it, and every call, depends on.

    Attributes:
        dtype: of tensors that do not name theirs.
        device: likewise.
        grad: whether gradients are recorded.
    """

    dtype: torch.dtype
    device: torch.device
    grad: bool

    @classmethod
    def now(cls) -> Self:
        """Those in force."""
        return cls(torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled())

    def restore(self) -> None:
        """Set them again, where they are others."""
        now = type(self).now()
        if now.dtype is not self.dtype:
            torch.set_default_dtype(self.dtype)
        if now.device != self.device:
            torch.set_default_device(self.device)
        if now.grad is not self.grad:
            torch.set_grad_enabled(self.grad)

    def changed(self) -> str | None:
        """The call that would have changed one of them; None where all are the same."""
        now = type(self).now()
        calls = {
            "torch.set_default_dtype": now.dtype is not self.dtype,
            "torch.set_default_device": now.device != self.device,
            "torch.set_grad_enabled": now.grad is not self.grad,
        }
        return next((name for name, is_changed in calls.items() if is_changed), None)


@contextlib.contextmanager
def own_process_state() -> Iterator[None]:
    """Inside, code of the user's prints to standard error and reads an empty standard input.

    Afterwards the defaults of torch, its threads, the random number generators and the current
    folder are as they were.
    """
    defaults, threads, folder = TorchDefaults.now(), torch.get_num_threads(), os.getcwd()
    generators: tuple[Any, ...] = (random.getstate(), np.random.get_state(), torch.get_rng_state())
    stdin = sys.stdin
    try:
        sys.stdin = io.StringIO()
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stdin = stdin
        defaults.restore()
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        torch.set_rng_state(generators[2])
        if os.getcwd() != folder:
            os.chdir(folder)
