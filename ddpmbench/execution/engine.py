"""Fast evaluation of a network on a device."""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.execution.devices import (
    evaluating,
    evaluating_checkpoint,
    is_out_of_memory,
    keeping_memory,
    products_of,
)
from ddpmbench.unet.timed_unet import Precision, TimedUNet
from ddpmbench.unet.unet import UNet

T = TypeVar("T")
_WARM_UP = 3  # calls before the capture: libraries choose their kernels, the compiler compiles


class GraphedCall:
    """A function of tensors, captured as one CUDA graph for each shape of its arguments.

    The function must neither copy to or from the host nor wait for the device. Its result is copied
    out of the graph's memory, so that the next call does not overwrite it.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._captured: dict[tuple[object, ...], _Capture] = {}

    def __call__(self, *arguments: Tensor) -> Any:  # noqa: ANN401
        """The result of the function."""
        key = tuple((tuple(a.shape), a.dtype) for a in arguments)
        # Streams and graphs belong to the current device, which may not be that of the tensors.
        with torch.cuda.device(arguments[0].device):
            if key not in self._captured:
                self._captured[key] = _Capture(self._function, arguments)
            return self._captured[key].replay(arguments)


class _Capture:
    def __init__(self, function: Callable[..., Any], arguments: tuple[Tensor, ...]) -> None:
        self._inputs = [argument.clone() for argument in arguments]
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                function(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=stream):
            self._outputs = function(*self._inputs)

    def replay(self, arguments: tuple[Tensor, ...]) -> Any:  # noqa: ANN401
        for held, argument in zip(self._inputs, arguments, strict=True):
            held.copy_(argument)
        self._graph.replay()
        if isinstance(self._outputs, Tensor):
            return self._outputs.clone()
        return tuple(output.clone() for output in self._outputs)


_RECOMPILATIONS = 64


def _recompiling() -> contextlib.AbstractContextManager[None]:
    """Within, a network may be compiled for many shapes.

    Every shape and precision of every model in the process counts towards the limit.
    """
    config: Any = torch._dynamo.config
    limit = max(config.recompile_limit, _RECOMPILATIONS)
    patch: contextlib.AbstractContextManager[None] = config.patch(recompile_limit=limit)
    return patch


@dataclasses.dataclass(frozen=True)
class EngineChoice:
    """Settings that change the speed of network evaluations, and the results only by rounding.

    Attributes:
        precision: precision of the network.
        channels_last: whether the channels of a pixel are adjacent in memory.
        compiled: whether the network is compiled.
        cuda_graph: whether the kernels of a step are launched as one CUDA graph.
    """

    precision: Precision = Precision.FP32
    channels_last: bool = False
    compiled: bool = False
    cuda_graph: bool = False

    def __str__(self) -> str:
        """The settings in words."""
        return ", ".join([self.precision, *(name for name in FLAGS if getattr(self, name))])


FLAGS = ("channels_last", "compiled", "cuda_graph")
"""The fields of an `EngineChoice` besides its precision."""


class Engine:
    """Evaluates a checkpoint's network on a device.

    Batches of a compiled network have one size; smaller ones are padded.

    Attributes:
        choice: the settings.
        device: where the network is evaluated.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: torch.device,
        choice: EngineChoice,
        rows: int = 1,
    ) -> None:
        """Move the network to the device and prepare it.

        Args:
            checkpoint: the model.
            device: where to evaluate it.
            choice: the settings.
            rows: usual batch size, if known; the network is compiled for it, or for the largest
                batch so far.
        """
        self._checkpoint, self.device = checkpoint.to(device), device
        self.choice = choice
        self._rows = rows
        steps = torch.arange(1, checkpoint.schedule.num_timesteps + 1, device=device)
        times = checkpoint.network_time(steps)
        network = self._checkpoint.network
        self._network: nn.Module = (
            TimedUNet(
                network, times, precision=choice.precision, channels_last=choice.channels_last
            )
            if isinstance(network, UNet)
            else _TimedNetwork(network, times, choice.precision)
        )
        self._call: Callable[..., Tensor] = self._network
        if choice.compiled:
            self._call = torch.compile(self._network, dynamic=False)
        self._launch: Callable[..., Tensor] = self._call_filled
        if choice.cuda_graph:
            self._launch = GraphedCall(self._call_filled)

    def model_output(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The result of `Checkpoint.model_output`, to the precision of the choice."""
        time = self._checkpoint.time_at(t) if t.is_floating_point() else t
        inputs = [self._checkpoint.network_input(x_t, t), time]
        if self._checkpoint.num_classes:
            assert labels is not None
            inputs.append(labels)
        output = self._launch(*inputs)
        self._checkpoint.check_output(output.shape, x_t.shape)
        return output

    def whole_step(self, step: Callable[..., T]) -> Callable[..., T]:
        """The same function, launched as one CUDA graph if the choice has one.

        Args:
            step: maps tensors to tensors; from now on only it may call `model_output`.
        """
        if not self.choice.cuda_graph:
            return step
        self._launch = self._call_filled  # the graph of the step includes that of the network
        return GraphedCall(step)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Within, the network is in evaluation mode, and products have the choice's precision."""
        with contextlib.ExitStack() as stack:
            if self.device.type == "cpu":
                stack.enter_context(keeping_memory())
            if self.choice.compiled:
                stack.enter_context(_recompiling())
            stack.enter_context(evaluating_checkpoint(self._checkpoint))
            stack.enter_context(evaluating(self._network))
            stack.enter_context(products_of(self.choice.precision))
            yield

    def _call_filled(self, *inputs: Tensor) -> Tensor:
        if not self.choice.compiled:
            return self._call(*inputs)
        rows = len(inputs[0])
        self._rows = max(self._rows, rows)
        filled = [_filled(values, self._rows) for values in inputs]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # warnings of the compiler about itself
                return self._call(*filled)[:rows]
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                self._rows = 1  # later batches are smaller
            raise


class _TimedNetwork(nn.Module):
    """A network whose time input is looked up by the timestep."""

    def __init__(self, network: nn.Module, times: Tensor, precision: Precision) -> None:
        super().__init__()
        self.network = network
        self._precision = precision
        self.register_buffer("times", times, persistent=False)

    def forward(self, x_t: Tensor, t: Tensor, *labels: Tensor) -> Tensor:
        is_narrow = self._precision.dtype is not torch.float32
        with torch.autocast(x_t.device.type, self._precision.dtype, enabled=is_narrow):
            time = t if t.is_floating_point() else self.times[t - 1]  # type: ignore[index]
            output: Tensor = self.network(x_t, time, *labels)
        return output.float()


def _filled(values: Tensor, rows: int) -> Tensor:
    """The batch padded to `rows` entries with copies of the first."""
    if len(values) == rows:
        return values
    return torch.cat([values, values[:1].expand(rows - len(values), *values.shape[1:])])
