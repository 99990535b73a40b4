"""The sanity check before a long run: is a checkpoint read as it was trained?"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ddpmbench.checksums import DamageError, read_json
from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.model import Checkpoint, ModelOutput
from ddpmbench.execution.devices import evaluating_checkpoint, strict_float32
from ddpmbench.execution.distributed import Ranks
from ddpmbench.execution.engine import BatchSize, is_out_of_memory
from ddpmbench.execution.folder import RunFolder
from ddpmbench.likelihood.terms import TermIndex, TermsPass, TermTable, concatenate
from ddpmbench.sanity_check.candidates import Candidate
from ddpmbench.sanity_check.check import Checker, SanityCheck
from ddpmbench.sanity_check.record import CheckRecord, check_frame, note
from ddpmbench.user_code import user_errors

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
    with user_errors(who), evaluating_checkpoint(checkpoint), strict_float32():
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

    def evaluate(self, candidates: Sequence[Candidate], rows: TermIndex) -> list[TermTable | None]:
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


TABLE, RECORD = "check.csv", "check.json"
"""What a check leaves in a run folder: its table, and the record that a run that goes on finds."""
_ANNOUNCEMENT = (
    "First some hundred network evaluations on a few images: is the checkpoint read as it was "
    "trained? They do not count towards the run; --no-check leaves them out"
)


@dataclasses.dataclass(frozen=True, eq=False)
class CheckBefore:
    """The check of a run.

    Attributes:
        wanted: whether it is asked for; None where it is made before long runs.
        num_evaluations: network evaluations of the run, as far as they are known.
        seed: of the noise.
        batch_size: terms a network evaluation, None for what suits the device.
        note: called with a line before it begins.
        warn: called with a line where something speaks against the parameterization, and where
            memory is short.
    """

    wanted: bool | None
    num_evaluations: int
    seed: int = 0
    batch_size: int | None = None
    note: Callable[[str], None] = lambda line: None
    warn: Callable[[str], None] = lambda line: None

    @property
    def is_made(self) -> bool:
        """Whether there is one: it is asked for, or the run is long."""
        return self.num_evaluations >= WORTH_A_CHECK if self.wanted is None else self.wanted

    def made(
        self,
        checkpoint: Checkpoint,
        images: ImageSet,
        *,
        device: torch.device,
        ranks: Ranks,
        folder: RunFolder | None,
    ) -> CheckRecord | None:
        """Check, or find what it arrived at before an interruption; the first process does.

        Args:
            checkpoint: the model.
            images: of the kind that it is a model of.
            device: where the network runs.
            ranks: the processes of the run.
            folder: its folder; None if the run is kept in memory.

        Returns:
            What was found; None if nothing was checked.

        Raises:
            InputError: the folder cannot be written, or no batch fits into memory.
        """
        if not self.is_made:
            return None
        return ranks.once(lambda: self._made(checkpoint, images, device, folder))

    def _made(
        self,
        checkpoint: Checkpoint,
        images: ImageSet,
        device: torch.device,
        folder: RunFolder | None,
    ) -> CheckRecord:
        record = None if folder is None else recorded_check(folder.path)
        if record is None:
            self.note(_ANNOUNCEMENT)
            shape = images.pixels.shape[1:]
            batch = BatchSize(self.batch_size, device=device, image_shape=shape, warn=self.warn)
            found = check_reading(checkpoint, images, seed=self.seed, device=device, batch=batch)
            record = CheckRecord.of(found)
            if folder is not None:
                folder.write_frame(TABLE, check_frame(found))
                folder.write_json(RECORD, record.to_dict())
            if (line := note(record)) is not None:
                self.note(line)
        if record.warning is not None:
            self.warn(record.warning)
        return record


def recorded_check(folder: Path) -> CheckRecord | None:
    """That of an earlier run in its folder; None where there was none, or it is damaged."""
    try:
        of = read_json(folder / RECORD)
        names = ("warning", "likely", "num_evaluations", "outcome", "better")
        record = CheckRecord(**{name: of[name] for name in names})
    except (DamageError, KeyError):
        return None
    texts = (record.warning, record.likely, record.outcome, record.better)
    is_whole = all(isinstance(text, str | None) for text in texts)
    return record if is_whole and isinstance(record.num_evaluations, int) else None
