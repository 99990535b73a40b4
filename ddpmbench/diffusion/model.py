"""`Checkpoint`: a trained network with its noise schedule and conventions."""

import contextlib
import copy
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ddpmbench.diffusion.continuous import ContinuousTime, divided, with_timesteps
from ddpmbench.diffusion.data_range import UNIT_RANGE, DataRange
from ddpmbench.diffusion.forward_process import log_scale, preconditioning
from ddpmbench.diffusion.parameterization import Prediction, Process, Variance
from ddpmbench.diffusion.parameterization import TimeInput as TimeInput
from ddpmbench.diffusion.process import GaussianDiffusion
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError, counted
from ddpmbench.records import short_repr
from ddpmbench.unet.unet import UNet
from ddpmbench.user_code import UserCode, UserModules, calling, restored_process_state

ImageSize: TypeAlias = int | tuple[int, int]
"""Height and width, or one number for both."""


def sides_of(size: ImageSize) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else size


def size_words(size: ImageSize) -> str:
    """The size in words, width first: 32x16."""
    height, width = sides_of(size)
    return f"{width}x{height}"


WRAPPED = "wrapped"
"""The family of a user's module in memory."""
_CONVERT = {
    (1, 3): "; `convert=rgb` repeats gray to RGB",
    (3, 1): "; `convert=gray` takes the luma of RGB",
}
ModelOutput = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""A function with the signature of `Checkpoint.model_output`."""


OUTPUT = "network_output"
"""The output of the network check in the identity of a run; see `same_output`."""
_OUTPUT_TOLERANCE = 0.01


def same_output(one: Sequence[float] | None, other: Sequence[float] | None) -> bool:
    """Whether the outputs of two network checks may be those of one network.

    They may differ by rounding on another device; None, for lack of memory, matches any.
    """
    if one is None or other is None:
        return True
    try:
        pairs = zip(one, other, strict=True)
        return all(abs(a - b) <= _OUTPUT_TOLERANCE for a, b in pairs)
    except (TypeError, ValueError):  # of other lengths, or no numbers in a file of another project
        return False


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained diffusion model: a network, its noise schedule, and the conventions between them.

    The reverse process of `diffusion` is p(x_{t-1} | x_t) = N(mu(x_t, t), sigma_t^2), where mu is
    computed from the network's output as `prediction` states and sigma_t^2 is `variance`.

    Attributes:
        network: called with x_t (B, C, H, W) and time (B,), and with labels (B,) where it is
            conditioned on classes; returns (B, C, H, W), or (B, 2C, H, W) where the variance is
            learned.
        schedule: the noise schedule that is evaluated, as trained or respaced.
        prediction: the quantity that the network predicts.
        variance: the variance of the reverse process.
        channels: C; None if unknown.
        family: the family of files, such as "native" or "diffusers".
        source: the path or hub id as given.
        sha256: of the file of weights.
        files: the paths of the weights, one or several shards; empty if there is no file.
        where: the keys and the prefix of the weights in the file; empty if the file holds nothing
            else.
        clip: whether the predicted x_start is clamped to the data's range.
        time_input: the network's time input at timestep t.
        data_range: the range and the number of levels of a pixel.
        weights: "ema" for an average over the training, "raw" for the last weights; None if
            unknown.
        part: `where`, if the file also holds other weights of such a network; else empty.
        image_size: height and width in training, one number if they are equal; None if unknown.
        size_multiple: height and width of an image must be divisible by this.
        num_classes: number of classes of a conditional model; 0 if unconditional.
        null_class: the label for no class, if any.
        code: the user's code that builds the network; None for other families.
        modules: the modules that this code imports from its folders.
        again: reads the checkpoint again by running this code again; gives None if the files have
            changed.
        output_numbers: a few numbers that identify the output of the network check; see
            `check_network`. Empty before the check, without the memory for it, and for the U-Net of
            this package.
        training: the record of the training, if the file has one.
        notes: a line for each setting from a preset or an option, and for each doubtful one.
        sources: the source of each setting that neither the file nor an option states, such as a
            library's default; by the setting's name in `inspect`.
    """

    network: nn.Module
    schedule: NoiseSchedule
    prediction: Prediction
    variance: Variance
    channels: int | None
    family: str = ""
    source: str = ""
    sha256: str = ""
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
    code: UserCode | None = None
    modules: UserModules | None = None
    again: "Callable[[], Checkpoint | None] | None" = None
    output_numbers: tuple[float, ...] = ()
    training: dict[str, object] | None = None
    notes: tuple[str, ...] = ()
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)

    __repr__ = short_repr

    @property
    def diffusion(self) -> GaussianDiffusion:
        """The diffusion process, with its tables on the CPU."""
        return GaussianDiffusion(
            self.schedule, self.prediction, self.variance, self.clip, self.data_range
        )

    @property
    def record(self) -> dict[str, object]:
        """The model in the record of a result."""
        record: dict[str, object] = {
            "source": self.source,
            "family": self.family,
            "sha256": self.sha256,
        }
        if self.files:
            # Relative to the named folder: its location is no property of the model.
            record["files"] = [_below(file, self.source) for file in self.files]
        if self.weights is not None:
            record["weights"] = self.weights
        if self.where:
            record["where"] = self.where
        if self.sources:
            record["sources"] = dict(self.sources)
        if self.code is not None:
            record |= {"network": self.code.name, "network_sha256": self.code.sha256}
        return record

    @property
    def network_name(self) -> str:
        """The name of the network, to begin an error message."""
        return f"network {self.source}" if self.code is None else f"`network={self.code.name}`"

    def network_time(self, t: Tensor) -> Tensor:
        """The network's time input at timesteps t = 1..T of `schedule`.

        Args:
            t: (B,) int64.

        Returns:
            (B,) int64 for "index", "one-based" and "reversed-index", which may index an embedding;
            float32 for the others.
        """
        if self.time_input.is_of_noise:
            return self._noise_input(self._log_snr(t))
        original = self.schedule.original_timesteps
        if original.is_floating_point():
            original = original.float()  # not every device has float64
        return self.time_at(original.to(t.device)[t - 1])

    def time_at(self, original: Tensor) -> Tensor:
        """The network's time input at timesteps of the schedule that it was trained on.

        Args:
            original: (B,) int64, or floating point between timesteps.

        Returns:
            (B,) see `network_time`; float32 between timesteps.
        """
        if self.time_input.is_of_noise:
            return self._noise_input(self._log_snr_between(original))
        if original.is_floating_point():
            original = original.float()
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
            case TimeInput.REVERSED_INDEX:
                return total - original
        raise AssertionError(self.time_input)  # those of the noise are above

    def network_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x_t at the scale of the network's input; see `diffusion.forward_process`.

        The scale is that of the process or of EDM's preconditioning.

        Args:
            x_t: (B, C, H, W) of unit scale.
            t: (B,) as `model_output` takes them.

        Returns:
            (B, C, H, W) float32.
        """
        is_edm = self.prediction is Prediction.EDM
        if self.schedule.process is Process.VP and not is_edm:
            return x_t.float()
        log_snr = self._log_snr_between(t) if t.is_floating_point() else self._log_snr(t)
        if is_edm:
            *_, scale = preconditioning(log_snr)
        else:
            scale = log_scale(self.schedule.process, log_snr).exp()
        return (scale[:, None, None, None].to(x_t.dtype) * x_t).float()

    def _noise_input(self, log_snr: Tensor) -> Tensor:
        """(B,) float32, the time input at a log SNR, if it is a function of the noise."""
        if self.time_input is TimeInput.LOG_SNR:
            return log_snr.float()
        if self.prediction is Prediction.EDM:
            log_sigma = -0.5 * log_snr  # s / a, whatever the process
        else:
            # s of a^2 + s^2 = 1, at the scale of x_t
            log_sigma = 0.5 * logsigmoid(-log_snr) + log_scale(self.schedule.process, log_snr)
        match self.time_input:
            case TimeInput.LOG_SIGMA:
                return log_sigma.float()
            case TimeInput.QUARTER_LOG_SIGMA:
                return (log_sigma / 4).float()
        return log_sigma.exp().float()

    def _log_snr(self, t: Tensor) -> Tensor:
        """(B,) log SNR at int64 timesteps in 1..T of `schedule`."""
        if t.device not in self._log_snr_tables:
            dtype = torch.float32 if t.device.type == "mps" else torch.float64
            self._log_snr_tables[t.device] = self.schedule.log_snr.to(t.device, dtype)
        return self._log_snr_tables[t.device][t - 1]

    def _log_snr_between(self, original: Tensor) -> Tensor:
        """(B,) log SNR at and between timesteps of the schedule that it was trained on."""
        exact = original.double() if original.device.type != "mps" else original.float()
        return self._time.log_snr_at(exact)

    @cached_property
    def _log_snr_tables(self) -> dict[torch.device, Tensor]:
        """Tables by device: a step that is captured as a graph must copy nothing."""
        return {}

    @cached_property
    def _time(self) -> ContinuousTime:
        return ContinuousTime(self.as_trained.schedule)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Inside, user code can import its modules; see `restored_process_state`."""
        if isinstance(self.network, UNet):
            yield
            return
        modules = contextlib.nullcontext() if self.modules is None else self.modules.importable()
        with restored_process_state(), modules:
            yield

    def model_output(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The network's output at x_t.

        Args:
            x_t: (B, C, H, W) of unit scale, on the network's device; see `network_input`.
            t: (B,) int64 timesteps in 1..T of `schedule`; or floating point, at or between
                timesteps of the schedule that the network was trained on.
            labels: (B,) int64 classes, where the network is conditioned on them.

        Returns:
            (B, C, H, W), or (B, 2C, H, W) where the variance is learned.

        Raises:
            InputError: the output has another shape.
        """
        time = self.time_at(t) if t.is_floating_point() else self.network_time(t)
        inputs = [self.network_input(x_t, t), time]
        if self.num_classes:
            assert labels is not None
            inputs.append(labels)
        output: Tensor = self.network(*inputs)
        self.check_output(output.shape, x_t.shape)
        return output

    def check_output(self, shape: torch.Size, of: torch.Size) -> None:
        """Raise InputError if an output for x_t of shape `of`, (B, C, H, W), has another shape."""
        doubled = (of[0], 2 * of[1], *of[2:])
        expected = doubled if self.variance.is_learned else tuple(of)
        if shape == expected:
            return
        remedy = "let forward return the prediction alone, with the channels and the size of x_t"
        if shape == doubled:
            remedy = "if half of it is a variance, choose `variance=learned_range` or learned"
        elif self.variance.is_learned and shape == of:
            remedy = "it has no variance: choose `variance=fixed_small` or fixed_large"
        elif self.variance.is_learned:
            remedy = "let forward return the prediction and the variance, joined as channels"
        raise InputError(
            f"{self.network_name}: gives {tuple(shape)} for x_t of {tuple(of)}; with "
            f"`variance={self.variance}` it takes {expected}; {remedy}"
        )

    def respaced(self, num_timesteps: int) -> Self:
        """The model that visits `num_timesteps` evenly spaced timesteps.

        With more timesteps than in training the network is evaluated at fractional ones; see
        `refined`.
        """
        schedule = with_timesteps(self.schedule, num_timesteps)
        if schedule.trained is not None and self.variance is Variance.LEARNED:
            raise InputError(
                f"`timesteps={num_timesteps}`: the network gives the variances of its own "
                f"{self.schedule.num_timesteps} timesteps; choose at most as many"
            )
        return dataclasses.replace(self, schedule=schedule)

    def in_continuous_time(self) -> Self:
        """The model with the bound in continuous time; see `likelihood.continuous`."""
        return dataclasses.replace(self, schedule=divided(self.schedule))

    @property
    def as_trained(self) -> Self:
        """The model at its trained timesteps, if it is evaluated between them."""
        trained = self.schedule.trained
        return self if trained is None else dataclasses.replace(self, schedule=trained)

    @property
    def settings(self) -> dict[str, object]:
        """Its conventions by the names of settings, with values in the spelling of options."""
        names = ("prediction", "variance", "clip", "time_input")
        own = {name: getattr(self, name) for name in names}
        return {**own, "data_range": self.data_range.option, "levels": self.data_range.levels}

    def with_conventions(
        self,
        *,
        schedule: NoiseSchedule | None = None,
        prediction: str | None = None,
        variance: str | None = None,
        clip: bool | None = None,
        time_input: str | None = None,
        data_range: DataRange | None = None,
    ) -> Self:
        """The model with another schedule or other conventions, and a note on each override.

        None leaves the model's own.

        Raises:
            InputError: the network has no output for this variance.
        """
        given = {
            "prediction": None if prediction is None else Prediction(prediction),
            "variance": None if variance is None else Variance(variance),
            "clip": clip,
            "time_input": None if time_input is None else TimeInput(time_input),
            "data_range": data_range,
        }
        changes: dict[str, Any] = {n: value for n, value in given.items() if value is not None}
        wanted = changes.get("variance", self.variance)
        if wanted.is_learned != self.variance.is_learned:
            has = "a" if self.variance.is_learned else "no"
            raise InputError(
                f"`variance={wanted}`: this network has {has} variance output; "
                f"the checkpoint's own is {self.variance}"
            )
        notes = [*self.notes]
        if schedule is not None and not schedule.is_same_process(self.schedule):
            theirs, ours = (
                f"{s.name} of {s.num_timesteps:,} steps" for s in (self.schedule, schedule)
            )
            apart = betas_apart(schedule, self.schedule) if theirs == ours else ""
            notes.append(f"`schedule`: {ours} overrides {theirs}{apart}")
            changes["schedule"] = schedule
        other = dataclasses.replace(self, **changes)
        for name, own in self.settings.items():
            if (value := other.settings[name]) != own:
                shown = "the checkpoint's own" if name == "clip" else own
                notes.append(f"`{name}={value}` overrides {shown}")
        return dataclasses.replace(other, notes=tuple(notes))

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal digits, of the weights, the network and its schedule.

        The U-Net of this package is identified by its configuration; another network by the name of
        its class, the user's file and NAME, and the modules beside it that were imported to build
        it. See also `identity`.
        """
        kind = type(self.network)
        config = self.network.config if isinstance(self.network, UNet) else None
        steps = self.schedule.original_timesteps.tolist()
        if self.schedule.is_continuous:
            steps.append("continuous")
        if self.schedule.process is not Process.VP:
            steps.append(str(self.schedule.process))
        text = repr((self.sha256, kind.__module__, kind.__qualname__, config, steps))
        part = f" {self.part}" if self.part else ""
        digest = hashlib.sha256(f"{text} {self.time_input}{part}".encode())
        digest.update(self.schedule.betas.numpy().tobytes())
        if self.code is not None:
            digest.update(f"{self.code.sha256} {self.code.builder} {self.code.imported}".encode())
        return digest.hexdigest()

    @property
    def identity(self) -> dict[str, object]:
        """The model in the identity of a run: the fingerprint, and its output if known."""
        output = {OUTPUT: list(self.output_numbers)} if self.output_numbers else {}
        return {"network": self.fingerprint, **output}

    def has_class(self, label: int) -> bool:
        """Whether a label is one of the classes, or the null class."""
        return 0 <= label < self.num_classes or (label == self.null_class and self.num_classes > 0)

    @property
    def classes(self) -> str:
        """The labels in words."""
        words = f"classes 0..{self.num_classes - 1}"
        return words if self.null_class is None else f"{words}, and {self.null_class} for none"

    def image_shape(self, size: ImageSize | None = None) -> tuple[int, int, int]:
        """(C, H, W) of an image.

        Args:
            size: height and width, if the checkpoint does not say.

        Raises:
            InputError: it says another size, or nothing says the size or the channels.
        """
        own = self.image_size
        if size is not None and own is not None and size != own:
            raise InputError(
                f"`image_size={size}`: {self.network_name} was trained on {size_words(own)}; leave "
                "it out"
            )
        if (size := size or own) is not None and self.channels is not None:
            return self.channels, *sides_of(size)
        unknown, remedies = [], []
        if size is None:
            unknown.append("how large its images are")
            remedies.append("pass their height and width as `image_size`")
        if self.channels is None:
            unknown.append(f"how many channels {'they' if unknown else 'its images'} have")
            remedies.append(
                "pass `channels` to wrap_network"
                if self.family == WRAPPED
                else "give the network that its code builds an attribute image_channels = 3"
            )
        raise InputError(
            f"{self.network_name}: does not say {' and '.join(unknown)}; {', and '.join(remedies)}"
        )

    def check_images(self, shape: tuple[int, ...], source: str) -> None:
        """Raise InputError if the network cannot take images of this shape, (C, H, W)."""
        channels, height, width = shape
        conversion = (channels, self.channels or channels)
        if self.channels is not None and channels != self.channels:
            raise InputError(
                f"`data={source}`: images have {counted(channels, 'channel')}, "
                f"the checkpoint {self.source} takes {self.channels}{_CONVERT.get(conversion, '')}"
            )
        if height % self.size_multiple or width % self.size_multiple:
            raise InputError(
                f"`data={source}`: images are {width}x{height}, but the checkpoint {self.source} "
                f"takes only sizes divisible by {self.size_multiple}"
                f"{self._padding_remedy(height, width)}"
            )
        if self.image_size is not None and (height, width) != sides_of(self.image_size):
            raise InputError(
                f"`data={source}`: images are {width}x{height}, the checkpoint {self.source} "
                f"was trained on {size_words(self.image_size)}{self._padding_remedy(height, width)}"
            )

    def _padding_remedy(self, height: int, width: int) -> str:
        """The remedy to pad images of this size with a border; empty if no border helps."""
        multiple = self.size_multiple
        least = -(-max(height, width) // multiple) * multiple
        high, wide = (least, least) if self.image_size is None else sides_of(self.image_size)
        borders = (high - height, wide - width)
        fits = high == wide and min(borders) >= 0 and not any(b % 2 or b > 8 for b in borders)
        return f"; `pad={high}` adds a black border" if fits else ""

    def to(self, device: torch.device) -> Self:
        """The same checkpoint with its network on a device.

        A wrapped module of the user's stays on its device; a copy moves instead.

        Raises:
            InputError: it cannot be copied.
        """
        tensors = [*self.network.parameters(), *self.network.buffers()]
        is_on_device = all(
            tensor.device.type == device.type and device.index in (None, tensor.device.index)
            for tensor in tensors
        )
        if is_on_device:
            return self
        if self.family != WRAPPED:
            self.network.to(device)
            return self
        who = f"{self.network_name}: cannot be copied to {device} (move it there yourself)"
        network = calling(lambda: copy.deepcopy(self.network).to(device), who)
        return dataclasses.replace(self, network=network)


def betas_apart(one: NoiseSchedule, other: NoiseSchedule) -> str:
    """Where two schedules of one length differ most, to end a message."""
    t = int((one.betas / other.betas).log().abs().argmax())
    values = float(one.betas[t]), float(other.betas[t])
    ours, theirs = (f"{value:.6g}" for value in values)
    if ours == theirs:
        ours, theirs = map(repr, values)
    return f", with beta {ours} at t = {t + 1:,}, not {theirs}"


def _below(file: str, folder: str) -> str:
    path = Path(file)
    is_below = path.is_relative_to(folder) and path != Path(folder)
    return str(path.relative_to(folder)) if is_below else path.name
