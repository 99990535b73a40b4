"""What determines a U-Net besides its weights."""

import dataclasses
import math
from typing import Any, Literal

from ddpmbench.errors import InputError

MAX_BLOCKS = 1000
"""Residual blocks on the way down, of all resolutions; published networks have some twenty."""
Resampling = Literal["conv", "pool", "block"]


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Everything that determines the network besides its weights.

    Attributes:
        in_channels: channels of an image.
        out_channels: channels of the output, twice `in_channels` where a variance is learned.
        model_channels: size of the sinusoidal embedding; four times as many embed the time.
        channels: channels at each resolution, from the image's down.
        num_blocks: residual blocks at each resolution on the way down; one more on the way up.
        attention: at which resolutions, counted like `channels`, each block is followed by
            attention. The middle always has it.
        head_channels: channels of an attention head; 0 if `num_heads` counts.
        num_heads: attention heads, where `head_channels` is 0.
        num_classes: classes the network is conditioned on; 0 if none.
        scale_shift: whether the time embedding scales and shifts the second normalization of a
            block (Nichol & Dhariwal 2021) or is added before it (Ho et al. 2020).
        resampling: "conv" resamples with a convolution, "pool" without, "block" inside a
            residual block (Dhariwal & Nichol 2021).
        symmetric_padding: whether the convolution that halves the resolution pads every side by
            one or only right and bottom.
        cosine_first: whether the sinusoidal embedding begins with the cosines.
        frequency_shift: the slowest frequency is max_period^-((half - 1) / (half - shift)).
        norm_groups: groups of the group normalizations.
        norm_eps: their epsilon.
        dropout: probability of dropping an activation in training.
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

    def __post_init__(self) -> None:
        """Refuse a configuration that is no network."""
        self._check_ranges()
        if len(self.attention) != len(self.channels) or not self.channels:
            raise InputError("network: `channels` and `attention` need one entry a resolution")
        if self.out_channels not in (self.in_channels, 2 * self.in_channels):
            raise InputError("network: the output needs once or twice the channels of the image")
        if (blocks := len(self.channels) * self.num_blocks) > MAX_BLOCKS:
            raise InputError(
                f"network: num_blocks {self.num_blocks:,} at each of {len(self.channels):,} "
                f"resolutions of channels are {blocks:,}, more than {MAX_BLOCKS:,}; correct them"
            )
        for channels in (self.model_channels, *self.channels):
            if channels < 2 or channels % self.norm_groups:
                raise InputError(
                    f"network: norm groups {self.norm_groups} do not divide {channels} channels"
                )

    def _check_ranges(self) -> None:
        for name in ("in_channels", "out_channels", "model_channels", "num_blocks", "norm_groups"):
            _check_whole(name, getattr(self, name), 1)
        for name in ("num_heads", "head_channels", "num_classes"):
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
        """Parameters of the last convolution of each block; the whole network has more."""
        return self.blocks_a_level * sum(9 * channels**2 for channels in self.channels)

    def heads(self, channels: int) -> int:
        """Attention heads of a layer of so many channels."""
        return channels // self.head_channels if self.head_channels else self.num_heads

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "UNetConfig":
        """The inverse of `to_dict`; raises InputError for a field that is not one."""
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - known):
            raise InputError(f"network: unknown setting {unknown[0]!r}")
        lists = {name: tuple(fields[name]) for name in ("channels", "attention")}
        return cls(**{**fields, **lists})


def _check_whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"network: {name} {value!r} is not a whole number of at least {least}")
