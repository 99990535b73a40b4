"""How much arithmetic a network call is."""

import copy
import dataclasses
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from ddpmbench.unet.unet import Attention, Level, ResidualBlock, UNet


@dataclasses.dataclass(frozen=True)
class CountedCall:
    """One call of a network.

    Attributes:
        flop: floating point operations: a product and its sum are two.
        shape: of what it gave; None if that was no tensor.
    """

    flop: int
    shape: tuple[int, ...] | None


def flop_per_call(network: nn.Module, *inputs: Tensor) -> int:
    """Floating point operations of one call: a product and its sum are two.

    Those of convolutions, linear layers and attention count, the few of all else do not.

    Args:
        network: not compiled; of a compiled one the kernels would hide what they do.
        *inputs: what it is called with.
    """
    return _any_call(network, inputs).flop


def flop_of_unet(network: UNet, height: int, width: int) -> int:
    """`flop_per_call` of the built-in U-Net for one image, which is not called.

    What counts operations takes torch half a second to import, and so does a call of shapes alone.

    Args:
        network: on any device.
        height: of the image.
        width: of the image.
    """
    pixels = height * width
    ends: list[nn.Module] = [network.conv_in, network.conv_out]
    products = network.time_1.weight.numel() + network.time_2.weight.numel()
    products += sum(_products(part, pixels) for part in ends)
    for level in cast(Iterable[Level], network.down):
        products += _products(level.blocks, pixels) + _products(level.attentions, pixels)
        if level.resample is not None:
            pixels //= 4
            products += _products(level.resample, pixels)
    products += _products(network.middle, pixels)
    for level in cast(Iterable[Level], network.up):
        products += _products(level.blocks, pixels) + _products(level.attentions, pixels)
        if level.resample is not None:
            pixels *= 4
            products += _products(level.resample, pixels)
    return 2 * products


def _products(part: nn.Module, pixels: int) -> int:
    """Those of a part of the U-Net whose convolutions all give images of so many pixels."""
    found = 0
    for layer in part.modules():
        if isinstance(layer, nn.Conv2d):
            found += layer.weight.numel() * pixels
        elif isinstance(layer, ResidualBlock):
            found += layer.time.weight.numel()
        elif isinstance(layer, Attention):
            weights = layer.qkv.weight.numel() + layer.out.weight.numel()
            # Every pixel's query with every key, and its weights with every value.
            found += weights * pixels + 2 * layer.out.out_features * pixels**2
    return found


def call_of_shapes(network: nn.Module, *inputs: Tensor) -> CountedCall:
    """What `flop_per_call` counts without the arithmetic: only shapes are worked out.

    A network whose own code needs numbers to go on, or makes tensors on a device that it names, is
    called in earnest. Either way a copy is called: what a network keeps of a call stays out of it.

    Args:
        network: not compiled, on the CPU or on the meta device.
        *inputs: what it is called with, on the CPU.
    """
    try:
        shapes = tuple(given.to("meta") for given in inputs)
        # What a network may raise that meets tensors without numbers is its own affair.
        return _any_call(_copy(network, device="meta"), shapes)
    except Exception:
        if any(weight.is_meta for weight in network.parameters()):
            raise
        return _any_call(_copy(network, device=None), inputs)


def _copy(network: nn.Module, *, device: str | None) -> nn.Module:
    """A network like it whose parameters are on a device; where none is named, they are shared."""
    # What is noted as copied already, deepcopy leaves as it is; so no weight is copied.
    copied: dict[int, object] = {id(weight): weight for weight in network.parameters()}
    if device is not None:
        for weight in network.parameters():
            there = weight.detach().to(device)
            copied[id(weight)] = nn.Parameter(there, requires_grad=weight.requires_grad)
        copied |= {id(buffer): buffer.to(device) for buffer in network.buffers()}
    return copy.deepcopy(network, copied)


def _any_call(network: nn.Module, inputs: tuple[Tensor, ...]) -> CountedCall:
    """Counted operation by operation."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    # Of any other kind of attention the counter sees nothing on a CPU.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        output = network(*inputs)
    return CountedCall(int(counter.get_total_flops()), _shape(output))


def _shape(output: object) -> tuple[int, ...] | None:
    return tuple(output.shape) if isinstance(output, Tensor) else None
