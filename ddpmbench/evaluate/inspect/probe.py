"""Reading a checkpoint as far as its settings go, and one evaluation of its network.

A checkpoint that lacks settings is read with stand-ins for them. Only what they cannot change is
reported.
"""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddpmbench.checkpoints.load import load_checkpoint
from ddpmbench.checkpoints.openai import config_of, is_openai, read_shapes
from ddpmbench.checkpoints.settings import CheckpointSettings, MissingSettingsError
from ddpmbench.diffusion.model import Checkpoint, ImageSize, sides_of, size_words
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError
from ddpmbench.evaluate.inspect.text import is_placeholder
from ddpmbench.unet.flops import call_of_shapes, flop_of_unet
from ddpmbench.unet.unet import UNet
from ddpmbench.user_code import calling

_STAND_INS: dict[str, tuple[object, ...]] = {
    "schedule": ("linear:1000",),
    "prediction": ("eps",),
    "variance": ("fixed_small", "learned_range"),
    "time_input": ("index",),
    "clip": (True,),
}
"""Settings in the place of missing ones. The second fits a network with a variance output."""


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
    """A checkpoint as far as it can be read.

    Attributes:
        checkpoint: read with stand-ins for what is missing; None if it cannot be read so.
        error: raised by the reader of its family; None if nothing is missing.
        missing: parameters of `CheckpointSettings` to a placeholder or an example.
        settings: those that were given.
    """

    checkpoint: Checkpoint | None
    error: MissingSettingsError | None
    missing: dict[str, Any]
    settings: CheckpointSettings

    @property
    def schedule(self) -> NoiseSchedule | None:
        """The noise schedule; None where it is missing."""
        if self.checkpoint is None or "schedule" in self.missing:
            return None
        return self.checkpoint.schedule

    @property
    def network(self) -> nn.Module | None:
        """The network; without its weights where only their shapes tell of it."""
        if self.checkpoint is not None:
            return self.checkpoint.network
        if self.error is None or not is_openai(self.error.weights):
            return None
        with torch.device("meta"):
            return UNet(config_of(read_shapes(self.error.weights, self.error.path))).eval()


def probe_checkpoint(source: str | Path, settings: CheckpointSettings) -> Probe:
    """Read a checkpoint, with stand-ins for the settings that it lacks.

    Args:
        source: see `load_checkpoint`.
        settings: those that are given.

    Raises:
        InputError: there is no such checkpoint, it is damaged, or a setting contradicts it.
    """
    first: MissingSettingsError | None = None
    refused: InputError | None = None
    missing: dict[str, Any] = {}
    chosen: dict[str, Any] = {}
    while True:
        try:
            checkpoint = load_checkpoint(source, dataclasses.replace(settings, **chosen))
        except MissingSettingsError as error:
            first = first or error
            more = {n: v for n, v in error.missing.items() if n not in missing}
            missing |= more
            if not more or not more.keys() <= _STAND_INS.keys():
                return Probe(None, first, missing, settings)
            chosen |= {
                name: _STAND_INS[name][0] if is_placeholder(value) else value
                for name, value in more.items()
            }
        except InputError as error:
            last = _STAND_INS["variance"][-1]
            if "variance" not in missing:
                raise  # the other stand-ins contradict no network
            if refused is not None:
                raise InputError(f"{refused}; with `variance={last}`: {error}") from error
            refused, chosen["variance"] = error, last
        else:
            return Probe(checkpoint, first, missing, settings)


_SIZE = 32
"""Height and width for counting, where they are not known."""


@dataclasses.dataclass(frozen=True)
class Call:
    """One evaluation of the network.

    Attributes:
        channels: of an image; None if they are not known.
        size: height and width.
        is_size_known: whether the checkpoint or a parameter says the size.
        flop: floating point operations; None if they could not be counted.
        counted_channels: of the image that it was counted with.
        uncounted: why they could not be counted.
    """

    channels: int | None = None
    size: ImageSize | None = None
    is_size_known: bool = False
    flop: int | None = None
    counted_channels: int | None = None
    uncounted: str | None = None


def call_of(probe: Probe, image_size: int | None) -> Call:
    """Shapes and arithmetic of one evaluation, without computing it.

    Args:
        probe: the checkpoint.
        image_size: height and width of an image, where the checkpoint does not say.

    Raises:
        InputError: the network takes no images of this size.
    """
    network, checkpoint = probe.network, probe.checkpoint
    if network is None:
        return Call()
    own = None if checkpoint is None else checkpoint.image_size
    multiple = 1 if checkpoint is None else checkpoint.size_multiple
    if type(network) is UNet:
        multiple = network.config.size_multiple
    if own is not None and image_size not in (None, own):
        raise InputError(f"`image_size={image_size}`: the checkpoint takes {size_words(own)}")
    size = own or image_size or -(-_SIZE // multiple) * multiple
    height, width = sides_of(size)
    if height % multiple or width % multiple:
        raise InputError(f"`image_size={size}`: the network takes multiples of {multiple}")
    is_known = own is not None or image_size is not None
    if type(network) is UNet:
        channels = network.config.in_channels
        return Call(channels, size, is_known, flop_of_unet(network, height, width), channels)
    assert checkpoint is not None
    return _counted(probe, checkpoint, Call(checkpoint.channels, size, is_known))


def _counted(probe: Probe, checkpoint: Checkpoint, call: Call) -> Call:
    """The same with its arithmetic, and with the channels where its output has as many."""
    channels = call.channels or _first_channels(checkpoint.network)
    if channels is None:
        return call
    assert call.size is not None
    sides = sides_of(call.size)
    inputs = [torch.zeros(1, channels, *sides), checkpoint.network_time(torch.ones(1).long())]
    if checkpoint.num_classes:
        inputs.append(torch.zeros(1, dtype=torch.int64))
    call = dataclasses.replace(call, counted_channels=channels)
    try:
        counted = calling(
            lambda: call_of_shapes(checkpoint.network, *inputs), "a call could not be counted"
        )
    except InputError as error:
        return dataclasses.replace(call, uncounted=str(error))
    outputs = {(1, channels, *sides)}
    if checkpoint.variance.is_learned or "variance" in probe.missing:
        outputs.add((1, 2 * channels, *sides))
    known = channels if counted.shape in outputs else call.channels
    return dataclasses.replace(call, channels=known, flop=counted.flop)


def _first_channels(network: nn.Module) -> int | None:
    """Input channels of its first convolution, which may be more than an image has."""
    convolutions = (part for part in network.modules() if isinstance(part, nn.Conv2d))
    first = next(convolutions, None)
    return None if first is None else first.in_channels


def refusal(probe: Probe, call: Call) -> str | None:
    """Why a run would refuse a network of the user's own; None if nothing speaks against it.

    A copy passes the network check if all settings and the shape of an image are known; otherwise
    only the parameters of its `forward` are checked.

    Args:
        probe: the checkpoint.
        call: one evaluation of its network.
    """
    checkpoint = probe.checkpoint
    if checkpoint is None or checkpoint.code is None:
        return None
    from ddpmbench.execution.network_check import check_network, refused_call

    why = refused_call(checkpoint.network, has_classes=bool(checkpoint.num_classes))
    if why is not None:
        return f"{checkpoint.network_name}: {why}"
    if probe.missing or not call.is_size_known or not (call.channels and call.size):
        return None
    try:
        copied = dataclasses.replace(checkpoint, network=copy.deepcopy(checkpoint.network))
    except Exception:  # of the user's own; a run does not copy it
        return None
    shape = (call.channels, *sides_of(call.size))
    try:
        check_network(copied, shape, device=torch.device("cpu"))
    except InputError as error:
        return str(error)
    return None
