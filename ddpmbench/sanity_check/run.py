"""The sanity check before a long run: evaluates networks and keeps the result in the run folder."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ddpmbench.checksums import DamageError, read_json
from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.model import Checkpoint, ModelOutput
from ddpmbench.execution.devices import evaluating_checkpoint, is_out_of_memory, strict_float32
from ddpmbench.execution.distributed import Ranks
from ddpmbench.execution.folder import RunFolder
from ddpmbench.execution.worker import BatchSize
from ddpmbench.likelihood.terms import TermIndex, TermsPass, TermTable, concatenate
from ddpmbench.sanity_check.candidates import Candidate
from ddpmbench.sanity_check.check import Checker
from ddpmbench.sanity_check.record import CheckRecord, SanityCheck, check_frame, note
from ddpmbench.user_code import user_errors

MIN_EVALUATIONS = 15_000
"""Network evaluations of a run from which on its checkpoint is checked first."""
TABLE, RECORD = "check.csv", "check.json"
"""Files of the check in a run folder; a resumed run reads the record."""
_TABLE_CHECKSUM = "table_sha256"
"""In the record, so that a resumed run knows a damaged table."""
_ANNOUNCEMENT = (
    "sanity check of the parameterization first, some hundred network evaluations on a few images; "
    "they do not count towards the run (`check=False` skips it)"
)


def check_parameterization(
    checkpoint: Checkpoint,
    images: ImageSet,
    *,
    seed: int,
    device: torch.device,
    batch: BatchSize,
) -> SanityCheck:
    """Compare the parameterization of a checkpoint with others.

    Args:
        checkpoint: the model.
        images: of the run.
        seed: of the noise.
        device: where the network runs.
        batch: how many terms share a network evaluation.

    Raises:
        InputError: not even a single term fits into memory.
    """
    evaluator = Evaluator(checkpoint, images, seed=seed, device=device, batch=batch)
    checker = Checker(checkpoint, images, evaluator.evaluate, raises_outside=device.type == "cpu")
    user_network = user_errors(checkpoint.network_name)
    with user_network, evaluating_checkpoint(checkpoint), strict_float32():
        return checker.check()


class Evaluator:
    """Evaluates the terms of candidates."""

    def __init__(
        self,
        given: Checkpoint,
        images: ImageSet,
        *,
        seed: int,
        device: torch.device,
        batch: BatchSize,
    ) -> None:
        """Prepare a model and images; the arguments are those of `check_parameterization`."""
        self._given, self._images, self._seed = given, images, seed
        self._device, self._batch = device, batch

    def evaluate(self, candidates: Sequence[Candidate], rows: TermIndex) -> list[TermTable | None]:
        """The terms of candidates that share network outputs, as `scores.Evaluate`."""
        network = _Network(candidates[0].checkpoint.to(self._device).model_output)
        outputs = [network.evaluate, *(network.last for _ in candidates[1:])]
        passes = [self._pass(*pair) for pair in zip(candidates, outputs, strict=True)]
        parts: list[list[TermTable]] = []
        start = 0
        try:
            while start < len(rows):

                def compute(count: int, start: int = start) -> list[TermTable]:
                    return [each.terms(rows[start : start + count]) for each in passes]

                parts.append(self._batch.attempt(compute))
                start += len(parts[-1][0])
        except Exception as error:
            # A network may raise anything for a time that it does not know.
            if candidates[0].checkpoint is self._given or is_out_of_memory(error):
                raise
            return [None] * len(candidates)
        return [concatenate(tables) for tables in zip(*parts, strict=True)]

    def _pass(self, candidate: Candidate, model_output: ModelOutput) -> TermsPass:
        return TermsPass(
            candidate.checkpoint,
            self._images,
            seed=self._seed,
            decoder="exact",
            device=self._device,
            model_output=model_output,
        )


class _Network:
    """A network that keeps its last output."""

    def __init__(self, model_output: ModelOutput) -> None:
        self._model_output = model_output
        self._last: Tensor | None = None

    def evaluate(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        self._last = self._model_output(x_t, t, labels)
        return self._last

    def last(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        assert self._last is not None
        return self._last


@dataclasses.dataclass(frozen=True, eq=False)
class PreliminaryCheck:
    """The sanity check before a run.

    Attributes:
        requested: whether to check; None for before long runs.
        num_evaluations: network evaluations of the run, as far as they are known.
        seed: of the noise.
        batch_size: terms a network evaluation; None for what suits the device.
        note: called with a line before it begins, and after it if there is no warning.
        warn: called with the warning, and where memory is short.
    """

    requested: bool | None
    num_evaluations: int
    seed: int = 0
    batch_size: int | None = None
    note: Callable[[str], None] = lambda line: None
    warn: Callable[[str], None] = lambda line: None

    @property
    def is_needed(self) -> bool:
        """Whether to check: it is requested, or the run is long."""
        is_long = self.num_evaluations >= MIN_EVALUATIONS
        return is_long if self.requested is None else self.requested

    def run(
        self,
        checkpoint: Checkpoint,
        images: ImageSet,
        *,
        device: torch.device,
        ranks: Ranks,
        folder: RunFolder | None,
    ) -> CheckRecord | None:
        """Check on the first rank, or read the record of an interrupted run.

        Args:
            checkpoint: the model.
            images: of the kind that it is a model of.
            device: where the network runs.
            ranks: the processes of the run.
            folder: of the run; None if it is kept in memory.

        Returns:
            The record; None if nothing was checked.

        Raises:
            InputError: the folder cannot be written, or no batch fits into memory.
        """
        if not self.is_needed:
            return None
        return ranks.once(lambda: self._record(checkpoint, images, device, folder))

    def _record(
        self,
        checkpoint: Checkpoint,
        images: ImageSet,
        device: torch.device,
        folder: RunFolder | None,
    ) -> CheckRecord:
        record = None if folder is None else _kept_record(folder)
        if record is None:
            self.note(_ANNOUNCEMENT)
            shape = images.pixels.shape[1:]
            batch = BatchSize(self.batch_size, device=device, image_shape=shape, warn=self.warn)
            check = check_parameterization(
                checkpoint, images, seed=self.seed, device=device, batch=batch
            )
            record = CheckRecord.of(check)
            if folder is not None:
                folder.write_frame(TABLE, check_frame(check))
                checksum = folder.checksum_of(TABLE)
                folder.write_json(RECORD, {**record.to_dict(), _TABLE_CHECKSUM: checksum})
            if (line := note(record)) is not None:
                self.note(line)
        if record.warning is not None:
            self.warn(record.warning)
        return record


def _kept_record(folder: RunFolder) -> CheckRecord | None:
    """The record of an earlier session whose table is whole; None where there is none."""
    record = recorded_check(folder.path)
    if record is None:
        return None
    known = read_json(folder.path / RECORD).get(_TABLE_CHECKSUM)
    return record if known and folder.keeps_table(TABLE, known=known) else None


def recorded_check(folder: Path) -> CheckRecord | None:
    """The record in a run folder; None where there is none, or it is damaged."""
    try:
        values = read_json(folder / RECORD)
        record = CheckRecord(*(values[f.name] for f in dataclasses.fields(CheckRecord)))
    except (DamageError, KeyError):
        return None
    texts = (record.warning, record.likely, record.outcome, record.better)
    is_valid = all(isinstance(text, str | None) for text in texts)
    return record if is_valid and isinstance(record.num_evaluations, int) else None
