"""FLOP, bytes and operations of a network evaluation and of a step: counted, not timed.

    python benchmarks/counts.py

PyTorch's dispatcher counts them on the CPU, for one image, uncompiled: every operation that
computes is one launch on a device, and reads and writes whole tensors. Views are free.
"""

import dataclasses
import functools
from collections import Counter
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from subjects import CIFAR10_CONFIG
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import ddpmbench as db
from ddpmbench.diffusion.noise import normal_noise
from ddpmbench.likelihood.terms import TermIndex, TermsPass
from ddpmbench.unet.flops import flop_per_call
from ddpmbench.unet.unet import UNet


@dataclasses.dataclass
class Operations(TorchDispatchMode):
    """Context that counts the operations inside it.

    Attributes:
        launched: operations that compute or copy.
        moved: bytes of the tensors that they read and write.
        read_back: single numbers that were read, each of which waits for the device.
        copies: copies between devices.
        names: number of calls of each operation, including views.
    """

    launched: int = 0
    moved: int = 0
    read_back: int = 0
    copies: int = 0
    names: Counter[str] = dataclasses.field(default_factory=Counter)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.names[func.overloadpacket.__name__] += 1
        if func is torch.ops.aten._to_copy.default and args[0].device != result.device:
            self.copies += 1
        if func is torch.ops.aten._local_scalar_dense.default:
            self.read_back += 1
        elif not is_view(func):
            self.launched += 1
            leaves = tree_leaves((args, kwargs, result))
            self.moved += sum(x.numel() * x.element_size() for x in leaves if isinstance(x, Tensor))
        return result


def is_view(func: Any) -> bool:
    """Whether an operation computes nothing, since its result is part of its argument."""
    names = ("empty", "detach", "lift_fresh", "_unsafe_view")
    return bool(func.is_view) or func.overloadpacket.__name__ in names


class NetworkCounts(NamedTuple):
    """An evaluation of a network for one image.

    A multiplication and its addition are two FLOP; `moved` are the bytes that the operations
    (`launched`) read and write, in float32, without weights.
    """

    parameters: int
    flop: int
    launched: int
    moved: int


@torch.no_grad()
def network_counts(network: UNet, size: int) -> NetworkCounts:
    """Counts with attention as separate products, which fused kernels hide."""
    weights = sum(x.numel() * x.element_size() for x in network.parameters())
    x_t = torch.zeros(1, network.config.in_channels, size, size)
    time = torch.zeros(1)
    with Operations() as operations:
        network(x_t, time)
    parameters = sum(x.numel() for x in network.parameters())
    return NetworkCounts(
        parameters,
        flop_per_call(network, x_t, time),
        operations.launched,
        operations.moved - weights,
    )


@functools.cache
def networks() -> dict[str, NetworkCounts]:
    """Counts of the two networks of the speed benchmarks."""
    shipped = db.load_checkpoint()
    assert isinstance(shipped.network, UNet)
    return {
        "shipped": network_counts(shipped.network.float().eval(), shipped.image_size or 28),
        "ddpm-cifar10-32": network_counts(UNet(CIFAR10_CONFIG).eval(), 32),
    }


@torch.no_grad()
def diffusers_step() -> Operations:
    """One `DDPMScheduler.step` of diffusers with default settings.

    Raises:
        ModuleNotFoundError: diffusers is not installed.
    """
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler()
    x_t, eps = torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32)
    # A pipeline's loop takes its timesteps from a tensor.
    timestep = torch.tensor(500)
    with Operations() as operations:
        scheduler.step(eps, timestep, x_t)
    return operations


@torch.no_grad()
def terms_counts() -> Operations:
    """The operations of a batch of terms at t >= 2 without the network, including the noise."""
    checkpoint = db.load_checkpoint()
    images = db.load_images("fashion-mnist:test", num_images=4)
    terms_pass = TermsPass(
        checkpoint,
        images,
        seed=0,
        decoder="exact",
        device=torch.device("cpu"),
        model_output=lambda x_t, t, labels=None: x_t,
    )
    image = np.arange(4)
    index = TermIndex(image=image, t=2 + image, draw=image)
    with Operations() as operations:
        terms_pass.terms(index)
    return operations


@torch.no_grad()
def noise_counts() -> Operations:
    """The operations of such a batch's noise."""
    index = torch.arange(4)
    with Operations() as operations:
        normal_noise(index, index + 2, index, shape=(1, 28, 28), seed=0)
    return operations


@click.command()
def main() -> None:
    """Print what is counted, in markdown."""
    click.echo(
        "| of one image | parameters | FLOP per evaluation | operations | bytes moved, fp32 |"
    )
    click.echo("|---|---|---|---|---|")
    for name, counts in networks().items():
        click.echo(
            f"| {name} | {counts.parameters:,} | {counts.flop / 1e9:.3f} G | {counts.launched} | "
            f"{counts.moved / 1e6:.0f} MB |"
        )
    click.echo()
    try:
        step = diffusers_step()
        click.echo(
            f"diffusers' DDPMScheduler.step: {step.launched} operations, {step.read_back} numbers "
            "read back"
        )
    except ModuleNotFoundError:
        click.echo("diffusers' DDPMScheduler.step: not counted, diffusers is not installed")
    terms = terms_counts()
    click.echo(
        f"a batch of rows besides its network call: {terms.launched} operations, "
        f"{noise_counts().launched} of them its noise, {terms.read_back} numbers read back"
    )


if __name__ == "__main__":
    main()
