"""The sanity check: whether a checkpoint is read as it was trained, from a few images and steps.

It looks at the stated parameterization first: a trained model has none of some faults, and at every
noise level the time that its network is given is the best one. Where that is so, only predictions
and ranges are tried besides, and whether steps are counted from 0 or from 1, which shows in the
error at the first steps alone. Otherwise other time inputs, schedules and numbers of steps are
tried, too. From the best candidate the same once more: there may be two mistakes.

It is rather silent than wrong. An option is named only if it lowers the bound, and is what a
network was likely trained with only if such a network has no sure fault. A fault that may be
chance, as of a network that was never given so little noise, keeps the stated parameterization from
passing, but does not keep another from being named.
"""

import dataclasses
from collections.abc import Callable, Sequence
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.process import Prediction
from ddpmbench.likelihood.terms import TermIndex, TermTable
from ddpmbench.sanity_check.candidates import (
    Candidate,
    alternatives,
    always_given,
    counts_steps,
    largest_time,
    may_look_up,
    nudged,
    one_step_away,
    other_lengths,
    shifted,
    time_at,
    with_predictions,
)
from ddpmbench.sanity_check.scores import (
    SURE,
    Array,
    Fault,
    Score,
    shared_areas,
    standard_error,
    steps_of,
    worst_fault,
)

Evaluate = Callable[[Sequence[Candidate], TermIndex], "list[TermTable | None]"]
"""The terms of the same rows under candidates whose network evaluations are those of the first;
None where its network cannot be called so."""

NUM_IMAGES = 16
"""Images that a candidate is judged from; of fewer nothing is said."""
CLOSE_NUM_IMAGES = 64
"""The same for the error at the first steps; where there are fewer, with other noise again."""
CLOSE_STEPS = (2, 3, 4, 6)
"""There a step more or less shows; at t = 1 it may be one that no network was trained on."""
_ROUNDS = ((1, 0.25), (2, 0.1), (NUM_IMAGES, np.inf))
"""After so many images, candidates that are so much longer than the shortest, in nats per
dimension, are looked at no more."""
_SAME_TIME = 0.1  # of its logarithm, by which the times of two schedules differ at least
_FINALISTS = 6  # of schedules of other lengths
_TIMES = 28  # at which their network is evaluated to find them
_LEAST_GAIN = 0.03  # nats per dimension that another candidate must be shorter by
_LEAST_BOUND_GAIN = 0.02  # nats per dimension that it must lower the bound by
_LEAST_CLOSE_GAIN = 0.004  # of eps_mse, likewise
_BACK = 0.5  # of what a step gains, that a second step must lose
_NUDGE_IMAGES = 4
_BETTER_TIME = 0.05  # of eps_mse that another time must be better by
_LEAST_TIME_GAIN = 0.005  # nats per dimension that it must be shorter by
_CHUNK = 16


class Outcome(StrEnum):
    """What the sanity check arrives at."""

    PASSED = "passed"
    """Nothing speaks against the stated parameterization."""
    LIKELY = "likely"
    """The network was likely trained with another one."""
    BETTER = "better"
    """Another one is better, but is likely not what the network was trained with."""
    FAULT = "fault"
    """It shows what no trained model shows, and no candidate mends it."""
    UNDECIDED = "undecided"
    """Something speaks against it, but not surely."""
    TOO_FEW_IMAGES = "too few images"
    """There were fewer than `NUM_IMAGES`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Compared:
    """A candidate beside the stated parameterization.

    Attributes:
        score: its own.
        gain: by how much its area is smaller, the mean over images, nats per dimension.
        standard_error: of that; NaN of a single image.
        certainty: how many standard errors its area is smaller by; of the difference or of the
            logarithms, in which easy and hard images count alike, whichever is more.
        bound_gain: by how much its bound is lower, likewise.
        bound_standard_error: of that.
        fault: what it does that a trained model does not; None if nothing.
    """

    score: Score
    gain: float
    standard_error: float
    certainty: float
    bound_gain: float
    bound_standard_error: float
    fault: Fault | None

    @property
    def is_shorter(self) -> bool:
        """Whether its area is smaller by more than chance."""
        is_whole = len(self.score.eps_mse) == NUM_IMAGES
        return is_whole and self.gain > _LEAST_GAIN and self.certainty > SURE

    @property
    def is_advisable(self) -> bool:
        """Whether it surely lowers the bound, with no sure fault; of two options, with none."""
        least = max(_LEAST_BOUND_GAIN, SURE * self.bound_standard_error)
        is_plausible = not _is_sure(self.fault) if _num_options(self) == 1 else self.fault is None
        return is_plausible and self.is_shorter and self.bound_gain > least


@dataclasses.dataclass(frozen=True, eq=False)
class CloseLook:
    """A candidate one step away, by the error of the predicted noise at the first steps.

    Attributes:
        candidate: whose network is given the time of a step more or less.
        is_later: whether it is a step more.
        gain: by which share its eps_mse is lower, the mean over images and steps of its logarithm.
        standard_error: of that, over images.
        num_images: evaluated.
        is_likely: whether it is what the network was trained with.
    """

    candidate: Candidate
    is_later: bool
    gain: float
    standard_error: float
    num_images: int
    is_likely: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class BetterTime:
    """A noise level at which the network denoises better if it is given another time.

    Attributes:
        t: the step.
        is_later: whether it is a later one.
        gain: by which share eps_mse is lower then.
    """

    t: int
    is_later: bool
    gain: float


@dataclasses.dataclass(frozen=True, eq=False)
class SanityCheck:
    """What the sanity check arrived at.

    Attributes:
        outcome: in a word.
        stated: the stated parameterization; None where there were too few images.
        fault: what it does that a trained model does not; None if nothing.
        better_time: the worst of its times; None if none is surely wrong, or that was not tried.
        others: the candidates that the network could be called in.
        named: the one that is better; None if none is.
        close: the look at the first steps, where it decides.
        num_evaluations: network evaluations.
    """

    outcome: Outcome
    stated: Score | None = None
    fault: Fault | None = None
    better_time: BetterTime | None = None
    others: tuple[Compared, ...] = ()
    named: Compared | None = None
    close: CloseLook | None = None
    num_evaluations: int = 0

    @property
    def cause(self) -> str | None:
        """The options that the network was likely trained with; None if there are none."""
        if self.outcome is not Outcome.LIKELY:
            return None
        if self.named is not None:
            return self.named.score.candidate.option
        return None if self.close is None else self.close.candidate.option or None

    @property
    def is_passed(self) -> bool:
        """Whether nothing speaks against the stated parameterization."""
        return self.outcome is Outcome.PASSED


@dataclasses.dataclass(frozen=True, eq=False)
class _Explored:
    """A candidate, and others that differ from it in one thing.

    Attributes:
        fault: of the candidate itself.
        better_time: likewise.
        scores: of the others.
    """

    fault: Fault | None
    better_time: BetterTime | None
    scores: tuple[Score, ...]

    @property
    def is_trained(self) -> bool:
        """Whether it has no sure fault, and no surely better time."""
        return not _is_sure(self.fault) and self.better_time is None


class Checker:
    """Compares the parameterizations of a checkpoint."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        images: ImageSet,
        evaluate: Evaluate,
        *,
        is_safe_outside: bool = True,
    ) -> None:
        """Prepare a checkpoint and images.

        Args:
            checkpoint: as it is read.
            images: of the kind that it is a model of.
            evaluate: evaluates networks.
            is_safe_outside: whether a network that looks a step up in a table raises where it has
                none. On a GPU that ends the process, and cannot be caught.
        """
        self._stated = Candidate((), checkpoint)
        self._images, self._evaluate = images, evaluate
        self._is_safe_outside = is_safe_outside
        self._num_evaluations = 0
        self._pixels = images.pixels[self._looks(NUM_IMAGES).image]

    def check(self) -> SanityCheck:
        """The stated parameterization beside others."""
        if len(self._images) < NUM_IMAGES:
            return SanityCheck(Outcome.TOO_FEW_IMAGES)
        (stated,) = self._scores([self._stated], self._looks(NUM_IMAGES))
        first = self._explored(stated)
        others, named, is_likely = self._searched(stated, first)
        result = SanityCheck(
            Outcome.PASSED,
            stated,
            first.fault,
            first.better_time,
            tuple(others),
            named,
            num_evaluations=self._num_evaluations,
        )
        if named is not None:
            outcome = Outcome.LIKELY if is_likely else Outcome.BETTER
        elif _is_sure(first.fault):
            outcome = Outcome.FAULT
        elif first.fault is not None or not first.is_trained:
            outcome = Outcome.UNDECIDED
        else:
            return self._closer(result)
        return dataclasses.replace(result, outcome=outcome)

    def _searched(
        self, stated: Score, first: _Explored
    ) -> tuple[list[Compared], Compared | None, bool]:
        """All candidates, the one to name, and whether it is what the network was trained with.

        From the best that differs from the stated one in one thing, those are explored that differ
        from it in another.
        """
        others = [self._compared(stated, score) for score in first.scores]
        best = self._best([of for of in others if of.is_shorter])
        if best is None:
            return others, None, False
        second = self._explored(best.score)
        pairs = [self._compared(stated, score) for score in second.scores]
        others += pairs
        shorter = [of for of in pairs if self._compared(best.score, of.score).is_shorter]
        pair = self._best([of for of in shorter if of.is_advisable])
        if pair is not None:
            best, second = pair, self._explored(pair.score, is_alone=True)
        if not best.is_advisable:
            return others, self._best([of for of in others if of.is_advisable]), False
        is_settled = second.is_trained and best.score.candidate.is_exact
        is_only = (pair is not None or not shorter) and not self._is_rivaled(best, others)
        return others, best, is_settled and is_only

    def _explored(self, base: Score, *, is_alone: bool = False) -> _Explored:
        """A candidate, and unless it `is_alone` others that differ from it in one thing."""
        fault = worst_fault(base, spread=self._spread(base))
        better_time = None if _is_sure(fault) else self._better_time(base)
        explored = _Explored(fault, better_time, ())
        if is_alone:
            return explored
        channels = self._pixels.shape[1]
        others = [c for c in alternatives(base.candidate, channels) if self._can_be_called(c)]
        scores = self._eliminated(base, self._groups(base, fault, others, is_of_time=False))
        if not explored.is_trained and not self._has_trained(base, scores):
            if base.candidate.checkpoint.prediction is not Prediction.PREVIOUS_MEAN:
                others += self._finalists(base)
            scores += self._eliminated(base, self._groups(base, fault, others, is_of_time=True))
        return dataclasses.replace(explored, scores=tuple(scores))

    def _groups(
        self, base: Score, fault: Fault | None, others: Sequence[Candidate], *, is_of_time: bool
    ) -> list[list[Candidate]]:
        """Candidates, those together that have the same network evaluations."""
        some = [c for c in others if c.is_of_time is is_of_time]
        alone = [[c] for c in some if not c.same_calls]
        if fault is not None and base.candidate.is_stated:
            # Two mistakes, of which one is the prediction, take no more network evaluations.
            alone = [list(with_predictions(candidate)) for (candidate,) in alone]
        return [group for group in ([c for c in some if c.same_calls], *alone) if group]

    def _has_trained(self, base: Score, scores: Sequence[Score]) -> bool:
        """Whether the best of these shows nothing that a trained model does not."""
        compared = [self._compared(base, score) for score in scores]
        best = self._best([of for of in compared if of.is_advisable])
        return best is not None and self._explored(best.score, is_alone=True).is_trained

    def _can_be_called(self, candidate: Candidate) -> bool:
        is_inside = largest_time(candidate) <= largest_time(self._stated)
        return self._is_safe_outside or is_inside or not may_look_up(self._stated.checkpoint)

    def _finalists(self, base: Score) -> list[Candidate]:
        """The schedules of other lengths that give the best times of all.

        By the errors of one image, between some times.
        """
        candidates = [c for c in other_lengths(base.candidate) if self._can_be_called(c)]
        if not candidates:
            return []
        rows = _pairs(self._looks(NUM_IMAGES)[:1], base.steps)
        most = max(largest_time(candidate) for candidate in candidates)
        times, errors = np.unique(np.rint(np.geomspace(1, most, _TIMES))), []
        for time in times.tolist():
            (table,) = self._terms([always_given(base.candidate, int(time))], rows)
            unknown = np.ones(len(rows))
            errors.append(unknown if table is None else table.values["eps_mse"].clip(max=1.0))
        columns = np.nan_to_num(np.array(errors), nan=1.0).T
        log_snr = base.candidate.checkpoint.schedule.snr.log().numpy()[base.steps - 1]

        def area(candidate: Candidate) -> float:
            given = np.log(time_at(candidate, log_snr).clip(min=1))
            values = [np.interp(g, np.log(times), of) for g, of in zip(given, columns, strict=True)]
            return float(np.trapezoid(values, -log_snr))

        return sorted(candidates, key=area)[:_FINALISTS]

    def _eliminated(self, base: Score, groups: list[list[Candidate]]) -> list[Score]:
        """The scores of candidates, of all images only if they may be the shortest.

        Args:
            base: what they differ from.
            groups: those in one have the same network evaluations.
        """
        looks, scores, start = self._looks(NUM_IMAGES), dict[str, Score](), 0
        for stop, hopeless in _ROUNDS:
            for group in groups:
                for score in self._scores(group, looks[start:stop]):
                    option = score.candidate.option
                    scores[option] = scores[option].joined(score) if option in scores else score
            whole = [base, *(of for of in scores.values() if len(of.eps_mse) == stop)]
            leader = max(whole, key=lambda score: _area_gain(base, score))
            kept = {
                score.candidate.option for score in whole if _area_gain(score, leader) < hopeless
            }
            groups = [[c for c in group if c.option in kept] for group in groups]
            groups, start = [group for group in groups if group], stop
        return list(scores.values())

    def _scores(self, group: Sequence[Candidate], looks: TermIndex) -> list[Score]:
        """Of candidates whose network evaluations are the same, as far as it can be called so."""
        steps = steps_of(group[0])
        tables = self._terms(group, _pairs(looks, steps))
        return [
            Score.of(candidate, table, steps=steps)
            for candidate, table in zip(group, tables, strict=True)
            if table is not None
        ]

    def _terms(self, group: Sequence[Candidate], rows: TermIndex) -> "list[TermTable | None]":
        tables = self._evaluate(group, rows)
        self._num_evaluations += len(rows) if any(table is not None for table in tables) else 0
        return tables

    def _compared(self, own: Score, other: Score) -> Compared:
        before, after = shared_areas(own, other)
        gain, ratio = before - after, np.log(before / after)
        count = len(before)
        bounds = [score.bounds(self._mean_square(score))[:count] for score in (own, other)]
        bound_gain = bounds[0] - bounds[1]
        return Compared(
            other,
            gain=float(gain.mean()),
            standard_error=standard_error(gain),
            certainty=max(_certainty(gain), _certainty(ratio)),
            bound_gain=float(bound_gain.mean()),
            bound_standard_error=standard_error(bound_gain),
            fault=worst_fault(other, spread=self._spread(other)),
        )

    def _best(self, candidates: Sequence[Compared]) -> Compared | None:
        """The one of the smallest area where both have the noise; of two options, if surely."""
        best: Compared | None = None
        for other in sorted(candidates, key=lambda of: (_num_options(of), -of.gain)):
            if best is None:
                best = other
                continue
            pair = self._compared(best.score, other.score)
            is_longer_option = _num_options(other) > _num_options(best)
            if pair.is_shorter if is_longer_option else pair.gain > 0:
                best = other
        return best

    def _is_rivaled(self, named: Compared, others: Sequence[Compared]) -> bool:
        """Whether another may be as good, but has another bound."""
        for other in others:
            if other is named or not other.is_advisable:
                continue
            pair = self._compared(other.score, named.score)
            if pair.certainty < SURE / 2 and abs(pair.bound_gain) > _LEAST_BOUND_GAIN:
                return True
        if self._has_twin(named.score.candidate):
            return True
        # A time one step away that no option gives, as where a schedule has one more entry.
        unnamed = [near for _, near in one_step_away(self._stated) if near.is_stated]
        if not named.score.candidate.is_of_time:
            unnamed = []
        scores = [s for near in unnamed for s in self._scores([near], self._looks(NUM_IMAGES))]
        return any(not self._compared(score, named.score).certainty > SURE / 2 for score in scores)

    def _has_twin(self, named: Candidate) -> bool:
        """Whether another schedule gives its network nearly the same time at every noise level."""
        stated, schedules = self._stated, [o for o in named.options if o.startswith("--schedule")]
        listed = other_lengths(stated)
        if not schedules or not listed or not counts_steps(named):
            return False
        same = alternatives(stated, self._pixels.shape[1])
        listed += tuple(of for of in same if of.option.startswith("--schedule"))
        log_snr = stated.checkpoint.schedule.snr.log().numpy()[steps_of(stated) - 1]
        own = np.log1p(time_at(named, log_snr))
        return any(
            np.abs(np.log1p(time_at(of, log_snr)) - own).mean() < _SAME_TIME
            for of in listed
            if of.option not in schedules
        )

    def _numbers(self, score: Score) -> Array:
        """(N, ...) of the images, as the model has them."""
        data_range = score.candidate.checkpoint.data_range
        return data_range.array_to_model(self._pixels)

    def _spread(self, score: Score) -> float:
        """Mean square of the numbers about their mean; never 0."""
        data_range = score.candidate.checkpoint.data_range
        return max(float(self._numbers(score).var()), data_range.half_bin**2)

    def _mean_square(self, score: Score) -> Array:
        numbers = self._numbers(score)[: len(score.eps_mse)]
        return np.asarray(np.square(numbers).mean((1, 2, 3)))

    def _better_time(self, base: Score) -> BetterTime | None:
        """The step whose time is surely not the best; None if none is."""
        is_mean = base.candidate.checkpoint.prediction is Prediction.PREVIOUS_MEAN
        if is_mean or len(base.steps) < 2:
            return None
        found = [of for sign in (1, -1) for of in self._better_times(base, sign)]
        return max(found, key=lambda of: of.gain, default=None)

    def _better_times(self, base: Score, sign: int) -> list[BetterTime]:
        """The steps that surely have a better time later, or earlier; the first is left out."""
        if len(base.steps) < 2:
            return []
        steps, gains = base.steps[1:], np.empty((0, len(base.steps) - 1))
        # What eps_mse weighs in the area: half the distance to the steps beside it.
        weight = np.convolve(-np.diff(base.log_snr), [0.25, 0.25])[1:]
        for part in (slice(0, _NUDGE_IMAGES), slice(_NUDGE_IMAGES, NUM_IMAGES)):
            rows = _pairs(self._looks(NUM_IMAGES)[part], steps)
            (table,) = self._terms([nudged(base.candidate, sign)], rows)
            if table is None:
                return []
            errors = np.nan_to_num(table.values["eps_mse"], nan=np.inf).reshape(-1, len(steps))
            gains = np.concatenate([gains, base.eps_mse[part, 1:] - errors])
            own = base.eps_mse[: len(gains), 1:].mean(0)
            share = gains.mean(0) / own
            is_better = (share > _BETTER_TIME) & (gains.mean(0) * weight > _LEAST_TIME_GAIN)
            if not is_better.any():
                return []
        is_better &= gains.mean(0) > SURE * np.array([standard_error(of) for of in gains.T])
        return [
            BetterTime(int(t), sign > 0, float(of))
            for t, of, is_so in zip(steps, share, is_better, strict=True)
            if is_so
        ]

    def _closer(self, result: SanityCheck) -> SanityCheck:
        """One step earlier and later, where nothing else speaks against the stated one."""
        for by, near in one_step_away(self._stated):
            close = self._close_look(near, by) if self._can_be_called(near) else None
            if close is not None:
                result = dataclasses.replace(result, close=close)
                if close.is_likely:
                    outcome = Outcome.BETTER if near.is_stated else Outcome.LIKELY
                    result = dataclasses.replace(result, outcome=outcome)
                    break
        return dataclasses.replace(result, num_evaluations=self._num_evaluations)

    def _close_look(self, near: Candidate, by: int) -> CloseLook | None:
        """At a candidate `by` a step away, of as many images as it takes."""
        stated = self._stated
        last = stated.checkpoint.schedule.num_timesteps - 2
        steps = np.array([t for t in CLOSE_STEPS if t <= last], np.int64)
        if not len(steps):
            return None
        looks, values = self._looks(CLOSE_NUM_IMAGES), np.empty(0)
        for start in range(0, CLOSE_NUM_IMAGES, _CHUNK):
            part = looks[start : start + _CHUNK]
            values = np.append(values, self._log_ratio(stated, near, steps, part))
            gain, error = _clustered(values, looks)
            if gain < -SURE * error:
                break
        close = CloseLook(near, by > 0, gain, error, len(np.unique(looks.image[: len(values)])))
        if not gain > max(SURE * error, _LEAST_CLOSE_GAIN):
            return close
        # A network that is not trained to the end may be a little better a step away, and better
        # still two. One that was trained a step away is worse again there.
        back, back_error = _clustered(self._log_ratio(shifted(near, by), near, steps, looks), looks)
        return dataclasses.replace(close, is_likely=back > max(_BACK * gain, SURE * back_error))

    def _log_ratio(
        self, first: Candidate, second: Candidate, steps: NDArray[np.int64], looks: TermIndex
    ) -> Array:
        """(N,) the log of how much larger the first's eps_mse is, the mean over steps."""
        rows = _pairs(looks, steps)
        tables = [self._terms([candidate], rows)[0] for candidate in (first, second)]
        errors = [
            np.full(len(rows), np.inf) if table is None else table.values["eps_mse"]
            for table in tables
        ]
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.log(errors[0] / errors[1])
        return np.asarray(ratio.reshape(len(looks), len(steps)).mean(1))

    def _looks(self, count: int) -> TermIndex:
        """So many images spread over the set; where it is smaller, again with other noise."""
        many = min(count, len(self._images))
        chosen = np.rint(np.linspace(0, len(self._images) - 1, many)).astype(np.int64)
        # In strides, so that the first of them are spread over the set too.
        strides = max(1, many // _CHUNK)
        order = np.argsort(np.arange(many) % strides, kind="stable")
        return TermIndex(
            np.resize(chosen[order], count), np.zeros(count, np.int64), np.arange(count) // many
        )


def _pairs(looks: TermIndex, steps: NDArray[np.int64]) -> TermIndex:
    """Every look at every step, look by look."""
    return TermIndex(
        np.repeat(looks.image, len(steps)),
        np.tile(steps, len(looks)),
        np.repeat(looks.draw, len(steps)),
    )


def _clustered(values: Array, looks: TermIndex) -> tuple[float, float]:
    """The mean over images, each of its draws, and its standard error."""
    _, of = np.unique(looks.image[: len(values)], return_inverse=True)
    means = np.bincount(of, values) / np.bincount(of)
    return float(means.mean()), standard_error(means)


def _is_sure(fault: Fault | None) -> bool:
    return fault is not None and fault.is_sure


def _num_options(of: Compared) -> int:
    return len(of.score.candidate.options)


def _area_gain(first: Score, second: Score) -> float:
    """By how much the area of the second is smaller."""
    return float(np.subtract(*shared_areas(first, second)).mean())


def _certainty(values: Array) -> float:
    """How many standard errors the mean is above 0; NaN of a single image."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(values.mean() / np.float64(standard_error(values)))
