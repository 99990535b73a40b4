"""How much arithmetic a network call is."""

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
