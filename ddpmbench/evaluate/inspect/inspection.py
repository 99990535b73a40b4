"""What a checkpoint is, which settings it lacks, and the command that evaluates it.

A checkpoint that lacks settings is read with stand-ins for them. Only what they cannot change is
reported: the file, the network and its size.
"""

import dataclasses
import json
import math
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ddpmbench.checkpoints import state_dicts
from ddpmbench.checkpoints.load import DEFAULT
from ddpmbench.checkpoints.settings import CheckpointSettings
from ddpmbench.checkpoints.weights import sha256_of
from ddpmbench.data.datasets import SPLITS
from ddpmbench.diffusion.data_range import NATS_PER_BIT, DataRange
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import options
from ddpmbench.evaluate.inspect.probe import Call, Probe, call_of, probe_checkpoint, refusal
from ddpmbench.evaluate.inspect.text import headline_lines, image_words, shown_value
from ddpmbench.files import named_path
from ddpmbench.report.card import Card, Draw, Shown
from ddpmbench.version import __version__

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = "ddpmbench.inspect/1"
SUMMARY = "inspect.json"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Inspection(Shown):
    """What a checkpoint is.

    Attributes:
        summary: the object of `inspect.json`.
        checkpoint: the checkpoint; None where settings are missing.
        folder: where it was written; None if nowhere.
    """

    summary: dict[str, Any]
    checkpoint: Checkpoint | None
    folder: Path | None

    def _card(self) -> Card:
        line = headline_lines(self.summary)[0]
        numbers = {
            name.replace("_", " "): "missing"
            if item["value"] is None
            else shown_value(item["value"])
            for name, item in self.summary["settings"].items()
        }
        missing = ", ".join(self.summary["missing"])
        facts = {"missing": missing} if missing else {}
        facts["evaluate"] = shlex.join(self.summary["command"])
        if self.folder is not None:
            facts["folder"] = str(self.folder)
        return Card(line, numbers, facts)

    def _figures(self) -> Mapping[str, Draw]:
        from ddpmbench.report.figures.timesteps import schedule_figure

        frame = self.schedule
        return {} if frame is None else {"schedule": lambda: schedule_figure(frame)}

    @property
    def schedule(self) -> "pd.DataFrame | None":
        """One row a timestep, `t, beta, alphas_cumprod, log_snr`; None where settings are missing.

        `log_snr` is the natural logarithm of the signal-to-noise ratio.
        """
        return None if self.checkpoint is None else _schedule_frame(self.checkpoint.schedule)


def inspect_checkpoint(
    source: str | Path = DEFAULT,
    settings: CheckpointSettings | None = None,
    *,
    timesteps: int | None = None,
    image_size: int | None = None,
    out: str | Path | None = None,
) -> Inspection:
    """Inspect a checkpoint without evaluating it.

    The network is not called, except for a network of the user's own whose images are known: it
    passes the check that every run begins with, so that the command is one that runs.

    Missing settings are no error here. The result names them, each with an example.

    Args:
        source: see `load_checkpoint`.
        settings: settings that the checkpoint lacks, or that override it.
        timesteps: evaluate on so many evenly spaced timesteps.
        image_size: height and width of an image, where the checkpoint does not say.
        out: a folder to write to; an earlier inspection of the same checkpoint is replaced.

    Raises:
        InputError: there is no such checkpoint, it is damaged, or the folder is another's.
    """
    probe = probe_checkpoint(source, settings or CheckpointSettings())
    checkpoint, schedule = probe.checkpoint, probe.schedule
    if schedule is not None and timesteps is not None:
        schedule = schedule.respaced(timesteps)
    call = call_of(probe, image_size)
    summary: dict[str, Any] = {
        "schema": SCHEMA,
        "settled": not probe.missing,
        "checkpoint": _file_record(str(source), probe),
        "network": _network_record(probe, call),
        "process": None if schedule is None else _process_record(schedule),
        "settings": _settings_record(probe),
        "notes": [] if checkpoint is None or probe.missing else list(checkpoint.notes),
        "missing": probe.missing,
        "command": _command(str(source), probe, timesteps),
        "data": None,
        "refused": refusal(probe, call),
    }
    if _DATA in summary["command"]:
        summary["data"] = _data_words(probe, call)
    summary = json.loads(json.dumps(summary))  # equal to what is read back
    folder = None if out is None else named_path(out)
    if folder is not None:
        _write(folder, summary, schedule, probe.settings)
    if checkpoint is None or probe.missing:
        return Inspection(summary, None, folder)
    if timesteps is not None:
        checkpoint = checkpoint.respaced(timesteps)
    return Inspection(summary, checkpoint, folder)


def _file_record(source: str, probe: Probe) -> dict[str, Any]:
    checkpoint, error = probe.checkpoint, probe.error
    record: dict[str, Any] = {"source": source, "training": None, "code": None}
    if checkpoint is None:
        assert error is not None
        paths = [error.path]
        weights = probe.settings.weights or state_dicts.kind_in_name(error.path)
        record |= {"family": error.family, "sha256": sha256_of(error.path), "weights": weights}
    else:
        paths = list(map(Path, checkpoint.files))
        for name in ("source", "family", "sha256", "weights", "training"):
            record[name] = getattr(checkpoint, name)
        if checkpoint.code is not None:
            record["code"] = dataclasses.asdict(checkpoint.code)
    size = sum(path.stat().st_size for path in paths) or None
    return {**record, "files": [path.name for path in paths], "bytes": size}


def _network_record(probe: Probe, call: Call) -> dict[str, Any]:
    if probe.checkpoint is not None:
        weights: Iterable[torch.Tensor] = probe.checkpoint.network.parameters()
    else:
        assert probe.error is not None
        weights = probe.error.weights.values()
    network, is_counted = probe.network, call.flop is not None
    return {
        "kind": None if network is None else type(network).__name__,
        "parameters": sum(weight.numel() for weight in weights),
        "channels": call.channels,
        "image_size": call.size if call.is_size_known else None,
        "flop_per_call": call.flop,
        "flop_image_size": call.size if is_counted else None,
        "flop_channels": call.counted_channels if is_counted else None,
        "uncounted": call.uncounted,
    }


def _process_record(schedule: NoiseSchedule) -> dict[str, Any]:
    r"""The forward process in a few numbers.

    `prior` is L_T in bits per dimension of data whose mean square is one. Its expectation depends
    on nothing else:

    .. math:: -\tfrac{1}{2} \log_2(1 - \bar\alpha_T)
    """
    total = schedule.num_timesteps
    log_snr = _log_snr(schedule)
    return {
        "schedule": schedule.name,
        "num_timesteps": total,
        "num_original_timesteps": schedule.num_original_timesteps,
        "steps": [
            {
                "t": t,
                "beta": schedule.betas[t - 1].item(),
                "alphas_cumprod": schedule.alphas_cumprod[t - 1].item(),
                "log_snr": log_snr[t - 1].item(),
            }
            for t in sorted({1, (total + 1) // 2, total})
        ],
        "prior": -0.5 * math.log(schedule.one_minus_alphas_cumprod[-1].item()) / NATS_PER_BIT,
    }


def _log_snr(schedule: NoiseSchedule) -> torch.Tensor:
    """(T,) natural logarithm of alphas_cumprod / (1 - alphas_cumprod), without cancellation."""
    return schedule.log_alphas_cumprod - schedule.one_minus_alphas_cumprod.log()


def _schedule_frame(schedule: NoiseSchedule) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame(
        {
            "t": range(1, schedule.num_timesteps + 1),
            "beta": schedule.betas.numpy(),
            "alphas_cumprod": schedule.alphas_cumprod.numpy(),
            "log_snr": _log_snr(schedule).numpy(),
        }
    )


_READ: dict[str, Callable[[Checkpoint], object]] = {
    "schedule": lambda c: f"{c.schedule.name}, T = {c.schedule.num_timesteps:,}",
    "prediction": lambda c: str(c.prediction),
    "variance": lambda c: str(c.variance),
    "clip": lambda c: c.clip,
    "time_input": lambda c: str(c.time_input),
    "data_range": lambda c: c.data_range.interval,
    "levels": lambda c: c.data_range.levels,
}
_OF_FLAGS = ("schedule", "prediction", "variance", "clip", "time_input")
"""What the flags of a training command say."""
_OF_CUSTOM = ("clip", "data_range", "levels")
"""What a network of the user's own need not say."""


def _settings_record(probe: Probe) -> dict[str, dict[str, object]]:
    """Each setting with its value and source: checkpoint, option or default; null if missing."""
    record: dict[str, dict[str, object]] = {}
    for name, read in _READ.items():
        is_of_flags = name in _OF_FLAGS and "model_flags" in probe.missing
        if name in probe.missing or is_of_flags:
            record[name] = {"value": None, "source": None}
        elif probe.checkpoint is not None:
            record[name] = {"value": read(probe.checkpoint), "source": _source(name, probe)}
    return record


def _source(name: str, probe: Probe) -> str:
    checkpoint, settings = probe.checkpoint, probe.settings
    assert checkpoint is not None
    has_flags = settings.model_flags is not None and name in _OF_FLAGS
    if getattr(settings, name) is not None or has_flags:
        return "option"
    is_custom = checkpoint.code is not None and name in _OF_CUSTOM
    return "default" if is_custom or name in checkpoint.sources else "checkpoint"


# ---- the command that evaluates it

_DATA = "DATA"
"""The placeholder for images."""


def _command(source: str, probe: Probe, timesteps: int | None) -> list[str]:
    """The words of the command, with placeholders and examples for what is missing."""
    given = dataclasses.asdict(probe.settings)
    if given["data_range"] is not None:
        given["data_range"] = DataRange(*given["data_range"]).option
    is_shipped = source == DEFAULT and given["network"] is None
    return [
        *("ddpmbench", "nll"),
        *options(
            ckpt=None if source == DEFAULT else source,
            **{**given, **probe.missing},
            timesteps=timesteps,
            data=None if is_shipped else _data(source, probe),
        ),
    ]


def _data(source: str, probe: Probe) -> str:
    """The test images of its training data, where its record or its name says which."""
    record = probe.checkpoint.training if probe.checkpoint is not None else None
    trained_on = record.get("data") if record is not None else None
    if isinstance(trained_on, Mapping):
        name = str(trained_on.get("source"))
        return f"{name}:test" if "test" in SPLITS.get(name, ()) else _DATA
    return "cifar10:test" if "cifar10" in source.lower().replace("-", "") else _DATA


def _data_words(probe: Probe, call: Call) -> str:
    images = image_words(call.channels, call.size if call.is_size_known else None)
    is_conditioned = probe.checkpoint is not None and probe.checkpoint.num_classes
    labels = ", with a class each" if is_conditioned else ""
    return f"NAME:SPLIT, a folder, an .npz or an idx file of {images}{labels}"


def _write(
    out: Path, summary: dict[str, Any], schedule: NoiseSchedule | None, settings: CheckpointSettings
) -> None:
    from ddpmbench.execution.folder import RunFolder, write_figure

    given = {n: value for n, value in dataclasses.asdict(settings).items() if value is not None}
    identity = {
        "schema": SCHEMA,
        "checkpoint": summary["checkpoint"]["sha256"],
        "settings": json.loads(json.dumps(given)),
        "ddpmbench": __version__,
    }
    folder = RunFolder(out, identity)
    if schedule is not None:
        from ddpmbench.report.figures.timesteps import schedule_figure

        write_figure(folder.path, "schedule", *schedule_figure(_schedule_frame(schedule)))
    folder.write_json(SUMMARY, summary)
