"""The base of all samplers: predictions, addressed noise, and the chain of steps.

Sample i is a function of (checkpoint, sampler, seed, i) alone, because its noise is addressed by i
(`diffusion.noise`). Batch size and number of samples change it by rounding at most.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Self

import torch
from torch import Tensor

from ddpmbench.diffusion.continuous import ContinuousTime
from ddpmbench.diffusion.model import Checkpoint, ModelOutput
from ddpmbench.diffusion.named_schedules import MAX_TIMESTEPS
from ddpmbench.diffusion.noise import normal_noise
from ddpmbench.diffusion.process import GaussianDiffusion, ReverseStep, signal_and_noise
from ddpmbench.errors import InputError

SAMPLE_DRAW = 2**31
"""Draw of a sample's noise, distinct from that of any likelihood term."""
LANGEVIN_DRAW = 2**30
"""Offset of the draw for the first Langevin step at a timestep. Further steps are 2 apart, so that
chains whose draws differ by 1 share no noise."""
START = MAX_TIMESTEPS + 1
"""In place of t for the initial noise. No schedule has this timestep, so chains of any number of
timesteps start from the same noise."""
_CHECK_INTERVAL = 50
"""Timesteps between checks that all values are finite."""

Step = Callable[..., tuple[Tensor, Tensor]]
"""From x_t, t, sample indices and classes, if any, to x_{t-1} and the prediction of x_start."""


@dataclasses.dataclass(frozen=True, eq=False)
class SamplingStep:
    """One step of B chains.

    Attributes:
        t: the timestep; the step goes from x_t to x_{t-1}. For a solver with its own grid, the
            number of remaining steps, including this one.
        x_previous: (B, C, H, W) x_{t-1}.
        pred_x_start: (B, C, H, W) the last prediction of x_0, clipped if the checkpoint clips.
        num_evaluations: network evaluations in this step, per sample.
    """

    t: int
    x_previous: Tensor
    pred_x_start: Tensor
    num_evaluations: int = 1


class Chain:
    """The model of B chains: its predictions, and noise that is addressed by sample and timestep.

    Attributes:
        checkpoint: the model, on the device.
        diffusion: its process, on the device.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        seed: int,
        device: torch.device,
        draw: int = SAMPLE_DRAW,
        model_output: ModelOutput | None = None,
    ) -> None:
        """Prepare a model.

        Args:
            checkpoint: the model.
            seed: of the noise, 0 <= seed < 2^64.
            device: where the network runs.
            draw: of the noise; chains with different draws share no noise.
            model_output: evaluates the network; None for the checkpoint's own `model_output`.
        """
        self.checkpoint = checkpoint.to(device)
        self.diffusion = checkpoint.diffusion.to(device)
        self._model_output = model_output or self.checkpoint.model_output
        self._seed, self._draw = seed, draw
        self._fractions: dict[float, float] = {}

    def predict(self, x_t: Tensor, t: Tensor, labels: Tensor | None) -> ReverseStep:
        """The network's predictions at timesteps (B,) of the schedule."""
        output = self._model_output(x_t, t, labels)
        return self.diffusion.p_mean_variance(output, x_t, t)

    def predict_between(
        self, x: Tensor, log_snr: float, labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The network's prediction of x_0, clipped if the checkpoint clips, and of the noise.

        Args:
            x: (B, C, H, W) of unit scale.
            log_snr: the log signal-to-noise ratio of x, between those of two timesteps.
            labels: (B,) classes, where the network is conditioned on them.
        """
        if log_snr not in self._fractions:
            time = ContinuousTime(self.checkpoint.as_trained.schedule)
            self._fractions[log_snr] = float(time.timestep(log_snr))
        output = self._model_output(x, _filled(self._fractions[log_snr], x), labels)
        x_start, eps = self.diffusion.prediction_at(output, x, _filled(log_snr, x))
        return self.diffusion.data_range.clamp(x_start) if self.diffusion.clip else x_start, eps

    def noise(self, sample: Tensor, t: Tensor, shape: tuple[int, ...], more: int = 0) -> Tensor:
        """Standard normal noise (B, C, H, W) of the samples (B,) at timesteps (B,).

        Args:
            sample: indices of the samples.
            t: timesteps, or `START`.
            shape: (C, H, W).
            more: offset of the draw, where a timestep has several noises.
        """
        draw = torch.full_like(sample, self._draw + more)
        noise = normal_noise(sample, t, draw, shape=shape, seed=self._seed)
        return noise.to(self.diffusion.dtype)


class Sampler(ABC):
    """Takes B chains from x_t down to x_0.

    Attributes:
        chain: the model, and the noise.
    """

    remedy = "see whether `clip`, or `precision=fp32`, keeps it in range"
    """Remedy for samples that are not finite."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain

    @abstractmethod
    def _steps(
        self, x_t: Tensor, t: int, sample: Tensor, labels: Tensor | None
    ) -> Iterator[SamplingStep]:
        """The steps, as `steps` yields them."""

    @property
    def diffusion(self) -> GaussianDiffusion:
        """The model's process."""
        return self.chain.diffusion

    def start(self, sample: Tensor, shape: tuple[int, ...]) -> Tensor:
        """x_T, a sample of the prior.

        Args:
            sample: (B,) int64 indices of the samples.
            shape: (C, H, W).

        Returns:
            (B, C, H, W).
        """
        schedule = self.chain.checkpoint.schedule
        deviation = float((0.5 * schedule.log_prior_variance).exp())
        noise = self.starting_noise(sample, shape)
        return noise if deviation == 1 else deviation * noise

    def starting_noise(self, sample: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The noise that chains start from, (B, C, H, W) standard normal; see `start`."""
        return self.chain.noise(sample, torch.full_like(sample, START), shape)

    @torch.inference_mode()
    def steps(
        self, x_t: Tensor, t: int, *, sample: Tensor, labels: Tensor | None = None
    ) -> Iterator[SamplingStep]:
        """The steps from timestep t down to x_0, one at a time.

        Args:
            x_t: (B, C, H, W).
            t: its timestep, in 1..T.
            sample: (B,) int64 indices of the samples, which address the noise.
            labels: (B,) int64 classes, where the network is conditioned on them.

        Raises:
            InputError: x_{t-1} is not finite, or the network's output has another shape.
        """
        # The sum of a chain is finite only if all values are. Reading a number waits for the
        # device.
        sums = x_t.new_zeros(_CHECK_INTERVAL)
        for step in self._steps(x_t, t, sample, labels):
            place = (step.t - 1) % _CHECK_INTERVAL
            sums[place] = step.x_previous.sum()
            if place == 0:
                bad = (~sums.isfinite()).nonzero()
                if len(bad):
                    raise self._not_finite(step.t + int(bad[-1]))
            yield step

    def launched(self, whole_step: Callable[[Step], Step]) -> Self:
        """This sampler, with its step replaced by an equivalent function, such as a CUDA graph.

        A sampler whose step is not a single function of tensors stays as it is.

        Args:
            whole_step: from the step, a function of tensors that reads no value on the host, to an
                equivalent one.
        """
        return self

    def _step_name(self, t: int) -> str:
        """The name of a step in errors, from its `SamplingStep.t`."""
        return f"timestep t = {t}"

    def _not_finite(self, t: int) -> InputError:
        return InputError(
            f"`ckpt={self.chain.checkpoint.source}`: a sample is not finite after "
            f"{self._step_name(t)}; {self.remedy}"
        )


class StepSampler(Sampler):
    """A sampler whose step from x_t to x_{t-1} is one function of tensors."""

    evaluations_per_step = 1

    def __init__(self, chain: Chain) -> None:
        super().__init__(chain)
        self._step: Step = self._take_step

    @abstractmethod
    def _take_step(
        self, x_t: Tensor, t: Tensor, sample: Tensor, *labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x_{t-1} and the prediction of x_start; t is (B,)."""

    def launched(self, whole_step: Callable[[Step], Step]) -> Self:
        """See `Sampler.launched`."""
        self._step = whole_step(self._take_step)
        return self

    def _steps(
        self, x_t: Tensor, t: int, sample: Tensor, labels: Tensor | None
    ) -> Iterator[SamplingStep]:
        more = () if labels is None else (labels,)
        steps = torch.full_like(sample, t)
        for step in range(t, 0, -1):
            x_t, pred_x_start = self._step(x_t, steps, sample, *more)
            steps = steps - 1
            yield SamplingStep(step, x_t, pred_x_start, self.evaluations_per_step)


def signal_of(log_snr: float) -> float:
    """The factor a of x_0 in x of unit scale."""
    signal, _ = signal_and_noise(torch.tensor([log_snr], dtype=torch.float64))
    return float(signal)


def _filled(value: float, like: Tensor) -> Tensor:
    """(B,) one number for a whole batch."""
    return torch.full((len(like),), value, dtype=like.dtype, device=like.device)
