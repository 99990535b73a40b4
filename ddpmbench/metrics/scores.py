"""The conventions of published scores, the Inception score, the kernel distance, all scores."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax

from ddpmbench.diffusion.data_range import EightBit
from ddpmbench.errors import InputError, one_of
from ddpmbench.metrics.frechet import FrechetInfinity, frechet_infinity, leave_one_out
from ddpmbench.metrics.precision_recall import NEIGHBORS, PrecisionRecall, precision_recall
from ddpmbench.metrics.statistics import (
    Estimate,
    FeatureGaussian,
    Floats,
    checked_features,
    checked_pair,
    feature_statistics,
)
from ddpmbench.records import short_repr

PUBLISHED_AT = 50_000
"""Number of samples of published scores."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A convention of resizing, rounding and splits.

    Attributes:
        id: its name.
        resize: to the input size of the feature network: "clean" is PIL's bicubic with
            antialiasing, in float; "legacy_tensorflow" is bilinear without.
        eight_bit: conversion of samples to 8-bit pixels.
        inception_splits: number of splits of the Inception score; 0 for none.
        inception_order: "file" or "shuffled".
        chunk: size of the splits in place of their number; the last one may be smaller.
    """

    id: str
    resize: str
    eight_bit: EightBit
    inception_splits: int
    inception_order: str
    chunk: int | None = None

    def splits_of(self, num_images: int) -> list[int]:
        """The S + 1 edges of the splits of the Inception score; empty without such a score.

        The sizes of `inception_splits` splits differ by at most 1.
        """
        if self.chunk is not None:
            return [*range(0, num_images, self.chunk), num_images]
        splits = min(self.inception_splits, num_images)
        return [i * num_images // splits for i in range(splits + 1)] if splits else []


PROTOCOLS = {
    protocol.id: protocol
    for protocol in (
        # Ho et al. 2020: the TensorFlow graph of 2015, one split. Their code does not round.
        Protocol("ddpm", "legacy_tensorflow", EightBit.ROUND, 1, "file"),
        # Parmar et al. 2022.
        Protocol("clean", "clean", EightBit.ROUND, 10, "shuffled"),
        # Dhariwal & Nichol 2021.
        Protocol("adm", "legacy_tensorflow", EightBit.TRUNCATE, 1, "file", chunk=5000),
        # Karras et al. 2022.
        Protocol("edm", "legacy_tensorflow", EightBit.ROUND, 0, "file"),
    )
}
"""The protocols by name."""


def protocol_named(name: str | None, *, resizes_inside: bool) -> Protocol:
    """The protocol of this name.

    Args:
        name: None for `ddpm`, or `clean` if the network does not support that.
        resizes_inside: whether the feature network can resize as TensorFlow did.

    Raises:
        InputError: an unknown name, or the feature network does not support it.
    """
    if name is None:
        return PROTOCOLS["ddpm" if resizes_inside else "clean"]
    one_of("protocol", name, PROTOCOLS)
    protocol = PROTOCOLS[name]
    if protocol.resize != "clean" and not resizes_inside:
        raise InputError(
            f"`protocol={name}`: resizes as TensorFlow does, which this feature network does not; "
            "choose clean"
        )
    return protocol


SHUFFLE_SEED = 2020
"""Seed of the order "shuffled", as in torch-fidelity."""


@dataclasses.dataclass(frozen=True, eq=False)
class InceptionScore:
    """The Inception score and its parts.

    Attributes:
        estimate: the mean over splits, with its error over the samples.
        over_splits: (S,) score of each split.
        class_entropy: (N,) entropy of each image's class probabilities, nats.
    """

    estimate: Estimate
    over_splits: Floats
    class_entropy: Floats

    __repr__ = short_repr


def inception_score(
    logits: ArrayLike, edges: Sequence[int] | None = None, *, order: str = "file"
) -> InceptionScore:
    r"""The Inception score, averaged over splits.

    .. math::

        \mathrm{IS} = \exp \frac{1}{N} \sum_i
            D_{KL}\left(p(y | x_i) \,\middle\|\, \tfrac{1}{N} \sum_j p(y | x_j)\right)

    Args:
        logits: (N, K) of classes, before the softmax; N >= 2.
        edges: S + 1 indices from 0 to N where the splits begin and end, as
            `Protocol.splits_of(N)` gives them; None for one split.
        order: "file", or "shuffled" before splitting.

    Raises:
        InputError: another shape, a logit that is not finite, or edges that do not go from 0 to N.

    Source: Salimans et al. 2016, section 4; the order of torch-fidelity.
    """
    logits = checked_features("logits", logits)
    one_of("order", order, ("file", "shuffled"))
    edges = (0, len(logits)) if edges is None else edges
    if len(edges) < 2 or (edges[0], edges[-1]) != (0, len(logits)) or min(np.diff(edges)) < 1:
        raise InputError(f"`edges`: must increase from 0 to the {len(logits)} logits")
    if not np.isfinite(logits).all():
        raise InputError("`logits`: must be finite")
    log_p = log_softmax(logits.astype(np.float64), axis=1)
    p = np.exp(log_p)
    entropy = -np.where(p > 0, p * log_p, 0.0).sum(1)
    count = len(logits)
    position = np.arange(count)
    if order == "shuffled":
        position = np.random.RandomState(SHUFFLE_SEED).permutation(count)
    splits = len(edges) - 1
    scores, influence = np.empty(splits), np.empty(count)
    for k, (start, stop) in enumerate(itertools.pairwise(edges)):
        part = position[start:stop]
        marginal = p[part].mean(0)
        log_marginal = np.log(marginal, where=marginal > 0, out=np.zeros_like(marginal))
        divergence = -entropy[part] - p[part] @ log_marginal
        scores[k] = np.exp(divergence.mean())
        # To first order the change of the marginal has no effect: its divergences sum to 0.
        weight = count / (splits * len(part))
        influence[part] = weight * scores[k] * (divergence - divergence.mean())
    estimate = Estimate.of_influence(scores.mean(), influence)
    return InceptionScore(estimate, scores, entropy)


SUBSETS, SUBSET_SIZE = 100, 1000
SUBSET_SEED = 2020
"""Seed of the choice of subsets, as in torch-fidelity."""
_ANCHORS = 2000
_CHUNK = 2048


def kernel_distance(features: ArrayLike, reference: ArrayLike) -> Estimate:
    r"""The squared maximum mean discrepancy with a cubic kernel; KID in Inception's features.

    .. math::

        k(x, y) = \left(\frac{x^T y}{D} + 1\right)^3, \qquad
        d = E\, k(x, x') + E\, k(y, y') - 2 E\, k(x, y)

    Each expectation is an unbiased mean over pairs, averaged over 100 pairs of random subsets of
    1,000 images, or of all images if there are fewer.

    Args:
        features: (N, D) of samples, N >= 2.
        reference: (M, D) of real images, M >= 2.

    Returns:
        The distance, which may be below 0. The standard error is that of drawing the samples anew,
        the reference held fixed, and of the choice of subsets.

    Raises:
        InputError: another shape, or a feature that is not finite.

    Source: Binkowski et al. 2018; the subsets of torch-fidelity.
    """
    features, reference = checked_pair(features, reference)
    rng = np.random.RandomState(SUBSET_SEED)
    size = min(SUBSET_SIZE, len(features), len(reference))
    values = np.empty(SUBSETS)
    for k in range(SUBSETS):
        x = features[rng.choice(len(features), size, replace=False)].astype(np.float64)
        y = reference[rng.choice(len(reference), size, replace=False)].astype(np.float64)
        values[k] = _unbiased(x, y)
    of_choice = values.std(ddof=1) / np.sqrt(SUBSETS)
    return Estimate.of_influence(values.mean(), _influence(features, reference), besides=of_choice)


def _unbiased(x: Floats, y: Floats) -> float:
    size = len(x)
    within = _kernel(x, x), _kernel(y, y)
    alike = sum(float(k.sum() - np.trace(k)) for k in within)
    return alike / (size * (size - 1)) - 2 * float(_kernel(x, y).mean())


def _influence(features: NDArray[np.floating], reference: NDArray[np.floating]) -> Floats:
    """(N,) first-order influence: 2 (mean kernel to the samples - mean kernel to real images)."""
    rng = np.random.RandomState(SUBSET_SEED)
    anchors = _some(features, rng), _some(reference, rng)
    influence = np.empty(len(features))
    for start in range(0, len(features), _CHUNK):
        rows = features[start : start + _CHUNK].astype(np.float64)
        to_samples, to_real = (_kernel(rows, anchor).mean(1) for anchor in anchors)
        influence[start : start + len(rows)] = 2 * (to_samples - to_real)
    centered: Floats = influence - influence.mean()
    return centered


def _some(features: NDArray[np.floating], rng: np.random.RandomState) -> Floats:
    if len(features) <= _ANCHORS:
        return features.astype(np.float64)
    return features[rng.choice(len(features), _ANCHORS, replace=False)].astype(np.float64)


def _kernel(x: Floats, y: Floats) -> Floats:
    base: Floats = x @ y.T
    base /= x.shape[1]
    base += 1
    return base * base * base  # a power takes ten times as long


_LEAST_NEIGHBORS = NEIGHBORS + 1


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """Scores of samples against one reference; None for those that need more than its moments.

    Attributes:
        frechet: the Frechet distance.
        infinity: its limit at infinitely many samples.
        kernel: the kernel distance.
        neighbors: precision, recall and the nearest real images.
    """

    frechet: Estimate
    infinity: FrechetInfinity | None
    kernel: Estimate | None
    neighbors: PrecisionRecall | None

    @property
    def estimates(self) -> dict[str, Estimate | None]:
        """The scores by name; see `report.fid` for how each is shown."""
        neighbors = self.neighbors
        return {
            "fid": self.frechet,
            "fid_infinity": None if self.infinity is None else self.infinity.estimate,
            "kid": self.kernel,
            "precision": None if neighbors is None else neighbors.precision,
            "recall": None if neighbors is None else neighbors.recall,
        }


def scores_of(
    features: NDArray[np.floating],
    reference: NDArray[np.floating] | FeatureGaussian,
    *,
    seed: int,
) -> Scores:
    """All scores of (N, D) features.

    Args:
        features: of samples, N >= 2.
        reference: (M, D) features of real images, or only their moments.
        seed: of the division into parts for the extrapolation.
    """
    moments = reference
    if not isinstance(moments, FeatureGaussian):
        moments = feature_statistics(moments)
    whole = leave_one_out(features, moments)
    frechet = whole.estimate
    infinity = None
    if len(features) > 2:
        infinity = frechet_infinity(features, moments, seed=seed, whole=whole)
    if isinstance(reference, FeatureGaussian):
        return Scores(frechet, infinity, None, None)
    neighbors = None
    if min(len(features), len(reference)) >= _LEAST_NEIGHBORS:
        neighbors = precision_recall(features, reference)
    return Scores(frechet, infinity, kernel_distance(features, reference), neighbors)
