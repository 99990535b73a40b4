"""The rows of the suites: network, images per call, engine and device."""

import dataclasses
from collections.abc import Iterable

import torch

from ddpmbench.execution.devices import has_native_bfloat16
from ddpmbench.execution.engine import EngineChoice
from ddpmbench.unet.timed_unet import Precision

SHIPPED, CIFAR10 = "shipped", "ddpm-cifar10-32"
MODELS = (SHIPPED, CIFAR10)

FP32, TF32, BF16, FP16 = Precision.FP32, Precision.TF32, Precision.BF16, Precision.FP16


@dataclasses.dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        model: one of `MODELS`; `--ckpt` takes the place of both.
        where: "cpu" or "cuda".
        batch: images per call.
        choice: how the network is evaluated.
        quick: whether `--quick` includes it.
    """

    model: str
    where: str
    batch: int
    choice: EngineChoice
    quick: bool = False

    def __str__(self) -> str:
        words = str(self.choice).replace(", ", "+")
        return f"{self.model}-{self.where}-{self.batch}-{words}"

    def missing(
        self, device: torch.device, *, has_ckpt: bool = False, emulated: bool = False
    ) -> str | None:
        """Why there is no such row on a device; None if there is one.

        Args:
            device: where rows are measured.
            has_ckpt: whether a checkpoint takes the place of both models.
            emulated: whether bfloat16 may be emulated.
        """
        if self.where != device.type:
            if self.where == "cuda":
                return f"{self.model}, batch {self.batch}, {self.choice}: needs a CUDA device"
            return f"{self.model}, batch {self.batch}, {self.choice}: --device cpu has it"
        if has_ckpt and self.model != CIFAR10 and not self.quick:
            return f"{self.model}, batch {self.batch}, {self.choice}: --ckpt takes its place"
        if self.choice.precision is BF16 and not (emulated or _has_bf16(device)):
            return f"{self.choice}: this {device.type} computes no bfloat16"
        return None


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # Elsewhere bfloat16 is emulated, at a small share of the speed.
    return has_native_bfloat16()


def eager(precision: Precision = FP32) -> EngineChoice:
    """PyTorch by default."""
    return EngineChoice(precision)


def channels_last(precision: Precision = FP32) -> EngineChoice:
    """Channels last, not compiled."""
    return EngineChoice(precision, channels_last=True)


def compiled(precision: Precision = FP32) -> EngineChoice:
    """Compiled, with channels last."""
    return EngineChoice(precision, channels_last=True, compiled=True)


def graphed(precision: Precision = FP32) -> EngineChoice:
    """Compiled, and launched as one CUDA graph."""
    return EngineChoice(precision, channels_last=True, compiled=True, cuda_graph=True)


def cases(
    model: str,
    where: str,
    batches: Iterable[int],
    choices: Iterable[EngineChoice],
    *,
    quick: bool = False,
) -> list[Case]:
    """All combinations of batches and choices."""
    chosen = list(choices)
    return [Case(model, where, batch, choice, quick) for batch in batches for choice in chosen]


def one_of_each_kind(rows: Iterable[Case]) -> list[Case]:
    """The rows of `--smoke`: the first of each device and choice, with two images per call."""
    kinds = {(row.where, row.choice): row for row in reversed(list(rows))}
    return [dataclasses.replace(row, batch=2, quick=True) for row in reversed(kinds.values())]
