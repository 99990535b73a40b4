r"""The probability-flow ODE of a model, and its divergence.

With u = x / a and sigma = s / a, where x = a x_0 + s eps,

.. math::
    \frac{du}{d \log\sigma} = \sigma\, \hat\epsilon(a u, t(\sigma))

The predicted noise is never clipped. The solvers are exponential Runge-Kutta methods: within a step
they interpolate the noise as a polynomial of log sigma, and integrate sigma times it exactly.

Source: Song et al. 2021, "Score-based generative modeling through stochastic differential
equations", section 4.3; Cox & Matthews 2002, "Exponential time differencing for stiff systems";
Lu et al. 2022, "DPM-Solver".
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum

import numpy as np
import torch
from torch import Tensor, nn

from ddpmbench.diffusion.continuous import ContinuousTime
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.process import signal_and_noise
from ddpmbench.errors import InputError

Field = Callable[[float, Tensor], tuple[Tensor, Tensor]]
"""From log sigma and u to the predicted noise and P estimates (B, P) of its sigma div_u."""


class Solver(StrEnum):
    """The Runge-Kutta method."""

    HEUN = "heun"
    """second order, two evaluations per step"""
    RK4 = "rk4"
    """fourth order, four evaluations per step"""

    @property
    def order(self) -> int:
        """The order: the error falls with this power of the step size."""
        return 2 if self is Solver.HEUN else 4

    @property
    def num_stages(self) -> int:
        """Evaluations of the noise per step."""
        return 2 if self is Solver.HEUN else 4

    def step(self, field: Field, u: Tensor, start: float, stop: float) -> tuple[Tensor, Tensor]:
        """One step of `integrate`, from one log sigma to another."""
        take = _heun_step if self is Solver.HEUN else _rk4_step
        return take(field, u, start, stop)


def integrate(
    field: Field, u: Tensor, start: float, stop: float, *, steps: int, solver: Solver
) -> tuple[Tensor, Tensor]:
    """Solve the ODE on an even grid in log sigma.

    Args:
        field: the noise and its divergence.
        u: (B, C, H, W) at `start`.
        start: log sigma.
        stop: log sigma, on either side of `start`.
        steps: number of steps.
        solver: the method.

    Returns:
        u at `stop`, and the integrals (B, P) of the divergence of du / d log sigma from `start` to
        `stop`.
    """
    grid = np.linspace(start, stop, steps + 1).tolist()
    integral = torch.zeros((), dtype=u.dtype, device=u.device)
    for i in range(steps):
        u, increment = solver.step(field, u, grid[i], grid[i + 1])
        integral = integral + increment
    return u, integral


def _heun_step(field: Field, u: Tensor, start: float, stop: float) -> tuple[Tensor, Tensor]:
    """The result of `integrate` after one step."""
    sigma, change = math.exp(start), math.exp(stop) - math.exp(start)
    eps_1, div_1 = field(start, u)
    eps_2, div_2 = field(stop, u + change * eps_1)
    # For linear interpolation of the noise: the integrals of sigma (1 - c) and sigma c.
    weight = sigma * _moment(stop - start, 1)
    u = u + (change - weight) * eps_1 + weight * eps_2
    return u, (stop - start) * (div_1 + div_2) / 2


def _rk4_step(field: Field, u: Tensor, start: float, stop: float) -> tuple[Tensor, Tensor]:
    """The result of `integrate` after one step."""
    middle = (start + stop) / 2
    sigma, sigma_middle, sigma_stop = math.exp(start), math.exp(middle), math.exp(stop)
    eps_1, div_1 = field(start, u)
    u_2 = u + (sigma_middle - sigma) * eps_1
    eps_2, div_2 = field(middle, u_2)
    eps_3, div_3 = field(middle, u + (sigma_middle - sigma) * eps_2)
    eps_4, div_4 = field(stop, u_2 + (sigma_stop - sigma_middle) * (2 * eps_3 - eps_1))
    # For a parabola of the noise through c = 0, 1/2 and 1: the integrals of sigma times (1 - c)(1 -
    # 2c), 4c(1 - c) and c(2c - 1).
    zeroth, first, second = (sigma * _moment(stop - start, power) for power in range(3))
    u = u + (zeroth - 3 * first + 2 * second) * eps_1
    u = u + 2 * (first - second) * (eps_2 + eps_3)
    u = u + (2 * second - first) * eps_4
    return u, (stop - start) * (div_1 + 2 * (div_2 + div_3) + div_4) / 6


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)


def _moment(step: float, power: int) -> float:
    """The integral of h exp(h c) c^power over c from 0 to 1, without cancellation."""
    c = (1 + _NODES) / 2
    return float(step * (_WEIGHTS / 2) @ (np.exp(step * c) * c**power))


class ProbabilityFlow:
    """The ODE of a model between the first and the last timestep of its schedule.

    Attributes:
        checkpoint: the model, on the device.
        diffusion: its process, on the device.
        start: log sigma at the first timestep.
        stop: log sigma at the last.
        num_evaluations: network evaluations so far, one per image and evaluation of the field.
        num_vjps: vector-Jacobian products of the network so far, counted likewise.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        """Prepare a model.

        Args:
            checkpoint: the model.
            device: where the network runs.

        Raises:
            InputError: its schedule has a single timestep.
        """
        self.checkpoint = checkpoint.to(device)
        self.diffusion = checkpoint.diffusion.to(device)
        self._time = ContinuousTime(checkpoint.schedule)
        log_snr = checkpoint.schedule.log_snr
        self.start, self.stop = -0.5 * float(log_snr[0]), -0.5 * float(log_snr[-1])
        self._timesteps: dict[float, float] = {}
        self.num_evaluations = self.num_vjps = 0

    def field(
        self,
        *,
        labels: Tensor | None = None,
        probes: Tensor | None = None,
        names: Sequence[str] | None = None,
    ) -> Field:
        r"""The predicted noise for a batch of images, and the divergence of the ODE.

        .. math::
            \sigma\, \nabla_u \cdot \hat\epsilon(a u)
            \approx \frac sP \sum_p v_p^\top \frac{\partial \hat\epsilon}{\partial x} v_p

        Together they take one network evaluation and P vector-Jacobian products, or D of them for
        the exact divergence.

        Args:
            labels: (B,) int64 classes, where the network is conditioned on them.
            probes: (P, B, C, H, W) the v_p, random signs; None for the exact divergence.
            names: B names of the images, for errors; None for their positions.

        Returns:
            The field, which raises InputError where a result is not finite or has no gradient.

        Source: Hutchinson 1990; Grathwohl et al. 2019.
        """

        def noise_and_divergence(log_sigma: float, u: Tensor) -> tuple[Tensor, Tensor]:
            log_snr = _filled(-2.0 * log_sigma, u)
            signal, noise = signal_and_noise(log_snr)
            x = (signal * u).detach().requires_grad_()
            with torch.enable_grad(), _without_gradients(self.checkpoint.network):
                eps = self._pred_eps(log_sigma, log_snr, x, labels)
            count = x[0].numel() if probes is None else len(probes)
            products = []
            for i in range(count):
                vector = _unit_vector(i, x) if probes is None else probes[i]
                (product,) = torch.autograd.grad(eps, x, vector, retain_graph=i + 1 < count)
                products.append((noise * product * vector).flatten(1).sum(1))
            self.num_vjps += len(x) * count
            eps, divergence = eps.detach(), torch.stack(products, dim=1)
            is_finite = divergence.isfinite().all(1) & eps.flatten(1).isfinite().all(1)
            if not bool(is_finite.all()):
                position = int(is_finite.long().argmin())
                raise InputError(
                    f"`ckpt={self.checkpoint.source}`: the ODE or its divergence is not finite for "
                    f"image {position if names is None else names[position]} at sigma = "
                    f"{math.exp(log_sigma):.4g}; raise `solver_steps`, or leave this image out"
                )
            return eps, divergence.sum(1, keepdim=True) if probes is None else divergence

        return noise_and_divergence

    def _pred_eps(
        self, log_sigma: float, log_snr: Tensor, x: Tensor, labels: Tensor | None
    ) -> Tensor:
        if log_sigma not in self._timesteps:
            self._timesteps[log_sigma] = float(self._time.timestep(-2.0 * log_sigma))
        output = self.checkpoint.model_output(x, _filled(self._timesteps[log_sigma], x), labels)
        self.num_evaluations += len(x)
        if not output.requires_grad:
            raise InputError(
                f"{self.checkpoint.network_name}: its output has no gradient by x_t, which the "
                "divergence needs; leave out torch.no_grad and detach in its code"
            )
        return self.diffusion.prediction_at(output, x, log_snr)[1]


def _filled(value: float, like: Tensor) -> Tensor:
    """(B,) one number for a whole batch."""
    return torch.full((len(like),), value, dtype=like.dtype, device=like.device)


def _unit_vector(i: int, like: Tensor) -> Tensor:
    """(B, C, H, W), 1 at element i of every image."""
    vector = torch.zeros_like(like).flatten(1)
    vector[:, i] = 1.0
    return vector.view_as(like)


@contextlib.contextmanager
def _without_gradients(network: nn.Module) -> Iterator[None]:
    """Context in which no parameter takes a gradient, so that the graph only serves x_t."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
