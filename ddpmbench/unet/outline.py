"""What a network is made of, as a person would draw it."""

import dataclasses
from collections import Counter
from collections.abc import Mapping

from torch import Tensor, nn

from ddpmbench.unet.unet import UNet, UNetConfig


@dataclasses.dataclass(frozen=True)
class LevelOutline:
    """One resolution of a U-Net, or its middle.

    Attributes:
        name: "1" at the image's resolution, "1/2" at half of it, ..., and "middle".
        divisor: the image's height and width are divided by this.
        channels: of its activations.
        blocks_down: residual blocks on the way down, or of the middle.
        blocks_up: residual blocks on the way up; 0 in the middle.
        attention: whether the blocks are followed by attention.
        heads: of the attention; None where there is none, or where they are not known.
    """

    name: str
    divisor: int
    channels: int
    blocks_down: int
    blocks_up: int
    attention: bool
    heads: int | None


@dataclasses.dataclass(frozen=True)
class Outline:
    """A network in a few numbers.

    Attributes:
        kind: "UNet" for the built-in one, else the name of its class; "" where only the weights
            are known.
        parameters: how many numbers are trained.
        levels: of the built-in U-Net, from the image's resolution down, then the middle.
        config: of the built-in U-Net.
        layers: of any other network, the kinds of its layers that hold weights, most first.
        ends: the names and shapes of its first and last weight, where nothing else is known.
    """

    kind: str
    parameters: int
    levels: tuple[LevelOutline, ...] = ()
    config: UNetConfig | None = None
    layers: tuple[tuple[str, int], ...] = ()
    ends: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @classmethod
    def of_config(
        cls, config: UNetConfig, *, parameters: int, heads_known: bool = True
    ) -> "Outline":
        """That of the built-in U-Net.

        Args:
            config: determines it.
            parameters: how many it has.
            heads_known: whether `config` says the attention heads; they change no shape.
        """

        def heads(channels: int) -> int | None:
            return config.heads(channels) if heads_known else None

        levels = []
        for depth, (channels, attention) in enumerate(
            zip(config.channels, config.attention, strict=True)
        ):
            name = f"1/{2**depth}" if depth else "1"
            own = heads(channels) if attention else None
            down, up = config.num_blocks, config.num_blocks + 1
            levels.append(LevelOutline(name, 2**depth, channels, down, up, attention, own))
        last = levels[-1]
        own = heads(last.channels)
        levels.append(LevelOutline("middle", last.divisor, last.channels, 2, 0, True, own))
        return cls("UNet", parameters, levels=tuple(levels), config=config)

    @classmethod
    def of_network(cls, network: nn.Module) -> "Outline":
        """That of any network."""
        parameters = sum(weight.numel() for weight in network.parameters())
        if isinstance(network, UNet):
            return cls.of_config(network.config, parameters=parameters)
        layers = Counter(
            type(part).__name__
            for part in network.modules()
            if next(part.parameters(recurse=False), None) is not None
        )
        return cls(type(network).__name__, parameters, layers=tuple(layers.most_common()))

    @classmethod
    def of_weights(cls, weights: Mapping[str, Tensor]) -> "Outline":
        """What weights alone tell."""
        shapes = [(name, tuple(weight.shape)) for name, weight in weights.items()]
        parameters = sum(weight.numel() for weight in weights.values())
        return cls("", parameters, ends=(*shapes[:1], *shapes[1:][-1:]))
