"""Samples of a checkpoint as a run makes them: of what shape and classes, and by which sampler."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddpmbench.errors import InputError
from ddpmbench.inputs.checkpoints.checkpoint import Checkpoint
from ddpmbench.inputs.checkpoints.image_size import sides_of, size_words
from ddpmbench.network.precision import Precision
from ddpmbench.process.units import EightBit
from ddpmbench.quality.sampling import SamplerChoice
from ddpmbench.runs.batch_size import BatchSize
from ddpmbench.runs.distributed import Ranks
from ddpmbench.runs.engine import Engine
from ddpmbench.runs.engine_choice import NetworkUse, settled_engine
from ddpmbench.runs.parts_run import PartsRun
from ddpmbench.runs.rows import RunListener
from ddpmbench.runs.samples import SamplesRun


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """How samples are made.

    Attributes:
        sampler: which, and its settings.
        eight_bit: how they become 8-bit pixels.
        image_size: height and width where the checkpoint does not say.
        label: the class of all samples; None takes the classes in turn.
        seed: of the noise, 0 <= seed < 2^64.
        precision: of the network.
    """

    sampler: SamplerChoice = dataclasses.field(default_factory=SamplerChoice)
    eight_bit: EightBit = EightBit.ROUND
    image_size: int | None = None
    label: int | None = None
    seed: int = 0
    precision: Precision = Precision.FP32


@dataclasses.dataclass(frozen=True, eq=False)
class Generation:
    """Samples of a checkpoint: sample i is a function of these, its seed and i.

    Attributes:
        checkpoint: the model.
        settings: how it is sampled.

    Raises:
        InputError: they do not go together.
    """

    checkpoint: Checkpoint
    settings: SampleSettings

    def __post_init__(self) -> None:
        """Refuse settings that the checkpoint does not have."""
        seed, label = self.settings.seed, self.settings.label
        if not isinstance(seed, int) or not 0 <= seed < 2**64:
            raise InputError(f"--seed {seed}: choose a whole number from 0 to 2^64 - 1")
        if label is not None and not self.checkpoint.has_class(label):
            has = (
                self.checkpoint.classes
                if self.checkpoint.num_classes
                else "no classes; leave it out"
            )
            raise InputError(f"--class {label}: the checkpoint has {has}")
        self.checkpoint.check_images(self.shape, "samples")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a sample.

        Raises:
            InputError: the checkpoint does not say, and no one else does.
        """
        checkpoint, wanted = self.checkpoint, self.settings.image_size
        size = checkpoint.image_size if wanted is None else wanted
        if size is None:
            raise InputError(
                f"--ckpt {checkpoint.source}: does not say how large its images are; name their "
                "height and width with --image-size"
            )
        if checkpoint.image_size is not None and checkpoint.image_size != size:
            raise InputError(
                f"--image-size {size}: the checkpoint {checkpoint.source} was trained on "
                f"{size_words(checkpoint.image_size)}; leave it out"
            )
        if checkpoint.channels is None:
            raise InputError(
                f"--ckpt {checkpoint.source}: does not say how many channels its images have; a "
                "network of one's own does by an attribute, image_channels = 3"
            )
        return checkpoint.channels, *sides_of(size)

    def labels(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """(B,) the classes of the samples with these indices."""
        if self.settings.label is not None:
            return np.full(len(index), self.settings.label, np.int64)
        return index % self.checkpoint.num_classes

    @property
    def record(self) -> dict[str, Any]:
        """What makes samples comparable."""
        schedule, sampler = self.checkpoint.schedule, self.settings.sampler
        is_ancestral = sampler.method == "ancestral"
        return {
            "method": sampler.method,
            "variance": str(self.checkpoint.variance) if is_ancestral else None,
            "clip": self.checkpoint.clip,
            "num_timesteps": schedule.num_timesteps,
            "num_original_timesteps": schedule.num_original_timesteps,
            "schedule": schedule.name,
            "prediction": str(self.checkpoint.prediction),
            "eta": None if is_ancestral else sampler.eta or 0.0,
            "added_noise": str(sampler.added_noise) if is_ancestral else None,
            "labels": self._classes,
            **self.checkpoint.data_range.record,
        }

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that determines a sample, besides its index."""
        data_range = self.checkpoint.data_range
        of_sampler = {n: v for n, v in self.record.items() if n not in data_range.record}
        of_sampler |= data_range.identity
        return {
            # First what an option says: it is the first difference that is named.
            **{f"sampler.{name}": value for name, value in of_sampler.items()},
            "eight_bit": str(self.settings.eight_bit),
            "shape": list(self.shape),
            "seed": self.settings.seed,
            "checkpoint": self.checkpoint.sha256,
            "network": self.checkpoint.fingerprint,
            "schedule_sha256": _sha256(self.checkpoint.schedule.log_alphas_cumprod),
            "time_input": str(self.checkpoint.time_input),
            "precision": str(self.settings.precision),
        }

    @property
    def checkpoint_record(self) -> dict[str, object]:
        """Which model."""
        return self.checkpoint.record

    def engine(
        self,
        num_samples: int,
        device: torch.device,
        *,
        batch_size: int | None,
        folder: Path | None,
        ranks: Ranks,
    ) -> Engine:
        """What calls the network for so many samples; see `settled_engine`."""
        calls = num_samples * self.checkpoint.schedule.num_timesteps
        return settled_engine(
            self.checkpoint,
            NetworkUse(self.shape, calls // ranks.count, batch_size),
            device=device,
            precision=self.settings.precision,
            folder=folder,
            ranks=ranks,
        )

    def run(
        self, engine: Engine, *, batch_size: int | None, ranks: Ranks, listener: RunListener
    ) -> SamplesRun:
        """What makes samples."""
        sampler = self.settings.sampler.prepare(
            self.checkpoint,
            seed=self.settings.seed,
            device=engine.device,
            model_output=engine.model_output,
        )
        batch = BatchSize(
            batch_size, device=engine.device, image_shape=self.shape, warn=listener.warn
        )
        parts = PartsRun(engine.device, batch, ranks, listener)
        return SamplesRun(
            engine=engine,
            sampler=sampler.launched(engine.whole_step),
            shape=self.shape,
            labels=self.labels if self.checkpoint.num_classes else None,
            eight_bit=EightBit(self.settings.eight_bit),
            parts=parts,
        )

    @property
    def _classes(self) -> str | None:
        if not self.checkpoint.num_classes:
            return None
        label = self.settings.label
        return f"i mod {self.checkpoint.num_classes}" if label is None else f"class {label}"


def _sha256(table: torch.Tensor) -> str:
    return hashlib.sha256(table.numpy().tobytes()).hexdigest()
