"""Counts what a function asks of the device, without one: every operation that is dispatched."""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")
"""A device that holds no numbers: whoever looks at one there, fails."""


class Dispatched(TorchDispatchMode):
    """Inside, operations are counted, and those that go between devices.

    Attributes:
        operations: how often each was dispatched.
        crossings: the names of those that have tensors both there and elsewhere.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.crossings = Counter(), []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        self.operations[str(function)] += 1
        tensors = [leaf for leaf in tree_leaves((args, kwargs, found)) if torch.is_tensor(leaf)]
        if len({tensor.device.type for tensor in tensors}) > 1:
            self.crossings.append(str(function))
        return found

    @property
    def total(self) -> int:
        """Operations of all kinds."""
        return self.operations.total()
