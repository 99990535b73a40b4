"""Samples of a checkpoint: what determines them, their computation, and their files."""

import dataclasses
import functools
import hashlib
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddpmbench.checksums import DamageError, is_whole, reading, write_npz
from ddpmbench.data import array_files
from ddpmbench.data.images import ImageSet, PositionIds
from ddpmbench.diffusion.data_range import EightBit
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.errors import LARGEST_SEED, InputError, instance_of, one_of, whole_number
from ddpmbench.execution.devices import available_memory
from ddpmbench.execution.engine import Engine
from ddpmbench.execution.engine_choice import NetworkUse, settled_engine
from ddpmbench.execution.folder import SHARDS
from ddpmbench.execution.network_check import check_continuous
from ddpmbench.execution.session import Session
from ddpmbench.execution.store import Arrays, FolderStore, Store, gathered, num_missing
from ddpmbench.execution.worker import Worker
from ddpmbench.files import replacing, writing_to
from ddpmbench.samples.chain import SamplingStep
from ddpmbench.samples.samplers import USES_VARIANCE, Sampler, SamplerChoice
from ddpmbench.unet.timed_unet import Precision
from ddpmbench.user_code import user_errors

Pixels = NDArray[np.uint8]
SAMPLES = "samples.npz"
SAMPLES_STORE = "samples"


def write_samples(path: Path, pixels: Pixels, labels: NDArray[np.int64] | None) -> None:
    """Write images in the format of published evaluations: arr_0 uint8 NHWC, arr_1 the labels.

    Args:
        path: an .npz; written atomically, and identical for identical images.
        pixels: (N, C, H, W).
        labels: (N,) classes, if any.

    Raises:
        InputError: the file cannot be written.
    """
    # A transposed view is written in portions.
    arrays = {"arr_0": pixels.transpose(0, 2, 3, 1), "arr_1": labels}
    with writing_to(path.parent), replacing(path) as temporary:
        write_npz(temporary, {name: of for name, of in arrays.items() if of is not None})


def read_samples(path: Path, num_images: int | None = None) -> ImageSet:
    """The samples in a file of `write_samples`, or the first of them.

    Raises:
        InputError: it is missing or damaged.
    """
    with reading(path):
        if not is_whole(path):
            raise DamageError("its checksum does not hold")
        return array_files.read_npz(path, num_images)


def write_pngs(folder: Path, pixels: Pixels) -> None:
    """Write each image as a PNG named by its index; existing files are kept.

    Raises:
        InputError: the folder cannot be written.
    """
    from PIL import Image

    with writing_to(folder.parent):
        folder.mkdir(exist_ok=True)
        for index, image in enumerate(pixels):
            place = folder / f"{index:06d}.png"
            if not place.exists():
                array = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
                with replacing(place) as temporary:
                    Image.fromarray(np.ascontiguousarray(array)).save(temporary, format="PNG")


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """Settings of samples.

    Attributes:
        sampler: the sampler and its settings.
        eight_bit: how samples become 8-bit pixels.
        image_size: height and width, where the checkpoint has none.
        label: the class of all samples; None cycles through the classes.
        seed: seed of the noise, 0 <= seed < 2^64.
        precision: precision of the network.

    Raises:
        InputError: a value has another type, or is out of range.
    """

    sampler: SamplerChoice = dataclasses.field(default_factory=SamplerChoice)
    eight_bit: EightBit = EightBit.ROUND
    image_size: int | None = None
    label: int | None = None
    seed: int = 0
    precision: Precision = Precision.FP32

    def __post_init__(self) -> None:
        """Check types; numpy integers become ints, names become members."""
        instance_of("sampler", self.sampler, SamplerChoice, 'write SamplerChoice("ddim")')
        one_of("eight_bit", self.eight_bit, EightBit)
        one_of("precision", self.precision, Precision)
        values = {
            "eight_bit": EightBit(self.eight_bit),
            "precision": Precision(self.precision),
            "seed": whole_number("seed", self.seed, 0, LARGEST_SEED),
        }
        for name, least in (("label", 0), ("image_size", 1)):
            if (value := getattr(self, name)) is not None:
                values[name] = whole_number(name, value, least)
        for name, value in values.items():
            object.__setattr__(self, name, value)


@dataclasses.dataclass(frozen=True, eq=False)
class Generation:
    """Samples of a checkpoint: sample i is a function of the checkpoint, the settings and i.

    Attributes:
        checkpoint: the model.
        settings: the sampler, the seed and the conversion to pixels.

    Raises:
        InputError: the two do not go together.
    """

    checkpoint: Checkpoint
    settings: SampleSettings

    def __post_init__(self) -> None:
        """Refuse settings that the checkpoint does not support."""
        label = self.settings.label
        if label is not None and not self.checkpoint.has_class(label):
            has_any = self.checkpoint.num_classes > 0
            classes = self.checkpoint.classes if has_any else "no classes; leave it out"
            raise InputError(f"`label={label}`: the checkpoint has {classes}")
        self.checkpoint.check_images(self.shape, "samples")
        self.settings.sampler.check(self.checkpoint)

    @property
    def num_evaluations(self) -> int:
        """Network evaluations per sample."""
        return self.settings.sampler.num_evaluations(self.checkpoint.schedule)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a sample.

        Raises:
            InputError: neither the checkpoint nor the settings specify it.
        """
        return self.checkpoint.image_shape(self.settings.image_size)

    def labels(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """(B,) the classes of the samples with these indices."""
        if self.settings.label is not None:
            return np.full(len(index), self.settings.label, np.int64)
        return index % self.checkpoint.num_classes

    @property
    def record(self) -> dict[str, Any]:
        """The settings that comparable samples share."""
        schedule, sampler = self.checkpoint.schedule, self.settings.sampler
        uses_variance = sampler.method in USES_VARIANCE
        return {
            "method": sampler.method,
            "variance": str(self.checkpoint.variance) if uses_variance else None,
            "clip": self.checkpoint.clip,
            "num_timesteps": schedule.num_timesteps,
            "num_original_timesteps": schedule.num_original_timesteps,
            "schedule": schedule.name,
            "prediction": str(self.checkpoint.prediction),
            "eta": None,
            "added_noise": None,
            **sampler.record,
            "num_evaluations": self.num_evaluations,
            "labels": self._classes,
            **self.checkpoint.data_range.record,
        }

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that determines a sample, besides its index."""
        data_range = self.checkpoint.data_range
        sampler_fields = {n: v for n, v in self.record.items() if n not in data_range.record}
        sampler_fields |= data_range.identity
        return {
            # Options first, since messages name the first difference.
            **{f"sampler.{name}": value for name, value in sampler_fields.items()},
            "eight_bit": str(self.settings.eight_bit),
            "shape": list(self.shape),
            "seed": self.settings.seed,
            "checkpoint": self.checkpoint.sha256,
            **self.checkpoint.identity,
            "schedule_sha256": _sha256(self.checkpoint.schedule.log_alphas_cumprod),
            "time_input": str(self.checkpoint.time_input),
            "precision": str(self.settings.precision),
        }

    def begun(self, session: Session, parameter: str, num_samples: int) -> "Generation":
        """The same with the checkpoint on the device, after the network check.

        Args:
            session: the session of the run.
            parameter: the name of the number of samples, for messages.
            num_samples: the number of samples.

        Raises:
            InputError: there is not enough room; or see `check_network`.
        """
        session.ranks.once(lambda: check_room(parameter, num_samples, self.shape, session.out))
        checked = session.checked(self.checkpoint, self.shape)
        if self.settings.sampler.is_fractional:
            remedy = "leave out `solver_steps`"
            session.ranks.once(
                lambda: check_continuous(checked, self.shape, session.device, remedy=remedy)
            )
        return dataclasses.replace(self, checkpoint=checked)

    def engine(
        self,
        num_samples: int,
        session: Session,
        *,
        batch_size: int | None,
        note: Callable[[str], None],
    ) -> Engine:
        """The engine for this number of samples; see `settled_engine`."""
        num_evaluations = num_samples * self.num_evaluations
        if self.settings.sampler.is_fractional and not self.checkpoint.time_input.is_of_noise:
            note("the sampler evaluates the network between the timesteps that it was trained on")
        return settled_engine(
            self.checkpoint,
            NetworkUse(self.shape, num_evaluations // session.ranks.count, batch_size),
            session,
            precision=self.settings.precision,
            note=note,
        )

    def images(self, num_samples: int, store: Store, *, source: str = SAMPLES) -> ImageSet:
        """Samples 0..N - 1 of a store, with their classes if there are any."""
        index = np.arange(num_samples)
        labels = self.labels(index) if self.checkpoint.num_classes else None
        pixels = gathered(store, "pixels", num_samples)
        return ImageSet(pixels, PositionIds(range(num_samples)), source, labels)

    @property
    def _classes(self) -> str | None:
        if not self.checkpoint.num_classes:
            return None
        label = self.settings.label
        return f"i mod {self.checkpoint.num_classes}" if label is None else f"class {label}"


@dataclasses.dataclass(frozen=True, eq=False)
class SamplesRun:
    """Computes samples.

    Attributes:
        generation: determines them.
        engine: evaluates the network.
        worker: computes missing samples in batches.
    """

    generation: Generation
    engine: Engine
    worker: Worker

    @functools.cached_property
    def sampler(self) -> Sampler:
        """The sampler with its engine."""
        settings = self.generation.settings
        sampler = settings.sampler.prepare(
            self.generation.checkpoint,
            seed=settings.seed,
            device=self.engine.device,
            model_output=self.engine.model_output,
        )
        return sampler.launched(self.engine.whole_step)

    def compute(self, num_samples: int, store: Store) -> None:
        """Compute the `pixels` of samples 0..N - 1 that a store lacks.

        Raises:
            InputError: a sample is not finite; or see `Worker.map_chunks`.
            ProcessLostError: another process has stopped.
        """
        cost = self.generation.num_evaluations
        self.worker.listener.start(num_missing(store, num_samples) * cost)
        with user_errors(self.generation.checkpoint.network_name), self.engine.running():
            self.worker.map_chunks(self.samples, store, num_samples, cost=cost)

    def samples(self, index: NDArray[np.int64], report: Callable[[int], None]) -> Arrays:
        """(B, C, H, W) uint8 `pixels` of the samples of these indices."""
        done = 0
        for step in self.steps(index):
            done += step.num_evaluations
            report(len(index) * done)
        data_range = self.sampler.diffusion.data_range
        pixels = data_range.to_pixels(step.x_previous, EightBit(self.generation.settings.eight_bit))
        return {"pixels": pixels.cpu().numpy()}

    def steps(self, index: NDArray[np.int64]) -> Iterator[SamplingStep]:
        """The steps of the samples of these indices, from t = T down."""
        device, generation = self.worker.device, self.generation
        sample, labels = torch.from_numpy(index).to(device), None
        if generation.checkpoint.num_classes:
            labels = torch.from_numpy(generation.labels(index)).to(device)
        x_t = self.sampler.start(sample, generation.shape)
        last = generation.checkpoint.schedule.num_timesteps
        return self.sampler.steps(x_t, last, sample=sample, labels=labels)


_SPARE = 2
"""The recommended number leaves as much space free as it takes, for figures, features and temporary
files."""


def check_room(parameter: str, count: int, shape: tuple[int, int, int], out: Path | None) -> None:
    """Refuse more samples than there is room for.

    They are stored as shards and as one file in the run folder, or in memory without a folder.

    Args:
        parameter: the name of the number of samples.
        count: number of samples.
        shape: (C, H, W) of each, 8 bits per value.
        out: the run folder, which need not exist; None if the run is kept in memory.

    Raises:
        InputError: there is not enough room; the message has the number that fits.
    """
    each = math.prod(shape)
    if out is None:
        medium, num_stored, copies, free = "memory", 0, 1, available_memory()
    else:
        num_stored = count - num_missing(FolderStore(out / SHARDS, SAMPLES_STORE), count)
        medium, copies, free = "disk", 2, _free(out)
    needs = (copies * count - num_stored) * each
    fits = free // (copies * each)
    most = max(fits // _SPARE, min(fits, 1))
    if needs > free:
        other = "name another `out`" if out is not None else "name an `out`, on disk"
        none = f"there is no room for one; free some, or {other}"
        remedy = f"choose at most {most}" if most else none
        raise InputError(
            f"`{parameter}={count}`: takes {needs / 1e9:,.1f} GB of {medium}, and "
            f"{free / 1e9:,.1f} GB are free; {remedy}"
        )


def _free(out: Path) -> int:
    """Free bytes on the disk of the folder, which need not exist."""
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def _sha256(table: torch.Tensor) -> str:
    return hashlib.sha256(table.numpy().tobytes()).hexdigest()
