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


@torch.inference_mode()
def likelihood_parts(probe: Probe, engine: Engine, *, first: bool, at_least: float) -> PartSeconds:
    """What a row of a likelihood evaluation takes.

    Args:
        probe: its rows' number is that of a batch.
        engine: calls the network; running.
        first: whether the rows are at t = 1, where the decoder is, or after it.
        at_least: seconds that are measured.
    """
    rows = dataclasses.replace(
        probe.rows, t=np.ones_like(probe.rows.t) if first else np.maximum(probe.rows.t, 2)
    )
    terms_pass = TermsPass(
        probe.checkpoint,
        probe.images,
        seed=0,
        decoder="exact",
        device=probe.device,
        model_output=engine.model_output,
    )
    return _parts(
        "likelihood, t = 1" if first else "likelihood, t >= 2",
        partial(terms_pass.terms, rows),
        probe=probe,
        engine=engine,
        at_least=at_least,
    )


@torch.inference_mode()
def step_parts(probe: Probe, engine: Engine, sampler: Sampler, *, at_least: float) -> PartSeconds:
    """What a step of a sample takes.

    Args:
        probe: its rows' number is that of a batch.
        engine: calls the network; running.
        sampler: calls it by the same engine.
        at_least: seconds that are measured.
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

    return _parts("step of a sample", step, probe=probe, engine=engine, at_least=at_least)


def _parts(
    row: str, whole: Callable[[], object], *, probe: Probe, engine: Engine, at_least: float
) -> PartSeconds:
    """The whole, its network and its noise in turn, so that all meet the same machine."""
    inputs, size = probe.inputs(len(probe.rows)), len(probe.rows)
    address = [
        torch.from_numpy(values).to(probe.device)
        for values in (probe.rows.image, probe.rows.t, probe.rows.draw)
    ]
    shape = tuple(probe.images.pixels.shape[1:])
    works: list[Callable[[], object]] = [
        whole,
        lambda: engine.model_output(*inputs),
        lambda: normal_noise(*address, shape=shape, seed=0),
    ]
    for work in works:
        work()
    synchronize(probe.device)
    clock = timer(probe.device)
    taken: list[np.ndarray] = []
    since = clock()
    while len(taken) < _LEAST_ROUNDS or clock() - since < at_least:
        marks = [clock()]
        for work in works:
            work()
            marks.append(clock())
        taken.append(np.diff(marks))
    seconds, network, noise = (float(value) / size for value in np.median(taken, axis=0))
    network = min(network, seconds)
    noise = min(noise, seconds - network)
    return PartSeconds(row, network, noise, seconds - network - noise)
