"""Reading a checkpoint as far as it can be read, where something is left open too."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddpmbench.errors import InputError
from ddpmbench.inputs.checkpoints.checkpoint import Checkpoint
from ddpmbench.inputs.checkpoints.load import load_checkpoint
from ddpmbench.inputs.checkpoints.openai import config_of, is_openai
from ddpmbench.inputs.checkpoints.openai_shapes import read_shapes
from ddpmbench.inputs.checkpoints.said import Said, what_is_open, what_is_said
from ddpmbench.inputs.checkpoints.settings import CheckpointSettings
from ddpmbench.inputs.checkpoints.unsettled import UnsettledError
from ddpmbench.network.flops import flop_of_shapes
from ddpmbench.network.outline import Outline
from ddpmbench.network.unet import UNet
from ddpmbench.network.unet_config import UNetConfig
from ddpmbench.process.schedule import NoiseSchedule
from ddpmbench.report.inspection import CallFacts

# What is put in the place of an open option to see the network. None of them changes it, but for
# the outputs that a variance takes: the second is tried where the first does not fit them.
_INSTEAD = {
    "--schedule": ("schedule", ("linear:1000",)),
    "--prediction": ("prediction", ("eps",)),
    "--variance": ("variance", ("fixed_small", "learned_range")),
    "--time-input": ("time_input", ("index",)),
}
_SIZE = 32
"""The side of an image for the counted call, where nothing says it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Look:
    """A checkpoint as far as it can be read.

    Attributes:
        checkpoint: what was read; where something is open, with something put in its place; None
            if it cannot be read so.
        error: what the reader of its family raised first; None where all is settled.
        missing: the options that settle what is open, each with a placeholder.
        settings: what is said of it besides, without what was put in the place of what is open.
    """

    checkpoint: Checkpoint | None
    error: UnsettledError | None
    missing: tuple[str, ...]
    settings: CheckpointSettings

    def is_open(self, option: str) -> bool:
        """Whether an option has to be given."""
        return option in {missing.split()[0] for missing in self.missing}

    @property
    def said(self) -> tuple[Said, ...]:
        """Everything a number depends on besides the weights, and who says so."""
        found = () if self.checkpoint is None else what_is_said(self.checkpoint, self.settings)
        if self.error is None:
            return found
        return what_is_open(self.missing, found, self.settings)

    @property
    def schedule(self) -> NoiseSchedule | None:
        """The noise schedule; None where it is open."""
        if self.checkpoint is None or self.is_open("--schedule"):
            return None
        return self.checkpoint.schedule

    @property
    def notes(self) -> tuple[str, ...]:
        """What the reader noted, but for what was put in the place of what is open."""
        notes = () if self.checkpoint is None else self.checkpoint.notes
        return tuple(
            note
            for note in notes
            if not any(self.is_open(word.strip(":;,")) for word in note.split())
        )

    @property
    def outline(self) -> Outline:
        """The network, or what its weights tell of it."""
        if self.checkpoint is not None:
            return Outline.of_network(self.checkpoint.network)
        assert self.error is not None
        weights = self.error.weights
        parameters = sum(weight.numel() for weight in weights.values())
        config = self._config
        if config is None:
            return Outline.of_weights(weights)
        return Outline.of_config(config, parameters=parameters, heads_known=False)

    def call(self, image_size: int | None) -> CallFacts:
        """One call of the network; only its shapes are worked out.

        Args:
            image_size: height and width of an image, where the checkpoint does not say.
        """
        checkpoint, config = self.checkpoint, self._config
        said, time = None, torch.zeros(1)
        if checkpoint is not None:
            network: nn.Module = checkpoint.network
            channels = checkpoint.channels or _channels(network)
            num_classes, multiple = checkpoint.num_classes, checkpoint.size_multiple
            said, time = checkpoint.image_size, checkpoint.network_time(torch.ones(1).long())
        elif config is not None:
            channels, num_classes = config.in_channels, config.num_classes
            multiple = config.size_multiple
            with torch.device("meta"):
                network = UNet(config).eval()
        else:
            return CallFacts()
        if said is not None and image_size not in (None, said):
            raise InputError(f"--image-size {image_size}: the checkpoint takes {said}x{said}")
        size = said or image_size or -(-_SIZE // multiple) * multiple
        if size % multiple:
            raise InputError(f"--image-size {size}: the network takes multiples of {multiple}")
        is_said = said is not None or image_size is not None
        flop = None
        if channels is not None:
            inputs = [torch.zeros(1, channels, size, size), time]
            if num_classes:
                inputs.append(torch.zeros(1, dtype=torch.int64))
            flop = _flop(network, inputs)
        return CallFacts(channels, size, is_said, flop)

    @property
    def _config(self) -> UNetConfig | None:
        """Of the U-Net that the weights tell of, but for its heads."""
        if self.error is None or not is_openai(self.error.weights):
            return None
        return config_of(read_shapes(self.error.weights, self.error.path))


def look_at(source: str | Path, settings: CheckpointSettings) -> Look:
    """Read a checkpoint as far as it can be read.

    Args:
        source: see `load_checkpoint`.
        settings: what is said of it.

    Raises:
        InputError: there is no such checkpoint, or it is damaged.
    """
    first: UnsettledError | None = None
    missing: dict[str, str] = {}
    chosen: dict[str, Any] = {}
    while True:
        try:
            checkpoint = load_checkpoint(source, dataclasses.replace(settings, **chosen))
        except UnsettledError as error:
            first = first or error
            news = {option.split()[0]: option for option in error.missing}
            news = {name: option for name, option in news.items() if name not in missing}
            missing |= news
            if not news or not all(name in _INSTEAD for name in news):
                return Look(None, first, tuple(missing.values()), settings)
            chosen |= {field: values[0] for field, values in map(_INSTEAD.__getitem__, news)}
        except InputError as error:
            # What is only in the place of something open is no mistake of the user's.
            if not any(option in str(error) for option in missing):
                raise
            field, values = _INSTEAD["--variance"]
            if chosen.get(field) != values[0]:
                return Look(None, first, tuple(missing.values()), settings)
            chosen[field] = values[1]
        else:
            return Look(checkpoint, first, tuple(missing.values()), settings)


def _channels(network: nn.Module) -> int | None:
    """Those of an image: what its first convolution takes."""
    convolutions = (part for part in network.modules() if isinstance(part, nn.Conv2d))
    first = next(convolutions, None)
    return None if first is None else first.in_channels


def _flop(network: nn.Module, inputs: list[torch.Tensor]) -> int | None:
    try:
        return flop_of_shapes(network, *inputs)
    except Exception:  # a network of the user's own raises what it likes; then nothing is known
        return None
