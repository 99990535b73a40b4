r"""The likelihood of the probability-flow ODE.

.. math::
    \log p(u_1) = \log p(u_T)
    + \int_{\log\sigma_1}^{\log\sigma_T} \nabla_u \cdot \sigma \hat\epsilon \; d \log\sigma,
    \qquad \log p(x_1) = \log p(u_1) - D \log a_1

x_T has the distribution that the variational bound gives it, N(0, I), so that u_T has the variance
1 / a_T^2 = 1 + sigma_T^2. A dequantization makes of log p(x_1) a bound on the probability of an
image, which lies term for term beside the variational one.

The grid in log sigma is fixed and the same for all images: an image's result depends neither on the
images beside it nor on the number of processes.

Source: Song et al. 2021, "Score-based generative modeling through stochastic differential
equations", section 4.3 and appendix D.2.
"""

import dataclasses
import math
from collections.abc import Sequence
from enum import StrEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.probability_flow import ProbabilityFlow, Solver, integrate
from ddpmbench.diffusion.schedule import MAX_TIMESTEPS
from ddpmbench.errors import InputError, one_of, whole_number
from ddpmbench.likelihood.dequantization import Dequantization, noise_words, sample_x_1
from ddpmbench.likelihood.terms import TermIndex, TermsPass
from ddpmbench.records import short_repr

PROBE = MAX_TIMESTEPS + 2
"""Stands for t in the address of the probes. No schedule has this timestep."""


class Trace(StrEnum):
    """How the divergence is computed."""

    HUTCHINSON = "hutchinson"
    """estimated with random signs, one vector-Jacobian product a probe"""
    EXACT = "exact"
    """the sum of the diagonal, one vector-Jacobian product a dimension"""


@dataclasses.dataclass(frozen=True)
class OdeSettings:
    """How the likelihood of the ODE is computed.

    Attributes:
        dequantization: the distribution of x_1 given the image.
        trace: how the divergence is computed.
        probes: vectors of random signs an image, for `trace=hutchinson`; from 2 on their error is
            known.
        solver: the Runge-Kutta method.
        solver_steps: its steps from timestep 1 to T, even. Half as many tell the error.

    Raises:
        InputError: a setting is unknown, or the trace does not have it.
    """

    dequantization: Dequantization = Dequantization.DECODER
    trace: Trace = Trace.HUTCHINSON
    probes: int = 1
    solver: Solver = Solver.RK4
    solver_steps: int = 12

    def __post_init__(self) -> None:
        """Check every setting, and take names for what they name."""
        for name, kind in (
            ("dequantization", Dequantization),
            ("trace", Trace),
            ("solver", Solver),
        ):
            one_of(name, getattr(self, name), kind)
            object.__setattr__(self, name, kind(getattr(self, name)))
        whole_number("probes", self.probes, 1, 1024)
        if whole_number("solver_steps", self.solver_steps, 2, 100_000) % 2:
            raise InputError(
                f"`solver_steps={self.solver_steps}`: half as many steps tell the error; "
                "give an even number"
            )
        if self.trace is Trace.EXACT and self.probes != 1:
            raise InputError(
                f"`probes={self.probes}`: applies only to `trace=hutchinson`; leave it out"
            )


def probe_signs(image: Tensor, probe: int, *, shape: tuple[int, ...], seed: int) -> Tensor:
    """Random signs (B, C, H, W) int64, a function of seed, image, probe and element."""
    t, draw = torch.full_like(image, PROBE), torch.full_like(image, probe)
    return 1 - 2 * (noise_words(image, t, draw, shape=shape, seed=seed) & 1)


@dataclasses.dataclass(frozen=True, eq=False)
class LogDensity:
    """The log density of x_1 under the ODE, in nats.

    Attributes:
        value: (B,).
        solver_error: (B,) Richardson's estimate of value minus true value.
        probe_error: (B,) standard error from the probes; 0 for the exact trace, NaN for one probe.
    """

    value: Tensor
    solver_error: Tensor
    probe_error: Tensor

    __repr__ = short_repr


def log_density(
    flow: ProbabilityFlow,
    x_1: Tensor,
    *,
    solver: Solver,
    steps: int,
    labels: Tensor | None = None,
    probes: Tensor | None = None,
    names: Sequence[str] | None = None,
) -> LogDensity:
    r"""The log density of x_1 under the ODE.

    The error of the solver is that of half as many steps, by Richardson's extrapolation: with
    order p, (coarse - fine) / (2^p - 1).

    Args:
        flow: the ODE.
        x_1: (B, C, H, W).
        solver: the Runge-Kutta method.
        steps: its steps from the first timestep to the last, even.
        labels: see `ProbabilityFlow.field`.
        probes: see there.
        names: see there.
    """
    log_signal = 0.5 * flow.checkpoint.schedule.log_alphas_cumprod
    first, last = float(log_signal[0]), float(log_signal[-1])
    u_1, field = x_1 * math.exp(-first), flow.field(labels=labels, probes=probes, names=names)

    def log_p_1(steps: int) -> Tensor:
        """(B, P)."""
        u_last, integral = integrate(field, u_1, flow.start, flow.stop, steps=steps, solver=solver)
        x_last = u_last * math.exp(last)
        log_p_last = -0.5 * (x_last.square() + math.log(2 * math.pi))
        # A dimension of u has a times the density of x: from x_T to u_T, and from u_1 to x_1.
        return (log_p_last + last - first).flatten(1).sum(1)[:, None] + integral

    fine, coarse = log_p_1(steps), log_p_1(steps // 2)
    value = fine.mean(1)
    if probes is None:
        probe_error = torch.zeros_like(value)
    elif len(probes) == 1:
        probe_error = torch.full_like(value, torch.nan)
    else:
        probe_error = fine.std(1) / math.sqrt(len(probes))
    return LogDensity(value, (coarse.mean(1) - value) / (2**solver.order - 1), probe_error)


class OdePass:
    """Evaluates the ODE's bound on images.

    Attributes:
        flow: the ODE of the model.
    """

    COLUMNS = ("decoder", "log_q", "log_p", "solver_error", "probe_error")
    """-log P(x_0 | x_1), log q(x_1 | x_0), log p(x_1), and the two errors of log p."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        images: ImageSet,
        settings: OdeSettings,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        """Prepare a model and images.

        Args:
            checkpoint: the model.
            images: the image set.
            settings: how the likelihood is computed.
            seed: of the noise and the probes, 0 <= seed < 2^64.
            device: where the network runs.
        """
        self.flow = ProbabilityFlow(checkpoint, device)
        self._terms = TermsPass(
            self.flow.checkpoint, images, seed=seed, decoder="exact", device=device
        )
        self._images, self._settings, self._seed, self._device = images, settings, seed, device

    @property
    def num_evaluations(self) -> int:
        """Of the network so far, the decoder's among them."""
        return self.flow.num_evaluations + self._terms.num_evaluations

    @property
    def num_vjps(self) -> int:
        """Vector-Jacobian products of the network so far."""
        return self.flow.num_vjps

    def evaluate(self, image: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """The bound's parts on images: decoder + log_q - log_p is the bound.

        Args:
            image: (B,) indices in the image set.

        Returns:
            (B,) for each of `COLUMNS`, in nats per dimension.

        Raises:
            InputError: the ODE or its divergence is not finite, or the network has no gradient.
        """
        diffusion, settings = self.flow.diffusion, self._settings
        pixels = torch.from_numpy(np.ascontiguousarray(self._images.pixels[image]))
        x_start = diffusion.data_range.to_model(pixels.to(self._device), diffusion.dtype)
        index, shape = torch.from_numpy(image).to(self._device), tuple(x_start.shape[1:])
        kind = settings.dequantization
        x_1, log_q = sample_x_1(kind, diffusion, x_start, index, seed=self._seed)
        probes = None
        if settings.trace is Trace.HUTCHINSON:
            signs = [
                probe_signs(index, probe, shape=shape, seed=self._seed)
                for probe in range(settings.probes)
            ]
            probes = torch.stack(signs).to(x_start)
        log_p = log_density(
            self.flow,
            x_1,
            solver=settings.solver,
            steps=settings.solver_steps,
            labels=self._labels(image),
            probes=probes,
            names=[self._images.ids[i] for i in image],
        )
        nats = (log_q, log_p.value, log_p.solver_error, log_p.probe_error)
        per_dim = [value.cpu().numpy().astype(np.float64) / math.prod(shape) for value in nats]
        return dict(zip(self.COLUMNS, (self._decoder(image), *per_dim), strict=True))

    def _labels(self, image: NDArray[np.int64]) -> Tensor | None:
        labels = self._images.labels
        if not self.flow.checkpoint.num_classes or labels is None:
            return None
        return torch.from_numpy(labels[image]).to(self._device)

    def _decoder(self, image: NDArray[np.int64]) -> NDArray[np.float64]:
        """(B,) -log P(x_0 | x_1) per dimension, the bound's term at t = 1 if there is one."""
        zeros = np.zeros_like(image)
        if self._settings.dequantization is not Dequantization.DECODER:
            return zeros.astype(np.float64)
        index = TermIndex(image=image, t=zeros + 1, draw=zeros)
        return self._terms.terms(index).values["nats"]
