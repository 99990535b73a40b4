"""The U-Net of Ho et al. 2020, Nichol & Dhariwal 2021 and Song et al. 2021, one implementation.

The families differ in a few settings (`UNetConfig`) and in the layout of their attention weights,
which the readers convert to the layout used here.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpmbench.errors import InputError

MAX_BLOCKS = 1000
"""Most residual blocks on the way down, over all resolutions; published networks have about
twenty."""
Resampling = Literal["conv", "pool", "block", "projected"]


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """The settings that determine the network besides its weights.

    Attributes:
        in_channels: channels of an image.
        out_channels: channels of the output, twice `in_channels` where a variance is learned.
        model_channels: size of the sinusoidal embedding; four times as many embed the time.
        channels: channels at each resolution, from the image's down.
        num_blocks: residual blocks at each resolution on the way down; one more on the way up.
        attention: whether each block is followed by attention, by resolution like `channels`. The
            middle always has attention.
        head_channels: channels of an attention head; 0 to use `num_heads`.
        num_heads: attention heads, used if `head_channels` is 0.
        num_classes: classes the network is conditioned on; 0 if none.
        scale_shift: whether the time embedding scales and shifts the second normalization of a
            block (Nichol & Dhariwal 2021) or is added before it (Ho et al. 2020).
        resampling: "conv" resamples with a convolution, "pool" without, "block" inside a
            residual block (Dhariwal & Nichol 2021), "projected" in one whose shortcut has a
            convolution (Song et al. 2021).
        symmetric_padding: whether the convolution that halves the resolution pads every side by
            one, not only right and bottom.
        cosine_first: whether the sinusoidal embedding begins with the cosines.
        frequency_shift: the slowest frequency is max_period^-((half - 1) / (half - shift)).
        norm_groups: groups of the group normalizations.
        norm_eps: their epsilon.
        dropout: probability of dropping an activation in training.
        least_group: least channels per group; narrow layers then have fewer groups. 0 if all have
            `norm_groups`.
        attend_once: whether attention on the way up follows only the last block of a resolution.
        rescale_sums: whether blocks and attention divide the sum with their input by sqrt(2).
    """

    in_channels: int
    out_channels: int
    model_channels: int
    channels: tuple[int, ...]
    num_blocks: int
    attention: tuple[bool, ...]
    head_channels: int = 0
    num_heads: int = 1
    num_classes: int = 0
    scale_shift: bool = False
    resampling: Resampling = "conv"
    symmetric_padding: bool = False
    cosine_first: bool = False
    frequency_shift: float = 1.0
    norm_groups: int = 32
    norm_eps: float = 1e-6
    dropout: float = 0.0
    least_group: int = 0
    attend_once: bool = False
    rescale_sums: bool = False

    def __repr__(self) -> str:
        # part of the fingerprints of models: the settings of Song et al. show where they are used
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in _OF_SONG or getattr(self, field.name)
        }
        return f"UNetConfig({', '.join(f'{name}={value!r}' for name, value in fields.items())})"

    def __post_init__(self) -> None:
        """Check the configuration."""
        self._check_ranges()
        if len(self.attention) != len(self.channels) or not self.channels:
            raise InputError("network: `channels` and `attention` need one entry per resolution")
        if self.out_channels not in (self.in_channels, 2 * self.in_channels):
            raise InputError("network: the output needs once or twice the channels of the image")
        if (blocks := len(self.channels) * self.num_blocks) > MAX_BLOCKS:
            raise InputError(
                f"network: num_blocks {self.num_blocks:,} at each of {len(self.channels):,} "
                f"resolutions of channels are {blocks:,}, more than {MAX_BLOCKS:,}; correct them"
            )
        for channels in (self.model_channels, *self.channels):
            if channels < 2 or channels % self.groups(channels):
                raise InputError(
                    f"network: norm groups {self.norm_groups} do not divide {channels} channels; "
                    "choose a divisor of all `channels` as `norm_groups`"
                )

    def _check_ranges(self) -> None:
        for name in ("in_channels", "out_channels", "model_channels", "num_blocks", "norm_groups"):
            _check_whole(name, getattr(self, name), 1)
        for name in ("num_heads", "head_channels", "num_classes", "least_group"):
            _check_whole(name, getattr(self, name), 0)
        for channels in self.channels:
            _check_whole("channels", channels, 1)
        half = self.model_channels // 2
        for name, low, high in (
            ("norm_eps", 0.0, 1.0),
            ("dropout", 0.0, 1.0),
            ("frequency_shift", -math.inf, half - 1e-9),
        ):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not low <= value <= high:
                raise InputError(
                    f"network: {name} {value!r} is out of range; choose from {low:g} to {high:g}"
                )

    @property
    def size_multiple(self) -> int:
        """Height and width of an image must be divisible by this."""
        return int(2 ** (len(self.channels) - 1))

    @property
    def blocks_a_level(self) -> int:
        """Residual blocks at each resolution, down and up."""
        return 2 * self.num_blocks + 1

    @property
    def least_parameters(self) -> int:
        """Parameters in the last convolution of each block, a lower bound for the network."""
        return self.blocks_a_level * sum(9 * channels**2 for channels in self.channels)

    def groups(self, channels: int) -> int:
        """Normalization groups for this many channels."""
        if not self.least_group:
            return self.norm_groups
        return max(1, min(self.norm_groups, channels // self.least_group))

    def heads(self, channels: int) -> int:
        """Attention heads for this many channels."""
        return channels // self.head_channels if self.head_channels else self.num_heads

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "UNetConfig":
        """The inverse of `to_dict`; raises InputError for a field that is not one."""
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - known):
            raise InputError(f"network: unknown setting {unknown[0]!r}")
        lists = {name: tuple(fields[name]) for name in ("channels", "attention")}
        return cls(**{**fields, **lists})


_OF_SONG = ("least_group", "attend_once", "rescale_sums")


def _check_whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"network: {name} {value!r} is not a whole number of at least {least}")


def timestep_embedding(time: Tensor, config: UNetConfig) -> Tensor:
    r"""Sinusoidal embedding of the network's time input.

    .. math::
        (\sin \omega_i t, \cos \omega_i t), \qquad
        \omega_i = 10000^{-i / (h - s)}, \qquad i = 0, \dots, h - 1

    with h half of `model_channels` and s the `frequency_shift`.

    Args:
        time: (B,) floating point.
        config: the network's configuration.

    Returns:
        (B, model_channels) float32.

    Source: Vaswani et al. 2017, section 3.5, as used by Ho et al. 2020.
    """
    half = config.model_channels // 2
    exponent = torch.arange(half, dtype=torch.float32, device=time.device)
    exponent = exponent * (-math.log(10_000.0) / (half - config.frequency_shift))
    angles = time.float()[:, None] * exponent.exp()[None, :]
    parts = (angles.cos(), angles.sin()) if config.cosine_first else (angles.sin(), angles.cos())
    return F.pad(torch.cat(parts, dim=1), (0, config.model_channels % 2))


class ResidualBlock(nn.Module):
    """Two convolutions around the time embedding, with a shortcut; optionally resamples."""

    def __init__(
        self,
        config: UNetConfig,
        in_channels: int,
        out_channels: int,
        resample: Literal["down", "up"] | None = None,
    ) -> None:
        super().__init__()
        time_channels = 4 * config.model_channels
        self.norm_1 = _norm(config, in_channels)
        self.conv_1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time = nn.Linear(time_channels, out_channels * (2 if config.scale_shift else 1))
        self.norm_2 = _norm(config, out_channels)
        self.dropout = nn.Dropout(config.dropout)
        self.conv_2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        projects = resample is not None and config.resampling == "projected"
        self.shortcut = (
            nn.Conv2d(in_channels, out_channels, 1)
            if projects or in_channels != out_channels
            else nn.Identity()
        )
        self.scale_shift = config.scale_shift
        self.factor = _sum_factor(config)
        self.resample = _resize(resample) if resample else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, C_in, H, W) and the block's projection of the time, (B, K), to (B, C_out, ...)."""
        h, x = self.resample(F.silu(self.norm_1(x))), self.resample(x)
        h = self.conv_1(h)
        time = time[:, :, None, None]
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = self.norm_2(h) * (1 + scale) + shift
        else:
            h = self.norm_2(h + time)
        result: Tensor = self.conv_2(self.dropout(F.silu(h))) + self.shortcut(x)
        return result if self.factor is None else result * self.factor


class Attention(nn.Module):
    """Self-attention over the pixels.

    The rows of `qkv` are all queries, then all keys, then all values, each split into heads.
    """

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__()
        self.heads = config.heads(channels)
        if self.heads < 1 or channels % self.heads:
            raise InputError(f"network: {channels} channels do not split into attention heads")
        self.norm = _norm(config, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.factor = _sum_factor(config)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        batch, channels, height, width = x.shape
        pixels: Tensor = self.norm(x).flatten(2).transpose(1, 2)  # (B, HW, C)
        split = self.qkv(pixels).view(batch, height * width, 3, self.heads, channels // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value)  # (B, heads, HW, C / heads)
        h: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        h = x + h.transpose(1, 2).view(batch, channels, height, width)
        return h if self.factor is None else h * self.factor


class Downsample(nn.Module):
    """Halves the resolution."""

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__()
        self.padding = (1, 1, 1, 1) if config.symmetric_padding else (0, 1, 0, 1)
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H / 2, W / 2)."""
        return self.conv(F.pad(x, self.padding))  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Doubles the resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, 2 H, 2 W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0))  # type: ignore[no-any-return]


class Level(nn.Module):
    """The blocks of one resolution, on the way down or up.

    Attributes:
        blocks: residual blocks.
        attentions: one per block, only one for the last block, or none.
        resample: the layer to the next resolution; absent at the last.
    """

    def __init__(
        self,
        blocks: list[ResidualBlock],
        attentions: list[Attention],
        resample: nn.Module | None,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attentions = nn.ModuleList(attentions)
        self.resample = resample

    def apply_block(self, index: int, x: Tensor, times: Iterator[Tensor]) -> Tensor:
        """Residual block `index` and the attention that follows it."""
        x = self.blocks[index](x, next(times))
        index += len(self.attentions) - len(self.blocks)
        if index >= 0:
            x = self.attentions[index](x)
        return x

    def apply_resample(self, x: Tensor, times: Iterator[Tensor]) -> Tensor:
        """Resample to the next resolution."""
        assert self.resample is not None
        if isinstance(self.resample, ResidualBlock):
            return self.resample(x, next(times))  # type: ignore[no-any-return]
        return self.resample(x)  # type: ignore[no-any-return]


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(config, channels, channels)
        self.attention = Attention(config, channels)
        self.block_2 = ResidualBlock(config, channels, channels)

    def forward(self, x: Tensor, times: Iterator[Tensor]) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return self.block_2(self.attention(self.block_1(x, next(times))), next(times))  # type: ignore[no-any-return]


class UNet(nn.Module):
    r"""The network of a DDPM, :math:`\epsilon_\theta(x_t, t)` where it predicts the noise.

    Residual blocks with attention at some resolutions, down and up with skip connections. The time
    enters each block as a projection of its embedding: added to the activations, or as scale and
    shift of their normalization.

    Args:
        config: channels, blocks, attention and resampling.

    Raises:
        InputError: the channels do not divide into attention heads.

    Source: Ho, Jain & Abbeel 2020, appendix B; Nichol & Dhariwal 2021, section 3; Dhariwal &
    Nichol 2021, section 3; Song et al. 2021, appendix H.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        time_channels = 4 * config.model_channels
        self.time_1 = nn.Linear(config.model_channels, time_channels)
        self.time_2 = nn.Linear(time_channels, time_channels)
        self.classes = (
            nn.Embedding(config.num_classes, time_channels) if config.num_classes else None
        )
        self.conv_in = nn.Conv2d(config.in_channels, config.channels[0], 3, padding=1)
        self.down, skips = _way_down(config)
        self.middle = Middle(config, config.channels[-1])
        self.up = _way_up(config, skips)
        self.norm_out = _norm(config, config.channels[0])
        self.conv_out = nn.Conv2d(config.channels[0], config.out_channels, 3, padding=1)

    def forward(self, x_t: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """The output for a batch, each image at its own time.

        Args:
            x_t: (B, C, H, W).
            time: (B,) time input, floating point; see `Checkpoint.network_time`.
            labels: (B,) int64 classes, for a class-conditional network.

        Returns:
            (B, C, H, W), or (B, 2C, H, W) where a variance is learned.
        """
        embedding = self.embed(self.embed_time(time), labels)
        return self.body(x_t, self.project(embedding))

    def embed_time(self, time: Tensor) -> Tensor:
        """Time input (B,) to its embedding (B, 4 model_channels), without the class."""
        embedding = timestep_embedding(time, self.config).to(self.time_1.weight.dtype)
        return self.time_2(F.silu(self.time_1(embedding)))  # type: ignore[no-any-return]

    def embed(self, embedding: Tensor, labels: Tensor | None = None) -> Tensor:
        """The activated embedding of time and class, the input of `project`."""
        if self.classes is not None:
            embedding = embedding + self.classes(labels)
        return F.silu(embedding)

    def project(self, embedding: Tensor) -> list[Tensor]:
        """Projections of the embedding, (B, K) per residual block in the order of `body`."""
        return [block.time(embedding) for block in self.residual_blocks()]

    def residual_blocks(self) -> list[ResidualBlock]:
        """All residual blocks in the order of `body`."""
        return [module for module in self.modules() if isinstance(module, ResidualBlock)]

    def body(self, x_t: Tensor, projections: Sequence[Tensor]) -> Tensor:
        """The network after the time embedding.

        The first and last convolution, and the last normalization, compute in the dtype of `x_t`,
        all layers between in that of the projections.

        Args:
            x_t: (B, C, H, W).
            projections: from `project`.

        Returns:
            (B, C, H, W), or (B, 2C, H, W) where a variance is learned.
        """
        times = iter(projections)
        h = self.conv_in(x_t).to(projections[0].dtype)
        skips = [h]
        for level in self.down:
            assert isinstance(level, Level)
            for index in range(len(level.blocks)):
                h = level.apply_block(index, h, times)
                skips.append(h)
            if level.resample is not None:
                h = level.apply_resample(h, times)
                skips.append(h)
        h = self.middle(h, times)
        for level in self.up:
            assert isinstance(level, Level)
            for index in range(len(level.blocks)):
                h = level.apply_block(index, torch.cat([h, skips.pop()], dim=1), times)
            if level.resample is not None:
                h = level.apply_resample(h, times)
        return self.conv_out(F.silu(self.norm_out(h.to(x_t.dtype))))  # type: ignore[no-any-return]


def _way_down(config: UNetConfig) -> tuple[nn.ModuleList, list[int]]:
    """The levels from the image down, and the channels of every skip connection."""
    channels, skips, levels = config.channels[0], [config.channels[0]], []
    for depth, width in enumerate(config.channels):
        blocks = []
        for _ in range(config.num_blocks):
            blocks.append(ResidualBlock(config, channels, width))
            channels = width
            skips.append(channels)
        attentions = [Attention(config, width) for _ in blocks if config.attention[depth]]
        resample = None
        if depth < len(config.channels) - 1:
            resample = _resampling(config, width, "down")
            skips.append(width)
        levels.append(Level(blocks, attentions, resample))
    return nn.ModuleList(levels), skips


def _way_up(config: UNetConfig, skips: list[int]) -> nn.ModuleList:
    channels, levels = config.channels[-1], []
    for depth, width in reversed(list(enumerate(config.channels))):
        blocks = []
        for _ in range(config.num_blocks + 1):
            blocks.append(ResidualBlock(config, channels + skips.pop(), width))
            channels = width
        attended = blocks[-1:] if config.attend_once else blocks
        attentions = [Attention(config, width) for _ in attended if config.attention[depth]]
        resample = _resampling(config, width, "up") if depth > 0 else None
        levels.append(Level(blocks, attentions, resample))
    return nn.ModuleList(levels)


def _resampling(config: UNetConfig, width: int, direction: Literal["down", "up"]) -> nn.Module:
    match config.resampling:
        case "conv":
            return Downsample(config, width) if direction == "down" else Upsample(width)
        case "pool":
            return _resize(direction)
    return ResidualBlock(config, width, width, direction)


def _resize(direction: Literal["down", "up"]) -> nn.Module:
    """A layer that averages 2x2 pixels, or repeats each."""
    return nn.AvgPool2d(2) if direction == "down" else nn.Upsample(scale_factor=2.0)


def _norm(config: UNetConfig, channels: int) -> nn.GroupNorm:
    groups = config.groups(channels)
    if channels % groups:
        raise InputError(f"network: {groups} norm groups do not divide {channels} channels")
    return nn.GroupNorm(groups, channels, eps=config.norm_eps)


def _sum_factor(config: UNetConfig) -> float | None:
    """The factor of the sum of blocks and attention with their input, if any."""
    return math.sqrt(0.5) if config.rescale_sums else None
