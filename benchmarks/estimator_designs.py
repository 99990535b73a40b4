"""The designs of the estimator study: ways to choose among known terms."""

import abc
import dataclasses
import math
from collections.abc import Callable
from functools import cached_property

import numpy as np

from ddpmbench.likelihood.designs import (
    REDRAWN_IMAGES,
    ImportanceDesign,
    PilotDesign,
    decoder_draws,
    proposal_density,
)
from ddpmbench.likelihood.importance_estimator import horvitz_thompson, regression_estimate
from ddpmbench.likelihood.regression import FeatureTable
from ddpmbench.likelihood.terms import VALUE_COLUMNS, TermIndex, TermTable


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """Parameters of a design's cost and error besides its size and the variance per term.

    Attributes:
        num_images: N.
        noise: (T,) variance of one draw of the term at t, mean over the images, nats squared.
    """

    num_images: int
    noise: np.ndarray

    @property
    def num_timesteps(self) -> int:
        """T."""
        return len(self.noise)

    @property
    def pilot_evaluations(self) -> int:
        """Network evaluations of the pilot."""
        return len(PilotDesign(self.num_images, self.num_timesteps, 0))


@dataclasses.dataclass(frozen=True, eq=False)
class Population:
    """Images with every term computed, with at least two draws of the noise.

    A sampled term is one of the stored draws at random. These are scaled about their mean by
    sqrt(K / (K - 1)), so that their variance is an unbiased estimate of that of the noise.

    Attributes:
        computed: (N, T, K) every term at t = 1..T, nats per dimension.
        prior: (N,) L_T of each image.
        features: from a design to the features of its regression.
    """

    computed: np.ndarray
    prior: np.ndarray
    features: Callable[[ImportanceDesign], FeatureTable]

    @cached_property
    def truth(self) -> float:
        """The bound on these images, nats per dimension."""
        return float((self.prior + self.mean.sum(1)).mean())

    @cached_property
    def setting(self) -> Setting:
        """N, T and the noise."""
        return Setting(len(self.prior), self.computed.var(axis=2, ddof=1).mean(0))

    @cached_property
    def mean(self) -> np.ndarray:
        """(N, T) the terms, mean over the draws."""
        return self.computed.mean(2)

    @cached_property
    def _terms(self):
        mean, draws = self.mean[:, :, None], self.computed.shape[2]
        return mean + math.sqrt(draws / (draws - 1)) * (self.computed - mean)

    def nats(self, image, t, generator):
        """The terms of image and timestep pairs, each with a random draw."""
        return self._terms[image, t - 1, generator.integers(self._terms.shape[2], size=len(t))]

    def table(self, index: TermIndex, generator) -> TermTable:
        """The terms as a table; the errors of the network's predictions are not studied."""
        return TermTable(
            index, dict.fromkeys(VALUE_COLUMNS, self.nats(index.image, index.t, generator))
        )

    def decoder(self, generator) -> float:
        """Mean of the decoder terms, one draw of every image."""
        image = np.arange(len(self.prior))
        return self.nats(image, np.ones_like(image), generator).mean()

    def density(self, generator):
        """The proposal density from a pilot."""
        pilot = PilotDesign(len(self.prior), self.computed.shape[1], _seed(generator))
        return proposal_density(pilot, [self.table(pilot.index(0, len(pilot)), generator)])


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The estimate from one seed, nats per dimension.

    Attributes:
        nats: the bound.
        num_evaluations: network evaluations.
        noise: the part of the error from the noise of terms that are not sampled.
        half_width: of the interval; NaN where none is stated.
    """

    nats: float
    num_evaluations: int
    noise: float = 0.0
    half_width: float = math.nan


class Design(abc.ABC):
    """A way to choose terms; the variance of an estimate is variance per term * share + noise.

    Attributes:
        name: the name in the tables.
        unit: the unit of its size.
        settled: the size from which the variance per term does not depend on the size.
    """

    name: str
    unit: str
    settled: int = 1

    @abc.abstractmethod
    def estimate(self, population: Population, size: int, generator) -> Estimate:
        """Sample terms and estimate the bound from them."""

    @abc.abstractmethod
    def num_evaluations(self, size: float, setting: Setting) -> float:
        """Network evaluations, including those of the pilot."""

    @abc.abstractmethod
    def variance(self, size: float, setting: Setting) -> tuple[float, float]:
        """The share, and the variance of `Estimate.noise`."""

    def whole(self, size: float) -> int:
        """The smallest size at or above this one that can be run."""
        return math.ceil(size)


class EveryPair(Design):
    """Every timestep of some images, one draw; the images are drawn without replacement."""

    name, unit = "every-pair", "images"

    def estimate(self, population, size, generator):
        chosen = generator.permutation(len(population.prior))[:size]
        num_timesteps = population.setting.num_timesteps
        image, t = np.repeat(chosen, num_timesteps), np.tile(np.arange(1, num_timesteps + 1), size)
        nats = population.nats(image, t, generator).sum() / size
        noise = nats - population.mean[chosen].sum() / size
        return Estimate(population.prior.mean() + nats, size * num_timesteps, noise)

    def num_evaluations(self, size, setting):
        return size * setting.num_timesteps

    def variance(self, size, setting):
        return 1 / size - 1 / setting.num_images, setting.noise.sum() / size


class UniformSteps(Design):
    """Each term has a random image and timestep t = 1..T; t = 1 is treated like any other."""

    name, unit = "uniform t", "rows"

    def estimate(self, population, size, generator):
        image = generator.integers(len(population.prior), size=size)
        num_timesteps = population.setting.num_timesteps
        nats = population.nats(
            image, generator.integers(1, num_timesteps + 1, size=size), generator
        )
        return Estimate(population.prior.mean() + num_timesteps * nats.mean(), size)

    def num_evaluations(self, size, setting):
        return size

    def variance(self, size, setting):
        return 1 / size, 0.0


class StratifiedSteps(Design):
    """The decoder term of every image, and terms at t = 2..T of random images.

    The timesteps are stratified: each of m terms draws from one of m equal strata of the
    distribution function of a density, so that timestep t has m p(t) terms, rounded at random. The
    density is uniform, or a pilot's, proportional to the standard deviations s_t.
    """

    unit, settled = "rows", 10_000

    def __init__(self, *, neyman: bool):
        self.neyman = neyman
        self.name = "Neyman" if neyman else "stratified t"

    def estimate(self, population, size, generator):
        num_timesteps = population.setting.num_timesteps
        density = np.full(num_timesteps - 1, 1 / (num_timesteps - 1))
        if self.neyman:
            density = population.density(generator)
        position = (np.arange(size) + generator.random(size)) / size
        later = np.searchsorted(np.cumsum(density)[:-1], position, side="right")
        image = generator.integers(len(population.prior), size=size)
        kl = (population.nats(image, later + 2, generator) / density[later]).mean()
        decoder = population.decoder(generator)
        num_evaluations = self.num_evaluations(size, population.setting)
        noise = decoder - population.mean[:, 0].mean()
        return Estimate(population.prior.mean() + decoder + kl, num_evaluations, noise)

    def num_evaluations(self, size, setting):
        return size + setting.num_images + self.neyman * setting.pilot_evaluations

    def variance(self, size, setting):
        return 1 / size, setting.noise[0] / setting.num_images


class Importance(Design):
    """The package's importance design, with its own pilot, and either estimator."""

    unit = "num_replicates"

    def __init__(self, *, regression: bool):
        self.regression = regression
        self.name = "importance GREG" if regression else "importance HT"
        # The regression of a replicate is fitted to the others: with 10,000 images to at least
        # 10,000 terms, with 200 images and 32 replicates to 6,200.
        self.settled = 32 if regression else 2

    def estimate(self, population, size, generator):
        density = population.density(generator)
        images, num_timesteps = population.computed.shape[:2]
        design = ImportanceDesign(images, num_timesteps, density, _seed(generator), size)
        tables = [population.table(design.index(0, len(design)), generator)]
        if self.regression:
            bound = regression_estimate(
                design, population.prior, tables, population.features(design)
            )
        else:
            bound = horvitz_thompson(design, population.prior, tables)
        num_evaluations = population.setting.pilot_evaluations + len(design)
        noise = bound.decoder - population.mean[:, 0].mean()
        return Estimate(bound.nats, num_evaluations, noise, bound.half_width)

    def num_evaluations(self, size, setting):
        terms = setting.num_images * (size + decoder_draws(int(size)))
        return setting.pilot_evaluations + terms + _redrawn(setting.num_images)

    def variance(self, size, setting):
        draws = decoder_draws(int(size))
        redrawn = _redrawn(setting.num_images) / setting.num_images
        share = (1 - redrawn) / draws + redrawn / (draws + 1)
        return 1 / (setting.num_images * size), setting.noise[0] * share / setting.num_images

    def whole(self, size):
        return max(2, math.ceil(size))  # the error of a single replicate is unknown


DESIGNS: tuple[Design, ...] = (
    EveryPair(),
    UniformSteps(),
    StratifiedSteps(neyman=False),
    StratifiedSteps(neyman=True),
    Importance(regression=False),
    Importance(regression=True),
)


def _redrawn(num_images: int) -> int:
    return min(num_images, max(REDRAWN_IMAGES, math.ceil(num_images / 10)))


def _seed(generator) -> int:
    return int(generator.integers(2**63))
