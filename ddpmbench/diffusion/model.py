"""The record every reader returns: a network and what its numbers mean."""

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Self, TypeAlias

import torch
from torch import Tensor, nn

from ddpmbench.diffusion.data_range import UNIT_RANGE, DataRange
from ddpmbench.diffusion.process import GaussianDiffusion, Prediction, Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError
from ddpmbench.records import short_repr
from ddpmbench.unet.unet import UNet
from ddpmbench.user_code import OwnCode, OwnImports, own_process_state

ImageSize: TypeAlias = int | tuple[int, int]
"""Height and width; one number stands for both."""


def sides_of(size: ImageSize) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else size


def size_words(size: ImageSize) -> str:
    """As people write it, the width first: 32x16."""
    height, width = sides_of(size)
    return f"{width}x{height}"


_CONVERT = {
    (1, 3): "; --convert rgb repeats gray to RGB",
    (3, 1): "; --convert gray takes the luma of RGB",
}
ModelOutput = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Called as `Checkpoint.model_output` is, and gives what it gives, to some precision."""


class TimeInput(StrEnum):
    """What the network is given for step t = 1..T of the schedule it was trained on."""

    INDEX = "index"
    """t - 1"""
    ONE_BASED = "one-based"
    """t"""
    FRACTION = "fraction"
    """t / T"""
    RESCALED_1000 = "rescaled-1000"
    """(t - 1) 1000 / T"""


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained model, whatever family of files it came from.

    Attributes:
        network: called with x_t (B, C, H, W) and time (B,), and with labels (B,) where it is
            conditioned on classes; gives (B, C, H, W), or (B, 2C, H, W) where the variance is
            learned.
        schedule: the noise schedule evaluated, respaced or as trained.
        prediction: what the network outputs.
        variance: the variance of its reverse process.
        clip: whether the predicted x_start is clamped to the data's range.
        time_input: what the network is given for a step.
        data_range: the numbers an image is made of.
        weights: "ema" where they are averaged over the training, "raw" where they are its last;
            None if that is not known.
        part: where they are in a file that holds others of such a network, too; empty otherwise.
        channels: channels of an image; None if that is not known.
        image_size: height and width it was trained on, one number where they are equal; None if
            the file does not say.
        size_multiple: height and width of an image must be divisible by this.
        num_classes: classes it is conditioned on; 0 if none.
        null_class: the label that stands for none of them; None if there is no such label.
        family: the family of files.
        source: the path or hub id as given.
        sha256: of the file that holds the weights.
        files: the file that holds the weights, or its shards; empty where there is none.
        where: keys and prefix that lead to them in the file; empty where they are the file itself.
        code: the user's own code that builds the network, where it is not of this package.
        imports: where that code finds its own modules.
        training: the record of its training, where the file holds one.
        notes: what was settled by a preset or an option, a line each.
        sources: who says a setting, where it is neither the file nor an option: a library's
            default; by what `inspect` calls it.
    """

    network: nn.Module
    schedule: NoiseSchedule
    prediction: Prediction
    variance: Variance
    channels: int | None
    family: str
    source: str
    sha256: str
    files: tuple[str, ...] = ()
    where: str = ""
    clip: bool = True
    time_input: TimeInput = TimeInput.INDEX
    data_range: DataRange = UNIT_RANGE
    weights: str | None = None
    part: str = ""
    image_size: ImageSize | None = None
    size_multiple: int = 1
    num_classes: int = 0
    null_class: int | None = None
    code: OwnCode | None = None
    imports: OwnImports | None = None
    training: dict[str, object] | None = None
    notes: tuple[str, ...] = ()
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)

    __repr__ = short_repr

    @property
    def diffusion(self) -> GaussianDiffusion:
        """The process the network belongs to, with its tables on the CPU."""
        return GaussianDiffusion(
            self.schedule, self.prediction, self.variance, self.clip, self.data_range
        )

    @property
    def record(self) -> dict[str, object]:
        """Which model, where a result is kept."""
        found: dict[str, object] = {
            "source": self.source,
            "family": self.family,
            "sha256": self.sha256,
        }
        if self.files:
            # Below the folder that was named: where that lies is not the model's.
            found["files"] = [_below(file, self.source) for file in self.files]
        if self.weights is not None:
            found["weights"] = self.weights
        if self.where:
            found["where"] = self.where
        if self.sources:
            found["sources"] = dict(self.sources)
        if self.code is not None:
            found |= {"network": self.code.name, "network_sha256": self.code.sha256}
        return found

    @property
    def network_name(self) -> str:
        """What a line about its network begins with."""
        return f"network {self.source}" if self.code is None else f"--network {self.code.name}"

    def network_time(self, t: Tensor) -> Tensor:
        """The network's time input for steps t = 1..T of `schedule`, (B,) int64.

        It is of the kind that training code has: (B,) int64 where it counts steps, so that it may
        index an embedding, and float32 where it is a share of them.
        """
        original = self.schedule.original_timesteps.to(t.device)[t - 1]
        total = self.schedule.num_original_timesteps
        match self.time_input:
            case TimeInput.INDEX:
                return original - 1
            case TimeInput.ONE_BASED:
                return original
            case TimeInput.FRACTION:
                return original.float() / total
            case TimeInput.RESCALED_1000:
                return (original - 1).float() * (1000.0 / total)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Inside, code of the user's finds its own modules; see `own_process_state`."""
        if isinstance(self.network, UNet):
            yield
            return
        imports = contextlib.nullcontext() if self.imports is None else self.imports.inside()
        with own_process_state(), imports:
            yield

    def model_output(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """What the network gives for x_t.

        Args:
            x_t: (B, C, H, W), on the network's device.
            t: (B,) int64 steps in 1..T of `schedule`.
            labels: (B,) int64 classes, where the network is conditioned on them.

        Returns:
            (B, C, H, W), or (B, 2C, H, W) where the variance is learned.

        Raises:
            InputError: the network's output has another shape.
        """
        inputs = [x_t.float(), self.network_time(t)]
        if self.num_classes:
            assert labels is not None
            inputs.append(labels)
        output: Tensor = self.network(*inputs)
        self.check_output(output.shape, x_t.shape)
        return output

    def check_output(self, shape: torch.Size, of: torch.Size) -> None:
        """Raise InputError if an output of this shape is none for x_t of that, (B, C, H, W)."""
        batch, channels, *size = of
        expected = (batch, channels * (2 if self.variance.is_learned else 1), *size)
        if shape != expected:
            raise InputError(
                f"--ckpt {self.source}: the network's output is {tuple(shape)}, "
                f"a variance of {self.variance} takes {expected}"
            )

    def respaced(self, num_timesteps: int) -> Self:
        """The model that visits only evenly spaced steps."""
        schedule = self.schedule.respaced(num_timesteps)
        return dataclasses.replace(self, schedule=schedule)

    def with_process(
        self, *, schedule: NoiseSchedule | None = None, time_input: str | None = None
    ) -> Self:
        """The same weights with another schedule or time input; what is overridden is noted.

        Args:
            schedule: as it was trained; a respaced one is replaced whole.
            time_input: what the network is given for a step.
        """
        notes, result = list(self.notes), self
        if schedule is not None and not torch.equal(schedule.betas, self.schedule.betas):
            theirs, ours = (
                f"{s.name} of {s.num_timesteps:,} steps" for s in (self.schedule, schedule)
            )
            notes.append(f"--schedule: {ours} overrides {theirs}")
            result = dataclasses.replace(result, schedule=schedule)
        if time_input is not None and time_input != self.time_input:
            notes.append(f"--time-input {time_input} overrides {self.time_input}")
            result = dataclasses.replace(result, time_input=TimeInput(time_input))
        return dataclasses.replace(result, notes=tuple(notes))

    def with_conventions(
        self,
        *,
        prediction: str | None = None,
        variance: str | None = None,
        clip: bool | None = None,
        data_range: DataRange | None = None,
    ) -> Self:
        """The same weights read under other conventions; what is overridden is noted.

        Raises:
            InputError: the network has no output for the variance asked for.
        """
        notes, result = list(self.notes), self
        if prediction is not None and prediction != self.prediction:
            notes.append(f"--prediction {prediction} overrides {self.prediction}")
            result = dataclasses.replace(result, prediction=Prediction(prediction))
        if variance is not None and variance != self.variance:
            if Variance(variance).is_learned != self.variance.is_learned:
                has = "a" if self.variance.is_learned else "no"
                raise InputError(
                    f"--variance {variance}: this network has {has} variance output; "
                    f"the checkpoint's own is {self.variance}"
                )
            notes.append(f"--variance {variance} overrides {self.variance}")
            result = dataclasses.replace(result, variance=Variance(variance))
        if clip is not None and clip != self.clip:
            notes.append(f"--{'clip' if clip else 'no-clip'} overrides the checkpoint's own")
            result = dataclasses.replace(result, clip=clip)
        if data_range is not None and data_range != self.data_range:
            own = self.data_range
            if data_range.interval != own.interval:
                notes.append(f"--data-range {data_range.option} overrides {own.option}")
            if data_range.levels != own.levels:
                notes.append(f"--levels {data_range.levels} overrides {own.levels}")
            result = dataclasses.replace(result, data_range=data_range)
        return dataclasses.replace(result, notes=tuple(notes))

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digits that change with the weights, the network and its schedule.

        Of a network that is not the built-in U-Net the class's name is known, and the file and
        what in it builds it where `code` names them.
        """
        kind = type(self.network)
        config = self.network.config if isinstance(self.network, UNet) else None
        steps = self.schedule.original_timesteps.tolist()
        text = repr((self.sha256, kind.__module__, kind.__qualname__, config, steps))
        part = f" {self.part}" if self.part else ""
        digest = hashlib.sha256(f"{text} {self.time_input}{part}".encode())
        digest.update(self.schedule.betas.numpy().tobytes())
        if self.code is not None:
            digest.update(f"{self.code.sha256} {self.code.builder}".encode())
        return digest.hexdigest()

    def has_class(self, label: int) -> bool:
        """Whether it takes a label: one of its classes, or the one that stands for none."""
        return 0 <= label < self.num_classes or (label == self.null_class and self.num_classes > 0)

    @property
    def classes(self) -> str:
        """The labels that it takes, in words."""
        words = f"classes 0..{self.num_classes - 1}"
        return words if self.null_class is None else f"{words}, and {self.null_class} for none"

    def check_images(self, shape: tuple[int, ...], source: str) -> None:
        """Raise InputError if the network cannot take images of this shape, (C, H, W)."""
        channels, height, width = shape
        asked = (channels, self.channels or channels)
        if self.channels is not None and channels != self.channels:
            raise InputError(
                f"--data {source}: images have {channels} channels, "
                f"the checkpoint {self.source} takes {self.channels}{_CONVERT.get(asked, '')}"
            )
        if height % self.size_multiple or width % self.size_multiple:
            raise InputError(
                f"--data {source}: images are {width}x{height}, but the checkpoint {self.source} "
                f"takes only sizes divisible by {self.size_multiple}"
                f"{self._padding_remedy(height, width)}"
            )
        if self.image_size is not None and (height, width) != sides_of(self.image_size):
            raise InputError(
                f"--data {source}: images are {width}x{height}, the checkpoint {self.source} "
                f"was trained on {size_words(self.image_size)}{self._padding_remedy(height, width)}"
            )

    def _padding_remedy(self, height: int, width: int) -> str:
        """The option that makes images of this size fit by a border, where there is one."""
        multiple = self.size_multiple
        least = -(-max(height, width) // multiple) * multiple
        high, wide = (least, least) if self.image_size is None else sides_of(self.image_size)
        borders = (high - height, wide - width)
        fits = high == wide and min(borders) >= 0 and not any(b % 2 or b > 8 for b in borders)
        return f"; --pad {high} adds a black border" if fits else ""

    def to(self, device: torch.device) -> Self:
        """The same checkpoint, its network moved to another device."""
        self.network.to(device)
        return self


def _below(file: str, folder: str) -> str:
    path = Path(file)
    is_below = path.is_relative_to(folder) and path != Path(folder)
    return str(path.relative_to(folder)) if is_below else path.name
