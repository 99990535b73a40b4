"""The sanity check before a long run: is a checkpoint read as it was trained?"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

from ddpmbench.checksums import DamageError, read_json
from ddpmbench.inputs.checkpoints.checkpoint import Checkpoint
from ddpmbench.inputs.images import ImageSet
from ddpmbench.report.check import CheckRecord, check_frame, note
from ddpmbench.runs.batch_size import BatchSize
from ddpmbench.runs.check import WORTH_A_CHECK, check_reading
from ddpmbench.runs.distributed import Ranks
from ddpmbench.runs.folder import RunFolder

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
