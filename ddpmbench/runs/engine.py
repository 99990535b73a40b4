"""How a network is called fast on a device, and what that choice is."""

import contextlib
import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from ddpmbench.inputs.checkpoints.checkpoint import Checkpoint
from ddpmbench.network.precision import Precision
from ddpmbench.runs.devices import evaluating, strict_float32

PRECISION = "fp32"
"""What networks compute in: strict float32."""


@dataclasses.dataclass(frozen=True)
class EngineChoice:
    """What changes the speed of a network call, and by no more than its rounding the result.

    Attributes:
        precision: of the network.
        channels_last: whether the channels of a pixel lie side by side in memory.
        compiled: whether the network is compiled.
        cuda_graph: whether the kernels of a step are launched as one graph.
    """

    precision: Precision = Precision.FP32
    channels_last: bool = False
    compiled: bool = False
    cuda_graph: bool = False

    def __str__(self) -> str:
        """In words."""
        flags = ("channels_last", "compiled", "cuda_graph")
        return ", ".join([self.precision, *(f for f in flags if getattr(self, f))])


class Engine:
    """Calls a checkpoint's network on a device.

    Attributes:
        choice: how.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, device: torch.device, choice: EngineChoice
    ) -> None:
        self._checkpoint = checkpoint.to(device)
        self.choice = choice

    def model_output(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """What `Checkpoint.model_output` gives, to the precision of the choice."""
        return self._checkpoint.model_output(x_t, t, labels)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Inside, the network is in evaluation mode and products are of the choice's precision."""
        with evaluating(self._checkpoint.network), strict_float32():
            yield
