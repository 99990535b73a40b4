"""Reading a checkpoint as far as it can be read, where something is left open too."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddpmbench.checkpoints.custom_call import refused_call
from ddpmbench.checkpoints.load import load_checkpoint
from ddpmbench.checkpoints.openai import config_of, is_openai, read_shapes
from ddpmbench.checkpoints.provenance import Said, what_is_open, what_is_said
from ddpmbench.checkpoints.settings import CheckpointSettings, UnsettledError
from ddpmbench.diffusion.model import Checkpoint, ImageSize, sides_of, size_words
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError
from ddpmbench.execution.network_check import check_first_call
from ddpmbench.report.inspection import CallFacts
from ddpmbench.unet.flops import call_of_shapes, flop_of_unet
from ddpmbench.unet.outline import Outline
from ddpmbench.unet.unet import UNet, UNetConfig
from ddpmbench.user_code import calling

# What is put in the place of an open option to see the network. None of them changes it, but for
# the outputs that a variance takes: the second is tried where the first does not fit them.
_INSTEAD: dict[str, tuple[str, tuple[object, ...]]] = {
    "--schedule": ("schedule", ("linear:1000",)),
    "--prediction": ("prediction", ("eps",)),
    "--variance": ("variance", ("fixed_small", "learned_range")),
    "--time-input": ("time_input", ("index",)),
    "--clip": ("clip", (True,)),
}
_UNCOUNTED = "a call could not be counted"
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
        """One call of the network.

        Only its shapes are worked out, but of a network of the user's own whose code needs numbers.

        Args:
            image_size: height and width of an image, where the checkpoint does not say.

        Raises:
            InputError: the network takes no images of this size.
        """
        checkpoint, config = self.checkpoint, self._config
        said: ImageSize | None = None
        multiple = 1
        if checkpoint is not None:
            network: nn.Module = checkpoint.network
            said, multiple = checkpoint.image_size, checkpoint.size_multiple
        elif config is not None:
            with torch.device("meta"):
                network = UNet(config).eval()
        else:
            return CallFacts()
        if type(network) is UNet:
            multiple = network.config.size_multiple
        if said is not None and image_size not in (None, said):
            raise InputError(f"--image-size {image_size}: the checkpoint takes {size_words(said)}")
        size = said or image_size or -(-_SIZE // multiple) * multiple
        height, width = sides_of(size)
        if height % multiple or width % multiple:
            raise InputError(f"--image-size {size}: the network takes multiples of {multiple}")
        is_said = said is not None or image_size is not None
        if type(network) is UNet:
            flop = flop_of_unet(network, height, width)
            return CallFacts(network.config.in_channels, size, is_said, flop)
        assert checkpoint is not None
        return self._counted(checkpoint, CallFacts(checkpoint.channels, size, is_said))

    def _counted(self, checkpoint: Checkpoint, call: CallFacts) -> CallFacts:
        """The same call with its arithmetic, and its channels where it tells them."""
        tried = call.channels or _first_channels(checkpoint.network)
        if tried is None:
            return call
        assert call.size is not None
        shape = (1, tried, *sides_of(call.size))
        inputs = [torch.zeros(shape), checkpoint.network_time(torch.ones(1).long())]
        if checkpoint.num_classes:
            inputs.append(torch.zeros(1, dtype=torch.int64))
        call = dataclasses.replace(call, tried_channels=tried)
        try:
            found = calling(lambda: call_of_shapes(checkpoint.network, *inputs), _UNCOUNTED)
        except InputError as error:
            return dataclasses.replace(call, uncounted=str(error))
        # What came in as an image comes out as one, and maybe its variance.
        outputs = {(1, tried, *shape[2:])}
        if checkpoint.variance.is_learned or self.is_open("--variance"):
            outputs.add((1, 2 * tried, *shape[2:]))
        channels = tried if found.shape in outputs else call.channels
        return dataclasses.replace(call, channels=channels, flop=found.flop)

    def refused(self, call: CallFacts) -> str | None:
        """Why a run would refuse a network of the user's own; None if nothing speaks against it.

        Where all is settled and the shape of an image is known, a copy is called as a run does
        first; else its parameters alone are looked at.

        Args:
            call: one of its calls.
        """
        checkpoint = self.checkpoint
        if checkpoint is None or checkpoint.code is None:
            return None
        network, who = checkpoint.network, f"--network {checkpoint.code.name}"
        why = refused_call(network, has_classes=bool(checkpoint.num_classes))
        if why is not None:
            return f"{who}: {why}"
        if self.error is not None or not call.size_said or not (call.channels and call.size):
            return None
        try:
            copied = dataclasses.replace(checkpoint, network=copy.deepcopy(network))
        except Exception:  # of the user's own; a run does not copy it
            return None
        shape = (call.channels, *sides_of(call.size))
        try:
            check_first_call(copied, shape, device=torch.device("cpu"))
        except InputError as error:
            return str(error)
        return None

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


def _first_channels(network: nn.Module) -> int | None:
    """What its first convolution takes, which may be more than an image has."""
    convolutions = (part for part in network.modules() if isinstance(part, nn.Conv2d))
    first = next(convolutions, None)
    return None if first is None else first.in_channels
