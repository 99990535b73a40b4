"""What to type to evaluate a checkpoint."""

import shlex
from collections.abc import Mapping

from ddpmbench.checkpoints.load import DEFAULT
from ddpmbench.checkpoints.settings import CheckpointSettings
from ddpmbench.data.datasets import SPLITS
from ddpmbench.diffusion.data_range import DataRange
from ddpmbench.evaluate.inspect.probe import Look
from ddpmbench.report.inspection import CallFacts, Evaluation, image_words

_DATA = "DATA"
"""What stands for images that nothing names."""


def evaluation(source: str, look: Look, call: CallFacts, *, timesteps: int | None) -> Evaluation:
    """The command of `nll`, with what was said of the checkpoint and what has to be said.

    Args:
        source: the checkpoint, as it was named.
        look: what was read of it.
        call: one of its network's calls.
        timesteps: the model that visits only so many evenly spaced steps.
    """
    is_shipped = source == DEFAULT and look.settings.network is None
    words = ["ddpmbench", "nll"]
    if source != DEFAULT:
        words += ["--ckpt", source]
    words += _options(look.settings)
    for option in look.missing:
        words += shlex.split(option)
    if timesteps is not None:
        words += ["--timesteps", str(timesteps)]
    if is_shipped:
        return Evaluation(tuple(words), look.missing, None)
    data = _data(source, look)
    words += ["--data", data or _DATA]
    needed = None if data else _data_words(look, call)
    return Evaluation(tuple(words), look.missing, needed, look.refused(call))


def _options(settings: CheckpointSettings) -> list[str]:
    """Those that were given, as the command line takes them."""
    words = []
    for option in ("network", "model_flags", "weights", "schedule", "prediction", "variance"):
        value = getattr(settings, option)
        if value is not None:
            words += [f"--{option.replace('_', '-')}", value]
    if settings.clip is not None:
        words.append("--clip" if settings.clip else "--no-clip")
    if settings.time_input is not None:
        words += ["--time-input", settings.time_input]
    if settings.data_range is not None:
        words.append(f"--data-range={DataRange(*settings.data_range).option}")
    if settings.levels is not None:
        words += ["--levels", str(settings.levels)]
    return words


def _data(source: str, look: Look) -> str | None:
    """The test images of the set it was trained on, where its record or its name says which."""
    record = look.checkpoint.training if look.checkpoint is not None else None
    trained_on = record.get("data") if record is not None else None
    if isinstance(trained_on, Mapping):
        found = str(trained_on.get("source"))
        return f"{found}:test" if "test" in SPLITS.get(found, ()) else None
    return "cifar10:test" if "cifar10" in source.lower().replace("-", "") else None


def _data_words(look: Look, call: CallFacts) -> str:
    size = call.size if call.size_said else None
    words = f"NAME:SPLIT, a folder, an .npz or an idx file of {image_words(call.channels, size)}"
    if look.checkpoint is not None and look.checkpoint.num_classes:
        words += ", with a class each (or --class N)"
    return words
