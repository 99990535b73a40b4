"""The difference between two models' bounds, from the differences of their terms.

An estimate of the bound is linear in the terms. So the difference and its intervals are the same
function of the differences of terms, which vary much less than the terms, because both models share
image, timestep and noise.

Importance samples with different proposals do not have quite the same terms. But with the same seed
an image has the same stratum of either proposal, hence the same timestep or one nearby; so the
difference is still taken image by image and replicate by replicate.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from ddpmbench.likelihood.bound import BoundEstimate, TimestepTable, estimate_bound
from ddpmbench.likelihood.designs import EveryPairDesign, ImportanceDesign
from ddpmbench.likelihood.image_sampling import ImageSample
from ddpmbench.likelihood.importance_estimator import (
    SampledBound,
    difference_estimate,
    sampled_bound,
)
from ddpmbench.likelihood.regression import Predictions, no_predictions
from ddpmbench.likelihood.sampled_terms import (
    NATS,
    Contributions,
    rate_standard_error,
    sampled_terms,
    timestep_table,
    two_way_fit,
)
from ddpmbench.likelihood.terms import TermIndex, TermTable, columns_of_bound

Tables = Callable[[int], Iterable[TermTable]]
"""From a number n to the first n terms of a design, in order."""


def every_pair_difference(
    design: EveryPairDesign,
    model: Tables,
    baseline: Tables,
    *,
    prior: float = 0.0,
    clip: bool = True,
) -> BoundEstimate:
    """The bound of a model minus that of a baseline, from every pair: `importance_difference`.

    Raises:
        ValueError: the terms differ in index.
    """
    tables = _differences(model(len(design)), baseline(len(design)))
    return estimate_bound(design, np.full(design.num_images, prior), tables, clip=clip)


@dataclasses.dataclass(frozen=True, eq=False)
class ImportanceTerms:
    """An importance sample of one model.

    Attributes:
        design: of the terms.
        tables: the terms.
        predictions: of the terms.
        sample: the images that were evaluated.
    """

    design: ImportanceDesign
    tables: Tables
    predictions: Predictions
    sample: ImageSample

    def shortened(self, num_replicates: int, blocks: int) -> "ImportanceTerms":
        """The sample with fewer replicates or fewer images."""
        design = dataclasses.replace(self.design, num_replicates=num_replicates, num_blocks=blocks)
        sample = self.sample.first(blocks)
        predictions = self.predictions[:num_replicates, : design.num_sampled]
        if blocks < self.design.blocks:
            # The means over the images must sum to the means of the totals.
            rest = predictions.totals @ sample.weights - predictions.timesteps.sum(1)
            timesteps = predictions.timesteps + np.outer(rest, design.density)
            predictions = dataclasses.replace(predictions, timesteps=timesteps)
        return ImportanceTerms(design, self.tables, predictions, sample)

    def unpredicted(self) -> "ImportanceTerms":
        """The sample without predictions."""
        return dataclasses.replace(self, predictions=no_predictions(self.design))

    def terms(self) -> Iterable[TermTable]:
        """The terms of the design."""
        return self.tables(len(self.design))


def share_of_same_terms(one: ImportanceDesign, other: ImportanceDesign) -> float:
    """The share of equal timesteps in the common replicates and images."""
    common = np.s_[
        : min(one.num_replicates, other.num_replicates), : min(one.num_sampled, other.num_sampled)
    ]
    return float((one.t[common] == other.t[common]).mean())


def importance_difference(
    model: ImportanceTerms, baseline: ImportanceTerms, *, prior: float = 0.0, clip: bool = True
) -> SampledBound:
    """The bound of a model minus that of a baseline, from importance samples of one seed.

    Images and replicates that only one of them has are left out.

    Args:
        model: terms of the model.
        baseline: terms of the baseline, on the same images.
        prior: the difference of the priors, nats per dimension.
        clip: whether `x_start_mse` is that of the clipped prediction.

    Returns:
        Differences in place of values, nats per dimension, with their intervals. With different
        proposals the standard error of a single term treats the two models as independent, and so
        is too large.

    Raises:
        ValueError: a term is missing.
    """
    pair = (model.design, baseline.design)
    num_replicates = min(design.num_replicates for design in pair)
    blocks = min(design.blocks for design in pair)
    is_cut = len({(design.num_replicates, design.blocks) for design in pair}) > 1
    model, baseline = (run.shortened(num_replicates, blocks) for run in (model, baseline))
    priors = np.full(model.design.num_images, prior)
    if not np.array_equal(model.design.density, baseline.design.density):
        return _by_stratum(model, baseline, priors, clip=clip)
    if is_cut:
        # The predictions of one are fitted to terms that the other lacks: a model would differ from
        # itself.
        model, baseline = model.unpredicted(), baseline.unpredicted()
    tables = _differences(model.terms(), baseline.terms())
    predictions = model.predictions - baseline.predictions
    return difference_estimate(model.design, priors, tables, predictions, model.sample, clip=clip)


def _by_stratum(
    model: ImportanceTerms, baseline: ImportanceTerms, prior: NDArray[np.float64], *, clip: bool
) -> SampledBound:
    pair, columns = (model, baseline), columns_of_bound(clip=clip)
    terms = [sampled_terms(one.design, one.terms(), columns) for one in pair]
    values = [
        Contributions(one.design, its.replicates[NATS], one.predictions)
        for one, its in zip(pair, terms, strict=True)
    ]
    fit = two_way_fit(model.design, values[0].totals - values[1].totals)
    residuals = [
        its.without_strata(two_way_fit(one.design, its.totals))
        for one, its in zip(pair, values, strict=True)
    ]
    replicate = np.arange(model.design.num_replicates)
    rate_error = rate_standard_error(
        model.design.num_timesteps,
        np.append(replicate, replicate),
        np.concatenate([one.design.t for one in pair]),
        np.concatenate([residuals[0], -residuals[1]]),
        sample=model.sample,
        predictions=model.predictions - baseline.predictions,
    )
    # The decoder terms have the same index in both; differences of other terms have no meaning.
    decoder = sampled_terms(
        model.design, _differences(model.terms(), baseline.terms(), only_decoder=True), columns
    )
    table, other = (
        timestep_table(one.design, one.sample, its, one.predictions, None)
        for one, its in zip(pair, terms, strict=True)
    )
    standard_error = np.hypot(table.term_standard_error, other.term_standard_error)
    standard_error[0] = np.sqrt(decoder.decoder_error(model.sample))
    return sampled_bound(
        model.design,
        model.sample,
        prior,
        decoder,
        values[0].sums - values[1].sums,
        fit,
        timesteps=TimestepTable(
            term=table.term - other.term,
            term_standard_error=standard_error,
            x_start_mse=table.x_start_mse - other.x_start_mse,
            eps_mse=table.eps_mse - other.eps_mse,
            num_evaluations=table.num_evaluations,
        ),
        rate_error=rate_error,
        predictions=model.predictions - baseline.predictions,
    )


def _differences(
    model: Iterable[TermTable], baseline: Iterable[TermTable], *, only_decoder: bool = False
) -> Iterator[TermTable]:
    """Tables of differences; the portions of the two sequences may differ."""
    others, other = iter(baseline), _empty_table()
    for table in model:
        while len(table):
            if not len(other):
                other = next(others, _empty_table())
            size = min(len(table), len(other))
            if not size:
                raise ValueError("the baseline has fewer terms than the model")
            yield _difference(table[:size], other[:size], only_decoder=only_decoder)
            table, other = table[size:], other[size:]


def _difference(table: TermTable, other: TermTable, *, only_decoder: bool) -> TermTable:
    counts = table.index.t == 1 if only_decoder else np.ones(len(table), dtype=bool)
    for name in ("image", "t", "draw"):
        if (getattr(table.index, name) != getattr(other.index, name))[counts].any():
            raise ValueError("the two models were not evaluated at the same terms")
    values = {name: column - other.values[name] for name, column in table.values.items()}
    return TermTable(table.index, values)


def _empty_table() -> TermTable:
    none = np.zeros(0, dtype=np.int64)
    return TermTable(TermIndex(none, none, none), {})
