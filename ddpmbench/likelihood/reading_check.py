"""Whether a checkpoint is read as it was trained, told from a few images at a few steps.

Every reading sees the same images. Most are told apart by one or two of them; one that is not is
looked at more closely. Whether a network counts its steps from 0 or from 1 is hardly worth a code:
that is told by its error at the first steps alone, of more images.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ddpmbench.inputs.checkpoints.checkpoint import Checkpoint
from ddpmbench.likelihood.reading_scores import (
    Array,
    Fault,
    Score,
    shared_areas,
    steps_of,
    worst_fault,
)
from ddpmbench.likelihood.readings import Reading, alternatives, is_a_step_away, shifted
from ddpmbench.likelihood.terms import Rows, TermTable

Evaluate = Callable[[Sequence[Reading], Rows], "list[TermTable | None]"]
"""The terms of the same rows under readings whose network calls are those of the first; None where
its network cannot be called so."""

LOOKS = 8
"""Images, or images and draws of noise where there are fewer, that a reading is judged from."""
CLOSE_LOOKS = 64
"""The same for the error at the first steps."""
CLOSE_STEPS = (2, 3, 4, 6)
"""There a step more or less shows; at t = 1 it may be one that no network was trained on."""
_ROUNDS = ((1, 0.25), (2, 0.1), (LOOKS, np.inf))
"""After so many looks, readings that are so much longer than the shortest, in nats per dimension,
are looked at no more."""
_LEAST_GAIN = 0.03  # nats per dimension that another reading must be shorter by
_LEAST_CLOSE_GAIN = 0.004  # of eps_mse, likewise
_SURE = 4.0  # standard errors
_BACK = 0.5  # of what a step gains, that a second step must lose
_CHUNK = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Compared:
    """A reading beside the one that was asked for.

    Attributes:
        score: its own.
        gain: by how much its code is shorter, the mean over images, nats per dimension.
        standard_error: of that; NaN of a single image.
        certainty: how many standard errors its code is shorter by; of the difference or of the
            logarithms, in which easy and hard images count alike, whichever is more.
        fault: what it does that a trained model does not; None if nothing.
    """

    score: Score
    gain: float
    standard_error: float
    certainty: float
    fault: Fault | None

    @property
    def is_shorter(self) -> bool:
        """Whether it is by more than chance, and that of a trained model."""
        return self.fault is None and self.gain > _LEAST_GAIN and self.certainty > _SURE


@dataclasses.dataclass(frozen=True, eq=False)
class CloseLook:
    """A reading that is a step away, by the error of the predicted noise at the first steps.

    Attributes:
        option: the reading.
        gain: by which share its eps_mse is lower, the mean over images and steps of its logarithm.
        standard_error: of that.
        num_looks: images, or images and draws.
        is_likely: whether it is what the network was trained with.
    """

    option: str
    gain: float
    standard_error: float
    num_looks: int
    is_likely: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class ReadingCheck:
    """What the check found.

    Attributes:
        stated: the reading that was asked for.
        fault: what it does that a trained model does not; None if nothing.
        others: those that the network could be called in.
        close: of the reading that is a step away, where it had to be looked at.
        num_evaluations: network calls.
    """

    stated: Score
    fault: Fault | None
    others: tuple[Compared, ...]
    close: CloseLook | None
    num_evaluations: int

    @property
    def cause(self) -> str | None:
        """The option of the reading that is likely meant; None if none is."""
        near = None if self.close is None else self.close.option
        shorter = [of for of in self.others if of.is_shorter and of.score.reading.option != near]
        if shorter:
            return max(shorter, key=lambda of: of.gain).score.reading.option
        return near if self.close is not None and self.close.is_likely else None

    @property
    def is_passed(self) -> bool:
        """Whether nothing speaks against the reading."""
        return self.fault is None and self.cause is None


@dataclasses.dataclass(frozen=True, eq=False)
class Checker:
    """Compares the readings of a checkpoint.

    Attributes:
        checkpoint: as it is read.
        num_images: N of the set.
        spread: variance of the pixels, on [0, 1].
        evaluate: calls the networks.
    """

    checkpoint: Checkpoint
    num_images: int
    spread: float
    evaluate: Evaluate

    def check(self) -> ReadingCheck:
        """The reading that was asked for beside all others."""
        scores = self._scores()
        own = scores.pop("")
        found = ReadingCheck(
            stated=own,
            fault=worst_fault(own, spread=self.spread),
            others=tuple(self._compared(own, score) for score in scores.values()),
            close=None,
            num_evaluations=sum(s.num_evaluations for s in (own, *scores.values())),
        )
        near = next((of for of in found.others if self._is_open(of)), None)
        if near is None or any(of.is_shorter for of in found.others if of is not near):
            return found
        close, calls = self._close_look(own.reading, near)
        return dataclasses.replace(
            found, close=close, num_evaluations=found.num_evaluations + calls
        )

    def _scores(self) -> dict[str, Score]:
        """Of every reading that could be evaluated, by its option."""
        stated, others = Reading("", self.checkpoint), alternatives(self.checkpoint)
        groups = [[stated, *(r for r in others if r.same_calls)]]
        groups += [[reading] for reading in others if not reading.same_calls]
        looks, found, start = self._looks(LOOKS), dict[str, Score](), 0
        for stop, hopeless in _ROUNDS:
            for score in self._looked_at(groups, looks[slice(start, stop)]):
                option = score.reading.option
                found[option] = found[option].joined(score) if option in found else score
            gain = {
                option: float(np.subtract(*shared_areas(found[""], score)).mean())
                for option, score in found.items()
                if len(score.eps_mse) == stop
            }
            least = max(gain.values()) - hopeless
            groups = [
                [r for r in group if r.is_stated or gain.get(r.option, -np.inf) > least]
                for group in groups
            ]
            groups, start = [group for group in groups if group], stop
        return found

    def _looked_at(self, groups: Sequence[Sequence[Reading]], looks: Rows) -> list[Score]:
        found = []
        for group in groups:
            steps = steps_of(group[0])
            tables = self.evaluate(group, _pairs(looks, steps))
            found += [
                Score.of(reading, table, steps=steps)
                for reading, table in zip(group, tables, strict=True)
                if table is not None
            ]
        return found

    def _compared(self, own: Score, other: Score) -> Compared:
        before, after = shared_areas(own, other)
        gain, ratio = before - after, np.log(before / after)
        return Compared(
            other,
            gain=float(gain.mean()),
            standard_error=_standard_error(gain),
            certainty=max(_certainty(gain), _certainty(ratio)),
            fault=worst_fault(other, spread=self.spread),
        )

    def _is_open(self, other: Compared) -> bool:
        """Whether it is a step away, and may be what is meant as far as it was looked at."""
        is_looked_at = len(other.score.eps_mse) == LOOKS and other.fault is None
        return is_looked_at and is_a_step_away(self.checkpoint, other.score.reading.checkpoint)

    def _close_look(self, stated: Reading, near: Compared) -> tuple[CloseLook | None, int]:
        """At the first steps of as many images as it takes, and the calls that it took."""
        last = self.checkpoint.schedule.num_timesteps - 2
        steps = np.array([t for t in CLOSE_STEPS if t <= last], np.int64)
        if not len(steps):
            return None, 0
        other, looks = near.score.reading, self._looks(CLOSE_LOOKS)
        values, calls = np.empty(0), 0
        for start in range(0, CLOSE_LOOKS, _CHUNK):
            part = looks[slice(start, start + _CHUNK)]
            values = np.append(values, self._log_ratio(stated, other, steps, part))
            calls += 2 * len(part) * len(steps)
            gain, error = float(values.mean()), _standard_error(values)
            if gain < -_SURE * error:
                break
        found = CloseLook(other.option, gain, error, len(values))
        if not gain > max(_SURE * error, _LEAST_CLOSE_GAIN):
            return found, calls
        # A network that is not trained to the end may be a little better a step away, and better
        # still two. One that was trained a step away is worse again there.
        told = [_told_at_first(reading) for reading in (stated, other)]
        beyond = shifted(other, told[1] - told[0])
        back = self._log_ratio(beyond, other, steps, looks)
        calls += 2 * len(looks) * len(steps)
        loses = float(back.mean()) > max(_BACK * gain, _SURE * _standard_error(back))
        return dataclasses.replace(found, is_likely=loses), calls

    def _log_ratio(
        self, first: Reading, second: Reading, steps: NDArray[np.int64], looks: Rows
    ) -> Array:
        """(N,) the log of how much larger the first's eps_mse is, the mean over steps."""
        rows = _pairs(looks, steps)
        tables = [self.evaluate([reading], rows)[0] for reading in (first, second)]
        errors = [
            np.full(len(rows), np.inf) if table is None else table.values["eps_mse"]
            for table in tables
        ]
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.log(errors[0] / errors[1])
        return np.asarray(ratio.reshape(len(looks), len(steps)).mean(1))

    def _looks(self, count: int) -> Rows:
        """So many images spread over the set; where it is smaller, again with other noise."""
        many = min(count, self.num_images)
        chosen = np.rint(np.linspace(0, self.num_images - 1, many)).astype(np.int64)
        # In strides, so that the first of them are spread over the set too.
        strides = max(1, many // _CHUNK)
        order = list(itertools.chain(*(range(k, many, strides) for k in range(strides))))
        return Rows(
            np.resize(chosen[order], count), np.zeros(count, np.int64), np.arange(count) // many
        )


def _pairs(looks: Rows, steps: NDArray[np.int64]) -> Rows:
    """Every look at every step, look by look."""
    return Rows(
        np.repeat(looks.image, len(steps)),
        np.tile(steps, len(looks)),
        np.repeat(looks.draw, len(steps)),
    )


def _told_at_first(reading: Reading) -> int:
    return int(reading.checkpoint.network_time(torch.tensor([1])).item())


def _certainty(values: Array) -> float:
    """How many standard errors the mean is above 0; NaN of a single image."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(values.mean() / np.float64(_standard_error(values)))


def _standard_error(values: Array) -> float:
    if len(values) < 2:
        return math.nan
    return float(values.std(ddof=1) / np.sqrt(len(values)))
