"""The Inception score of class logits."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from ddpmbench.quality.estimate import Estimate

Array = NDArray[np.float64]
SHUFFLE_SEED = 2020
"""Of the order "shuffled": that of torch-fidelity."""


@dataclasses.dataclass(frozen=True, eq=False)
class InceptionScore:
    """The score, and what each image has to do with it.

    Attributes:
        estimate: the mean over splits; its error is that of the samples.
        over_splits: (S,) the score of each split.
        class_entropy: (N,) of each image's classes, nats.
    """

    estimate: Estimate
    over_splits: Array
    class_entropy: Array


def inception_score(
    logits: NDArray[np.floating], edges: Sequence[int], *, order: str = "file"
) -> InceptionScore:
    """Exp of the mean divergence of an image's classes from those of all, averaged over splits.

    Args:
        logits: (N, K) before the softmax.
        edges: where the S parts begin and end that are scored apart, from 0 to N.
        order: "file", or "shuffled" before it is split.

    Source: Salimans et al. 2016, section 4; the order of torch-fidelity.
    """
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
        # To first order the marginal's own change has no effect: its divergences sum to 0.
        weight = count / (splits * len(part))
        influence[part] = weight * scores[k] * (divergence - divergence.mean())
    estimate = Estimate.of_influence(scores.mean(), influence)
    return InceptionScore(estimate, scores, entropy)
