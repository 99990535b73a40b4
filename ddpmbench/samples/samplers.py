"""Samplers: the reverse process of a model, from x_t down to x_0.

Sample i is a function of (checkpoint, sampler, seed, i) alone, because its noise is addressed by i
(`diffusion.noise`). Batch size and number of samples change it by float rounding at most.
"""

import dataclasses
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Self

import torch
from torch import Tensor

from ddpmbench.diffusion.model import Checkpoint, ModelOutput
from ddpmbench.diffusion.noise import normal_noise
from ddpmbench.diffusion.process import GaussianDiffusion, ReverseStep
from ddpmbench.diffusion.schedule import MAX_TIMESTEPS
from ddpmbench.errors import InputError, number, one_of

SAMPLE_DRAW = 2**31
"""Draw of a sample's noise, distinct from those of all likelihood terms."""
START = MAX_TIMESTEPS + 1
"""Stands for t in the initial noise. No schedule has this timestep, so chains of any number of
timesteps start from the same noise."""
_CHECK_INTERVAL = 50
"""Timesteps between checks that all values are finite."""

Step = Callable[..., tuple[Tensor, Tensor]]
"""From x_t, t, sample indices and classes (if any) to x_{t-1} and the prediction of x_start."""


class AddedNoise(StrEnum):
    """At which timesteps ancestral sampling adds noise."""

    INNER = "inner"
    """all timesteps but the last"""
    EVERY_STEP = "every-step"
    """all timesteps"""
    NONE = "none"
    """no timestep: every step takes the mean"""


@dataclasses.dataclass(frozen=True, eq=False)
class SamplingStep:
    """One step of B chains.

    Attributes:
        t: the timestep; the step goes from x_t to x_{t-1}.
        x_previous: (B, C, H, W) x_{t-1}.
        pred_x_start: (B, C, H, W) the prediction of x_0 from x_t, clipped if the checkpoint clips.
    """

    t: int
    x_previous: Tensor
    pred_x_start: Tensor


@dataclasses.dataclass(frozen=True)
class SamplerChoice:
    r"""A sampler and its settings.

    Ancestral sampling takes the checkpoint's variance and clip,

    .. math::

        x_{t-1} = \mu_\theta(x_t, t) + \sigma_t z, \qquad z \sim N(0, I).

    DDIM sampling does not use the checkpoint's variance:

    .. math::

        x_{t-1} = \sqrt{\bar\alpha_{t-1}}\, \hat x_0
            + \sqrt{1 - \bar\alpha_{t-1} - \sigma_t^2}\, \hat\epsilon + \sigma_t z, \qquad
        \sigma_t = \eta \sqrt{\tilde\beta_t}

    Attributes:
        method: "ancestral" or "ddim".
        added_noise: ancestral: at which timesteps noise is added.
        eta: ddim: amount of noise; 0 adds none, 1 that of the posterior; None for 0.

    Raises:
        InputError: an unknown sampler, or a setting it does not have.

    Source: Ho, Jain & Abbeel 2020, Algorithm 2; Song, Meng & Ermon 2021, eq. 12.
    """

    method: str = "ancestral"
    added_noise: AddedNoise = AddedNoise.INNER
    eta: float | None = None

    def __post_init__(self) -> None:
        """Refuse settings that the sampler does not have."""
        one_of("sampler", self.method, ("ancestral", "ddim"))
        one_of("added_noise", self.added_noise, AddedNoise)
        if self.method == "ancestral" and self.eta is not None:
            raise InputError(f"`eta={self.eta}`: applies only to `sampler=ddim`; leave it out")
        if self.method == "ddim" and self.added_noise != AddedNoise.INNER:
            raise InputError(
                f"`added_noise={self.added_noise}`: applies only to `sampler=ancestral`; set `eta`"
            )
        if self.eta is not None:
            number("eta", self.eta, 0, 1)

    def prepare(
        self,
        checkpoint: Checkpoint,
        *,
        seed: int,
        device: torch.device,
        model_output: ModelOutput | None = None,
    ) -> "Sampler":
        """The sampler of a model; see `Sampler` for the arguments."""
        return Sampler(checkpoint, self, seed=seed, device=device, model_output=model_output)

    def law(
        self, diffusion: GaussianDiffusion, reverse: ReverseStep, x_t: Tensor, t: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Mean and standard deviation of x_{t-1}; None where no noise is added."""
        if self.method == "ddim":
            eta = self.eta or 0.0
            mean, deviation = diffusion.ddim_mean_std(reverse.pred_x_start, x_t, t, eta=eta)
            return mean, deviation if eta else None
        if self.added_noise == AddedNoise.NONE:
            return reverse.mean, None
        deviation = (0.5 * reverse.log_variance).exp()
        if self.added_noise == AddedNoise.INNER:
            is_inner = (t > 1).reshape(-1, 1, 1, 1)
            deviation = torch.where(is_inner, deviation, torch.zeros_like(deviation))
        return reverse.mean, deviation


class Sampler:
    """Takes B chains from x_t down to x_0.

    Args:
        checkpoint: the model; the attribute is the model on the device.
        choice: the sampler's settings.
        seed: of the noise, 0 <= seed < 2^64.
        device: where the network runs.
        draw: of the noise; chains with different draws share no noise.
        model_output: evaluates the network; None for the checkpoint's own `model_output`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        choice: SamplerChoice,
        *,
        seed: int,
        device: torch.device,
        draw: int = SAMPLE_DRAW,
        model_output: ModelOutput | None = None,
    ) -> None:
        if checkpoint.schedule.is_continuous:
            raise InputError(
                "`timesteps=continuous`: is a limit of the bound, which has no sampler; choose a "
                "number of timesteps"
            )
        self.checkpoint, self._choice = checkpoint.to(device), choice
        self._model_output = model_output or self.checkpoint.model_output
        self.diffusion = checkpoint.diffusion.to(device)
        self._seed, self._draw = seed, draw
        self._step: Step = self._take_step

    def start(self, sample: Tensor, shape: tuple[int, ...]) -> Tensor:
        """x_T, a sample of the prior.

        Args:
            sample: (B,) int64 indices of the samples.
            shape: (C, H, W).

        Returns:
            (B, C, H, W).
        """
        deviation = float((0.5 * self.checkpoint.schedule.log_prior_variance).exp())
        noise = self.starting_noise(sample, shape)
        return noise if deviation == 1 else deviation * noise

    def starting_noise(self, sample: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The noise that chains start from, (B, C, H, W) standard normal; see `start`."""
        return self._noise(sample, torch.full_like(sample, START), shape)

    def steps(
        self, x_t: Tensor, t: int, *, sample: Tensor, labels: Tensor | None = None
    ) -> Iterator[SamplingStep]:
        """The steps from timestep t down to 1, one at a time.

        Args:
            x_t: (B, C, H, W).
            t: its timestep, in 1..T.
            sample: (B,) int64 indices of the samples, which address the noise.
            labels: (B,) int64 classes, where the network is conditioned on them.

        Raises:
            InputError: x_{t-1} is not finite, or the network's output has another shape.
        """
        more = () if labels is None else (labels,)
        steps = torch.full_like(sample, t)
        checked = x_t, steps
        for step in range(t, 0, -1):
            x_t, pred_x_start = self._step(x_t, steps, sample, *more)
            steps = steps - 1
            # Reading a number waits for the device.
            if (step - 1) % _CHECK_INTERVAL == 0:
                if not bool(torch.isfinite(x_t).all()):
                    raise self._not_finite(*checked, step, sample, *more)
                checked = x_t, steps
            yield SamplingStep(step, x_t, pred_x_start)

    def launched(self, whole_step: Callable[[Step], Step]) -> Self:
        """This sampler, with its step replaced by an equivalent function, such as a CUDA graph.

        Args:
            whole_step: takes the step, a function of tensors that reads no value on the host,
                and returns an equivalent one.
        """
        self._step = whole_step(self._take_step)
        return self

    @torch.inference_mode()
    def _take_step(
        self, x_t: Tensor, t: Tensor, sample: Tensor, *labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x_{t-1} and the prediction of x_start; t is (B,)."""
        output = self._model_output(x_t, t, labels[0] if labels else None)
        reverse = self.diffusion.p_mean_variance(output, x_t, t)
        x_previous, deviation = self._choice.law(self.diffusion, reverse, x_t, t)
        if deviation is not None:
            x_previous = x_previous + deviation * self._noise(sample, t, tuple(x_t.shape[1:]))
        return x_previous, reverse.pred_x_start

    def _not_finite(
        self, x_t: Tensor, t: Tensor, last: int, sample: Tensor, *labels: Tensor
    ) -> InputError:
        """Repeat the steps down to `last` from finite values to name the first bad timestep."""
        step = int(t[0])
        while step > last:
            x_t, _ = self._take_step(x_t, t, sample, *labels)
            if not bool(torch.isfinite(x_t).all()):
                break
            step, t = step - 1, t - 1
        return InputError(
            f"`ckpt={self.checkpoint.source}`: a sample is not finite after timestep t = {step}; "
            "see whether `clip`, or `precision=fp32`, keeps it in range"
        )

    def _noise(self, sample: Tensor, t: Tensor, shape: tuple[int, ...]) -> Tensor:
        draw = torch.full_like(sample, self._draw)
        noise = normal_noise(sample, t, draw, shape=shape, seed=self._seed)
        return noise.to(self.diffusion.dtype)
