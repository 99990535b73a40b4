"""Work on a GPU that is launched at once: for small batches launching is what takes the time."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

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
