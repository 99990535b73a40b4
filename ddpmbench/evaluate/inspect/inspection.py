"""What is a checkpoint, what does it say, and what command evaluates it?"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpmbench.checkpoints import state_dicts
from ddpmbench.checkpoints.load import DEFAULT
from ddpmbench.checkpoints.settings import CheckpointSettings
from ddpmbench.checkpoints.weights import sha256_of
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.evaluate.inspect.command import evaluation
from ddpmbench.evaluate.inspect.probe import Look, look_at
from ddpmbench.files import named_path
from ddpmbench.report.card import Card, Draw, Shown
from ddpmbench.report.inspection import (
    SCHEMA,
    FileFacts,
    inspection_summary,
    network_record,
    process_record,
)
from ddpmbench.version import __version__

if TYPE_CHECKING:
    import pandas as pd

SUMMARY = "inspect.json"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Inspection(Shown):
    """What a checkpoint is.

    Attributes:
        summary: the object of `inspect.json`.
        checkpoint: the checkpoint; None where something is open.
        folder: where it was written; None if nowhere.
    """

    summary: dict[str, Any]
    checkpoint: Checkpoint | None
    folder: Path | None

    def _card(self) -> Card:
        from ddpmbench.report.cards import inspection_card

        return inspection_card(self.summary, self.folder)

    def _figures(self) -> Mapping[str, Draw]:
        from ddpmbench.report.figures.schedule import schedule_figure

        steps = self.schedule
        return {} if steps is None else {"schedule": lambda: schedule_figure(steps)}

    @property
    def schedule(self) -> "pd.DataFrame | None":
        """One row a step, `t, beta, alphas_cumprod, log_snr`; None where something is open."""
        if self.checkpoint is None:
            return None
        from ddpmbench.report.figures.schedule import schedule_frame

        return schedule_frame(self.checkpoint.schedule)


def inspect_checkpoint(
    source: str | Path = DEFAULT,
    settings: CheckpointSettings | None = None,
    *,
    timesteps: int | None = None,
    image_size: int | None = None,
    out: str | Path | None = None,
) -> Inspection:
    """Look at a checkpoint without evaluating it.

    Its network computes nothing, but for one of the user's own: it is called as a run calls it
    first, where the shape of an image is known, so that the command is one that runs.

    A file that is recognized but leaves something open is no mistake here: what is open, and the
    options that settle it, are in the result.

    Args:
        source: see `load_checkpoint`.
        settings: what is said of it besides.
        timesteps: the model that visits only so many evenly spaced steps.
        image_size: height and width of an image, where the checkpoint does not say.
        out: a folder to write to; an earlier look at the same checkpoint there is replaced.

    Raises:
        InputError: there is no such checkpoint, it is damaged, or the folder is another's.
    """
    look = look_at(source, settings or CheckpointSettings())
    schedule = look.schedule
    if schedule is not None and timesteps is not None:
        schedule = schedule.respaced(timesteps)
    call = look.call(image_size)
    summary = inspection_summary(
        _file(str(source), look),
        network=network_record(look.outline, call),
        process=None if schedule is None else process_record(schedule),
        said=look.said,
        evaluation=evaluation(str(source), look, call, timesteps=timesteps),
    )
    folder = None if out is None else named_path(out)
    if folder is not None:
        _write(folder, summary, schedule, look.settings)
    checkpoint = look.checkpoint if look.error is None else None
    if checkpoint is not None and timesteps is not None:
        checkpoint = checkpoint.respaced(timesteps)
    return Inspection(summary, checkpoint, folder)


def _file(source: str, look: Look) -> FileFacts:
    checkpoint, error = look.checkpoint, look.error
    files: tuple[Path, ...]
    if checkpoint is None:
        assert error is not None
        files, family, sha256 = (error.path,), error.family, sha256_of(error.path)
        weights = look.settings.weights or state_dicts.kind_in_name(error.path)
    else:
        files = tuple(map(Path, checkpoint.files))
        family, sha256, weights = checkpoint.family, checkpoint.sha256, checkpoint.weights
        source = checkpoint.source
    training = None if checkpoint is None else checkpoint.training
    code = None if checkpoint is None else checkpoint.code
    return FileFacts(source, files, family, sha256, weights, look.notes, training, code)


def _write(
    out: Path, summary: dict[str, Any], schedule: NoiseSchedule | None, settings: CheckpointSettings
) -> None:
    from ddpmbench.execution.folder import RunFolder, write_figure

    said = dataclasses.asdict(settings).items()
    identity = {
        "schema": SCHEMA,
        "checkpoint": summary["checkpoint"]["sha256"],
        # As JSON has it, in which it will be compared.
        "settings": json.loads(json.dumps({n: value for n, value in said if value is not None})),
        "ddpmbench": __version__,
    }
    folder = RunFolder(out, identity)
    if schedule is not None:
        from ddpmbench.report.figures.schedule import schedule_figure, schedule_frame

        write_figure(folder.path, "schedule", *schedule_figure(schedule_frame(schedule)))
    folder.write_json(SUMMARY, summary)
