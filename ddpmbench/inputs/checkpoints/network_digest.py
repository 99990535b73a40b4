"""Which weights a network has, where no file says so."""

import hashlib
import io
import warnings

import torch
from torch import nn

from ddpmbench.errors import InputError
from ddpmbench.inputs.checkpoints.nested import tensors_in


def network_digest(network: nn.Module, who: str) -> str:
    """SHA-256, in hexadecimal digits, of the names and numbers of a network's weights.

    Of a TorchScript program it is of the whole program, since a frozen one keeps its weights as
    constants.

    Args:
        network: on any device.
        who: the option or function to name in an error.

    Raises:
        InputError: a weight has no numbers yet.
    """
    digest = hashlib.sha256()
    if isinstance(network, torch.jit.ScriptModule):
        program = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of TorchScript's deprecation
            torch.jit.save(network, program)
        digest.update(program.getvalue())
        return digest.hexdigest()
    for name, tensor in sorted(tensors_in(network.state_dict()), key=lambda item: item[0]):
        if nn.parameter.is_lazy(tensor) or tensor.is_meta:
            raise InputError(f"{who}: weight {name} has no numbers yet; load the weights first")
        digest.update(name.encode())
        dense = tensor.detach().cpu()
        if dense.is_quantized:
            dense = dense.int_repr()
        flat = (dense.to_dense() if dense.layout != torch.strided else dense).contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
