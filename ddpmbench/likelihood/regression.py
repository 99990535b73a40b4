"""Terms predicted from features of the images; each replicate from a fit to the others."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from ddpmbench.data.pixel_store import release, store
from ddpmbench.diffusion.data_range import UNIT_RANGE, DataRange
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.likelihood.designs import ImportanceDesign
from ddpmbench.likelihood.image_sampling import ImageSample
from ddpmbench.likelihood.terms import image_blocks

CHUNK_BYTES = 2**23
"""About this many bytes of float64 in one portion of the images."""
MOMENT_IMAGES = 20_000
"""Most images for the mean and the spectrum, evenly spaced in the set."""
LEVELS = 512
"""Most different values of the spectrum."""
_EDGES = (0, 1, 2, 4, 8, 16, 32, 64)  # of differences and of deviations, in levels
_SQUARED_EDGES = tuple(81 * edge**2 for edge in _EDGES)
NUM_IMAGE_FEATURES = 6 + 2 * len(_EDGES)
BINS = 30
"""Most bins of timesteps, evenly spaced in log t."""

# Weight of a coefficient's prior, in terms: of the intercept, of G and log G, and of an image
# feature, whose coefficients in single bins take more terms to estimate.
_INTERCEPT_PRIOR, _PRIOR, _IMAGE_PRIOR = 0.3, 4.0, 30.0


@dataclasses.dataclass(frozen=True, eq=False)
class GaussianFeatures:
    r"""The terms of the best denoiser for normal data with the images' spectrum.

    .. math:: G_t = \frac{w_t}{D} \sum_{i=1}^D \Bigl[ (1 - a_i)^2 z_i^2
              + \frac{1 - \bar\alpha_t}{\bar\alpha_t} a_i^2 \Bigr], \quad
              a_i = \frac{\bar\alpha_t v_i}{\bar\alpha_t v_i + 1 - \bar\alpha_t}

    with z the coefficients of an image: its 2-D cosine transform along the principal axes of its
    colors, less the mean; v their variances, taken as independent; and w_t = `weight`.

    Attributes:
        mean: (C, H, W) of the images in the data range.
        color: (C, C) orthonormal, one axis per column.
        level: (D,) index into the spectrum of each coefficient, D = C H W.
        spectrum: (K,) variance of the coefficients of each level.
        schedule: the noise schedule.
        data_range: the values of an image.

    Source: Wiener 1949 (the linear filter of least mean squared error).
    """

    mean: NDArray[np.float64]
    color: NDArray[np.float64]
    level: NDArray[np.int64]
    spectrum: NDArray[np.float64]
    schedule: NoiseSchedule
    data_range: DataRange = UNIT_RANGE

    @classmethod
    def fit(
        cls,
        pixels: NDArray[np.uint8],
        schedule: NoiseSchedule,
        data_range: DataRange = UNIT_RANGE,
    ) -> Self:
        """The distribution with the mean and the spectrum of (N, C, H, W) 8-bit images."""
        sample = pixels[:: -(-len(pixels) // MOMENT_IMAGES)]
        channels, height, width = pixels.shape[1:]
        first = np.zeros((channels, height, width))
        second = np.zeros((channels, channels, height, width))
        for part in portions(sample):
            x = _cosine_transform(data_range.array_to_model(sample[part]))
            first += x.sum(0)
            second += np.einsum("nchw,ndhw->cdhw", x, x)
        first /= len(sample)
        covariance = second / len(sample) - first[:, None] * first[None, :]
        _, color = np.linalg.eigh(covariance.mean((2, 3)))
        variance = np.einsum("ca,cdhw,da->ahw", color, covariance, color).ravel()
        variance = np.maximum(variance, 0.0) + (2 * data_range.half_bin) ** 2 / 12  # of rounding
        level = np.empty(variance.size, dtype=np.int64)
        groups = np.array_split(np.argsort(variance, kind="stable"), min(LEVELS, variance.size))
        for k, group in enumerate(groups):
            level[group] = k
        spectrum = np.array([variance[group].mean() for group in groups])
        mean = fft.idctn(first, axes=(1, 2), norm="ortho")
        return cls(np.asarray(mean), color, level, spectrum, schedule, data_range)

    @property
    def weight(self) -> NDArray[np.float64]:
        """(T - 1,) nats per unit of mean squared error of x_start, t = 2..T, fixed_small."""
        snr = self.schedule.snr.numpy()
        return np.asarray((snr[:-1] - snr[1:]) / 2)

    def divergence(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """The terms of (B, C, H, W) 8-bit images at every timestep.

        Returns:
            (B, T - 1) for t = 2..T, positive, nats per dimension: the expectation over the noise
            of the term under variance fixed_small.
        """
        factor, constant = self._coefficients
        return np.asarray(self._squares(pixels) @ factor + constant)

    def divergence_at(self, pixels: NDArray[np.uint8], t: NDArray[np.int64]) -> NDArray[np.float64]:
        """(R, B) `divergence` of (B, C, H, W) 8-bit images at their timesteps t, (R, B)."""
        factor, constant = self._coefficients
        squares, columns = self._squares(pixels), factor.T
        # One replicate at a time: together they could take many times the memory of the images.
        dots = [np.einsum("bk,bk->b", squares, columns[timesteps - 2]) for timesteps in t]
        return np.stack(dots) + constant[t - 2]

    def total(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """(B,) sum of the terms over t = 2..T."""
        factor, constant = self._coefficients
        return np.asarray(self._squares(pixels) @ factor.sum(1) + constant.sum())

    def _squares(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """(B, K) sum of the squared coefficients of each level."""
        z = _cosine_transform(self.data_range.array_to_model(pixels) - self.mean)
        squares = np.square(np.einsum("ca,nchw->nahw", self.color, z)).reshape(len(z), -1)
        order = np.argsort(self.level, kind="stable")
        starts = np.searchsorted(self.level[order], np.arange(len(self.spectrum)))
        return np.asarray(np.add.reduceat(squares[:, order], starts, axis=1))

    @cached_property
    def _coefficients(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(K, T - 1) and (T - 1,): the term is squares @ the first + the second."""
        signal = self.schedule.alphas_cumprod.numpy()[1:]
        noise = self.schedule.one_minus_alphas_cumprod.numpy()[1:]
        v = self.spectrum[:, None]
        total = signal * v + noise
        scale = self.weight / len(self.level)
        residual = noise / total  # 1 - a W without cancellation
        wiener = np.sqrt(signal) * v / total
        count = np.bincount(self.level, minlength=len(self.spectrum))
        return scale * np.square(residual), scale * noise * (count @ np.square(wiener))


def portions(
    pixels: NDArray[np.uint8], width: int = 256, count: int | None = None
) -> Iterator[slice]:
    """Slices that cover the images, each small enough to be worked on in memory.

    Images in a file are released after each slice. `width` is how many numbers are computed per
    image, if more than its pixels; the histogram of a code length has 256. `count` images are
    covered, None for all.
    """
    size = max(1, CHUNK_BYTES // (8 * max(width, pixels[:1].size)))
    length = len(pixels) if count is None else count
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
        release(pixels)


def _cosine_transform(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(fft.dctn(x, axes=(2, 3), norm="ortho"))


def code_length(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(B,) the length of a lossless code of (B, C, H, W) 8-bit images, nats per dimension.

    Like the size of its PNG, but independent of a library's version: every level is predicted from
    three neighbors as in JPEG-LS; the length is the entropy of the errors' histogram.

    Source: Weinberger, Seroussi & Sapiro 2000, "The LOCO-I lossless image compression algorithm".
    """
    padded = np.pad(pixels, ((0, 0), (0, 0), (1, 0), (1, 0))).astype(np.int16)
    left, above, corner = padded[..., 1:, :-1], padded[..., :-1, 1:], padded[..., :-1, :-1]
    low, high = np.minimum(left, above), np.maximum(left, above)
    error = (padded[..., 1:, 1:] - np.clip(left + above - corner, low, high)) % 256
    flat = error.reshape(len(pixels), -1) + 256 * np.arange(len(pixels))[:, None]
    histogram = np.bincount(flat.ravel(), minlength=256 * len(pixels)).reshape(-1, 256)
    share = histogram / max(flat.shape[1], 1)
    return np.asarray(-(share * np.log(np.where(share > 0, share, 1.0))).sum(1))


def image_features(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(B, P) features of (B, C, H, W) 8-bit images, each image by itself.

    The code length; the total variation; histograms of the differences between neighbors, and of
    the standard deviations of 3 x 3 pixels, in bins of powers of two; the shares of pixels that are
    black or white, or nearly so.
    """
    x = pixels.astype(np.int32)
    differences = np.concatenate(
        [np.abs(np.diff(x, axis=axis)).reshape(len(x), -1) for axis in (2, 3)], axis=1
    )
    shares = [_shares(differences, _EDGES), _shares(_squared_deviations(x), _SQUARED_EDGES)]
    flat = x.reshape(len(x), -1)
    ends = [flat == 0, (flat > 0) & (flat < 8), (flat > 247) & (flat < 255), flat == 255]
    single = [code_length(pixels), differences.mean(1) if differences.size else np.zeros(len(x))]
    single += [end.mean(1) for end in ends]
    return np.concatenate([np.stack(single, axis=1), *shares], axis=1)


def _squared_deviations(x: NDArray[np.int32]) -> NDArray[np.int32]:
    """(B, C H W) 81 times the variance of the 3 x 3 pixels around each, in integers."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    height, width = x.shape[2:]
    total, squares = np.zeros_like(x), np.zeros_like(x)
    for i in range(3):
        for j in range(3):
            part = padded[:, :, i : i + height, j : j + width]
            total += part
            squares += part * part
    return np.asarray((9 * squares - total * total).reshape(len(x), -1))


def _shares(values: NDArray[np.int32], edges: tuple[int, ...]) -> NDArray[np.float64]:
    """(B, K) of each image's values up to the first edge, and up to each further one."""
    below = np.stack([(values <= edge).sum(1) for edge in edges], axis=1)
    return np.asarray(np.diff(below, axis=1, prepend=0) / max(values.shape[1], 1))


@functools.lru_cache(maxsize=16)
def log_bins(num_timesteps: int) -> NDArray[np.int64]:
    """(T - 1,) the bin of each timestep t = 2..T, 0, 1, ... without gaps."""
    log_t = np.log(np.arange(2, num_timesteps + 1))
    width = (log_t[-1] - log_t[0]) / BINS or 1.0
    raw = np.minimum((log_t - log_t[0]) / width, BINS - 1).astype(np.int64)
    bins = np.unique(raw, return_inverse=True)[1].astype(np.int64)
    bins.flags.writeable = False  # shared by all callers
    return bins


def standardized_features(
    gaussian: GaussianFeatures, pixels: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """(N, P) features of (N, C, H, W) 8-bit images, of mean 0 and variance 1 over the images.

    They are `image_features` and the logarithm of the linear denoiser's total.
    """
    table = np.empty((len(pixels), NUM_IMAGE_FEATURES + 1), np.float32)
    for part in portions(pixels):
        table[part, :-1] = image_features(gaussian.data_range.reduced(pixels[part]))
        table[part, -1] = np.log(gaussian.total(pixels[part]))
    center = table.mean(0, dtype=np.float64)
    table -= center.astype(np.float32)
    scale = np.sqrt(np.einsum("np,np->p", table, table, dtype=np.float64) / len(table))
    is_alike = scale <= 1e-6 * np.abs(center)  # up to rounding
    table[:, is_alike], scale[is_alike] = 0.0, 1.0
    table /= scale.astype(np.float32)
    return table


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureTable:
    """The features of a regression at the terms of an importance sample, and their sums.

    G is the linear denoiser's term (`GaussianFeatures`), log G its logarithm.

    Attributes:
        at_terms: (r, M) G of each sampled image at its timestep in each replicate.
        bin_sums: (M, bins, 2) float32, sums of G and of log G over the timesteps of each bin, in a
            file for many images. Rounding errors are unbiased and below 1e-7.
        timestep_means: (T - 1, 2) weighted means of G and of log G over the images, t = 2..T.
        root_means: (T - 1,) weighted means of the root of G.
        sample: of the images, with `standardized_features` of each.
        error_scale: (2, T - 1) factors from G to the linear denoiser's mean squared error of
            x_start and of the noise.
    """

    at_terms: NDArray[np.float64]
    bin_sums: NDArray[np.float32]
    timestep_means: NDArray[np.float64]
    root_means: NDArray[np.float64]
    sample: ImageSample
    error_scale: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        features: GaussianFeatures,
        pixels: NDArray[np.uint8],
        design: ImportanceDesign,
        image: NDArray[np.float32] | None = None,
    ) -> Self:
        """The features of (N, C, H, W) 8-bit images; `features` may be fitted to others.

        Args:
            features: the linear denoiser.
            pixels: of all images.
            design: of the terms.
            image: (N, P) `standardized_features` of all images; None to compute them.
        """
        if image is None:
            image = standardized_features(features, pixels)
        sample = ImageSample.of(design, image[design.image])
        starts = np.flatnonzero(np.diff(log_bins(design.num_timesteps), prepend=-1))
        timestep_means = np.zeros((design.num_timesteps - 1, 2))
        root_means = np.zeros(design.num_timesteps - 1)

        def bin_sums() -> Iterator[NDArray[np.float32]]:
            for part in portions(pixels, max(256, design.num_timesteps), design.num_sampled):
                g = features.divergence(pixels[design.image[part]])
                weights = sample.weights[part]
                sums = np.empty((len(g), len(starts), 2), np.float32)
                for k, values in enumerate((g, np.log(g))):
                    timestep_means[:, k] += weights @ values
                    sums[:, :, k] = np.add.reduceat(values, starts, axis=1)
                root_means[:] += weights @ np.sqrt(g)
                yield sums

        stored = store((design.num_sampled, len(starts), 2), bin_sums(), np.float32)
        snr = features.schedule.snr.numpy()[1:]
        return cls(
            at_terms=_at_terms(features, pixels, design, design.t),
            bin_sums=stored,
            timestep_means=timestep_means,
            root_means=root_means,
            sample=sample,
            error_scale=np.stack([1 / features.weight, snr / features.weight]),
        )

    def extended(
        self, features: GaussianFeatures, pixels: NDArray[np.uint8], design: ImportanceDesign
    ) -> Self:
        """The table for a design with more replicates; only the new ones are computed."""
        new = design.t[len(self.at_terms) :]
        if not len(new):
            return self
        at_terms = np.concatenate([self.at_terms, _at_terms(features, pixels, design, new)])
        return dataclasses.replace(self, at_terms=at_terms)


def _at_terms(
    features: GaussianFeatures,
    pixels: NDArray[np.uint8],
    design: ImportanceDesign,
    t: NDArray[np.int64],
) -> NDArray[np.float64]:
    at_terms = np.empty(t.shape)
    for part in portions(pixels, count=design.num_sampled):
        at_terms[:, part] = features.divergence_at(pixels[design.image[part]], t[:, part])
    return at_terms


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """Terms of each replicate, predicted from the other replicates.

    Attributes:
        terms: (r, M) at each term.
        totals: (r, M) sum over t = 2..T of each image.
        timesteps: (r, T - 1) weighted mean over the images at each timestep.
    """

    terms: NDArray[np.float64]
    totals: NDArray[np.float64]
    timesteps: NDArray[np.float64]

    def __getitem__(self, part: tuple[slice, slice]) -> "Predictions":
        """Predictions of some replicates and images; the means stay those of all images."""
        return Predictions(self.terms[part], self.totals[part], self.timesteps[part[0]])

    def __sub__(self, other: "Predictions") -> "Predictions":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Predictions(*(one - another for one, another in pairs))


def no_predictions(design: ImportanceDesign) -> Predictions:
    """Zeros, with which the regression estimator is the Horvitz-Thompson estimator."""
    # One zero in memory, broadcast.
    zeros = np.broadcast_to(0.0, (design.num_replicates, design.num_sampled))
    return Predictions(zeros, zeros, np.zeros((design.num_replicates, design.num_timesteps - 1)))


def predict(
    design: ImportanceDesign, nats: NDArray[np.float64], features: FeatureTable
) -> Predictions:
    """`predict_each` for one kind of terms, (r, M)."""
    return predict_each(design, nats[None], features)[0]


def predict_each(
    design: ImportanceDesign, nats: NDArray[np.float64], features: FeatureTable
) -> list[Predictions]:
    r"""Fit terms in bins of log t to the regressors (1, G, log G, features of the image).

    .. math:: \hat y(t) = \beta_b^\top x(t), \quad t \in b

    by ridge regression of each bin toward that of all bins, with residuals weighted by 1 / q(t).
    The coefficients for a replicate come from the others, whose timesteps and noise are independent
    of its own; so the estimate is unbiased whatever the features. (Folds of images would be biased:
    within a replicate the images share the strata.) The terms are (K, r, M) of K kinds, such as
    conventions, which share the Gram matrices; at least two replicates.

    Source: Saerndal, Swensson & Wretman 1992, chapter 6; Chernozhukov et al. 2018 for the folds.
    """
    bins = log_bins(design.num_timesteps)
    basis = _Basis.of(features, bins)
    bin_density = np.bincount(bins, weights=design.density) / basis.timesteps_in_bin
    columns = basis.num_columns
    gram = np.zeros((design.num_replicates, len(bin_density), columns, columns + len(nats)))
    for replicates, part in _blocks(design):
        index = design.t[replicates, part] - 2
        b, p = bins[index], design.density[index]
        # Terms are weighted as their residuals in the estimate, by 1 / density. The bin's density
        # makes the coefficients of bins similar, so that sparse bins learn from others.
        x = basis.at(features.at_terms[replicates, part], b, part) * (bin_density[b] / p)[..., None]
        y = nats[:, replicates, part] / p
        both = np.concatenate([x.reshape(-1, columns), y.reshape(len(nats), -1).T], axis=1)
        group = (np.arange(len(b))[:, None] * len(bin_density) + b).ravel()
        order = np.argsort(group, kind="stable")
        both, ends = both[order], np.cumsum(np.bincount(group)).tolist()
        for k, (start, stop) in enumerate(itertools.pairwise([0, *ends])):
            if start < stop:
                place = replicates.start + k // len(bin_density), k % len(bin_density)
                gram[place] += both[start:stop, :columns].T @ both[start:stop]
    gram, moment = gram[..., :columns], gram[..., columns:]
    beta = _shrunk(gram.sum(0) - gram, moment.sum(0) - moment) * bin_density[:, None]
    means = basis.means(features.timestep_means, bins)
    timesteps = np.empty((*nats.shape[:2], len(bins)))
    for place in np.ndindex(timesteps.shape[:2]):
        timesteps[place] = (means * beta[place][bins]).sum(1)
    terms, totals = np.empty(nats.shape), np.empty(nats.shape)
    for replicates, part in _blocks(design):
        b, of_block = bins[design.t[replicates, part] - 2], beta[:, replicates]
        x = basis.at(features.at_terms[replicates, part], b, part)
        for kind, coefficients in enumerate(of_block):
            at_terms = coefficients[np.arange(len(b))[:, None], b]
            terms[kind, replicates, part] = np.einsum("jnc,jnc->jn", x, at_terms)
        totals[:, replicates, part] = basis.totals(features.bin_sums[part], of_block, part)
        release(features.bin_sums)
    return [Predictions(*of_kind) for of_kind in zip(terms, totals, timesteps, strict=True)]


def _blocks(design: ImportanceDesign) -> Iterator[tuple[slice, slice]]:
    """Slices of replicates and images with about as many terms as fit into the CPU's cache."""
    for part in image_blocks(design.num_sampled):
        for replicates in image_blocks(design.num_replicates, part.stop - part.start):
            yield replicates, part


@dataclasses.dataclass(frozen=True, eq=False)
class _Basis:
    """Regressors of size about 1 and mean 0; the scales are those of all images."""

    g_scale: NDArray[np.float64]  # (bins,) mean of G
    log_center: NDArray[np.float64]  # (bins,) mean of log G
    sample: ImageSample
    timesteps_in_bin: NDArray[np.int64]  # (bins,)

    @classmethod
    def of(cls, features: FeatureTable, bins: NDArray[np.int64]) -> Self:
        timesteps_in_bin = np.bincount(bins)
        # Not from the bin sums, which are rounded.
        means = (np.bincount(bins, weights=column) for column in features.timestep_means.T)
        g_scale, log_center = (sums / timesteps_in_bin for sums in means)
        return cls(g_scale, log_center, features.sample, timesteps_in_bin)

    @property
    def num_columns(self) -> int:
        return 3 + int(self.sample.features.shape[1])

    def at(self, g: NDArray[np.float64], b: NDArray[np.int64], part: slice) -> NDArray[np.float64]:
        """(R, B, 3 + P) regressors at the terms of some images, whose G and bins are (R, B)."""
        x = np.empty((*g.shape, self.num_columns))
        x[..., 0] = 1
        x[..., 1] = g / self.g_scale[b] - 1
        x[..., 2] = np.log(g) - self.log_center[b]
        x[..., 3:] = self.sample.features[part]
        return x

    def totals(
        self, bin_sums: NDArray[np.float32], beta: NDArray[np.float64], part: slice
    ) -> NDArray[np.float64]:
        """(..., B) summed predictions over t = 2..T, of some images; beta is (..., bins, 3 + P)."""
        # Written out: the regressors of all images and bins would take twice the memory of the
        # sums.
        level = (
            beta[..., 0] - beta[..., 1] - self.log_center * beta[..., 2]
        ) @ self.timesteps_in_bin
        g = (beta[..., 1] / self.g_scale) @ bin_sums[:, :, 0].T
        log_g = beta[..., 2] @ bin_sums[:, :, 1].T
        of_image = (self.timesteps_in_bin @ beta[..., 3:]) @ self.sample.features[part].T
        return np.asarray(level[..., None] + g + log_g + of_image)

    def means(
        self, timestep_means: NDArray[np.float64], bins: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """(T - 1, 3 + P) mean over the images at each timestep."""
        g = timestep_means[:, 0] / self.g_scale[bins] - 1
        log_g = timestep_means[:, 1] - self.log_center[bins]
        image = self.sample.weights @ self.sample.features
        return np.column_stack(
            [np.ones_like(g), g, log_g, np.broadcast_to(image, (len(g), len(image)))]
        )


def _shrunk(gram: NDArray[np.float64], moment: NDArray[np.float64]) -> NDArray[np.float64]:
    """(K, r, bins, C) coefficients: ridge regression of each bin toward that of all together."""
    priors = np.full((2, gram.shape[-1]), _PRIOR)
    priors[:, 0], priors[1, 3:] = _INTERCEPT_PRIOR, _IMAGE_PRIOR
    of_all, of_bin = (np.diag(prior) for prior in priors)
    together = np.linalg.solve(gram.sum(1) + of_all, moment.sum(1))[:, None]
    result = together + np.linalg.solve(gram + of_bin, moment - gram @ together)
    return np.moveaxis(result, -1, 0)
