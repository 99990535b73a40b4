"""How a network is called fast on a device, and what that choice is."""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ddpmbench.inputs.checkpoints.checkpoint import Checkpoint
from ddpmbench.network.precision import Precision
from ddpmbench.network.timed_unet import TimedUNet
from ddpmbench.network.unet import UNet
from ddpmbench.runs.batch_size import is_out_of_memory
from ddpmbench.runs.cuda_graphs import GraphedCall
from ddpmbench.runs.devices import evaluating, evaluating_checkpoint, products_of
from ddpmbench.runs.memory import keep_memory

T = TypeVar("T")

_RECOMPILATIONS = 64


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

    Calls of a network that is compiled are of one size; smaller ones are filled up.

    Attributes:
        choice: how.
        device: where.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: torch.device,
        choice: EngineChoice,
        rows: int = 1,
    ) -> None:
        """Bring the network to the device, and into the form that the choice names.

        Args:
            checkpoint: the model.
            device: where it is called.
            choice: how.
            rows: images of most calls, where that is known; what is compiled is compiled for so
                many, or for the most that come.
        """
        self._checkpoint, self.device = checkpoint.to(device), device
        self.choice = choice
        self._rows = rows
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
            dynamo: Any = torch._dynamo
            # Every shape and precision of every model of a process counts against this limit.
            dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, _RECOMPILATIONS)
            self._call = torch.compile(self._network, dynamic=False)
        self._launch: Callable[..., Tensor] = self._call_filled
        if choice.cuda_graph:
            self._launch = GraphedCall(self._call_filled)

    def model_output(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """What `Checkpoint.model_output` gives, to the precision of the choice."""
        inputs = [x_t.float(), t]
        if self._checkpoint.num_classes:
            assert labels is not None
            inputs.append(labels)
        output = self._launch(*inputs)
        self._checkpoint.check_output(output.shape, x_t.shape)
        return output

    def whole_step(self, step: Callable[..., T]) -> Callable[..., T]:
        """The same function, launched as one graph where the choice says so.

        Args:
            step: tensors to tensors; the only one that calls `model_output` from now on.
        """
        if not self.choice.cuda_graph:
            return step
        self._launch = self._call_filled  # a graph of the network would lie in that of the step
        return GraphedCall(step)

    @property
    def network_name(self) -> str:
        """What a line about its network begins with."""
        return self._checkpoint.network_name

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Inside, the network is in evaluation mode and products are of the choice's precision."""
        if self.device.type == "cpu":
            keep_memory()
        with (
            evaluating_checkpoint(self._checkpoint),
            evaluating(self._network),
            products_of(self.choice.precision),
        ):
            yield

    def _call_filled(self, *inputs: Tensor) -> Tensor:
        if not self.choice.compiled:
            return self._call(*inputs)
        rows = len(inputs[0])
        self._rows = max(self._rows, rows)
        filled = [_filled(values, self._rows) for values in inputs]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the compiler's, of itself
                return self._call(*filled)[:rows]
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                self._rows = 1  # what comes next is smaller
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
    if len(values) == rows:
        return values
    return torch.cat([values, values[:1].expand(rows - len(values), *values.shape[1:])])
