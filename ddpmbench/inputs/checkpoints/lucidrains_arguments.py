"""The arguments of lucidrains' `Unet`, read from the shapes of its weights."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ddpmbench.errors import InputError

PACKAGE = "denoising-diffusion-pytorch"
OWN = "build it with --network FILE.py:NAME"
"""What to do with a network of the package that is not read."""
HEAD_CHANNELS = 32
"""What versions before 1.9, whose networks have no memory keys, have by default."""


@dataclasses.dataclass(frozen=True)
class UnetArguments:
    """What the package's `Unet` is built with, under its names; one entry a resolution."""

    dim: int
    init_dim: int
    out_dim: int
    channels: int
    self_condition: bool
    dim_mults: tuple[int, ...]
    full_attn: tuple[bool, ...]
    attn_heads: tuple[int, ...]
    attn_dim_head: tuple[int, ...]

    @property
    def learned_variance(self) -> bool:
        """Whether there is a second image's worth of outputs."""
        return self.out_dim == 2 * self.channels

    @property
    def size_multiple(self) -> int:
        """Height and width of an image must be divisible by this."""
        return int(2 ** (len(self.dim_mults) - 1))


def read_arguments(weights: Mapping[str, Tensor], path: Path) -> UnetArguments:
    """The arguments of the network that has these weights.

    Args:
        weights: the network's own names and tensors.
        path: the file to name in an error.

    Raises:
        InputError: they are not those of the package's unconditional two-dimensional `Unet`.
    """
    if "classes_emb.weight" in weights:
        raise InputError(
            f"{path}: the network of {PACKAGE}'s classifier_free_guidance, which depends on "
            f"classes; only its Unet is read, {OWN}"
        )
    if "init_conv.weight" not in weights:
        first = next(iter(weights), "none")
        raise InputError(
            f"{path}: its network is not {PACKAGE}'s Unet (its first weight is {first}); {OWN}"
        )
    shapes = _Shapes(weights, path)
    dim = shapes.of("time_mlp.1.weight", 2)[0] // 4
    init_dim, inputs, *_ = shapes.of("init_conv.weight", 4)
    out_dim = shapes.of("final_conv.weight", 4)[0]
    if out_dim == 2 * inputs + 2:
        raise InputError(
            f"{path}: the network of a WeightedObjectiveGaussianDiffusion, which predicts both "
            f"noise and x_start; this is not read, {OWN}"
        )
    self_condition = inputs == 2 * out_dim
    if not self_condition and out_dim not in (inputs, 2 * inputs):
        raise InputError(
            f"{path}: the network gives {out_dim} channels for {inputs}, which no objective of "
            f"{PACKAGE} takes; {OWN}"
        )
    levels, multiples = 0, []
    while f"downs.{levels}.0.block1.proj.weight" in weights:
        last = f"downs.{levels}.3.weight"
        width = shapes.of(last if last in weights else f"downs.{levels}.3.1.weight", 4)[0]
        if not dim or width % dim:
            raise InputError(
                f"{path}: {width} channels are no multiple of dim = {dim}, which {PACKAGE} cannot "
                f"build; {OWN}"
            )
        multiples.append(width // dim)
        levels += 1
    if not levels:
        raise InputError(f"{path}: has no downs.0.0.block1.proj.weight; the file is not whole")
    attention = [shapes.attention(f"downs.{level}.2") for level in range(levels)]
    full, heads, head_channels = zip(*attention, strict=True)
    return UnetArguments(
        dim=dim,
        init_dim=init_dim,
        out_dim=out_dim,
        channels=inputs // 2 if self_condition else inputs,
        self_condition=self_condition,
        dim_mults=tuple(multiples),
        full_attn=full,
        attn_heads=heads,
        attn_dim_head=head_channels,
    )


@dataclasses.dataclass(frozen=True)
class _Shapes:
    weights: Mapping[str, Tensor]
    path: Path

    def of(self, name: str, dims: int) -> tuple[int, ...]:
        tensor = self.weights.get(name)
        if tensor is None:
            raise InputError(f"{self.path}: has no weight {name}; the file is not whole")
        if tensor.ndim != dims:
            kind = "its one-dimensional Unet1D" if tensor.ndim == 3 else "another network"
            raise InputError(
                f"{self.path}: {name} is {list(tensor.shape)}, that of {kind}; only {PACKAGE}'s "
                f"Unet is read, {OWN}"
            )
        return tuple(tensor.shape)

    def attention(self, prefix: str) -> tuple[bool, int, int]:
        """Whether it is full attention, its heads, and the channels of each."""
        if f"{prefix}.fn.fn.to_qkv.weight" in self.weights:
            prefix += ".fn.fn"
        full = f"{prefix}.to_out.weight" in self.weights
        if f"{prefix}.mem_kv" in self.weights:
            _, heads, *last = self.of(f"{prefix}.mem_kv", 4)
            return full, heads, last[1 if full else 0]
        rows = self.of(f"{prefix}.to_qkv.weight", 4)[0]
        if rows % (3 * HEAD_CHANNELS):
            raise InputError(
                f"{self.path}: {prefix}.to_qkv.weight has {rows} rows, which are no queries, keys "
                f"and values of heads of {HEAD_CHANNELS} channels; {OWN}"
            )
        return full, rows // (3 * HEAD_CHANNELS), HEAD_CHANNELS
