"""Calling a network fast on a device."""

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, group_norm, scaled_dot_product_attention

from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.errors import InputError
from ddpmbench.execution.devices import (
    evaluating,
    evaluating_checkpoint,
    keeping_memory,
    products_of,
)
from ddpmbench.unet.precision import Precision
from ddpmbench.unet.timed_unet import TimedUNet
from ddpmbench.unet.unet import UNet

AUTO = "auto"
_TENSOR_CORES = (8, 0)
"""The least compute capability whose products of float32 can be rounded to TF32."""


def resolve_precision(
    name: str, device: torch.device, *, on_cuda: Precision = Precision.FP16
) -> Precision:
    """The precision that a name stands for.

    Args:
        name: a `Precision`, or "auto": strict float32 on the CPU and MPS, `on_cuda` on CUDA.
        device: where the network runs.
        on_cuda: the choice of "auto" there; a likelihood wants the mantissa of float16.

    Raises:
        InputError: there is no such precision, or not on this device.
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
    """Whether the layers of a U-Net support this type on the device."""
    x = torch.linspace(-1, 1, 2 * 8 * 4 * 4, device=device, dtype=dtype).reshape(2, 8, 4, 4)
    try:
        h = group_norm(conv2d(x, x[:1, :, :3, :3].expand(8, 8, 3, 3), padding=1), 4)
        h = torch.nn.functional.silu(h).flatten(2)
        h = scaled_dot_product_attention(h, h, h) @ h.transpose(1, 2)
        return bool(h.isfinite().all())
    except (RuntimeError, NotImplementedError):
        return False


T = TypeVar("T")

PIXELS_PER_BATCH = {"cpu": 48 * 28 * 28, "cuda": 2048 * 32 * 32, "mps": 256 * 32 * 32}
"""Pixels of one channel in a first batch whose size is not given."""


def rows_at_first(device: torch.device, image_shape: tuple[int, ...]) -> int:
    """The size of a first batch of images (C, H, W), where it is not given."""
    return max(1, PIXELS_PER_BATCH[device.type] // math.prod(image_shape[1:]))


class BatchSize:
    """How many images share a network call; halves itself when they do not fit into memory.

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
        """Begin with the given number, or with one that suits the device.

        Args:
            option: images a call; None for what suits the device.
            device: where the network runs.
            image_shape: (C, H, W).
            warn: called with a line when the number is halved.
        """
        self._is_fixed = option is not None
        self._warn = warn
        self.rows = option if option is not None else rows_at_first(device, image_shape)

    def attempt(self, compute: Callable[[int], T]) -> T:
        """What `compute` returns for the largest batch that fits.

        Args:
            compute: called with the number of images.

        Raises:
            InputError: the number was given, or is one, and does not fit.
        """
        while True:
            try:
                return compute(self.rows)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            if self._is_fixed or self.rows == 1:
                raise InputError(
                    f"`batch_size={self.rows}`: does not fit into memory; choose a smaller one"
                )
            self.rows //= 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._warn(f"out of memory: continuing with `batch_size={self.rows}`")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of any kind says that memory ran out."""
    return (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or "out of memory" in str(error)
        or "can't allocate memory" in str(error)
    )


_WARM_UP = 3  # calls before the capture: libraries choose their kernels, the compiler compiles


class GraphedCall:
    """A function of tensors, captured as one CUDA graph for each shape of its arguments.

    The function must not copy to or from the host, and must not wait for the device. What it
    returns is copied out of the graph's memory, so that the next call does not overwrite it.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._captured: dict[tuple[object, ...], _Capture] = {}

    def __call__(self, *arguments: Tensor) -> Any:  # noqa: ANN401
        """What the function returns."""
        key = tuple((tuple(a.shape), a.dtype) for a in arguments)
        # Streams and graphs are of the current device, which need not be that of the tensors.
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
    """Inside, a network may be compiled for many shapes.

    Every shape and precision of every model of the process counts against the limit.
    """
    config: Any = torch._dynamo.config
    limit = max(config.recompile_limit, _RECOMPILATIONS)
    patch: contextlib.AbstractContextManager[None] = config.patch(recompile_limit=limit)
    return patch


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
        """The beginning of messages about its network."""
        return self._checkpoint.network_name

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Inside, the network is in evaluation mode and products are of the choice's precision."""
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
    """Padded to so many rows with copies of its first."""
    if len(values) == rows:
        return values
    return torch.cat([values, values[:1].expand(rows - len(values), *values.shape[1:])])
