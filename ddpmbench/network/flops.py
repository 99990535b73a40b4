"""How much arithmetic a network call is."""

import itertools

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def flop_per_call(network: nn.Module, *inputs: Tensor) -> int:
    """Floating point operations of one call: a product and its sum are two.

    Those of convolutions, linear layers and attention count, the few of all else do not.

    Args:
        network: not compiled; of a compiled one the kernels would hide what they do.
        *inputs: what it is called with.
    """
    counter = FlopCounterMode(display=False)
    # Of any other kind of attention the counter sees nothing on a CPU.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        network(*inputs)
    return int(counter.get_total_flops())


def flop_of_shapes(network: nn.Module, *inputs: Tensor) -> int:
    """`flop_per_call` without the arithmetic: only the shapes of the call are worked out.

    A network whose own code needs numbers to go on, or makes tensors on a device that it names, is
    called in earnest.

    Args:
        network: not compiled, on the CPU or on the meta device.
        *inputs: what it is called with, on the CPU.
    """
    held = itertools.chain(network.named_parameters(), network.named_buffers())
    weights = {name: tensor.to("meta") for name, tensor in held}
    try:
        # What a network may raise that meets tensors without numbers is its own affair.
        return flop_per_call(_WithWeights(network, weights), *(x.to("meta") for x in inputs))
    except Exception:
        if any(weight.is_meta for weight in network.parameters()):
            raise
        return flop_per_call(network, *inputs)


class _WithWeights(nn.Module):
    """A network with other tensors in the place of its own, which it keeps."""

    def __init__(self, network: nn.Module, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self._network, self._weights = (network,), weights  # in a tuple it is no part of this one

    def forward(self, *inputs: Tensor) -> Tensor:
        """What the network gives with these tensors."""
        call = torch.func.functional_call
        return call(self._network[0], self._weights, inputs)  # type: ignore[no-any-return]
