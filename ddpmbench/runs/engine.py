"""How a network is called fast on a device, and what that choice is."""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from ddpmbench.inputs.checkpoints.checkpoint import Checkpoint
from ddpmbench.network.precision import Precision
from ddpmbench.network.timed_unet import TimedUNet
from ddpmbench.network.unet import UNet
from ddpmbench.runs.cuda_graphs import GraphedCall
from ddpmbench.runs.devices import evaluating, products_of
from ddpmbench.runs.memory import keep_memory

T = TypeVar("T")


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

    Calls of a compiled or graphed network are of one size, the largest so far; smaller ones are
    filled up.

    Attributes:
        choice: how.
        device: where.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, device: torch.device, choice: EngineChoice
    ) -> None:
        """Bring the network to the device, and into the form that the choice names.

        Args:
            checkpoint: the model.
            device: where it is called.
            choice: how.
        """
        self._checkpoint, self.device = checkpoint.to(device), device
        self.choice = choice
        self._rows = 0
        steps = torch.arange(1, checkpoint.schedule.num_timesteps + 1, device=device)
        times = checkpoint.network_time(steps)
        network = checkpoint.network
        self._network: nn.Module = (
            TimedUNet(
                network, times, precision=choice.precision, channels_last=choice.channels_last
            )
            if isinstance(network, UNet)
            else _TimedNetwork(network, times, choice.precision)
        )
        self._call: Callable[..., Tensor] = self._network
        if choice.compiled:
            options = {"freezing": True} if device.type == "cpu" else None
            self._call = torch.compile(self._network, dynamic=False, options=options)  # type: ignore[arg-type]
        if choice.cuda_graph:
            self._graphed = GraphedCall(self._call)

    def model_output(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """What `Checkpoint.model_output` gives, to the precision of the choice."""
        inputs = [x_t.float(), t]
        if self._checkpoint.num_classes:
            assert labels is not None
            inputs.append(labels)
        output = self._call_filled(inputs)
        self._checkpoint.check_output(output.shape, x_t.shape)
        return output

    def whole_step(self, step: Callable[..., T]) -> Callable[..., T]:
        """The same function, launched as one graph where the choice says so.

        Args:
            step: tensors to tensors; calls `model_output`.
        """
        return GraphedCall(step) if self.choice.cuda_graph else step

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Inside, the network is in evaluation mode and products are of the choice's precision."""
        if self.device.type == "cpu":
            keep_memory()
        with (
            evaluating(self._checkpoint.network),
            evaluating(self._network),
            products_of(self.choice.precision),
        ):
            yield

    def _call_filled(self, inputs: list[Tensor]) -> Tensor:
        is_captured = self.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        if not (self.choice.compiled or self.choice.cuda_graph) or is_captured:
            return self._call(*inputs)
        rows = len(inputs[0])
        self._rows = max(self._rows, rows)
        if rows < self._rows:
            inputs = [_filled(values, self._rows) for values in inputs]
        call = self._graphed if self.choice.cuda_graph else self._call
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the compiler's, of itself
                return call(*inputs)[:rows]
        except torch.OutOfMemoryError:
            self._rows = 0  # what comes next is smaller
            raise


class _TimedNetwork(nn.Module):
    """Any network, with its time input looked up by the step."""

    def __init__(self, network: nn.Module, times: Tensor, precision: Precision) -> None:
        super().__init__()
        self.network = network
        self._precision = precision
        self.register_buffer("times", times, persistent=False)

    def forward(self, x_t: Tensor, t: Tensor, *labels: Tensor) -> Tensor:
        is_narrow = self._precision.dtype is not torch.float32
        with torch.autocast(x_t.device.type, self._precision.dtype, enabled=is_narrow):
            output: Tensor = self.network(x_t, self.times[t - 1], *labels)  # type: ignore[index]
        return output.float()


def _filled(values: Tensor, rows: int) -> Tensor:
    """With its first row again and again, up to so many."""
    return torch.cat([values, values[:1].expand(rows - len(values), *values.shape[1:])])
