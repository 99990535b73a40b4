"""What a checkpoint is, which settings it lacks, and the command that evaluates it.

A checkpoint that lacks settings is read with stand-ins. Only facts that do not depend on them are
reported: the file, the network and its size.
"""

import copy
import dataclasses
import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ddpmbench.checkpoints import state_dicts
from ddpmbench.checkpoints.load import DEFAULT, load_checkpoint
from ddpmbench.checkpoints.settings import SETTINGS, CheckpointSettings, MissingSettingsError
from ddpmbench.data.datasets import SPLITS
from ddpmbench.diffusion.continuous import with_timesteps
from ddpmbench.diffusion.data_range import DataRange
from ddpmbench.diffusion.model import Checkpoint, ImageSize, sides_of, size_words
from ddpmbench.diffusion.parameterization import Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError, options
from ddpmbench.evaluate.inspect_text import headline_lines, image_words, is_placeholder, shown_value
from ddpmbench.files import named_path, sha256_of
from ddpmbench.likelihood.terms import prior_bits_per_dim
from ddpmbench.report.display import Card, Draw, Shown
from ddpmbench.unet.flops import flop_of_shapes, flop_of_unet
from ddpmbench.unet.unet import UNet
from ddpmbench.user_code import calling
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
            name.replace("_", " "): shown_value(value)
            for name, value in self.summary["settings"].items()
        }
        missing = ", ".join(self.summary["missing"])
        facts = {"missing": missing} if missing else {}
        facts["evaluate"] = shlex.join(self.summary["command"])
        if self.folder is not None:
            facts["folder"] = str(self.folder)
        return Card(line, numbers, facts)

    def _figures(self) -> Mapping[str, Draw]:
        from ddpmbench.report.nll_figures import schedule_figure

        frame = self.schedule
        return {} if frame is None else {"schedule": lambda: schedule_figure(frame)}

    @property
    def schedule(self) -> "pd.DataFrame | None":
        """One row per timestep, `t, beta, alphas_cumprod, log_snr`; None if settings are missing.

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

    The network is not evaluated, with one exception: a network of the user's own whose image shape
    is known passes the network check of every run, so that the command shown will run.

    Missing settings raise no error; the result lists them, each with an example.

    Args:
        source: see `load_checkpoint`.
        settings: settings that the checkpoint lacks, or that override it.
        timesteps: evaluate on this number of evenly spaced timesteps.
        image_size: height and width of an image, where the checkpoint does not say.
        out: a folder to write to; an earlier inspection of the same checkpoint is replaced.

    Raises:
        InputError: the checkpoint does not exist or is damaged, or the folder holds something else.
    """
    probe = _probe(source, settings or CheckpointSettings())
    checkpoint, schedule = probe.checkpoint, probe.schedule
    if schedule is not None and timesteps is not None:
        schedule = with_timesteps(schedule, timesteps)
    network = _network_record(probe, image_size)
    summary: dict[str, Any] = {
        "schema": SCHEMA,
        "settled": not probe.missing,
        "checkpoint": _file_record(str(source), probe),
        "network": network,
        "process": None if schedule is None else _process_record(schedule),
        "settings": _settings_record(probe),
        "notes": [] if checkpoint is None or probe.missing else list(checkpoint.notes),
        "missing": probe.missing,
        "command": _command(str(source), probe, timesteps),
        "data": None,
        "refused": _refusal(probe, network),
    }
    if _DATA in summary["command"]:
        summary["data"] = _data_words(probe, network)
    summary = json.loads(json.dumps(summary))  # equal to what is read back
    folder = None if out is None else named_path(out)
    if folder is not None:
        _write(folder, summary, schedule, probe.settings)
    if checkpoint is None or probe.missing:
        return Inspection(summary, None, folder)
    if timesteps is not None:
        checkpoint = checkpoint.respaced(timesteps)
    return Inspection(summary, checkpoint, folder)


# ---- the checkpoint, as far as its settings are known


@dataclasses.dataclass(frozen=True, eq=False)
class _Probe:
    """A checkpoint, as far as it can be read.

    Attributes:
        checkpoint: read with stand-ins for missing settings; None if that fails.
        error: the error of its family's reader; None if nothing is missing.
        missing: parameters of `CheckpointSettings`, each with a placeholder or an example.
        settings: the settings given by the user.
    """

    checkpoint: Checkpoint | None
    error: MissingSettingsError | None
    missing: dict[str, Any]
    settings: CheckpointSettings

    @property
    def schedule(self) -> NoiseSchedule | None:
        """The noise schedule; None where it is missing."""
        if self.checkpoint is None or "schedule" in self.missing:
            return None
        return self.checkpoint.schedule

    @property
    def network(self) -> nn.Module | None:
        """The network; without weights where its shapes alone are known."""
        if self.checkpoint is not None:
            return self.checkpoint.network
        if self.error is None or self.error.config is None:
            return None
        with torch.device("meta"):
            return UNet(self.error.config).eval()


def _probe(source: str | Path, settings: CheckpointSettings) -> _Probe:
    """Read a checkpoint, with stand-ins for missing settings."""
    first: MissingSettingsError | None = None
    refused: InputError | None = None
    missing: dict[str, Any] = {}
    chosen: dict[str, Any] = {}
    while True:
        try:
            checkpoint = load_checkpoint(source, dataclasses.replace(settings, **chosen))
        except MissingSettingsError as error:
            first = first or error
            more = {n: v for n, v in error.missing.items() if n not in missing}
            missing |= more
            if not more or not more.keys() <= SETTINGS.keys():
                return _Probe(None, first, missing, settings)
            chosen |= {
                name: SETTINGS[name].example if is_placeholder(value) else value
                for name, value in more.items()
            }
        except InputError as error:
            last = str(Variance.LEARNED_RANGE)  # fits a network with a variance output
            if "variance" not in missing:
                raise  # the other stand-ins contradict no network
            if refused is not None:
                raise InputError(f"{refused}; with `variance={last}`: {error}") from error
            refused, chosen["variance"] = error, last
        else:
            return _Probe(checkpoint, first, missing, settings)


_SIZE = 32
"""Height and width assumed for counting, where they are unknown."""


def _network_record(probe: _Probe, image_size: int | None) -> dict[str, Any]:
    """The network, and the shapes and FLOP of one evaluation, which is not computed."""
    network, checkpoint = probe.network, probe.checkpoint
    if checkpoint is not None:
        weights: Iterable[torch.Tensor] = checkpoint.network.parameters()
    else:
        assert probe.error is not None
        weights = probe.error.weights.values()
    unknown = ("channels", "image_size", "flop_per_call", "flop_image_size")
    record: dict[str, Any] = {
        "kind": None if network is None else type(network).__name__,
        "parameters": sum(weight.numel() for weight in weights),
        **dict.fromkeys((*unknown, "uncounted")),
    }
    if network is None:
        return record
    native_size, multiple = None, 1
    if checkpoint is not None:
        native_size, multiple = checkpoint.image_size, checkpoint.size_multiple
    if type(network) is UNet:
        multiple = network.config.size_multiple
    if native_size is not None and image_size not in (None, native_size):
        raise InputError(
            f"`image_size={image_size}`: the checkpoint takes {size_words(native_size)}; leave it "
            "out"
        )
    record["image_size"] = known = native_size or image_size
    size = known or -(-_SIZE // multiple) * multiple
    height, width = sides_of(size)
    if height % multiple or width % multiple:
        raise InputError(
            f"`image_size={size}`: the network takes multiples of {multiple}; take one"
        )
    if type(network) is UNet:
        channels, flop = network.config.in_channels, flop_of_unet(network, height, width)
        return {**record, "channels": channels, "flop_per_call": flop, "flop_image_size": size}
    assert checkpoint is not None
    return {**record, **_counted(checkpoint, size)}


def _counted(checkpoint: Checkpoint, size: ImageSize) -> dict[str, Any]:
    """The channels of an image, and the FLOP of a network that says them."""
    if (channels := checkpoint.channels) is None:
        return {}
    sides = sides_of(size)
    inputs = [torch.zeros(1, channels, *sides), checkpoint.network_time(torch.ones(1).long())]
    if checkpoint.num_classes:
        inputs.append(torch.zeros(1, dtype=torch.int64))
    try:
        with checkpoint.running():
            flop = calling(
                lambda: flop_of_shapes(checkpoint.network, *inputs),
                "an evaluation could not be counted",
            )
    except InputError as error:
        return {"channels": channels, "uncounted": str(error)}
    return {"channels": channels, "flop_per_call": flop, "flop_image_size": size}


def _refusal(probe: _Probe, network: Mapping[str, Any]) -> str | None:
    """Why a run would refuse a network of the user's own; None if it would not.

    A copy passes the network check if all settings and the shape of an image are known; otherwise
    only the parameters of its `forward` are checked.
    """
    checkpoint = probe.checkpoint
    if checkpoint is None or checkpoint.code is None:
        return None
    from ddpmbench.execution.network_check import check_network, refused_call

    why = refused_call(checkpoint.network, has_classes=bool(checkpoint.num_classes))
    if why is not None:
        return f"{checkpoint.network_name}: {why}"
    channels, size = network["channels"], network["image_size"]
    if probe.missing or not (channels and size):
        return None
    try:
        copied = dataclasses.replace(checkpoint, network=copy.deepcopy(checkpoint.network))
    except Exception:  # raised by the user's code; a run does not copy the network
        return None
    try:
        check_network(copied, (channels, *sides_of(size)), device=torch.device("cpu"))
    except InputError as error:
        return str(error)
    return None


# ---- the record


def _file_record(source: str, probe: _Probe) -> dict[str, Any]:
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


def _process_record(schedule: NoiseSchedule) -> dict[str, Any]:
    """The forward process in a few numbers.

    `prior` is L_T in bits per dimension for data whose mean square is one, the only property of
    the data on which its expectation depends.
    """
    total, log_snr = schedule.num_timesteps, schedule.log_snr
    unit = torch.ones((1, 1, 1, 1), dtype=torch.float64)
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
        "prior": prior_bits_per_dim(schedule, unit).item(),
    }


def _schedule_frame(schedule: NoiseSchedule) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame(
        {
            "t": range(1, schedule.num_timesteps + 1),
            "beta": schedule.betas.numpy(),
            "alphas_cumprod": schedule.alphas_cumprod.numpy(),
            "log_snr": schedule.log_snr.numpy(),
        }
    )


def _settings_record(probe: _Probe) -> dict[str, object]:
    """The value of each setting; null if it is missing."""
    missing = SETTINGS if "model_flags" in probe.missing else probe.missing
    if (checkpoint := probe.checkpoint) is None:
        return dict.fromkeys(missing)
    schedule = f"{checkpoint.schedule.name}, T = {checkpoint.schedule.num_timesteps:,}"
    values = {"schedule": schedule, **checkpoint.settings, **checkpoint.data_range.record}
    return {**values, **dict.fromkeys(missing)}


# ---- the command that evaluates it

_DATA = "DATA"
"""The placeholder for images."""


def _command(source: str, probe: _Probe, timesteps: int | None) -> list[str]:
    """The words of the command, with placeholders and examples for what is missing."""
    given = dataclasses.asdict(probe.settings)
    if given["schedule"] == given["process"]:  # a process with levels is the schedule
        given["schedule"] = None
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


def _data(source: str, probe: _Probe) -> str:
    """The test images of the training data, if its record or the name tells which."""
    record = probe.checkpoint.training if probe.checkpoint is not None else None
    trained_on = record.get("data") if record is not None else None
    if isinstance(trained_on, Mapping):
        name = str(trained_on.get("source"))
        return f"{name}:test" if "test" in SPLITS.get(name, ()) else _DATA
    return "cifar10:test" if "cifar10" in source.lower().replace("-", "") else _DATA


def _data_words(probe: _Probe, network: Mapping[str, Any]) -> str:
    images = image_words(network["channels"], network["image_size"])
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
        from ddpmbench.report.nll_figures import schedule_figure

        write_figure(folder.path, "schedule", *schedule_figure(_schedule_frame(schedule)))
    folder.write_json(SUMMARY, summary)
