"""A model of which every term's expectation is known, as cheap as a table.

The terms look like those of a network on natural images: they fall like 1 / t, images differ, more
so at large t, each deviates in its own way along log t, and a draw adds a little noise. Features
that follow the terms from afar stand for those of `GaussianFeatures`.
"""

import dataclasses
import functools
from functools import cached_property
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from ddpmbench.likelihood.designs import ImportanceDesign, PilotDesign, proposal_density
from ddpmbench.likelihood.image_sampling import ImageSample
from ddpmbench.likelihood.regression import FeatureTable, log_bins
from ddpmbench.likelihood.terms import VALUE_COLUMNS, TermIndex, TermTable

Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class SyntheticModel:
    """N images and T steps; the images are drawn by the seed from one population.

    Attributes:
        num_images: N.
        num_timesteps: T.
        seed: of the images; the steps do not depend on it.
        noise: relative standard deviation of a draw.
        floor: a constant that every term has beside what varies, as with variance fixed_large.
    """

    num_images: int = 200
    num_timesteps: int = 120
    seed: int = 0
    noise: float = 0.03
    floor: float = 0.0

    @property
    def _parts(self) -> tuple[Array, Array, Array, Array]:
        return parts_of(self.num_images, self.num_timesteps, self.seed, self.floor)

    @property
    def mean(self) -> Array:
        """(N, T) expectation of every term over the noise."""
        return self._parts[0]

    @property
    def truth(self) -> float:
        """The bound on these images, priors included."""
        return float((self.prior + self.mean.sum(1)).mean())

    @property
    def population_truth(self) -> float:
        """The bound on the population."""
        return float(self._parts[3].sum()) + 0.01

    @cached_property
    def prior(self) -> Array:
        """(N,) the priors."""
        return 0.01 + 0.001 * np.random.default_rng([self.seed, 2]).normal(size=self.num_images)

    def table(self, rows: TermIndex, generator: np.random.Generator) -> TermTable:
        """The terms of rows, with noise from the generator."""
        mean = self.mean[rows.image, rows.t - 1]
        nats = mean * (1 + self.noise * generator.normal(size=len(rows)))
        values = dict.fromkeys(VALUE_COLUMNS, np.broadcast_to(np.nan, len(rows)))
        values["nats"] = nats
        values["x_start_mse"] = values["x_start_mse_noclip"] = nats * rows.t / 50
        values["eps_mse"] = nats / (1 + rows.t / 50)
        return TermTable(rows, values)

    def density(self, seed: int, generator: np.random.Generator) -> Array:
        """What a pilot finds."""
        pilot = PilotDesign(self.num_images, self.num_timesteps, seed)
        return proposal_density(pilot, [self.table(pilot.index(0, len(pilot)), generator)])

    def features(self, design: ImportanceDesign, *, garbage: bool = False) -> FeatureTable:
        """Features that follow the terms, or have nothing to do with them."""
        _, g, code, _ = self._parts
        if garbage:
            g, code = garbage_features(*g.shape)
        return feature_table(design, g, standardized(code))


@functools.lru_cache(maxsize=1)  # a model is often made again, to be measured in another way
def parts_of(n: int, num_timesteps: int, seed: int, floor: float) -> tuple[Array, ...]:
    """Means, the two features, and the population's terms of a model."""
    generator, t = np.random.default_rng([seed, 1]), np.arange(1, num_timesteps + 1)
    image = 0.35 * generator.normal(size=(n, 1))
    own = 0.3 * smooth(generator, n, t)
    # The normal deviations have variance 0.35^2 s^2 + 0.3^2, so that a mean is known too.
    tilt = 0.7 + 0.3 * np.log(t) / np.log(max(t[-1], 2))
    error = np.exp(image * tilt + own)
    size = 0.12 * 8 / (t + 7.0)
    mean = size * error + floor * size
    mean[:, 0] = 1.4 + 0.3 * image[:, 0] + 0.1 * generator.normal(size=n)
    known = image * tilt + 0.8 * own + 0.15 * smooth(generator, n, t) + 0.2
    g = (size * np.exp(known))[:, 1:]
    code = 2.0 + image[:, 0] + 0.3 * generator.normal(size=n)
    expected = size * np.exp((0.35**2 * tilt**2 + 0.3**2) / 2) + floor * size
    expected[0] = 1.4
    return mean, g, code, expected


@functools.lru_cache(maxsize=1)
def garbage_features(n: int, num_timesteps: int) -> tuple[Array, Array]:
    """Features that have nothing to do with the terms."""
    generator = np.random.default_rng(99)
    return np.exp(2 * generator.normal(size=(n, num_timesteps))), generator.normal(size=n)


def standardized(values: Array) -> NDArray[np.float32]:
    """(N, P) of mean 0 and variance 1 over the images, as features of images are."""
    columns = values.reshape(len(values), -1)
    scale = columns.std(0)
    return ((columns - columns.mean(0)) / np.where(scale > 0, scale, 1.0)).astype(np.float32)


def feature_table(design: ImportanceDesign, g: Array, image: NDArray[np.float32]) -> FeatureTable:
    """What a regression needs, from all features in memory."""
    bins, t = log_bins(design.num_timesteps), np.arange(2, design.num_timesteps + 1)
    g, sample = g[design.image], ImageSample.of(design, image[design.image])
    starts, kinds = np.flatnonzero(np.diff(bins, prepend=-1)), (g, np.log(g))
    return FeatureTable(
        at_terms=np.take_along_axis(g.T, design.t - 2, axis=0),
        bin_sums=np.stack([np.add.reduceat(of, starts, axis=1) for of in kinds], axis=2),
        timestep_means=np.stack([sample.weights @ of for of in kinds], axis=1),
        root_means=sample.weights @ np.sqrt(g),
        sample=sample,
        error_scale=np.stack([t / 50, 1 / (1 + t / 50)]),
    )


def smooth(generator: np.random.Generator, n: int, t: NDArray[np.int64]) -> Array:
    """(N, T) standard normal, with a correlation over about a factor of 2 in t."""
    phases = np.outer(generator.normal(size=24), np.log(t) / 0.7)
    amplitudes = generator.normal(size=(24, n, 2))
    waves = np.stack([np.cos(phases), np.sin(phases)], axis=1).reshape(48, len(t))
    return amplitudes.transpose(1, 0, 2).reshape(n, 48) @ waves / np.sqrt(24)


def study_of(runs: list[dict[str, object]]) -> SimpleNamespace:
    """The values of many runs, an array by name; the first axis is that of the runs."""
    return SimpleNamespace(**{name: np.array([run[name] for run in runs]) for name in runs[0]})


def z_score(error: Array) -> Array:
    """The mean over the runs in its standard errors."""
    return error.mean(0) / error.std(0) * np.sqrt(len(error))


def calibration(standard_error: Array, error: Array) -> Array:
    """Root mean square of reported standard errors over the spread of the errors."""
    return np.sqrt(np.square(standard_error).mean(0)) / error.std(0)
