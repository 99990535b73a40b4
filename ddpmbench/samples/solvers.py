"""Deterministic samplers: solvers of the probability-flow ODE, from a sample of the prior.

With u = x / a and sigma = s / a they descend a grid of sigma from x_T to x_1; x_0 is the prediction
at x_1. The grid consists of the schedule's timesteps, or is even in log sigma, with fractional
timesteps.
"""

import itertools
from abc import abstractmethod
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ddpmbench.diffusion.probability_flow import Solver
from ddpmbench.samples.chain import Chain, Sampler, SamplingStep, signal_of


class _GridSampler(Sampler):
    """Descends a grid of log sigma; see `diffusion.probability_flow` for u."""

    remedy = "choose more `timesteps` or `solver_steps`"

    def __init__(self, chain: Chain, *, solver_steps: int | None) -> None:
        """Prepare the chain.

        Args:
            chain: the model.
            solver_steps: steps of an even grid in log sigma; None for the schedule's timesteps.
        """
        super().__init__(chain)
        self._num_steps = solver_steps
        log_sigma = (-0.5 * chain.checkpoint.schedule.log_snr).tolist()
        self._log_sigma: list[float] = log_sigma
        self._timesteps = {value: t for t, value in enumerate(log_sigma, start=1)}

    @abstractmethod
    def _between(
        self, u: Tensor, grid: list[float], labels: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor, int]]:
        """At each grid point but the first: u, a prediction of x_0, and the evaluations."""

    def _steps(
        self, x_t: Tensor, t: int, sample: Tensor, labels: Tensor | None
    ) -> Iterator[SamplingStep]:
        grid = self._log_sigma[t - 1 :: -1]
        if self._num_steps is not None:
            inner = np.linspace(grid[0], grid[-1], self._num_steps + 1)[1:-1].tolist()
            grid = [grid[0], *inner, grid[-1]]
        u = x_t / signal_of(-2 * grid[0])
        steps = self._between(u, grid, labels)
        for i, (u, pred_x_start, count) in enumerate(steps, start=1):
            x = u * signal_of(-2 * grid[i])
            yield SamplingStep(len(grid) + 1 - i, x, pred_x_start, count)
        pred_x_start, _ = self._predict(grid[-1], u, labels)
        yield SamplingStep(1, pred_x_start, pred_x_start)

    def _step_name(self, t: int) -> str:
        if self._num_steps is None:
            return super()._step_name(t)
        return f"step {self._num_steps + 2 - t} of {self._num_steps + 1}"

    def _predict(self, log_sigma: float, u: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """The prediction of x_0, clipped if the checkpoint clips, and of the noise."""
        x = signal_of(-2 * log_sigma) * u
        t = self._timesteps.get(log_sigma)
        if t is None:
            return self.chain.predict_between(x, -2 * log_sigma, labels)
        at = torch.full((len(u),), t, device=u.device)
        reverse = self.chain.predict(x, at, labels)
        return reverse.pred_x_start, reverse.pred_eps


class OdeSampler(_GridSampler):
    r"""The probability-flow ODE by a Runge-Kutta method.

    .. math:: \frac{du}{d \log\sigma} = \sigma\, \hat\epsilon(a u, t(\sigma))

    The noise is not clipped. See `diffusion.probability_flow` for the methods.

    Source: Song et al. 2021, "Score-based generative modeling through stochastic differential
    equations", section 4.3; Karras et al. 2022 for Heun's method with a last step to sigma = 0.
    """

    def __init__(self, chain: Chain, *, solver: Solver, solver_steps: int | None) -> None:
        super().__init__(chain, solver_steps=solver_steps)
        self._solver = solver

    def _between(
        self, u: Tensor, grid: list[float], labels: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor, int]]:
        divergence = u.new_zeros(())  # not needed
        predictions: list[Tensor] = []

        def field(log_sigma: float, u: Tensor) -> tuple[Tensor, Tensor]:
            pred_x_start, eps = self._predict(log_sigma, u, labels)
            predictions.append(pred_x_start)
            return eps, divergence

        for start, stop in itertools.pairwise(grid):
            u, _ = self._solver.step(field, u, start, stop)
            yield u, predictions[0], len(predictions)
            predictions.clear()


class DpmSolverSampler(_GridSampler):
    r"""DPM-Solver++(2M): a multistep method of second order that predicts x_0.

    .. math::
        u_{i+1} = \frac{\sigma_{i+1}}{\sigma_i} u_i
            + \left(1 - \frac{\sigma_{i+1}}{\sigma_i}\right) D_i, \qquad
        D_i = \hat x_0^{(i)} + \frac{h_i}{2 h_{i-1}}
            \left(\hat x_0^{(i)} - \hat x_0^{(i-1)}\right), \qquad
        h_i = \log \frac{\sigma_i}{\sigma_{i+1}}

    The first step, and the last one to sigma = 0, are of first order: D is the prediction. The
    prediction is clipped if the checkpoint clips.

    Source: Lu et al. 2022, "DPM-Solver++", Algorithm 2.
    """

    def _between(
        self, u: Tensor, grid: list[float], labels: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor, int]]:
        previous: tuple[Tensor, float] | None = None
        for start, stop in itertools.pairwise(grid):
            pred_x_start, _ = self._predict(start, u, labels)
            length, data = start - stop, pred_x_start
            if previous is not None:
                before, length_before = previous
                data = data + length / (2 * length_before) * (data - before)
            ratio = float(np.exp(-length))
            u = ratio * u - float(np.expm1(-length)) * data
            previous = pred_x_start, length
            yield u, pred_x_start, 1
