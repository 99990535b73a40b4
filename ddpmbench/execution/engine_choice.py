"""The engine of a run: that of its folder, else the fastest of a short test.

Engines differ by rounding alone. A resumed run must round as it did before, so the choice is kept
in its folder.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from ddpmbench.checksums import DamageError, read_json, write_json
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.errors import InputError
from ddpmbench.execution.devices import is_out_of_memory
from ddpmbench.execution.distributed import Ranks
from ddpmbench.execution.engine import Engine, EngineChoice
from ddpmbench.execution.timing import Probe, gray_images, seconds_per_call, timer
from ddpmbench.execution.worker import auto_batch_size
from ddpmbench.files import replacing, writing_to
from ddpmbench.unet.precision import Precision
from ddpmbench.unet.unet import UNet

_BATCH_STEP = 8


@dataclasses.dataclass(frozen=True)
class CallSpeed:
    """A network called one way, in batches of one size.

    Attributes:
        choice: how.
        batch_size: images a call.
        seconds: an image, the median of several batches.
        first_seconds: of the first call, with preparing and compiling the network.
        eps_error: root mean square of what the predicted noise is off from strict float32, over
            that of the noise; steps spread over 1..T.
    """

    choice: EngineChoice
    batch_size: int
    seconds: float
    first_seconds: float
    eps_error: float

    @property
    def per_second(self) -> float:
        """Network calls, one an image."""
        return 1 / self.seconds


def batch_sizes(largest: int) -> list[int]:
    """From a single image to the largest batch."""
    sizes = [_BATCH_STEP**k for k in range(8)]
    return [*(size for size in sizes if size < largest), largest]


def engine_choices(
    device: torch.device, precisions: tuple[Precision, ...], *, compiled: bool
) -> list[EngineChoice]:
    """The ways to call a network that are worth a measurement.

    Args:
        device: where.
        precisions: which.
        compiled: whether compiling is tried, too.
    """
    plain = [
        EngineChoice(precision, channels_last)
        for precision in precisions
        for channels_last in (False, True)
    ]
    more = [
        EngineChoice(precision, True, True, cuda_graph)
        for precision in precisions
        for cuda_graph in ((False, True) if device.type == "cuda" else (False,))
        if compiled
    ]
    return plain + more


def call_speeds(
    probe: Probe, choice: EngineChoice, sizes: list[int], *, at_least: float
) -> list[CallSpeed]:
    """Call the network one way in batches of some sizes.

    Args:
        probe: what it is called with.
        choice: how it is called.
        sizes: of the batches.
        at_least: seconds that each is measured.

    Raises:
        InputError: the device cannot do it.
    """
    if not (choice.compiled or choice.cuda_graph):
        return _of_one_engine(probe, choice, sizes, at_least)
    # What is compiled or recorded is so for one size, and fills up smaller batches.
    return [
        speed
        for size in sizes
        for speed in _of_one_engine(probe.of_size(size), choice, [size], at_least)
    ]


def _of_one_engine(
    probe: Probe, choice: EngineChoice, sizes: list[int], at_least: float
) -> list[CallSpeed]:
    strict, speeds = probe.strict_eps, []
    clock = timer(probe.device)
    begin = clock()
    rows = len(probe.rows)
    engine = Engine(probe.checkpoint, device=probe.device, choice=choice, rows=rows)
    with torch.inference_mode(), engine.running():
        try:
            output = engine.model_output(*probe.inputs(len(probe.rows)))
        except RuntimeError as failure:
            if is_out_of_memory(failure) or not choice.compiled:
                raise
            reason = str(failure).strip().splitlines()[0]
            raise InputError(
                f"`compiled=True`: this machine cannot compile the network ({reason})"
            ) from failure
        first_seconds = clock() - begin
        difference = probe.eps_of(output) - strict
        error = float(difference.square().mean() / strict.square().mean()) ** 0.5
        for size in sizes:
            call = partial(engine.model_output, *probe.inputs(size))
            seconds = seconds_per_call(call, probe.device, at_least=at_least) / size
            speeds.append(CallSpeed(choice, size, seconds, first_seconds, error))
    return speeds


def fastest_call(calls: Sequence[CallSpeed], precision: Precision) -> CallSpeed:
    """The fastest way of a precision, in its largest batch."""
    own = [call for call in calls if call.choice.precision is precision]
    largest = max(call.batch_size for call in own)
    return min((c for c in own if c.batch_size == largest), key=lambda call: call.seconds)


ENGINE = "engine.json"

WORTH_A_TEST = 30.0
"""Seconds of a run from which on a test pays off."""
COMPILE_SECONDS = {"cpu": 60.0, "cuda": 120.0}
"""Seconds that compiling a network takes at most, as a rule."""
SHARE_TO_GAIN = 0.1
"""Compilation is tried where saving this share of the run would pay for it."""
FEW_BATCHES = 500
"""A run of fewer tests nothing."""
_SMALL_BATCH = 32
_CLEARLY = 0.05
_AT_LEAST = 0.3  # seconds that a candidate is measured


@dataclasses.dataclass(frozen=True)
class NetworkUse:
    """How a run uses its network.

    Attributes:
        shape: (C, H, W) of an image.
        num_evaluations: network evaluations, as far as they are known.
        batch_size: evaluations a call; None for what suits the device.
    """

    shape: tuple[int, ...]
    num_evaluations: int
    batch_size: int | None = None

    def rows(self, device: torch.device) -> int:
        """Images a call, as a run begins."""
        return self.batch_size or auto_batch_size(device, self.shape)


def settled_engine(
    checkpoint: Checkpoint,
    use: NetworkUse,
    *,
    device: torch.device,
    precision: Precision,
    folder: Path | None,
    ranks: Ranks,
    note: Callable[[str], None] = lambda line: None,
) -> Engine:
    """The engine of a run, the same in every session and process of it.

    Args:
        checkpoint: the model.
        use: how it is used.
        device: of this process.
        precision: of the network.
        folder: of the run; None if it is kept in memory.
        ranks: the processes of the run; the first decides.
        note: called with a line about timesteps that the network was not trained at, and before
            it is compiled for a test.

    Raises:
        InputError: the folder cannot be written.
    """
    if checkpoint.schedule.trained is not None and not checkpoint.time_input.is_of_noise:
        note("the network was trained at whole timesteps only, and is evaluated between them")

    def decide() -> EngineChoice:
        choice = None if folder is None else _read(folder / ENGINE, device, precision)
        if choice is None or (choice.compiled and not _compiles(choice)):
            choice = fastest(checkpoint, use, device=device, precision=precision, note=note)
            if folder is not None:
                _write(folder / ENGINE, device, choice)
        return choice

    def _compiles(choice: EngineChoice) -> bool:
        """Whether this machine can compile the network, as that of an earlier session could."""
        note(_compiling("as in the earlier session", device))
        try:
            _batch_seconds(checkpoint, use, device, choice)
        except RuntimeError as error:
            return is_out_of_memory(error)
        return True

    choice = ranks.once(decide)
    return Engine(checkpoint, device=device, choice=choice, rows=use.rows(device))


def at_once(checkpoint: Checkpoint, device: torch.device, precision: Precision) -> EngineChoice:
    """The choice where a test would take longer than it could save."""
    # On a CPU, 16-bit convolutions have a layout of their own.
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
    """The fastest engine by measurement, if the run is long enough to measure it.

    Args:
        checkpoint: the model.
        use: how it is used.
        device: where.
        precision: of the network.
        note: called with a line before the network is compiled.
    """
    known = at_once(checkpoint, device, precision)
    num_batches = use.num_evaluations / use.rows(device)
    if num_batches < FEW_BATCHES:
        return known
    measure = partial(_batch_seconds, checkpoint, use, device)
    seconds: dict[EngineChoice, float] = {}
    try:
        # The others must be clearly faster: what chance decides would be decided anew each time.
        seconds[known] = (1 - _CLEARLY) * measure(known)
        if seconds[known] * num_batches < WORTH_A_TEST:
            return known
        for candidate in _uncompiled(known, checkpoint, use, device):
            seconds[candidate] = measure(candidate)
        best = min(seconds, key=lambda choice: seconds[choice])
        if _is_compilation_worth_a_try(seconds[best] * num_batches, device):
            compiled = dataclasses.replace(best, compiled=True)
            note(_compiling("to see if that is faster", device))
            seconds[compiled] = measure(compiled)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError):
        # Memory: the run itself finds a batch that fits. Or no compiler, or one that cannot: what
        # was measured until then is left.
        pass
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


def _is_compilation_worth_a_try(seconds: float, device: torch.device) -> bool:
    return SHARE_TO_GAIN * seconds > COMPILE_SECONDS.get(device.type, float("inf"))


def _batch_seconds(
    checkpoint: Checkpoint, use: NetworkUse, device: torch.device, choice: EngineChoice
) -> float:
    """Seconds that the network takes for a batch of the run."""
    rows = use.rows(device)
    images = gray_images(use.shape, rows, checkpoint.num_classes)
    inputs = Probe.of(checkpoint, images, device, rows).inputs(rows)
    engine = Engine(checkpoint, device=device, choice=choice, rows=rows)
    with engine.running(), torch.inference_mode():
        return seconds_per_call(lambda: engine.model_output(*inputs), device, at_least=_AT_LEAST)


_FLAGS = ("channels_last", "compiled", "cuda_graph")


def _read(path: Path, device: torch.device, precision: Precision) -> EngineChoice | None:
    """That of an earlier session; None if it is damaged or of another kind of device."""
    try:
        record = read_json(path)
        flags = {name: record[name] for name in _FLAGS}
        is_of_this_kind = record["device"] == device.type
    except (DamageError, KeyError):
        return None
    if not is_of_this_kind or not all(isinstance(flag, bool) for flag in flags.values()):
        return None
    return EngineChoice(precision, **flags)


def _write(path: Path, device: torch.device, choice: EngineChoice) -> None:
    record = {"device": device.type, **dataclasses.asdict(choice)}
    with writing_to(path.parent), replacing(path) as temporary:
        write_json(temporary, record)
