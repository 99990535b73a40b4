"""Floating point operations of a network evaluation."""

import copy
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from ddpmbench.unet.unet import Attention, Level, ResidualBlock, UNet


def flop_per_call(network: nn.Module, *inputs: Tensor) -> int:
    """Floating point operations of one evaluation; a product and its sum count as two.

    Only convolutions, linear layers and attention count; the rest is negligible.

    Args:
        network: not compiled, since compiled kernels hide their operations.
        *inputs: its arguments.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    # On a CPU the counter sees only this kind of attention.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        network(*inputs)
    return int(counter.get_total_flops())


def flop_of_unet(network: UNet, height: int, width: int) -> int:
    """`flop_per_call` of the built-in U-Net for one image, in closed form.

    It saves the half second that importing torch's counter takes.

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
    """Products in a part of the U-Net whose convolutions all have `pixels` output pixels."""
    products = 0
    for layer in part.modules():
        if isinstance(layer, nn.Conv2d):
            products += layer.weight.numel() * pixels
        elif isinstance(layer, ResidualBlock):
            products += layer.time.weight.numel()
        elif isinstance(layer, Attention):
            weights = layer.qkv.weight.numel() + layer.out.weight.numel()
            # Each pixel's query with every key, and its attention weights with every value.
            products += weights * pixels + 2 * layer.out.out_features * pixels**2
    return products


def flop_of_shapes(network: nn.Module, *inputs: Tensor) -> int:
    """`flop_per_call` from shapes alone, on the meta device.

    A network whose code needs values, or creates tensors on an explicit device, is evaluated on the
    CPU. A copy is evaluated, so that the network's state does not change.

    Args:
        network: not compiled, on the CPU or on the meta device.
        *inputs: its arguments, on the CPU.
    """
    try:
        shapes = tuple(tensor.to("meta") for tensor in inputs)
        # A network may raise anything on tensors without values.
        return flop_per_call(_copy(network, device="meta"), *shapes)
    except Exception:
        if any(weight.is_meta for weight in network.parameters()):
            raise
        return flop_per_call(_copy(network, device=None), *inputs)


def _copy(network: nn.Module, *, device: str | None) -> nn.Module:
    """A copy with its parameters on a device, or shared if `device` is None."""
    # deepcopy uses the objects in its memo, so that no weight is copied.
    copied: dict[int, object] = {id(weight): weight for weight in network.parameters()}
    if device is not None:
        for weight in network.parameters():
            moved = weight.detach().to(device)
            copied[id(weight)] = nn.Parameter(moved, requires_grad=weight.requires_grad)
        copied |= {id(buffer): buffer.to(device) for buffer in network.buffers()}
    return copy.deepcopy(network, copied)
