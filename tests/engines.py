"""Engines of known rounding, in the place of one whose rounding is the machine's."""

import contextlib
import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.execution.devices import evaluating, strict_float32
from ddpmbench.execution.engine import EngineChoice
from ddpmbench.unet.timed_unet import Precision


def biased(output: Tensor) -> Tensor:
    """Too large by 3 %: a smooth function, so that what is the same stays so to the last bits."""
    return 1.03 * output


def biased_and_rounded(output: Tensor) -> Tensor:
    """Too small by 1 %, and rounded to bfloat16."""
    return (0.99 * output).to(torch.bfloat16).float()


def noisy(output: Tensor) -> Tensor:
    """Off by 0.2 to either side."""
    return output + 0.2 * torch.sin(1000 * output).sign()


@dataclasses.dataclass
class StandIn:
    """An engine that does something to what the network gives, unless in strict float32.

    Attributes:
        checkpoint: the model.
        device: where it runs.
        choice: how it is called.
        rounding: what is done.
        rows: the precision and number of rows of each call.
        before: is called ahead of each.
        inside: the engines in whose contexts this is, the innermost last.
    """

    checkpoint: Checkpoint
    device: torch.device
    choice: EngineChoice
    rounding: Callable[[Tensor], Tensor] = biased
    rows: list[tuple[Precision, int]] = dataclasses.field(default_factory=list)
    before: Callable[[], None] = lambda: None
    inside: list["StandIn"] = dataclasses.field(default_factory=list)

    def model_output(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        self.before()
        assert self.inside[-1] is self, "called outside its own context"
        self.rows.append((self.choice.precision, len(x_t)))
        output = self.checkpoint.model_output(x_t, t, labels)
        return output if self.choice.precision is Precision.FP32 else self.rounding(output)

    @contextlib.contextmanager
    def running(self):
        with evaluating(self.checkpoint.network), strict_float32():
            self.inside.append(self)
            try:
                yield
            finally:
                self.inside.pop()


def install(monkeypatch, rounding=biased, before=lambda: None):
    """Every run calls its network through stand-ins; the list of what they were called with."""
    rows: list[tuple[Precision, int]] = []
    inside: list[StandIn] = []

    def engine(checkpoint, *, device, choice, **size):
        checkpoint.to(device)
        return StandIn(checkpoint, device, choice, rounding, rows, before, inside)

    monkeypatch.setattr("ddpmbench.evaluate.nll.Engine", engine)
    monkeypatch.setattr("ddpmbench.execution.engine_choice.Engine", engine)
    monkeypatch.setattr("ddpmbench.execution.precision_choice.Engine", engine)
    return rows
