"""What the names and shapes of openai weights say of the network."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

from torch import Tensor

from ddpmbench.errors import InputError
from ddpmbench.inputs.checkpoints.weights import shape_of
from ddpmbench.network.unet_config import Resampling


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The fields of `UNetConfig` that can be read from the weights."""

    in_channels: int
    out_channels: int
    model_channels: int
    channels: tuple[int, ...]
    num_blocks: int
    attention: tuple[bool, ...]
    num_classes: int
    scale_shift: bool
    resampling: Resampling

    @property
    def attended(self) -> tuple[int, ...]:
        """Channels of every layer that has attention."""
        pairs = zip(self.channels, self.attention, strict=True)
        return (*(channels for channels, yes in pairs if yes), self.channels[-1])

    @property
    def multiples(self) -> tuple[Fraction, ...]:
        """Channels at each resolution, as multiples of `model_channels`."""
        return tuple(Fraction(width, self.model_channels) for width in self.channels)

    @property
    def flags(self) -> str:
        """What the weights say, in the projects' own spelling."""
        return (
            f"--num_channels {self.model_channels} --num_res_blocks {self.num_blocks} "
            f"--learn_sigma {self.out_channels != self.in_channels} "
            f"--class_cond {self.num_classes > 0} --use_scale_shift_norm {self.scale_shift}"
        )

    def __str__(self) -> str:
        return f"{self.flags}, channel multiples {listed(self.multiples)}"


def read_shapes(weights: Mapping[str, Tensor], path: Path) -> Shapes:
    """What the weights say; the resolutions are told apart by where the way up doubles.

    Raises:
        InputError: a weight that decides it is missing, or the file is of a classifier or an
            upsampler.
    """
    shape = functools.partial(shape_of, weights, source=path)
    if not any(name.startswith("output_blocks.") for name in weights):
        raise InputError(f"{path}: a classifier, not a diffusion model: it has no output_blocks")
    in_channels = shape("input_blocks.0.0.weight", 4)[1]
    out_channels = shape("out.2.weight", 4)[0]
    if in_channels == 6:
        raise InputError(f"{path}: an upsampler, which takes a second image; it cannot be read")
    total = 1 + max(_numbers(weights, r"output_blocks\.(\d+)\."))
    conv = _numbers(weights, r"output_blocks\.(\d+)\.[12]\.conv\.")
    block = _numbers(weights, r"output_blocks\.(\d+)\.[12]\.in_layers\.")
    down = _numbers(weights, r"input_blocks\.(\d+)\.")
    without = set(range(max(down))) - down  # pooling has no weights, only a number
    resampling: Resampling = "block" if block else "pool" if without and not conv else "conv"
    ends = block or {number - 1 for number in without} if resampling != "conv" else conv
    per_level = 1 + min(ends, default=total - 1)
    if per_level < 2 or total % per_level:
        raise InputError(f"{path}: its {total} output_blocks do not divide into resolutions")
    firsts = range(total - per_level, -1, -per_level)  # from the image's resolution down
    channels = tuple(shape(f"output_blocks.{j}.0.out_layers.3.weight", 4)[0] for j in firsts)
    embedding = shape("output_blocks.0.0.emb_layers.1.weight", 2)[0]
    conditional = "label_emb.weight" in weights
    return Shapes(
        in_channels=in_channels,
        out_channels=out_channels,
        model_channels=shape("time_embed.0.weight", 2)[1],
        channels=channels,
        num_blocks=per_level - 1,
        attention=tuple(f"output_blocks.{j}.1.qkv.weight" in weights for j in firsts),
        num_classes=shape("label_emb.weight", 2)[0] if conditional else 0,
        scale_shift=embedding == 2 * channels[-1],
        resampling=resampling,
    )


def _numbers(weights: Mapping[str, Tensor], pattern: str) -> set[int]:
    found = (re.match(pattern, name) for name in weights)
    # A block's number has few digits; more are a mistake or an attack on the memory.
    return {int(match[1]) for match in found if match and len(match[1]) <= 4}


def listed(values: tuple[object, ...]) -> str:
    """Values as the projects' flags list them."""
    return ",".join(str(float(v) if isinstance(v, Fraction) and v % 1 else v) for v in values)


def shown(value: object) -> str:
    """A value as the projects' flags spell it."""
    return (listed(value) or "none") if isinstance(value, tuple) else str(value)
