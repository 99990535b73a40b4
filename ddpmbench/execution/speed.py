"""A short measurement of a model on a device: engines, kinds of work, and the peak FLOP/s."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.noise import normal_noise
from ddpmbench.errors import InputError, command, counted
from ddpmbench.execution import timing
from ddpmbench.execution.devices import evaluating_checkpoint, is_out_of_memory, resolve_precision
from ddpmbench.execution.engine import FLAGS, Engine, EngineChoice
from ddpmbench.execution.importance import expected_size
from ddpmbench.execution.timing import Probe, matmul_peak, median_seconds, seconds_per_call
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


def predict(works: Sequence[Workload], parts: pd.DataFrame) -> pd.DataFrame:
    """How long commands take.

    Args:
        works: the commands.
        parts: of `measure_parts`, in one or more precisions.

    Returns:
        One row per command and precision: `question`, `command`, `num_evaluations`, `precision`,
        `seconds`.
    """
    seconds = parts.set_index(["precision", "row"]).ms / 1000
    return pd.DataFrame(
        [
            {
                "question": work.name,
                "command": work.command,
                "num_evaluations": work.num_evaluations,
                "precision": precision,
                "seconds": (seconds[precision] * pd.Series(work.evaluations)).sum(),
            }
            for work in works
            for precision in parts.precision.unique()
        ]
    )


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
    work: Callable[[], object],
    probe: Probe,
    engine: Engine,
    *,
    at_least: float | None = None,
) -> dict[str, float]:
    """Seconds of the work per network evaluation, in parts that add up.

    Args:
        work: does the work for the batch.
        probe: the batch.
        engine: evaluates the network; running.
        at_least: seconds to measure; None for `timing.LEAST_SECONDS`.

    Returns:
        The seconds in the `network`, for the `noise`, and for the `rest`: terms or the posterior,
        tables and copies.
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
    return {"network": network, "noise": noise, "rest": seconds - network - noise}


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


def batch_sizes(largest: int) -> list[int]:
    """Batch sizes from a single image to the largest batch, 8 times as many each."""
    sizes = [8**k for k in range(8)]
    return [*(size for size in sizes if size < largest), largest]


def engine_choices(
    device: torch.device, precisions: Sequence[Precision], *, compiled: bool
) -> list[EngineChoice]:
    """The engines that are worth measuring; compiled ones, too, if asked for."""
    layouts = (False, True)
    choices = [EngineChoice(precision, last) for precision in precisions for last in layouts]
    if compiled:
        graphs = (False, True) if device.type == "cuda" else (False,)
        choices += [EngineChoice(p, True, True, graph) for p in precisions for graph in graphs]
    return choices


def measure_calls(
    probe: Probe,
    precisions: Sequence[Precision] | None = None,
    *,
    compiled: bool = False,
    tell: Tell = lambda line: None,
) -> pd.DataFrame:
    """Time the network with every engine, in batches of several sizes.

    Args:
        probe: the model and the largest batch.
        precisions: precisions of the network; None for those that suit the device.
        compiled: whether to try compiling, which takes longer than everything else.
        tell: called with a line for each engine, and for what the device does not support.

    Returns:
        One row per engine and batch size: `engine` in words, `precision`, `channels_last`,
        `compiled`, `cuda_graph`, `batch_size`, `evaluations_per_second`, `ms_per_batch`,
        `eps_error` against strict float32 (root mean square error of the predicted noise, relative
        to the root mean square of the noise; timesteps spread over 1..T), `first_seconds` of the
        first batch, which prepares and compiles the network, and `break_even_evaluations` after
        which compiling has paid off (empty if not compiled, or never).

    Raises:
        InputError: the device does not support one of the precisions named.
    """
    device, is_named = probe.device, precisions is not None
    supported: list[Precision] = []
    for precision in precisions or PRECISIONS[device.type]:
        with _left_out(is_named, tell):
            supported.append(resolve_precision(precision, device))
    sizes = batch_sizes(len(probe.rows))
    rows: list[dict[str, Any]] = []
    for choice in engine_choices(device, supported, compiled=compiled):
        tell(f"The network: {choice}")
        with _left_out(is_named, tell):
            if not choice.compiled:
                rows += _timed(probe, choice, sizes)
                continue
            # A compiled network has one batch size, and is compiled again for another.
            probes = [
                Probe.of(probe.checkpoint, probe.images, device, size)
                for size in sorted({sizes[0], sizes[-1]})
            ]
            rows += [row for sized in probes for row in _timed(sized, choice, [len(sized.rows)])]
    calls = pd.DataFrame(rows)
    return calls.assign(break_even_evaluations=break_even(calls))


def break_even(calls: pd.DataFrame) -> "pd.Series[float]":
    """Evaluations after which compiling has paid off; see `measure_calls`."""
    seconds = 1 / calls.evaluations_per_second
    plain = seconds.where(~calls.compiled).groupby([calls.precision, calls.batch_size])
    saved = (plain.transform("min") - seconds).where(calls.compiled)
    return (calls.first_seconds / saved).where(saved > 0)


def _timed(probe: Probe, choice: EngineChoice, sizes: Sequence[int]) -> list[dict[str, Any]]:
    strict, rows = probe.strict_eps, len(probe.rows)
    clock = timing.timer(probe.device)
    begin = clock()
    engine = Engine(probe.checkpoint, device=probe.device, choice=choice, rows=rows)
    with torch.inference_mode(), engine.running():
        try:
            output = engine.model_output(*probe.inputs(rows))
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
        calls = [partial(engine.model_output, *probe.inputs(size)) for size in sizes]
        seconds = [seconds_per_call(call, probe.device) for call in calls]
    return [
        {
            "engine": str(choice),
            **dataclasses.asdict(choice),
            "precision": str(choice.precision),
            "batch_size": size,
            "evaluations_per_second": size / taken,
            "ms_per_batch": 1000 * taken,
            "eps_error": error,
            "first_seconds": first_seconds,
        }
        for size, taken in zip(sizes, seconds, strict=True)
    ]


def fastest_engines(calls: pd.DataFrame) -> list[EngineChoice]:
    """The fastest engine of each precision, in its largest batch.

    Args:
        calls: of `measure_calls`.
    """
    order = ["batch_size", "evaluations_per_second"]
    best = [of.sort_values(order).iloc[-1] for _, of in calls.groupby("precision", sort=False)]
    return [
        EngineChoice(Precision(row["precision"]), **{flag: bool(row[flag]) for flag in FLAGS})
        for row in best
    ]


def measured_peak(device: torch.device, precision: Precision) -> float:
    """FLOP/s of the matrix product in a precision; see `matmul_peak`."""
    # The best of a few: other load on the machine can only lower it.
    at_least = timing.LEAST_SECONDS / _PEAKS
    return max(matmul_peak(device, precision.dtype, at_least=at_least) for _ in range(_PEAKS))


@contextlib.contextmanager
def _left_out(is_named: bool, tell: Tell) -> Iterator[None]:
    """Within, unsupported engines are reported, unless the user named the precision."""
    try:
        yield
    except InputError as error:
        if is_named:
            raise
        tell(f"Left out: {error}")


def measure_parts(probe: Probe, choice: EngineChoice) -> pd.DataFrame:
    """Time the terms of the bound and the steps of a sampler with an engine.

    Returns:
        One row per kind of work, in milliseconds per network evaluation: `row`, `precision`, `ms`,
        and its parts `network`, `noise` and `rest`.
    """
    engine = Engine(probe.checkpoint, device=probe.device, choice=choice, rows=len(probe.rows))
    sampler = SamplerChoice().prepare(
        probe.checkpoint, seed=0, device=probe.device, model_output=engine.model_output
    )
    kinds = (FIRST, LATER) if probe.checkpoint.schedule.num_timesteps > 1 else (FIRST,)
    works = {kind: likelihood_work(probe, engine, kind) for kind in kinds}
    with engine.running():
        seconds = {kind: part_seconds(work, probe, engine) for kind, work in works.items()}
        # Last, since the engine now belongs to the sampler step.
        step = step_work(probe, sampler.launched(engine.whole_step))
        seconds[STEP] = part_seconds(step, probe, engine)
    parts = 1000 * pd.DataFrame(seconds).T
    parts.insert(0, "ms", parts.sum(axis=1))
    parts.insert(0, "precision", str(choice.precision))
    return parts.rename_axis("row").reset_index()


def flop_of(probe: Probe) -> int:
    """FLOP of the network for one image."""
    x_t, t, labels = probe.inputs(1)
    inputs = [x_t.float(), probe.checkpoint.network_time(t), *([] if labels is None else [labels])]
    with evaluating_checkpoint(probe.checkpoint):
        return flop_per_call(probe.checkpoint.network, *inputs)
