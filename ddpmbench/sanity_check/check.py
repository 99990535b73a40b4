"""The sanity check: is a checkpoint evaluated as it was trained? From a few images and timesteps.

1. The given parameterization is scored. A trained model does not have certain faults
   (`scores.worst_fault`), and at no noise level does another time denoise better than the network's
   own.
2. If it passes, only predictions and data ranges are tried, and times one timestep off, which
   matter at the first timesteps only. Otherwise time inputs, schedules and schedules of other
   lengths are tried as well.
3. The best candidate is the base of a second search, since two parameters may be wrong.

It errs on the side of silence. A candidate is recommended only if it lowers the bound, and called
likely only if it passes 1 itself, with a finer test of its times if it changes them.
"""

import dataclasses
from collections.abc import Sequence
from enum import StrEnum

import numpy as np

from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.process import Prediction
from ddpmbench.likelihood.terms import TermIndex
from ddpmbench.sanity_check.candidates import (
    Candidate,
    alternatives,
    at_constant_time,
    one_timestep_away,
    other_lengths,
    other_predictions,
    other_processes,
    scaled_time,
    shifted,
    time_at,
)
from ddpmbench.sanity_check.scores import (
    MIN_BOUND_GAIN,
    NUM_IMAGES,
    SIGNIFICANT,
    Array,
    Comparison,
    Evaluate,
    Fault,
    Score,
    Scorer,
    Timesteps,
    area_gain,
    is_significant,
    mean_over_images,
    standard_error,
    timesteps_of,
)

_SCREENING = ((1, 0.25), (2, 0.1), (NUM_IMAGES, np.inf))
"""(n, d): after n images, candidates whose area exceeds the smallest by more than d nats per
dimension are dropped."""
_NUM_FINALISTS = 6  # schedules of other lengths
_NUM_TIMES = 28  # times at which the network is evaluated to rank them
_SAME_TIME = 0.1  # mean difference of log times below which two schedules count as the same


@dataclasses.dataclass(frozen=True)
class _TimeTest:
    """Whether the network denoises better at another time.

    Attributes:
        factor: scales the network's time; so does its inverse.
        min_share: relative decrease of eps_mse that counts.
        min_area: decrease of the area that counts, nats per dimension.
    """

    factor: float
    min_share: float
    min_area: float


_COARSE = _TimeTest(factor=1.15, min_share=0.05, min_area=0.005)
_FINE = _TimeTest(factor=1.05, min_share=0.002, min_area=0.0)
_FIRST_IMAGES = 4  # images after which a test ends if there is no gain

_OFFSET_NUM_IMAGES = 64
_OFFSET_TIMESTEPS = (2, 3, 4, 6)  # the network may not have been trained at t = 1
_OFFSET_MIN_GAIN = 0.004  # relative decrease of eps_mse
_OFFSET_MIN_LOSS = 0.5  # share of that gain that a second timestep must lose


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


@dataclasses.dataclass(frozen=True, eq=False)
class TimeOffset:
    """A network time that is one timestep off, judged by eps_mse at the first timesteps.

    Attributes:
        candidate: the candidate with the time one timestep later or earlier.
        is_later: whether the time is later.
        gain: relative decrease of its eps_mse, the mean log ratio over images and timesteps.
        standard_error: standard error of the gain, over images.
        timesteps: the first and the last timestep.
        num_images: images evaluated.
        is_likely: whether the network was trained with this time.
    """

    candidate: Candidate
    is_later: bool
    gain: float
    standard_error: float
    timesteps: tuple[int, int]
    num_images: int
    is_likely: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class SanityCheck:
    """The result of the sanity check.

    Attributes:
        outcome: the outcome.
        given: the score of the given parameterization; None with too few images.
        fault: its worst fault; None if it has none.
        is_mistimed: whether at some noise level the network denoises better with another time; not
            tested where there is a significant fault.
        others: the candidates whose network could be evaluated.
        best: the candidate to recommend; None if there is none.
        offset: the comparison with a time one timestep off, if it was made.
        num_evaluations: network evaluations.
    """

    outcome: Outcome
    given: Score | None = None
    fault: Fault | None = None
    is_mistimed: bool = False
    others: tuple[Comparison, ...] = ()
    best: Comparison | None = None
    offset: TimeOffset | None = None
    num_evaluations: int = 0

    @property
    def candidate(self) -> Candidate | None:
        """The candidate that lowers the bound, likely or not; None if there is none."""
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


@dataclasses.dataclass(frozen=True, eq=False)
class _Neighborhood:
    """A candidate, and the scores of others that differ from it in one parameter."""

    fault: Fault | None
    is_mistimed: bool
    scores: tuple[Score, ...] = ()

    @property
    def is_trained(self) -> bool:
        """Whether the candidate has no significant fault, and the times of the training."""
        return not is_significant(self.fault) and not self.is_mistimed


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
        (given,) = self._scorer.scores([self._given], self._scorer.subset(NUM_IMAGES))
        near = self._neighborhood(given)
        others, best, is_likely = self._search(given, near)
        offset = None
        if best is not None:
            outcome = Outcome.LIKELY if is_likely else Outcome.BETTER
        elif is_significant(near.fault):
            outcome = Outcome.FAULT
        elif near.fault is not None or near.is_mistimed:
            outcome = Outcome.UNDECIDED
        else:
            offset, outcome = self._offset(), Outcome.PASSED
            if offset is not None and offset.is_likely:
                outcome = Outcome.BETTER if offset.candidate.name == "" else Outcome.LIKELY
        return SanityCheck(
            outcome=outcome,
            given=given,
            fault=near.fault,
            is_mistimed=near.is_mistimed,
            others=tuple(others),
            best=best,
            offset=offset,
            num_evaluations=self._scorer.num_evaluations,
        )

    def _search(
        self, given: Score, near: _Neighborhood
    ) -> tuple[list[Comparison], Comparison | None, bool]:
        """All candidates, the one to recommend, and whether the network was trained with it.

        The best candidate with one parameter is the base of those with two.
        """
        others = [self._scorer.compared(given, score) for score in near.scores]
        best = self._best([other for other in others if other.has_smaller_area])
        if best is None:
            return others, None, False
        second = self._neighborhood(best.score)
        pairs = [self._scorer.compared(given, score) for score in second.scores]
        others += pairs
        smaller = [
            pair for pair in pairs if self._scorer.compared(best.score, pair.score).has_smaller_area
        ]
        pair = self._best([pair for pair in smaller if pair.is_improvement])
        if pair is not None:
            best, second = pair, self._trained(pair.score)
        if not best.is_improvement:
            return others, self._best([other for other in others if other.is_improvement]), False
        is_likely = (
            second.is_trained
            and best.score.candidate.is_exact
            and (pair is not None or not smaller)
            and not self._has_rival(best, others)
        )
        return others, best, is_likely

    def _trained(self, base: Score) -> _Neighborhood:
        """The faults and times of a candidate, which tell whether it may be the trained one."""
        fault = self._scorer.fault(base)
        return _Neighborhood(fault, not is_significant(fault) and self._is_mistimed(base))

    def _neighborhood(self, base: Score) -> _Neighborhood:
        """A candidate and others that differ from it in one parameter."""
        near = self._trained(base)
        others = [
            other
            for other in alternatives(base.candidate, self._scorer.channels)
            if self._can_be_evaluated(other)
        ]
        others = self._with_predictions(base, near.fault, others)
        if not near.is_trained:
            others += filter(self._can_be_evaluated, other_processes(base.candidate))
        own = base.candidate.time_parameters
        scores = self._screened(base, [o for o in others if o.time_parameters == own])
        if not near.is_trained and not self._has_trained(base, scores):
            timed = [o for o in others if o.time_parameters != own]
            if base.candidate.checkpoint.prediction is not Prediction.PREVIOUS_MEAN:
                timed += self._with_predictions(base, near.fault, self._finalists(base))
            scores += self._screened(base, timed)
        return dataclasses.replace(near, scores=tuple(scores))

    @staticmethod
    def _with_predictions(
        base: Score, fault: Fault | None, others: list[Candidate]
    ) -> list[Candidate]:
        """The candidates and, if the base has a fault, other predictions of their outputs.

        They take no additional network evaluations.
        """
        if fault is None or not base.candidate.is_given:
            return others
        outputs = [other for other in others if other.output_parameters]
        return others + [more for other in outputs for more in other_predictions(other)]

    def _has_trained(self, base: Score, scores: Sequence[Score]) -> bool:
        """Whether the best of some candidates shows no sign against having been trained."""
        compared = [self._scorer.compared(base, score) for score in scores]
        best = self._best([other for other in compared if other.is_improvement])
        return best is not None and self._trained(best.score).is_trained

    def _can_be_evaluated(self, candidate: Candidate) -> bool:
        is_inside = candidate.largest_time <= self._given.largest_time
        return self._raises_outside or is_inside or not self._given.may_index_a_table

    def _finalists(self, base: Score) -> list[Candidate]:
        """The schedules of other lengths with the best times, by the errors on one image."""
        candidates = [c for c in other_lengths(base.candidate) if self._can_be_evaluated(c)]
        if not candidates:
            return []
        image, last = self._scorer.subset(NUM_IMAGES)[:1], max(c.largest_time for c in candidates)
        times, rows = np.unique(np.rint(np.geomspace(1, last, _NUM_TIMES))), []
        for time in times.tolist():
            constant = at_constant_time(base.candidate, int(time))
            errors = self._scorer.eps_mse(constant, image, base.timesteps)
            rows.append(np.ones(len(base.timesteps)) if errors is None else errors[0])
        columns = np.nan_to_num(np.array(rows), nan=1.0).clip(max=1.0).T
        log_snr = self._log_snr(base.candidate, base.timesteps)

        def area(candidate: Candidate) -> float:
            own = np.log(time_at(candidate, log_snr).clip(min=1))
            pairs = zip(own, columns, strict=True)
            values = [np.interp(time, np.log(times), errors) for time, errors in pairs]
            return float(np.trapezoid(values, -log_snr))

        return sorted(candidates, key=area)[:_NUM_FINALISTS]

    def _screened(self, base: Score, others: Sequence[Candidate]) -> list[Score]:
        """Scores of candidates, on all images only if their area may be the smallest."""
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
        if self._has_twin(candidate) or self._is_mistimed(best.score, _FINE):
            return True
        # Times one timestep off, which no parameter gives: a schedule with one more entry.
        images = self._scorer.subset(NUM_IMAGES)
        off = [near for _, near in one_timestep_away(self._given) if near.is_given]
        scores = [score for near in off for score in self._scorer.scores([near], images)]
        pairs = [self._scorer.compared(score, best.score) for score in scores]
        return any(not pair.z_score > SIGNIFICANT / 2 for pair in pairs)

    def _has_twin(self, best: Candidate) -> bool:
        """Whether another common schedule gives the network nearly the same times."""
        own, listed = best.parameters.get("schedule"), other_lengths(self._given)
        if own is None or not listed or not best.has_integer_times:
            return False
        listed += alternatives(self._given, self._scorer.channels)
        log_snr = self._log_snr(self._given, timesteps_of(self._given))
        times = np.log1p(time_at(best, log_snr))
        return any(
            np.abs(np.log1p(time_at(other, log_snr)) - times).mean() < _SAME_TIME
            for other in listed
            if other.parameters.get("schedule") not in (None, own)
        )

    @staticmethod
    def _log_snr(candidate: Candidate, timesteps: Timesteps) -> Array:
        return np.asarray(candidate.checkpoint.schedule.log_snr.numpy()[timesteps - 1])

    def _is_mistimed(self, base: Score, test: _TimeTest = _COARSE) -> bool:
        """Whether at some timestep the network denoises significantly better with another time."""
        is_mean = base.candidate.checkpoint.prediction is Prediction.PREVIOUS_MEAN
        if is_mean or len(base.timesteps) < 2:
            return False
        return any(self._is_better(base, test, f) for f in (test.factor, 1 / test.factor))

    def _is_better(self, base: Score, test: _TimeTest, factor: float) -> bool:
        """Whether the scaled time is significantly better at any timestep but the first."""
        timesteps, images = base.timesteps[1:], self._scorer.subset(NUM_IMAGES)
        other = scaled_time(base.candidate, factor)
        # The weight of eps_mse in the area: half the distance of the neighbors, halved.
        weight = np.convolve(-np.diff(base.log_snr), [0.25, 0.25])[1:]
        gains = np.empty((0, len(timesteps)))
        for part in (slice(0, _FIRST_IMAGES), slice(_FIRST_IMAGES, NUM_IMAGES)):
            errors = self._scorer.eps_mse(other, images[part], timesteps)
            if errors is None:
                return False
            errors = np.nan_to_num(errors, nan=np.inf)
            gains = np.concatenate([gains, base.eps_mse[part, 1:] - errors])
            gain, own = gains.mean(0), base.eps_mse[: len(gains), 1:].mean(0)
            is_better = (gain > test.min_share * own) & (gain * weight > test.min_area)
            if not is_better.any():
                return False
        significant = SIGNIFICANT * np.array([standard_error(column) for column in gains.T])
        return bool((is_better & (gain > significant)).any())

    def _offset(self) -> TimeOffset | None:
        """The network's time one timestep off: the likely one, or the last that was compared."""
        offset = None
        for by, near in one_timestep_away(self._given):
            if self._can_be_evaluated(near):
                offset = self._compared_offset(near, by) or offset
                if offset is not None and offset.is_likely:
                    break
        return offset

    def _compared_offset(self, near: Candidate, by: int) -> TimeOffset | None:
        """A candidate `by` timesteps off, compared on as many images as needed."""
        last = self._given.checkpoint.schedule.num_timesteps - 2
        timesteps = np.array([t for t in _OFFSET_TIMESTEPS if t <= last], np.int64)
        images, values = self._scorer.subset(_OFFSET_NUM_IMAGES), np.empty(0)
        if not len(timesteps):
            return None
        for start in range(0, _OFFSET_NUM_IMAGES, NUM_IMAGES):
            part = images[start : start + NUM_IMAGES]
            ratios = self._log_ratios(self._given, near, timesteps, part)
            if ratios is None:
                return None
            values = np.append(values, ratios)
            gain, error = mean_over_images(values, images)
            if gain < -SIGNIFICANT * error:
                break
        num_images = len(np.unique(images.image[: len(values)]))
        ends = int(timesteps[0]), int(timesteps[-1])
        offset = TimeOffset(near, by > 0, gain, error, ends, num_images)
        if not gain > max(SIGNIFICANT * error, _OFFSET_MIN_GAIN):
            return offset
        # A network that is not fully trained may be slightly better one timestep off, and better
        # still two off; one that was trained one timestep off is worse again.
        back = self._log_ratios(shifted(near, by), near, timesteps, images)
        if back is None:
            return offset
        loss, loss_error = mean_over_images(back, images)
        is_likely = loss > max(_OFFSET_MIN_LOSS * gain, SIGNIFICANT * loss_error)
        return dataclasses.replace(offset, is_likely=is_likely)

    def _log_ratios(
        self, first: Candidate, second: Candidate, timesteps: Timesteps, images: TermIndex
    ) -> Array | None:
        """(N,) log of the first's eps_mse over the second's, the mean over timesteps."""
        errors = [self._scorer.eps_mse(c, images, timesteps) for c in (first, second)]
        if errors[0] is None or errors[1] is None:
            return None
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.log(errors[0] / errors[1]).mean(1))
