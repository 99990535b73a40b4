"""The engine of a run: that in its folder, else the fastest in a short test.

Engines differ by rounding alone. A resumed run must round as it did before, so the choice is kept
in its folder.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from ddpmbench.checksums import DamageError, read_json, write_json
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.execution.devices import is_out_of_memory
from ddpmbench.execution.engine import FLAGS, Engine, EngineChoice
from ddpmbench.execution.session import Session
from ddpmbench.execution.timing import Probe, gray_images, seconds_per_call
from ddpmbench.execution.worker import auto_batch_size
from ddpmbench.files import replacing, writing_to
from ddpmbench.unet.timed_unet import Precision
from ddpmbench.unet.unet import UNet

ENGINE = "engine.json"

WORTH_A_TEST = 30.0
"""Seconds that a run must take for a test to pay off."""
FEW_BATCHES = 500
"""A run of fewer batches is not tested."""
COMPILE_SECONDS = {"cpu": 60.0, "cuda": 120.0}
"""Seconds that compiling a network usually takes at most."""
SHARE_TO_GAIN = 0.1
"""Compilation is tried if saving this share of the run's time would pay for it."""
_SMALL_BATCH = 32
_CLEARLY = 0.05


@dataclasses.dataclass(frozen=True)
class NetworkUse:
    """How a run uses its network.

    Attributes:
        shape: (C, H, W) of an image.
        num_evaluations: network evaluations, as far as known.
        batch_size: images per network evaluation; None for what suits the device.
    """

    shape: tuple[int, ...]
    num_evaluations: int
    batch_size: int | None = None

    def rows(self, device: torch.device) -> int:
        """Images per network evaluation at the start of a run."""
        return self.batch_size or auto_batch_size(device, self.shape)


def settled_engine(
    checkpoint: Checkpoint,
    use: NetworkUse,
    session: Session,
    *,
    precision: Precision,
    note: Callable[[str], None] = lambda line: None,
) -> Engine:
    """The engine of a run: that in its folder, else the fastest in a short test.

    Args:
        checkpoint: the model.
        use: how the run uses the network.
        session: the session of the run; its first process decides.
        precision: precision of the network.
        note: called with a line about timesteps that the network was not trained on, and before
            the network is compiled for a test.

    Raises:
        InputError: the folder cannot be written.
    """
    if checkpoint.schedule.trained is not None and not checkpoint.time_input.is_of_noise:
        note("the network was trained at whole timesteps only, and is evaluated between them")

    device, folder = session.device, session.out

    def decide() -> EngineChoice:
        choice = None if folder is None else _read(folder / ENGINE, device, precision)
        if choice is None or (choice.compiled and not compiles(choice)):
            choice = fastest(checkpoint, use, device=device, precision=precision, note=note)
            if folder is not None:
                _write(folder / ENGINE, device, choice)
        return choice

    def compiles(choice: EngineChoice) -> bool:
        """Whether this machine can compile the network, as that of an earlier session could."""
        note(_compiling("as in the earlier session", device))
        try:
            _batch_seconds(checkpoint, use, device, choice)
        except RuntimeError as error:
            return is_out_of_memory(error)
        return True

    choice = session.ranks.once(decide)
    return Engine(checkpoint, device=device, choice=choice, rows=use.rows(device))


def at_once(checkpoint: Checkpoint, device: torch.device, precision: Precision) -> EngineChoice:
    """The choice where a test would take longer than it could save."""
    # On a CPU, 16-bit convolutions need a memory format of their own.
    is_narrow_on_cpu = device.type == "cpu" and precision is not Precision.FP32
    channels_last = _has_layouts(checkpoint, device) and not is_narrow_on_cpu
    return EngineChoice(precision, channels_last=channels_last)


def fastest(
    checkpoint: Checkpoint,
    use: NetworkUse,
    *,
    device: torch.device,
    precision: Precision,
    note: Callable[[str], None] = lambda line: None,
) -> EngineChoice:
    """The fastest engine in a measurement, if the run is long enough for one.

    Args:
        checkpoint: the model.
        use: how the run uses the network.
        device: where the network is evaluated.
        precision: precision of the network.
        note: called with a line before the network is compiled.
    """
    known = at_once(checkpoint, device, precision)
    num_batches = use.num_evaluations / use.rows(device)
    if num_batches < FEW_BATCHES:
        return known
    measure = partial(_batch_seconds, checkpoint, use, device)
    seconds: dict[EngineChoice, float] = {}
    # Out of memory: the run itself finds a batch that fits. Or no compiler, or one that fails: what
    # was measured before remains.
    with contextlib.suppress(torch.OutOfMemoryError, MemoryError, RuntimeError):
        # Others must be clearly faster: a choice by chance would differ each time.
        seconds[known] = (1 - _CLEARLY) * measure(known)
        if seconds[known] * num_batches < WORTH_A_TEST:
            return known
        for candidate in _uncompiled(known, checkpoint, use, device):
            seconds[candidate] = measure(candidate)
        best = min(seconds, key=lambda choice: seconds[choice])
        gain = SHARE_TO_GAIN * seconds[best] * num_batches
        if gain > COMPILE_SECONDS.get(device.type, math.inf):
            compiled = dataclasses.replace(best, compiled=True)
            note(_compiling("to see if that is faster", device))
            seconds[compiled] = measure(compiled)
    return min(seconds, key=lambda choice: seconds[choice], default=known)


def _compiling(why: str, device: torch.device) -> str:
    seconds = COMPILE_SECONDS.get(device.type, max(COMPILE_SECONDS.values()))
    return f"compiling the network {why}: about {seconds:.0f} s, more on a busy machine"


def _has_layouts(checkpoint: Checkpoint, device: torch.device) -> bool:
    return isinstance(checkpoint.network, UNet) and device.type != "mps"


def _uncompiled(
    known: EngineChoice, checkpoint: Checkpoint, use: NetworkUse, device: torch.device
) -> list[EngineChoice]:
    choices = [known]
    if _has_layouts(checkpoint, device):
        choices.append(dataclasses.replace(known, channels_last=not known.channels_last))
    if device.type == "cuda" and use.rows(device) <= _SMALL_BATCH:
        choices += [dataclasses.replace(choice, cuda_graph=True) for choice in choices]
    return choices[1:]


def _batch_seconds(
    checkpoint: Checkpoint, use: NetworkUse, device: torch.device, choice: EngineChoice
) -> float:
    """Seconds that the network takes for a batch of the run."""
    rows = use.rows(device)
    images = gray_images(use.shape, rows, checkpoint.num_classes)
    inputs = Probe.of(checkpoint, images, device, rows).inputs(rows)
    engine = Engine(checkpoint, device=device, choice=choice, rows=rows)
    with engine.running(), torch.inference_mode():
        return seconds_per_call(lambda: engine.model_output(*inputs), device)


def _read(path: Path, device: torch.device, precision: Precision) -> EngineChoice | None:
    """The choice of an earlier session; None if damaged or for another kind of device."""
    try:
        record = read_json(path)
        flags = {name: record[name] for name in FLAGS}
        is_same_kind = record["device"] == device.type
    except (DamageError, KeyError):
        return None
    if not is_same_kind or not all(isinstance(flag, bool) for flag in flags.values()):
        return None
    return EngineChoice(precision, **flags)


def _write(path: Path, device: torch.device, choice: EngineChoice) -> None:
    record = {"device": device.type, **dataclasses.asdict(choice)}
    with writing_to(path.parent), replacing(path) as temporary:
        write_json(temporary, record)
