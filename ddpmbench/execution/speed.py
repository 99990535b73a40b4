"""A short measurement of a model on a device: engines, kinds of work, and the peak FLOP/s."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch

from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.noise import normal_noise
from ddpmbench.errors import InputError, command, counted
from ddpmbench.execution import timing
from ddpmbench.execution.devices import evaluating_checkpoint, resolve_precision
from ddpmbench.execution.engine import Engine
from ddpmbench.execution.importance import expected_size
from ddpmbench.execution.timing import (
    CallSpeed,
    Probe,
    batch_sizes,
    call_speeds,
    engine_choices,
    matmul_peak,
    median_seconds,
    seconds_per_call,
)
from ddpmbench.execution.worker import BatchSize
from ddpmbench.likelihood.designs import PilotDesign, blocks_of, num_terms
from ddpmbench.likelihood.terms import TermsPass, TermTable
from ddpmbench.samples.chain import SamplingStep
from ddpmbench.samples.samplers import Sampler, SamplerChoice
from ddpmbench.unet.flops import flop_per_call
from ddpmbench.unet.timed_unet import Precision

FEW_STEPS = 50
"""Steps of a sampler that skips most timesteps."""


FIRST, LATER, STEP = "likelihood, t = 1", "likelihood, t >= 2", "step of a sample"
"""The kinds of work: terms of the bound with and without the decoder, and sampler steps."""


@dataclasses.dataclass(frozen=True)
class PartSeconds:
    """Seconds of one network evaluation and its surroundings, in parts that add up.

    Attributes:
        kind: the kind of work.
        network: seconds in the network.
        noise: seconds for the noise.
        rest: seconds for terms or the posterior, tables and copies.
    """

    kind: str
    network: float
    noise: float
    rest: float

    @property
    def seconds(self) -> float:
        """Their sum."""
        return self.network + self.noise + self.rest


@dataclasses.dataclass(frozen=True)
class Workload:
    """A command, and how many network evaluations of each kind it takes.

    Attributes:
        name: description of the result.
        command: the command line, without the checkpoint and the images.
        evaluations: network evaluations by kind of work.
    """

    name: str
    command: str
    evaluations: Mapping[str, int]

    @property
    def num_evaluations(self) -> int:
        """All network evaluations."""
        return sum(self.evaluations.values())

    def seconds(self, parts: Sequence[PartSeconds]) -> float:
        """Seconds of the whole command.

        Args:
            parts: of one network evaluation, for each kind of work.
        """
        return sum(part.seconds * self.evaluations.get(part.kind, 0) for part in parts)


def workloads(
    num_images: int, num_timesteps: int, *, half_width: float, num_samples: int
) -> list[Workload]:
    """The bound to a half width and by every pair; samples with all timesteps and with a few.

    Args:
        num_images: N.
        num_timesteps: T.
        half_width: half width of the bound's interval, bits per dimension.
        num_samples: number of samples.
    """
    pairs = Workload(
        "every pair, one draw",
        command("nll", estimator="every-pair", draws=1),
        {FIRST: num_images, LATER: num_images * (num_timesteps - 1)},
    )
    samples = [
        Workload(
            f"{counted(num_samples, 'sample')} of {counted(steps, 'step')}",
            command("sample", num_samples=num_samples, timesteps=steps),
            {STEP: num_samples * steps},
        )
        for steps in sorted({num_timesteps, min(num_timesteps, FEW_STEPS)}, reverse=True)
    ]
    if num_timesteps < 2:
        return [pairs, *samples]
    pilot = len(PilotDesign(num_images, num_timesteps, 0))
    replicates, blocks = expected_size(num_images, half_width)
    later = replicates * (num_images * blocks // blocks_of(num_images))
    sampled = Workload(
        f"nll, rd to +- {half_width:g} bits/dim",
        command("nll", half_width=f"{half_width:g}"),
        {FIRST: num_terms(num_images, replicates, blocks) - later, LATER: later + pilot},
    )
    return [sampled, pairs, *samples]


def likelihood_work(probe: Probe, engine: Engine, kind: str) -> Callable[[], TermTable]:
    """A function that computes terms of the bound for a whole batch of the probe.

    Args:
        probe: the images and the number of terms.
        engine: evaluates the network; it must be running when the terms are computed.
        kind: `FIRST` or `LATER`.
    """
    t = np.ones_like(probe.rows.t) if kind == FIRST else np.maximum(probe.rows.t, 2)
    terms_pass = TermsPass(
        probe.checkpoint,
        probe.images,
        seed=0,
        decoder="exact",
        device=probe.device,
        model_output=engine.model_output,
    )
    return partial(terms_pass.terms, dataclasses.replace(probe.rows, t=t))


def step_work(probe: Probe, sampler: Sampler) -> Callable[[], None]:
    """A function that takes the next sampler step of a batch, from T down, over and over.

    Args:
        probe: the number of samples.
        sampler: its engine must be running when the steps are taken.
    """
    sample = torch.arange(len(probe.rows), device=probe.device)
    _, _, labels = probe.inputs(len(probe.rows))
    x_t = sampler.start(sample, probe.images.pixels.shape[1:])
    num_timesteps = probe.checkpoint.schedule.num_timesteps
    steps: list[Iterator[SamplingStep]] = [iter(())]

    def step() -> None:
        if next(steps[0], None) is None:
            steps[0] = sampler.steps(x_t, num_timesteps, sample=sample, labels=labels)
            next(steps[0])

    return step


@torch.inference_mode()
def part_seconds(
    kind: str,
    work: Callable[[], object],
    probe: Probe,
    engine: Engine,
    *,
    at_least: float | None = None,
) -> PartSeconds:
    """Seconds of the work, the network and the noise, per network evaluation.

    Args:
        kind: the kind of work.
        work: does the work for the batch.
        probe: the batch.
        engine: evaluates the network; running.
        at_least: seconds to measure; None for `timing.LEAST_SECONDS`.
    """
    inputs, size = probe.inputs(len(probe.rows)), len(probe.rows)
    address = [
        torch.from_numpy(values).to(probe.device)
        for values in (probe.rows.image, probe.rows.t, probe.rows.draw)
    ]
    shape = tuple(probe.images.pixels.shape[1:])
    works: list[Callable[[], object]] = [
        work,
        partial(engine.model_output, *inputs),
        lambda: normal_noise(*address, shape=shape, seed=0),
    ]
    medians = median_seconds(works, probe.device, at_least=at_least, rounds=3)
    seconds, network, noise = (median / size for median in medians)
    # By chance the parts may exceed the whole; they are then scaled to it.
    scale = min(1.0, seconds / (network + noise))
    network, noise = scale * network, scale * noise
    return PartSeconds(kind, network, noise, seconds - network - noise)


PRECISIONS = {
    "cpu": (Precision.FP32, Precision.BF16),
    "cuda": tuple(Precision),
    "mps": (Precision.FP32, Precision.FP16),
}
"""Precisions that are measured by default."""
BATCH_SECONDS = 1.0
"""The longest time of a batch of the default size; larger ones are no faster."""
_LEAST_BATCH = 4
_PEAKS = 3

Tell = Callable[[str], None]


@dataclasses.dataclass(frozen=True, eq=False)
class MeasuredSpeed:
    """The measured speed of a model on a device.

    Attributes:
        calls: speed of the network with every engine and batch size.
        parts: seconds of each kind of work by precision, with its fastest engine.
        peaks: FLOP/s of a matrix product by precision, if measured.
        flop_per_call: FLOP of the network for one image.
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
    tell: Tell = lambda line: None,
) -> Probe:
    """A batch that fits into memory, and is no slower than a measurement needs.

    Args:
        checkpoint: the model.
        images: the images of the batch.
        device: where the network is evaluated.
        batch_size: size of the batch; None for what suits the device and the network.
        tell: called with a line when a batch does not fit.

    Raises:
        InputError: a batch of the given size does not fit.
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


def measured(
    probe: Probe,
    precisions: Sequence[Precision] | None = None,
    *,
    compiled: bool = False,
    tell: Tell = lambda line: None,
) -> MeasuredSpeed:
    """Time every engine, each kind of work with the fastest engine, and the matrix product.

    Args:
        probe: the model and the largest batch.
        precisions: precisions of the network; None for those that suit the device.
        compiled: whether to try compiling, which takes longer than everything else.
        tell: called with a line for each measurement, and for what the device does not support.

    Raises:
        InputError: the device does not support one of the precisions named.
    """
    device, is_named = probe.device, precisions is not None
    calls: list[CallSpeed] = []
    supported: list[Precision] = []
    for precision in precisions or PRECISIONS[device.type]:
        with _left_out(is_named, tell):
            supported.append(resolve_precision(precision, device))
    sizes = batch_sizes(len(probe.rows))
    for choice in engine_choices(device, supported, compiled=compiled):
        tell(f"The network: {choice}")
        # A compiled network is compiled again for every size.
        chosen_sizes = sizes if not choice.compiled else sorted({sizes[0], sizes[-1]})
        with _left_out(is_named, tell):
            calls += call_speeds(probe, choice, chosen_sizes)
    parts: dict[Precision, list[PartSeconds]] = {}
    peaks: dict[Precision, float] = {}
    for precision in dict.fromkeys(call.choice.precision for call in calls):
        best = fastest_call(calls, precision)
        tell(f"Terms, samples and the matrix product: {best.choice}")
        parts[precision] = _parts(probe, best)
        # The measured product is strict, which tf32 is not.
        if precision is not Precision.TF32:
            # The best of a few: other load on the machine can only lower it.
            at_least = timing.LEAST_SECONDS / _PEAKS
            peaks[precision] = max(
                matmul_peak(device, precision.dtype, at_least=at_least) for _ in range(_PEAKS)
            )
    return MeasuredSpeed(calls, parts, peaks, _flop(probe))


def fastest_call(calls: Sequence[CallSpeed], precision: Precision) -> CallSpeed:
    """The fastest engine of a precision, in its largest batch."""
    candidates = [call for call in calls if call.choice.precision is precision]
    return min(candidates, key=lambda call: (-call.batch_size, call.seconds))


@contextlib.contextmanager
def _left_out(is_named: bool, tell: Tell) -> Iterator[None]:
    """Within, unsupported engines are reported, unless the user named the precision."""
    try:
        yield
    except InputError as error:
        if is_named:
            raise
        tell(f"Left out: {error}")


def _parts(probe: Probe, call: CallSpeed) -> list[PartSeconds]:
    rows = len(probe.rows)
    engine = Engine(probe.checkpoint, device=probe.device, choice=call.choice, rows=rows)
    sampler = SamplerChoice().prepare(
        probe.checkpoint, seed=0, device=probe.device, model_output=engine.model_output
    )
    kinds = (FIRST, LATER) if probe.checkpoint.schedule.num_timesteps > 1 else (FIRST,)
    works = {kind: likelihood_work(probe, engine, kind) for kind in kinds}
    with engine.running():
        parts = [part_seconds(*work, probe, engine) for work in works.items()]
        # Last, since the engine now belongs to the sampler step.
        step = step_work(probe, sampler.launched(engine.whole_step))
        return [*parts, part_seconds(STEP, step, probe, engine)]


def _flop(probe: Probe) -> int:
    x_t, t, labels = probe.inputs(1)
    inputs = [x_t.float(), probe.checkpoint.network_time(t), *([] if labels is None else [labels])]
    with evaluating_checkpoint(probe.checkpoint):
        return flop_per_call(probe.checkpoint.network, *inputs)
