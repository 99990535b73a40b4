"""The mean over all images from a random sample, by regression on features of each image."""

import dataclasses
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ddpmbench.likelihood.designs import ImportanceDesign
from ddpmbench.likelihood.terms import image_blocks

_PRIOR = 4.0  # in images, the weight of each coefficient's prior


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSample:
    r"""M of N images, in random blocks, and weights that make them represent all N.

    .. math:: \hat Y = \sum_n g_n y_n
              = \frac{1}{B} \sum_{b=1}^B \Bigl[ w_b \, \mathrm{E}_{n \notin b}
              (y_n - \beta_b^\top x_n) + (1 - w_b) \, \mathrm{E}_{n \in b}
              (y_n - \beta_b^\top x_n) \Bigr] + \bar\beta^\top \bar x

    The generalized regression estimator of the mean of y. The coefficients for block b are fitted
    to the other blocks, a share w_b of all N images; given those, block b is a random sample of the
    rest. So the estimate of the mean of any y is unbiased, whatever the features x. It is linear in
    y, and the weights sum to 1; where all N images are sampled each weight is 1 / N.

    Attributes:
        num_images: N.
        block_ends: (B + 1,) 0, then the number of images up to the end of each block.
        features: (M, P) x, of mean 0 and variance 1 over all N images.

    Source: Saerndal, Swensson & Wretman 1992, chapter 6, for the weights; Chernozhukov et al. 2018
        for the folds.
    """

    num_images: int
    block_ends: NDArray[np.int64]
    features: NDArray[np.float32]

    @classmethod
    def of(
        cls, design: ImportanceDesign, features: NDArray[np.float32] | None = None
    ) -> "ImageSample":
        """The sample of a design; without (M, P) features all weights are equal."""
        if features is None:
            features = np.zeros((design.num_sampled, 0), np.float32)
        return cls(design.num_images, design.block_ends, features)

    def first(self, blocks: int) -> "ImageSample":
        """The first blocks alone, as a sample of the same N images."""
        ends = self.block_ends[: blocks + 1]
        return ImageSample(self.num_images, ends, self.features[: ends[-1]])

    @property
    def num_sampled(self) -> int:
        """M."""
        return int(self.block_ends[-1])

    @property
    def unseen(self) -> float:
        """The share of the images that are not sampled."""
        return 1 - self.num_sampled / self.num_images

    @cached_property
    def weights(self) -> NDArray[np.float64]:
        """(M,) g."""
        sizes, count = np.diff(self.block_ends), self.num_sampled
        if not self.unseen or len(sizes) == 1:
            return np.full(count, 1 / count)
        share = (count - sizes) / self.num_images  # w
        sums = self._by_block(self._columns)
        others = (sums.sum(0) - sums) / (count - sizes)[:, None]
        whole = np.append(1.0, np.zeros(self.features.shape[1]))
        left = whole - share[:, None] * others - (1 - share[:, None]) * sums / sizes[:, None]
        coefficients = np.linalg.solve(self._grams, left[:, :, None])[:, :, 0]
        in_block, in_others = (1 - share) / sizes, share / (count - sizes)
        weights = np.empty(count)
        for part in image_blocks(count, len(sizes) + len(whole)):
            block = self._block(part)
            is_other = block[:, None] != np.arange(len(sizes))
            of_blocks = in_others + self._columns[part] @ coefficients.T
            weights[part] = in_block[block] + (of_blocks * is_other).sum(1)
        return weights / len(sizes)

    def residuals(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """(M,) values minus their predictions from the other blocks' fits; mean 0."""
        if len(self.block_ends) == 2:
            return np.asarray(values - values.mean())
        products = self._by_block(self._columns * values[:, None])
        moments = products.sum(0) - products
        coefficients = np.linalg.solve(self._grams, moments[:, :, None])[:, :, 0]
        predicted = np.empty(len(values))
        for part in image_blocks(len(values), self._columns.shape[1]):
            predicted[part] = (self._columns[part] * coefficients[self._block(part)]).sum(1)
        left = values - predicted
        return np.asarray(left - left.mean())

    def variance(self, values: NDArray[np.float64], error: float) -> float:
        """Variance of the estimate from the choice of images; 0 where all are sampled.

        Args:
            values: (M,) an estimate of y for each image.
            error: variance of their weighted sum from the errors of the estimates.
        """
        if not self.unseen:
            return 0.0
        spread = float(self.residuals(values).var(ddof=1) * np.square(self.weights).sum())
        return self.unseen * max(0.0, spread - error)

    @cached_property
    def _columns(self) -> NDArray[np.float64]:
        return np.column_stack([np.ones(self.num_sampled), self.features])

    @cached_property
    def _grams(self) -> NDArray[np.float64]:
        """(B, 1 + P, 1 + P) of the regression on the images of the other blocks."""
        ends = zip(self.block_ends[:-1], self.block_ends[1:], strict=True)
        parts = [self._columns[start:stop] for start, stop in ends]
        grams = np.stack([part.T @ part for part in parts])
        prior = np.diag(np.append(0.0, np.full(self.features.shape[1], _PRIOR)))
        return np.asarray(grams.sum(0) - grams + prior)

    def _by_block(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.add.reduceat(values, self.block_ends[:-1], axis=0))

    def _block(self, part: slice) -> NDArray[np.int64]:
        places = np.arange(part.start, part.stop)
        return np.asarray(np.searchsorted(self.block_ends, places, side="right") - 1)
