"""What a row takes on a device, and for what."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch

from ddpmbench.likelihood.terms import TermsPass
from ddpmbench.process.noise import normal_noise
from ddpmbench.quality.sampling import Sampler, SamplingStep
from ddpmbench.runs.engine import Engine
from ddpmbench.runs.probe import Probe
from ddpmbench.runs.timing import synchronize, timer

_LEAST_ROUNDS = 3


@dataclasses.dataclass(frozen=True)
class PartSeconds:
    """What a row takes, and for what; the parts add up to it.

    Attributes:
        row: which kind.
        network: in the network.
        noise: for the noise.
        rest: for all else: terms or the posterior, tables, copies.
    """

    row: str
    network: float
    noise: float
    rest: float

    @property
    def seconds(self) -> float:
        """Of the row."""
        return self.network + self.noise + self.rest


@dataclasses.dataclass(frozen=True, eq=False)
class RowWork:
    """Rows of one kind, computed together.

    Attributes:
        row: which kind.
        compute: computes as many as the probe has.
    """

    row: str
    compute: Callable[[], object]


def likelihood_work(probe: Probe, engine: Engine, *, first: bool) -> RowWork:
    """Rows of a likelihood evaluation.

    Args:
        probe: how many of which images.
        engine: calls the network; running when the rows are computed.
        first: whether they are at t = 1, where the decoder is, or after it.
    """
    steps = np.ones_like(probe.rows.t) if first else np.maximum(probe.rows.t, 2)
    terms_pass = TermsPass(
        probe.checkpoint,
        probe.images,
        seed=0,
        decoder="exact",
        device=probe.device,
        model_output=engine.model_output,
    )
    rows = dataclasses.replace(probe.rows, t=steps)
    return RowWork(f"likelihood, t {'= 1' if first else '>= 2'}", partial(terms_pass.terms, rows))


def step_work(probe: Probe, sampler: Sampler) -> RowWork:
    """Steps of samples, from T down and again.

    Args:
        probe: how many.
        sampler: its engine is running when they are computed.
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

    return RowWork("step of a sample", step)


@torch.inference_mode()
def part_seconds(work: RowWork, probe: Probe, engine: Engine, *, at_least: float) -> PartSeconds:
    """What one row takes, and for what.

    The whole, its network and its noise take turns, so that all meet the same machine.

    Args:
        work: the rows.
        probe: how many there are.
        engine: calls the network; running.
        at_least: seconds that are measured.
    """
    inputs, size = probe.inputs(len(probe.rows)), len(probe.rows)
    address = [
        torch.from_numpy(values).to(probe.device)
        for values in (probe.rows.image, probe.rows.t, probe.rows.draw)
    ]
    shape = tuple(probe.images.pixels.shape[1:])
    works: list[Callable[[], object]] = [
        work.compute,
        lambda: engine.model_output(*inputs),
        lambda: normal_noise(*address, shape=shape, seed=0),
    ]
    for call in works:
        call()
    synchronize(probe.device)
    clock = timer(probe.device)
    taken: list[np.ndarray] = []
    since = clock()
    while len(taken) < _LEAST_ROUNDS or clock() - since < at_least:
        marks = [clock()]
        for call in works:
            call()
            marks.append(clock())
        taken.append(np.diff(marks))
    seconds, network, noise = (float(value) / size for value in np.median(taken, axis=0))
    # By chance the parts may take longer than the whole: then they are scaled to it.
    scale = min(1.0, seconds / (network + noise))
    network, noise = scale * network, scale * noise
    return PartSeconds(work.row, network, noise, seconds - network - noise)
