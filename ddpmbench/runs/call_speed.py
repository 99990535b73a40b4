"""How fast a device calls a network, one way or another."""

import dataclasses
from collections.abc import Sequence
from functools import partial

import torch

from ddpmbench.errors import InputError
from ddpmbench.network.precision import Precision
from ddpmbench.runs.batch_size import is_out_of_memory
from ddpmbench.runs.engine import Engine, EngineChoice
from ddpmbench.runs.probe import Probe
from ddpmbench.runs.timing import seconds_per_call, timer

_BATCH_STEP = 8


@dataclasses.dataclass(frozen=True)
class CallSpeed:
    """A network called one way, in batches of one size.

    Attributes:
        choice: how.
        batch_size: images a call.
        seconds: an image, the median of several batches.
        first_seconds: of the first call of all, for which the network is made ready and compiled.
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
    strict, found = probe.strict_eps, []
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
            raise InputError(f"--compile: this machine cannot compile it ({reason})") from failure
        first_seconds = clock() - begin
        difference = probe.eps_of(output) - strict
        error = float(difference.square().mean() / strict.square().mean()) ** 0.5
        for size in sizes:
            call = partial(engine.model_output, *probe.inputs(size))
            seconds = seconds_per_call(call, probe.device, at_least=at_least) / size
            found.append(CallSpeed(choice, size, seconds, first_seconds, error))
    return found


def fastest(calls: Sequence[CallSpeed], precision: Precision) -> CallSpeed:
    """The fastest way of a precision, in its largest batch."""
    own = [call for call in calls if call.choice.precision is precision]
    largest = max(call.batch_size for call in own)
    return min((c for c in own if c.batch_size == largest), key=lambda call: call.seconds)
