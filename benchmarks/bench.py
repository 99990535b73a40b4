"""Shared state of all rows of a session: device, networks, engines, and peak performance."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from cases import Case
from subjects import images_for, load_subject, shortened
from torch import Tensor

from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.noise import normal_noise
from ddpmbench.execution.devices import evaluating, strict_float32
from ddpmbench.execution.engine import Engine
from ddpmbench.execution.timing import matmul_peak, timer
from ddpmbench.samples.samplers import SamplerChoice
from ddpmbench.unet.flops import flop_per_call
from ddpmbench.unet.timed_unet import Precision

TOLERANCE = {
    Precision.FP32: 2e-5,
    Precision.TF32: 3e-3,
    Precision.FP16: 3e-3,
    Precision.BF16: 2e-2,
}
"""Largest RMS error of a network's output, relative to the output's RMS."""
ERROR_INPUTS = 16
"""Fewest inputs of which the error is measured; the outputs at a few timesteps can be small."""


@dataclasses.dataclass(frozen=True, eq=False)
class Inputs:
    """The inputs of a network.

    Attributes:
        x_t: (B, C, H, W) images with noise.
        t: (B,) timesteps from 1 to T, evenly spaced.
        labels: (B,) classes; None if there are none.
    """

    x_t: Tensor
    t: Tensor
    labels: Tensor | None


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedEngine:
    """An engine after its first call, so that nothing is left to compile.

    Attributes:
        engine: of the whole checkpoint.
        first_seconds: of its first call, compiling included.
        error: of its output against strict float32; see `TOLERANCE`.
    """

    engine: Engine
    first_seconds: float
    error: float


class Bench:
    """Prepares the inputs of rows, once per session.

    Attributes:
        device: where rows are measured.
        quick: whether few rounds suffice.
        smoke: whether all sizes are minimal, to see that every row runs; its numbers mean nothing.
        ckpt: the checkpoint in place of the models, or None.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        quick: bool,
        ckpt: Path | str | None,
        smoke: bool = False,
    ) -> None:
        self.device, self.quick, self.smoke = device, quick, smoke
        self.ckpt = ckpt
        self._engines: dict[Case, PreparedEngine] = {}
        # Prepared once per session, by arguments.
        self.checkpoint = functools.cache(self._checkpoint)
        self.inputs = functools.cache(self._inputs)
        self.reference = functools.cache(self._reference)
        self.flop = functools.cache(self._flop)
        self._peak_of = functools.cache(self._measured_peak)

    def _checkpoint(self, model: str) -> Checkpoint:
        """The checkpoint that rows of this model measure."""
        return load_subject(model, self.ckpt).to(self.device)

    def name(self, model: str) -> str:
        """The name of the model in the rows."""
        return model if self.ckpt is None else str(self.ckpt)

    def _inputs(self, model: str, batch: int) -> Inputs:
        """Images with noise at timesteps from 1 to T."""
        checkpoint = self.checkpoint(model)
        images = images_for(checkpoint, batch)
        last = checkpoint.schedule.num_timesteps
        timesteps = np.linspace(1, last, batch) if batch > 1 else np.array([last / 2])
        t = torch.from_numpy(np.rint(timesteps).astype(np.int64)).to(self.device)
        pixels = torch.tensor(images.pixels, device=self.device)
        x_start = checkpoint.data_range.to_model(pixels, torch.float64)
        index = torch.arange(batch, device=self.device)
        shape = tuple(x_start.shape[1:])
        eps = normal_noise(index, t, torch.zeros_like(index), shape=shape, seed=0)
        x_t = checkpoint.diffusion.to(self.device).q_sample(x_start, t, eps.double())
        labels = images.labels
        labels = None if labels is None else torch.from_numpy(labels).to(self.device)
        return Inputs(x_t.float(), t, labels)

    def engine(self, case: Case) -> PreparedEngine:
        """The engine of a row after its first call; one per batch, so that none pads."""
        key = dataclasses.replace(case, quick=False)
        if key not in self._engines:
            inputs = self.inputs(case.model, case.batch)
            engine = Engine(self.checkpoint(case.model), device=self.device, choice=case.choice)
            clock = timer(self.device)
            with running(engine):
                begin = clock()
                engine.model_output(inputs.x_t, inputs.t, inputs.labels)
                seconds = clock() - begin
            self._engines[key] = PreparedEngine(engine, seconds, self._error(case, engine))
        return self._engines[key]

    def _error(self, case: Case, engine: Engine) -> float:
        """The error of `max(ERROR_INPUTS, batch)` outputs, computed in the row's batches."""
        count = max(ERROR_INPUTS, case.batch)
        inputs, outputs = self.inputs(case.model, count), []
        with running(engine):
            for start in range(0, count, case.batch):
                rows = slice(start, start + case.batch)
                labels = None if inputs.labels is None else inputs.labels[rows]
                outputs.append(engine.model_output(inputs.x_t[rows], inputs.t[rows], labels))
        return relative_error(torch.cat(outputs), self.reference(case.model, count))

    def chains(
        self, case: Case, num_timesteps: int, choice: SamplerChoice | None = None
    ) -> Callable[[], Tensor]:
        """A function that samples one batch of `subjects.shortened(checkpoint, num_timesteps)`."""
        engine, inputs = self.engine(case).engine, self.inputs(case.model, case.batch)
        model = shortened(self.checkpoint(case.model), num_timesteps)
        sampler = (choice or SamplerChoice()).prepare(
            model, seed=0, device=self.device, model_output=engine.model_output
        )
        sampler = sampler.launched(engine.whole_step)
        index = torch.arange(case.batch, device=self.device)

        def sample() -> Tensor:
            x_t = sampler.start(index, tuple(inputs.x_t.shape[1:]))
            for step in sampler.steps(x_t, num_timesteps, sample=index, labels=inputs.labels):
                x_t = step.x_previous
            return x_t

        return sample

    def _reference(self, model: str, count: int) -> Tensor:
        """The output for `inputs` in strict float32, from the checkpoint without any engine."""
        checkpoint, inputs = self.checkpoint(model), self.inputs(model, count)
        with evaluating(checkpoint.network), strict_float32(), torch.inference_mode():
            return checkpoint.model_output(inputs.x_t, inputs.t, inputs.labels)

    def peak(self, precision: Precision) -> float:
        """FLOP/s of the matrix product in a precision, on this device in this session."""
        # TF32 multiplies float32 matrices, but its peak is not that of strict float32.
        if precision is Precision.TF32:
            return float("nan")
        return self._peak_of(precision.dtype)

    def _measured_peak(self, dtype: torch.dtype) -> float:
        # The best of a few: other load on the machine can only reduce it.
        seconds, repeats = (0.001, 1) if self.smoke else (0.2, 4)
        return max(matmul_peak(self.device, dtype, at_least=seconds) for _ in range(repeats))

    def _flop(self, model: str) -> int:
        """FLOP of a network evaluation for one image."""
        checkpoint, inputs = self.checkpoint(model), self.inputs(model, 1)
        arguments = [inputs.x_t, checkpoint.network_time(inputs.t)]
        if inputs.labels is not None:
            arguments.append(inputs.labels)
        with evaluating(checkpoint.network):
            return flop_per_call(checkpoint.network, *arguments)

    def peak_memory(self, work: Callable[[], object]) -> int | None:
        """Most bytes that the work allocates, in a separate pass; None without CUDA."""
        if self.device.type != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """RMS of the difference over the RMS of the expected values."""
    difference = (actual.double() - expected.double()).square().mean()
    return float((difference / expected.double().square().mean()).sqrt())


@contextlib.contextmanager
def running(engine: Engine):
    """Context with the engine's precision and without gradients."""
    with engine.running(), torch.inference_mode():
        yield
