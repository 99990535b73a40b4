"""A bound from some of its rows: the record, and how variances become its two intervals."""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from ddpmbench.likelihood.bound import cumulative_rate
from ddpmbench.likelihood.intervals import doubt_of, freedom_of_sum, half_width_of, quantile
from ddpmbench.likelihood.panel import Interaction
from ddpmbench.likelihood.regression import Predictions
from ddpmbench.likelihood.sampled_rows import NATS, SampledRows
from ddpmbench.likelihood.sampled_steps import StepTable


@dataclasses.dataclass(frozen=True, eq=False)
class SampledBound:
    """The bound on a set of images from some of its rows, in nats per dimension.

    Attributes:
        prior: mean L_T.
        kl: estimated mean of the sum of L_{t-1} over t = 2..T.
        decoder: mean L_0, computed on every image.
        term: (T,) estimated mean over the images of the term at t, unbiased; the decoder's at
            t = 1. They and the prior sum to the bound.
        term_standard_error: (T,) its standard error on this image set.
        x_start_mse: (T,) estimated mean squared error of the predicted x_start.
        eps_mse: (T,) the same of the predicted noise.
        rate_standard_error: (T,) of the rate at t, the prior and the terms of the steps after t.
        num_evaluations: (T,) network calls; those of the pilot are not among them.
        rotations: how often every image was sampled.
        half_width: of the 95 % interval for these images: sampling of rows and noise.
        half_width_population: of the 95 % interval for the population the images are drawn
            from; it contains the other. None for a single image.
        image_deviation: standard deviation over the images of their bounds, without the error of
            each; 0 where that error hides it, None for a single image.
        kl_variance: the part of the first interval's variance that is the sampling of rows.
        decoder_variance: the part that is the noise of the decoder's rows.
        predictions: of the terms, which were subtracted from them at the rows.
        image_prior: (N,) L_T of each image.
        image_decoder: (N,) L_0 of each image, mean over its draws.
    """

    prior: float
    kl: float
    decoder: float
    term: NDArray[np.float64]
    term_standard_error: NDArray[np.float64]
    x_start_mse: NDArray[np.float64]
    eps_mse: NDArray[np.float64]
    rate_standard_error: NDArray[np.float64]
    num_evaluations: NDArray[np.int64]
    rotations: int
    half_width: float
    half_width_population: float | None
    image_deviation: float | None
    kl_variance: float
    decoder_variance: float
    predictions: Predictions
    image_prior: NDArray[np.float64]
    image_decoder: NDArray[np.float64]

    @property
    def nats(self) -> float:
        """The bound: the mean over the images."""
        return self.prior + self.kl + self.decoder

    @property
    def rate(self) -> NDArray[np.float64]:
        """(T,) what has been sent once x_t is known: the prior and the terms after t."""
        return cumulative_rate(self.prior, self.term)


def assembled(
    prior: NDArray[np.float64],
    rows: SampledRows,
    parts: Interaction,
    *,
    steps: StepTable,
    rate_error: NDArray[np.float64],
    predictions: Predictions,
) -> SampledBound:
    """The estimate, from its decoder and its later steps: here they become intervals."""
    num_images, rotations = len(prior), len(rows.rotations[NATS])
    variance = parts.variance + rows.decoder_variance
    of_image = prior + rows.decoder[NATS] + parts.image
    half_width = _half_width(rows, parts.spread, parts.variance, rotations)
    population, deviation = None, None
    if num_images > 1:
        spread = float(of_image.var(ddof=1))
        # The spread of the images' estimates already contains the error of each; where the images
        # are alike it may come out smaller by chance, or because it has more degrees of freedom.
        population = quantile(num_images - 1) * math.sqrt(spread / num_images)
        population = max(population, half_width)
        deviation = math.sqrt(max(0.0, spread - num_images * variance))
    return SampledBound(
        prior=float(prior.mean()),
        kl=parts.mean,
        decoder=float(rows.decoder[NATS].mean()),
        term=steps.term,
        term_standard_error=steps.standard_error,
        x_start_mse=steps.x_start_mse,
        eps_mse=steps.eps_mse,
        rate_standard_error=rate_error,
        num_evaluations=steps.num_evaluations,
        rotations=rotations,
        half_width=half_width,
        half_width_population=population,
        image_deviation=deviation,
        kl_variance=parts.variance,
        decoder_variance=rows.decoder_variance,
        predictions=predictions,
        image_prior=prior,
        image_decoder=rows.decoder[NATS],
    )


def _half_width(
    rows: SampledRows, spread: NDArray[np.float64], kl_variance: float, rotations: int
) -> float:
    # Each part with the degrees of freedom of its images.
    of_rows = _freedom(spread, np.full(len(spread), rotations - 1))
    of_decoder = _freedom(rows.decoder_squares, rows.decoder_draws - 1)
    parts = np.array([kl_variance, rows.decoder_variance])
    freedom = _freedom(parts, np.array([of_rows, of_decoder]))
    half_width = half_width_of(kl_variance + rows.decoder_variance, freedom)
    return math.nan if half_width is None else half_width


def _freedom(variances: NDArray[np.float64], freedom: NDArray[np.float64 | np.int64]) -> float:
    return freedom_of_sum(float(variances.sum()), doubt_of(variances, freedom))
