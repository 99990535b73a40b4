"""The sanity check of a checkpoint on a device, before a run."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ddpmbench.inputs.checkpoints.checkpoint import Checkpoint, ModelOutput
from ddpmbench.inputs.checkpoints.own_code import own_errors
from ddpmbench.inputs.images import ImageSet
from ddpmbench.likelihood.reading_check import Checker, SanityCheck
from ddpmbench.likelihood.readings import Candidate
from ddpmbench.likelihood.terms import Rows, TermsPass, TermTable, concatenate
from ddpmbench.runs.batch_size import BatchSize, is_out_of_memory
from ddpmbench.runs.devices import evaluating_checkpoint, strict_float32

WORTH_A_CHECK = 15_000
"""Network calls of a run from which on its checkpoint is checked first."""


def check_reading(
    checkpoint: Checkpoint,
    images: ImageSet,
    *,
    seed: int,
    device: torch.device,
    batch: BatchSize,
) -> SanityCheck:
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
    passes = _Passes(checkpoint, images, seed, device, batch)
    checker = Checker(checkpoint, images, passes.evaluate, is_safe_outside=device.type == "cpu")
    who = checkpoint.network_name
    with own_errors(who), evaluating_checkpoint(checkpoint), strict_float32():
        return checker.check()


class _Passes:
    """Terms of a few rows under candidates."""

    def __init__(
        self,
        stated: Checkpoint,
        images: ImageSet,
        seed: int,
        device: torch.device,
        batch: BatchSize,
    ) -> None:
        self._stated = stated
        self._images, self._seed, self._device, self._batch = images, seed, device, batch

    def evaluate(self, candidates: Sequence[Candidate], rows: Rows) -> list[TermTable | None]:
        """As `reading_check.Evaluate`."""
        kept = _Kept(candidates[0].checkpoint.to(self._device).model_output)
        passes = [self._pass(candidates[0], kept.call)]
        passes += [self._pass(candidate, kept.again) for candidate in candidates[1:]]
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
            if candidates[0].checkpoint is self._stated or is_out_of_memory(error):
                raise
            return [None] * len(candidates)
        return [concatenate([part[i] for part in parts]) for i in range(len(candidates))]

    def _pass(self, candidate: Candidate, model_output: ModelOutput | None) -> TermsPass:
        return TermsPass(
            candidate.checkpoint,
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
