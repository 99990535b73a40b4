"""A short measurement of a model on a device: engines, rows, and the device's own limit."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch

from ddpmbench.errors import InputError
from ddpmbench.inputs.checkpoints.checkpoint import Checkpoint
from ddpmbench.inputs.images import ImageSet
from ddpmbench.network.flops import flop_per_call
from ddpmbench.network.precision import Precision
from ddpmbench.quality.sampling import SamplerChoice
from ddpmbench.runs.batch_size import BatchSize
from ddpmbench.runs.call_speed import (
    CallSpeed,
    batch_sizes,
    call_speeds,
    engine_choices,
    fastest,
)
from ddpmbench.runs.devices import evaluating_checkpoint
from ddpmbench.runs.engine import Engine
from ddpmbench.runs.precision import resolve_precision
from ddpmbench.runs.probe import Probe
from ddpmbench.runs.row_parts import PartSeconds, likelihood_work, part_seconds, step_work
from ddpmbench.runs.timing import matmul_peak, seconds_per_call

PRECISIONS = {
    "cpu": (Precision.FP32, Precision.BF16),
    "cuda": tuple(Precision),
    "mps": (Precision.FP32, Precision.FP16),
}
"""What is measured where no one says which."""
BATCH_SECONDS = 1.0
"""A batch that no one asked for takes about so long at most: a larger one is no faster."""
_LEAST_BATCH = 4
_PEAKS = 3

Told = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class SpeedPlan:
    """What is measured.

    Attributes:
        precisions: of the network; None for those that suit the device, as far as it has them.
        compiled: whether compiling is tried, which takes longer than all else.
        at_least: seconds that each speed is measured.
    """

    precisions: tuple[Precision, ...] | None = None
    compiled: bool = False
    at_least: float = 0.3


@dataclasses.dataclass(frozen=True, eq=False)
class MeasuredSpeed:
    """How fast a device is at a model.

    Attributes:
        calls: the network called in every way, in batches of every size.
        parts: what rows take, by precision, each with the fastest engine of that precision.
        peaks: FLOP/s of a product of matrices, by precision, where it was measured.
        flop_per_call: of the network, one image.
    """

    calls: Sequence[CallSpeed]
    parts: Mapping[Precision, Sequence[PartSeconds]]
    peaks: Mapping[Precision, float]
    flop_per_call: int


def fitting_probe(
    checkpoint: Checkpoint,
    images: ImageSet,
    device: torch.device,
    *,
    batch_size: int | None = None,
    tell: Told = lambda line: None,
) -> Probe:
    """Rows for a batch that fits into memory, and takes no longer than a measurement needs.

    Args:
        checkpoint: the model.
        images: that the rows are of.
        device: where.
        batch_size: how many; None for what suits the device and the network.
        tell: told when they do not fit.

    Raises:
        InputError: they do not fit, and the number was asked for.
    """
    batch = BatchSize(batch_size, device=device, image_shape=images.pixels.shape[1:], warn=tell)
    if batch_size is None:
        inputs = Probe.of(checkpoint, images, device, 1).inputs(1)
        with torch.inference_mode(), evaluating_checkpoint(checkpoint):
            one = seconds_per_call(lambda: checkpoint.model_output(*inputs), device, at_least=0)
        batch.rows = min(batch.rows, max(_LEAST_BATCH, int(BATCH_SECONDS / max(one, 1e-9))))

    def tried(rows: int) -> Probe:
        probe = Probe.of(checkpoint, images, device, rows)
        _ = probe.strict_eps
        return probe

    return batch.attempt(tried)


def measured(probe: Probe, plan: SpeedPlan, *, tell: Told = lambda line: None) -> MeasuredSpeed:
    """Time every engine, the rows with the fastest of each precision, and the matrix product.

    Args:
        probe: the model and the rows of the largest batch.
        plan: what is measured.
        tell: told what is being measured, and what is left out because the device has it not.

    Raises:
        InputError: the device has none of a precision that the plan names.
    """
    device, calls = probe.device, []
    precisions = _precisions(device, plan, tell)
    sizes = batch_sizes(len(probe.rows))
    for choice in engine_choices(device, precisions, compiled=plan.compiled):
        tell(f"The network: {choice}")
        # What is compiled is compiled again for every size.
        own = sizes if not choice.compiled else sorted({sizes[0], sizes[-1]})
        try:
            calls += call_speeds(probe, choice, own, at_least=plan.at_least)
        except InputError as error:
            if plan.precisions is not None:
                raise
            tell(f"Left out: {error}")
    parts: dict[Precision, list[PartSeconds]] = {}
    peaks: dict[Precision, float] = {}
    for precision in dict.fromkeys(call.choice.precision for call in calls):
        best = fastest(calls, precision)
        tell(f"Rows and the matrix product: {best.choice}")
        parts[precision] = _parts(probe, best, plan.at_least)
        # The product that is measured is strict, which tf32 is not.
        if precision is not Precision.TF32:
            # The best of a few: what else the machine does can only make it less.
            peaks[precision] = max(
                matmul_peak(device, precision.dtype, at_least=plan.at_least / _PEAKS)
                for _ in range(_PEAKS)
            )
    return MeasuredSpeed(calls, parts, peaks, _flop(probe))


def _precisions(device: torch.device, plan: SpeedPlan, tell: Told) -> tuple[Precision, ...]:
    """Those that are asked for, or that suit the device; it has all of them."""
    found = []
    for precision in PRECISIONS[device.type] if plan.precisions is None else plan.precisions:
        try:
            found.append(resolve_precision(precision, device))
        except InputError as error:
            if plan.precisions is not None:
                raise
            tell(f"Left out: {error}")
    return tuple(found)


def _parts(probe: Probe, call: CallSpeed, at_least: float) -> list[PartSeconds]:
    rows = len(probe.rows)
    engine = Engine(probe.checkpoint, device=probe.device, choice=call.choice, rows=rows)
    sampler = SamplerChoice().prepare(
        probe.checkpoint, seed=0, device=probe.device, model_output=engine.model_output
    )
    kinds = (True, False) if probe.checkpoint.schedule.num_timesteps > 1 else (True,)
    works = [likelihood_work(probe, engine, first=first) for first in kinds]
    with engine.running():
        found = [part_seconds(work, probe, engine, at_least=at_least) for work in works]
        # Last: from now on the engine is the step's.
        step = step_work(probe, sampler.launched(engine.whole_step))
        return [*found, part_seconds(step, probe, engine, at_least=at_least)]


def _flop(probe: Probe) -> int:
    x_t, t, labels = probe.inputs(1)
    inputs = [x_t.float(), probe.checkpoint.network_time(t), *([] if labels is None else [labels])]
    with evaluating_checkpoint(probe.checkpoint):
        return flop_per_call(probe.checkpoint.network, *inputs)
