"""Outputs of a network at every pair, kept, so that any bound of it can be computed directly."""

import dataclasses

import numpy as np
import torch
from oracles import bin_log_prob
from torch import Tensor

from ddpmbench.diffusion.process import GaussianDiffusion, Prediction, Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.likelihood.conventions import Convention
from ddpmbench.likelihood.designs import EveryPairDesign
from ddpmbench.likelihood.terms import TermTable, bound_terms, prior_bits_per_dim

LN2 = np.log(2)


@dataclasses.dataclass(frozen=True, eq=False)
class Recorded:
    """What a network gave at every pair of N images and T steps.

    Attributes:
        schedule: the noise schedule.
        x_start: (N, C, H, W) in [-1, 1].
        eps: (N, T, K, C, H, W), K draws.
        model_output: (N, T, K, C or 2C, H, W).
        prediction: what it is.
        variance: of the run.
        clip: of the run.
        decoder: of the run.
    """

    schedule: NoiseSchedule
    x_start: Tensor
    eps: Tensor
    model_output: Tensor
    prediction: str = "eps"
    variance: str = "fixed_large"
    clip: bool = True
    decoder: str = "exact"

    @classmethod
    def at_random(cls, schedule: NoiseSchedule, *, num_images: int = 3, draws: int = 2, **options):
        """A network that is right but for an error that grows with t."""
        generator = torch.Generator().manual_seed(7)
        shape = (1, 4, 4)
        pixels = torch.randint(0, 256, (num_images, *shape), generator=generator)
        size = (num_images, schedule.num_timesteps, draws, *shape)
        eps, error = (torch.randn(size, generator=generator).double() for _ in range(2))
        scale = torch.linspace(0.5, 0.1, schedule.num_timesteps).double()
        output = eps + scale[:, None, None, None, None] * error
        if Variance(options.get("variance", "fixed_large")).is_learned:
            share = torch.rand(size, generator=generator).double() * 2 - 1
            output = torch.cat([output, share], dim=3)
        return cls(schedule, pixels.double() / 127.5 - 1, eps, output, **options)

    @property
    def design(self) -> EveryPairDesign:
        return EveryPairDesign(*self.eps.shape[:3])

    @property
    def prior(self) -> np.ndarray:
        return prior_bits_per_dim(self.schedule, self.x_start).numpy() * LN2

    @property
    def diffusion(self) -> GaussianDiffusion:
        return GaussianDiffusion(
            self.schedule, Prediction(self.prediction), Variance(self.variance), self.clip
        )

    def table(self) -> TermTable:
        """The rows of a run."""
        rows = self.design.index(0, len(self.design))
        terms = bound_terms(
            self.schedule,
            self.x_start[rows.image],
            torch.from_numpy(rows.t),
            self.eps.flatten(0, 2),
            self.model_output.flatten(0, 2),
            prediction=self.prediction,
            variance=self.variance,
            clip=self.clip,
            decoder=self.decoder,
        )
        return terms.table(rows)

    def direct(self, convention: Convention, steps: tuple[int, ...] | None = None) -> float:
        """The bound under a convention of the model that visits steps, computed for itself."""
        visited = list(steps or range(1, self.schedule.num_timesteps + 1))
        schedule, index = self.schedule.subset(visited), np.array(visited) - 1
        size = (len(self.x_start), len(visited), self.eps.shape[2])
        x_start = self.x_start[:, None, None].expand(*size, *self.x_start.shape[1:])
        output = self.model_output[:, index]
        if not convention.variance.is_learned:
            output = output[:, :, :, : self.x_start.shape[1]]
        t = torch.arange(1, len(visited) + 1)[None, :, None].expand(size)
        terms = bound_terms(
            schedule,
            x_start.flatten(0, 2),
            t.flatten(),
            self.eps[:, index].flatten(0, 2),
            output.flatten(0, 2),
            prediction=self.prediction,
            variance=str(convention.variance),
            clip=convention.clip,
            decoder=convention.decoder,
        )
        nats = terms.nats.reshape(size).mean(2).numpy()
        if convention.decoder_variance == "beta":
            nats[:, 0] = self._decoder_with_beta(convention)
        return float(self.prior.mean() + nats.sum(1).mean())

    def _decoder_with_beta(self, convention: Convention) -> np.ndarray:
        """(N,) as `bound_terms` has no such convention."""
        ab, beta = self.schedule.alphas_cumprod[0], self.schedule.betas[0].item()
        output = self.model_output[:, 0, :, : self.x_start.shape[1]]
        x_start = self.x_start[:, None].expand_as(output)
        x_t = ab.sqrt() * x_start + (1 - ab).sqrt() * self.eps[:, 0]
        mean = {
            "eps": (x_t - (1 - ab).sqrt() * output) / ab.sqrt(),
            "x_start": output,
        }[self.prediction].numpy()
        mean = np.clip(mean, -1, 1) if convention.clip else mean
        x, scale = x_start.numpy(), np.sqrt(beta)
        if convention.decoder == "exact":
            log_prob = bin_log_prob(x, mean, scale)
        else:
            log_prob = _tanh_log_prob(x, mean, scale)
        return -log_prob.reshape(len(x), -1).mean(1)


def _tanh_log_prob(x, mean, scale):
    def cdf(z):
        return 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))

    upper, lower = cdf((x - mean + 1 / 255) / scale), cdf((x - mean - 1 / 255) / scale)
    inside = np.where(x < -0.999, upper, np.where(x > 0.999, 1 - lower, upper - lower))
    return np.log(np.maximum(inside, 1e-12))
