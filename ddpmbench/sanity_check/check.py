"""The sanity check: is a checkpoint evaluated as it was trained? From a few images and timesteps.

What is tried, in the order of `Checker.check`:

1. The given parameterization. Two things speak against one (`Evidence`): an error that no trained
   model has, and a noise level at which the network denoises better with another time.
2. Candidates that differ from it in one parameter (`Checker._search`): predictions and data ranges.
   Only where there is significant evidence, also processes, and where those explain nothing, time
   inputs, schedules, and schedules of other lengths. Where it has a fault, each of them with other
   predictions as well, which take no further network evaluations.
3. Candidates that differ from the best one in another parameter, since two may be wrong.
4. Without any evidence, a time one timestep off, which matters at the first timesteps only.

None is tried twice, and those that are clearly worse are dropped after one or two images
(`Checker._screened`).

It errs on the side of silence (`Checker._recommended`). A candidate of the second and third step is
recommended only if it lowers the bound, and called likely only if there is no significant evidence
against it, and no rival.
"""

import dataclasses
from collections.abc import Sequence
from enum import StrEnum

import numpy as np

from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.process import Prediction
from ddpmbench.sanity_check.candidates import (
    FINE,
    TimeOffset,
    alternatives,
    has_twin,
    is_mistimed,
    is_same,
    one_timestep_away,
    one_timestep_off,
    other_lengths,
    other_predictions,
    other_processes,
    with_best_times,
)
from ddpmbench.sanity_check.scores import (
    MIN_BOUND_GAIN,
    NUM_IMAGES,
    SIGNIFICANT,
    Candidate,
    Comparison,
    Evaluate,
    Fault,
    Score,
    Scorer,
    area_gain,
    is_significant,
)

_SCREENING = ((1, 0.25), (2, 0.1), (NUM_IMAGES, np.inf))
"""(n, d): after n images, candidates whose area exceeds the smallest by more than d nats per
dimension are dropped."""


class Outcome(StrEnum):
    """The outcome of the sanity check."""

    PASSED = "passed"
    """Nothing speaks against the given parameterization."""
    LIKELY = "likely"
    """The network was likely trained with another one."""
    BETTER = "better"
    """Another one is better, but likely not the one the network was trained with."""
    FAULT = "fault"
    """It has a fault that no trained model has, and no candidate removes it."""
    UNDECIDED = "undecided"
    """Something speaks against it, but not significantly."""
    TOO_FEW_IMAGES = "too few images"
    """There were fewer than `NUM_IMAGES`."""


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What speaks against a parameterization.

    Attributes:
        fault: its worst fault; None if it has none.
        is_mistimed: whether at some noise level the network denoises better with another time; not
            tested where there is a significant fault.
    """

    fault: Fault | None = None
    is_mistimed: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether there is none, not even by chance."""
        return self.fault is None and not self.is_mistimed

    @property
    def is_significant(self) -> bool:
        """Whether any of it is more than chance."""
        return is_significant(self.fault) or self.is_mistimed


@dataclasses.dataclass(frozen=True, eq=False)
class SanityCheck:
    """The result of the sanity check.

    Attributes:
        outcome: the outcome.
        given: the score of the given parameterization; None with too few images.
        evidence: what speaks against it.
        others: the candidates whose network could be evaluated.
        best: the candidate to recommend; None if there is none.
        offset: the comparison with a time one timestep off, if it was made.
        num_evaluations: network evaluations.
    """

    outcome: Outcome
    given: Score | None = None
    evidence: Evidence = Evidence()
    others: tuple[Comparison, ...] = ()
    best: Comparison | None = None
    offset: TimeOffset | None = None
    num_evaluations: int = 0

    @property
    def candidate(self) -> Candidate | None:
        """The better candidate, likely or not; None if there is none.

        It lowers the bound or, one timestep off, eps_mse at the first timesteps.
        """
        if self.best is not None:
            return self.best.score.candidate
        if self.offset is not None and self.offset.is_likely:
            return self.offset.candidate
        return None

    @property
    def better(self) -> str | None:
        """The parameters of that candidate; None if there are none."""
        return (self.candidate.name or None) if self.candidate is not None else None

    @property
    def likely(self) -> str | None:
        """The parameters that the network was likely trained with; None if there are none."""
        return self.better if self.outcome is Outcome.LIKELY else None


class Checker:
    """Compares parameterizations of a checkpoint."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        images: ImageSet,
        evaluate: Evaluate,
        *,
        raises_outside: bool = True,
    ) -> None:
        """Prepare a checkpoint under the given parameterization, and images for scoring.

        `raises_outside` tells whether an index outside an embedding raises; on a GPU it kills the
        process.
        """
        self._given, self._images = Candidate({}, checkpoint), images
        self._scorer, self._raises_outside = Scorer(images, evaluate), raises_outside

    def check(self) -> SanityCheck:
        """Compare the given parameterization with others."""
        if len(self._images) < NUM_IMAGES:
            return SanityCheck(Outcome.TOO_FEW_IMAGES)
        self._tried, self._known = [self._given], dict[Score, Evidence]()
        (given,) = self._scorer.scores([self._given], self._scorer.subset(NUM_IMAGES))
        evidence = self._evidence(given)
        others = self._search(given, given, evidence)
        best, is_likely = self._best([o for o in others if o.has_smaller_area]), False
        if best is not None:
            best_evidence = self._evidence(best.score)
            pairs = self._search(given, best.score, best_evidence)
            best, is_likely = self._recommended(best, best_evidence, others, pairs)
            others += pairs
        offset = None
        if best is None and evidence.is_empty:
            away = one_timestep_away(self._given)
            neighbors = [(by, near) for by, near in away if self._can_be_evaluated(near)]
            offset = one_timestep_off(self._scorer, self._given, neighbors)
        return SanityCheck(
            _outcome(evidence, best, offset, is_likely=is_likely),
            given,
            evidence,
            tuple(others),
            best,
            offset,
            self._scorer.num_evaluations,
        )

    def _evidence(self, base: Score) -> Evidence:
        """What speaks against a candidate."""
        if base not in self._known:
            fault = self._scorer.fault(base)
            is_tested = not is_significant(fault)
            self._known[base] = Evidence(fault, is_tested and is_mistimed(self._scorer, base))
        return self._known[base]

    def _search(self, given: Score, base: Score, evidence: Evidence) -> list[Comparison]:
        """New candidates that differ from the base in one parameter, compared with the given one.

        Some differ in the prediction, too; see `_with_predictions`. With significant evidence
        against the base there are more of them. Those that change its times come last, and only if
        the best of the others has evidence against it, too.
        """
        others = [
            other
            for other in alternatives(base.candidate, self._scorer.channels)
            if self._can_be_evaluated(other)
        ]
        others = _with_predictions(base, evidence, others)
        if evidence.is_significant:
            others += filter(self._can_be_evaluated, other_processes(base.candidate))
        own = base.candidate.time_parameters
        scores = self._screened(base, [o for o in others if o.time_parameters == own])
        if evidence.is_significant and not self._is_explained(base, scores):
            timed = [o for o in others if o.time_parameters != own]
            if base.candidate.checkpoint.prediction is not Prediction.PREVIOUS_MEAN:
                listed = list(filter(self._can_be_evaluated, other_lengths(base.candidate)))
                lengths = with_best_times(self._scorer, base, listed)
                timed += _with_predictions(base, evidence, lengths)
            scores += self._screened(base, timed)
        return [self._scorer.compared(given, score) for score in scores]

    def _can_be_evaluated(self, candidate: Candidate) -> bool:
        is_inside = candidate.largest_time <= self._given.largest_time
        return self._raises_outside or is_inside or not self._given.may_index_a_table

    def _is_explained(self, base: Score, scores: Sequence[Score]) -> bool:
        """Whether there is no evidence against the best of some candidates."""
        compared = [self._scorer.compared(base, score) for score in scores]
        best = self._best([other for other in compared if other.is_improvement])
        return best is not None and not self._evidence(best.score).is_significant

    def _screened(self, base: Score, others: Sequence[Candidate]) -> list[Score]:
        """Scores of candidates not yet tried, on all images if their area may be the smallest."""
        others = [o for o in others if not any(is_same(o, tried) for tried in self._tried)]
        self._tried += others
        grouped: dict[frozenset[tuple[str, str]], list[Candidate]] = {}
        for other in others:
            grouped.setdefault(other.output_parameters, []).append(other)
        groups = list(grouped.values())
        images, scores, start = self._scorer.subset(NUM_IMAGES), dict[str, Score](), 0
        for stop, margin in _SCREENING:
            for group in groups:
                for score in self._scorer.scores(group, images[start:stop]):
                    name = score.candidate.name
                    scores[name] = scores[name].joined(score) if name in scores else score
            complete = [base, *(score for score in scores.values() if score.num_images == stop)]
            leader = max(complete, key=lambda score: area_gain(base, score))
            remaining = {s.candidate.name for s in complete if area_gain(s, leader) < margin}
            groups = [[c for c in group if c.name in remaining] for group in groups]
            groups, start = [group for group in groups if group], stop
        return list(scores.values())

    def _best(self, others: Sequence[Comparison]) -> Comparison | None:
        """The one of the smallest area; with more parameters only if significantly smaller."""
        best: Comparison | None = None
        for other in sorted(others, key=lambda other: (other.num_parameters, -other.gain)):
            if best is None:
                best = other
                continue
            pair = self._scorer.compared(best.score, other.score)
            has_more = other.num_parameters > best.num_parameters
            if pair.has_smaller_area if has_more else pair.gain > 0:
                best = other
        return best

    def _recommended(
        self,
        best: Comparison,
        evidence: Evidence,
        others: Sequence[Comparison],
        pairs: Sequence[Comparison],
    ) -> tuple[Comparison | None, bool]:
        """The candidate to recommend, and whether the network was likely trained with it.

        Args:
            best: the best of `others`, which need not lower the bound.
            evidence: what speaks against it.
            others: the candidates of the search from the given parameterization.
            pairs: those of the search from `best`.
        """
        smaller = [
            pair for pair in pairs if self._scorer.compared(best.score, pair.score).has_smaller_area
        ]
        pair = self._best([pair for pair in smaller if pair.is_improvement])
        if pair is not None:
            best, evidence = pair, self._evidence(pair.score)
        everything = [*others, *pairs]
        if not best.is_improvement:
            return self._best([other for other in everything if other.is_improvement]), False
        is_likely = (
            not evidence.is_significant
            and best.score.candidate.is_exact
            and (pair is not None or not smaller)
            and not self._has_rival(best, everything)
        )
        return best, is_likely

    def _has_rival(self, best: Comparison, others: Sequence[Comparison]) -> bool:
        """Whether another parameterization may be right as well, with another bound."""
        candidate = best.score.candidate
        if candidate.time_parameters and len(candidate.parameters) > 1:
            # Wrong times and another wrong parameter can compensate each other.
            return True
        for other in others:
            if other is not best and other.is_improvement:
                pair = self._scorer.compared(other.score, best.score)
                if pair.z_score < SIGNIFICANT / 2 and abs(pair.bound_gain) > MIN_BOUND_GAIN:
                    return True
        if not candidate.time_parameters:
            return False
        if has_twin(candidate, self._given, self._scorer.channels):
            return True
        if is_mistimed(self._scorer, best.score, FINE):
            return True
        # Times one timestep off, which no parameter gives: a schedule with one more entry.
        images = self._scorer.subset(NUM_IMAGES)
        off = [near for _, near in one_timestep_away(self._given) if near.is_given]
        scores = [score for near in off for score in self._scorer.scores([near], images)]
        pairs = [self._scorer.compared(score, best.score) for score in scores]
        return any(not pair.z_score > SIGNIFICANT / 2 for pair in pairs)


def _outcome(
    evidence: Evidence, best: Comparison | None, offset: TimeOffset | None, *, is_likely: bool
) -> Outcome:
    """What is concluded from the candidate to recommend, the evidence and the time offset."""
    if best is not None:
        return Outcome.LIKELY if is_likely else Outcome.BETTER
    if not evidence.is_empty:
        return Outcome.FAULT if is_significant(evidence.fault) else Outcome.UNDECIDED
    if offset is None or not offset.is_likely:
        return Outcome.PASSED
    return Outcome.BETTER if offset.candidate.is_given else Outcome.LIKELY


def _with_predictions(base: Score, evidence: Evidence, others: list[Candidate]) -> list[Candidate]:
    """The candidates and, if the given one has a fault, other predictions of their outputs.

    They take no additional network evaluations.
    """
    if evidence.fault is None or not base.candidate.is_given:
        return others
    outputs = [other for other in others if other.output_parameters]
    return others + [more for other in outputs for more in other_predictions(other)]
