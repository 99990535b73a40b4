"""A network that is built twice: what of it is another each time, and whether that matters."""

import dataclasses
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ddpmbench.errors import InputError
from ddpmbench.inputs.checkpoints.image_size import ImageSize, sides_of
from ddpmbench.inputs.checkpoints.own_code import calling

_SIZES = (32, 28, 64)
"""Of images that a network may take which does not say."""

Output = Callable[[nn.Module, Tensor], Tensor]
"""What a network gives for x_t (B, C, H, W), at steps of its own."""


@dataclasses.dataclass(frozen=True, eq=False)
class BuiltTwice:
    """A network, and the same built with other random numbers; their weights are the same.

    Attributes:
        network: one.
        twin: the other.
        option: what `--network` says.
    """

    network: nn.Module
    twin: nn.Module
    option: str

    def notes(
        self, channels: int | None, size: ImageSize | None, output: Output
    ) -> tuple[str, ...]:
        """What is to be noted of tensors that are neither parameters nor buffers.

        They may be what a loss was recorded in, and are looked at only if they differ: then both
        networks are called.

        Args:
            channels: of an image; None if that is not known.
            size: height and width of one, likewise.
            output: calls a network.

        Raises:
            InputError: they differ, and so do the outputs.
        """
        attributes = (_attributes(network) for network in (self.network, self.twin))
        if (name := first_difference(*attributes)) is None:
            return ()
        for side in _SIZES if size is None else (size,):
            shape = (2, channels or self._channels, *sides_of(side))
            x_t = torch.randn(shape, generator=torch.Generator().manual_seed(0))
            try:
                one, other = (self._called(net, x_t, output) for net in (self.network, self.twin))
            except InputError:  # images of this size may not be for it; the first call says more
                continue
            if torch.allclose(one, other, rtol=1e-4, atol=1e-6, equal_nan=True):
                return ()
            raise InputError(
                f"--network {self.option}: {name} is another each time the network is built, and "
                "its output with it, and so it is not what was trained; register it as a buffer "
                "that is in the file of weights, or build it the same every time"
            )
        return (
            f"{name} is another each time the network is built, and no image could be tried to see "
            "whether the output is, too; name image_channels and image_size as its attributes",
        )

    @property
    def _channels(self) -> int:
        """Those that the first convolution takes."""
        kernels = (weight.shape[1] for weight in self.network.parameters() if weight.ndim == 4)
        return next(kernels, 1)

    def _called(self, network: nn.Module, x_t: Tensor, output: Output) -> Tensor:
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            torch.manual_seed(0)
            return calling(lambda: output(network, x_t.clone()), f"--network {self.option}")


Named = Iterable[tuple[str, Tensor]]


def first_difference(one: Named, other: Named) -> str | None:
    """The first tensor that is not the same in both, by their names; None if all are."""
    others = dict(other)
    for name, tensor in one:
        twin = others.get(name)
        if twin is None or twin.shape != tensor.shape or twin.dtype != tensor.dtype:
            return name
        is_same = (tensor == twin) | ((tensor != tensor) & (twin != twin))
        if not bool(is_same.all()):
            return name
    return None


def _attributes(network: nn.Module) -> Named:
    """Tensors that are neither parameters nor buffers."""
    for prefix, module in network.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                yield f"{prefix}.{name}" if prefix else name, value
