"""The check of a checkpoint's reading on a device, before a run."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ddpmbench.inputs.checkpoints.checkpoint import Checkpoint, ModelOutput
from ddpmbench.inputs.checkpoints.own_code import own_errors
from ddpmbench.inputs.images import ImageSet
from ddpmbench.likelihood.reading_check import Checker, ReadingCheck
from ddpmbench.likelihood.readings import Reading
from ddpmbench.likelihood.terms import Rows, TermsPass, TermTable, concatenate
from ddpmbench.runs.batch_size import BatchSize, is_out_of_memory
from ddpmbench.runs.devices import evaluating_checkpoint, strict_float32

WORTH_A_CHECK = 15_000
"""Network calls of a run from which on its checkpoint is checked first."""
_PIXEL_IMAGES = 64


def check_reading(
    checkpoint: Checkpoint,
    images: ImageSet,
    *,
    seed: int,
    device: torch.device,
    batch: BatchSize,
) -> ReadingCheck:
    """Compare a checkpoint as it is read with what else it could be.

    Args:
        checkpoint: the model.
        images: that the run is on.
        seed: of the noise.
        device: where the network runs.
        batch: how many rows share a network call.

    Raises:
        InputError: not even a single row fits into memory.
    """
    passes = _Passes(images, seed, device, batch)
    checker = Checker(
        checkpoint=checkpoint,
        num_images=len(images),
        spread=_spread(images),
        evaluate=passes.evaluate,
    )
    who = checkpoint.network_name
    with own_errors(who), evaluating_checkpoint(checkpoint), strict_float32():
        return checker.check()


class _Passes:
    """Terms of a few rows under readings."""

    def __init__(self, images: ImageSet, seed: int, device: torch.device, batch: BatchSize) -> None:
        self._images, self._seed, self._device, self._batch = images, seed, device, batch

    def evaluate(self, readings: Sequence[Reading], rows: Rows) -> list[TermTable | None]:
        """As `reading_check.Evaluate`."""
        kept = _Kept(readings[0].checkpoint.to(self._device).model_output)
        passes = [self._pass(readings[0], kept.call)]
        passes += [self._pass(reading, kept.again) for reading in readings[1:]]
        parts: list[list[TermTable]] = []
        start = 0
        try:
            while start < len(rows):

                def compute(count: int, start: int = start) -> list[TermTable]:
                    return [of.terms(rows[start : start + count]) for of in passes]

                parts.append(self._batch.attempt(compute))
                start += len(parts[-1][0])
        except Exception as error:
            # What a network does with a step of a kind that it does not know is its own affair.
            if readings[0].is_stated or is_out_of_memory(error):
                raise
            return [None] * len(readings)
        return [concatenate([part[i] for part in parts]) for i in range(len(readings))]

    def _pass(self, reading: Reading, model_output: ModelOutput | None) -> TermsPass:
        return TermsPass(
            reading.checkpoint,
            self._images,
            seed=self._seed,
            decoder="exact",
            device=self._device,
            model_output=model_output,
        )


class _Kept:
    """Calls a network, and gives what it gave once more."""

    def __init__(self, model_output: ModelOutput) -> None:
        self._model_output = model_output
        self._last: Tensor | None = None

    def call(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        self._last = self._model_output(x_t, t, labels)
        return self._last

    def again(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        assert self._last is not None
        return self._last


def _spread(images: ImageSet) -> float:
    """Mean square of pixels about their mean, on [0, 1]; never 0."""
    few = np.unique(np.rint(np.linspace(0, len(images) - 1, min(_PIXEL_IMAGES, len(images)))))
    pixels = np.stack([images.pixels[int(i)] for i in few]).astype(np.float64) / 255
    return max(float(pixels.var()), (0.5 / 255) ** 2)
