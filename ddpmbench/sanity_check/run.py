"""The sanity check before a long run: network evaluations, record in the run folder, messages."""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ddpmbench.checksums import CHECKSUMS, DamageError, read_json
from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.data_range import NATS_PER_BIT
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.process import GaussianDiffusion
from ddpmbench.execution.devices import evaluating_checkpoint, is_out_of_memory, strict_float32
from ddpmbench.execution.folder import RunFolder
from ddpmbench.execution.session import Session
from ddpmbench.execution.worker import BatchSize, RunListener
from ddpmbench.likelihood.terms import TermIndex, TermsPass, TermTable, concatenate
from ddpmbench.sanity_check.check import Checker, Outcome, SanityCheck
from ddpmbench.sanity_check.scores import NUM_IMAGES, Candidate, Fault, Score, furthest_apart
from ddpmbench.user_code import user_errors

MIN_EVALUATIONS = 10_000
"""Network evaluations from which on a run is preceded by the check."""
TABLE, RECORD = "check.csv", "check.json"
"""Files of the check in a run folder; a resumed run reads the record."""
_TABLE_CHECKSUM = "table_sha256"
"""Key of the table's checksum in the record, for a resumed run."""
_ANNOUNCEMENT = (
    "sanity check of the parameterization first, a few hundred network evaluations on a few "
    "images; they do not count towards the run (`check=False` skips it)"
)


def check_parameterization(
    checkpoint: Checkpoint,
    images: ImageSet,
    *,
    seed: int,
    device: torch.device,
    batch: BatchSize,
) -> SanityCheck:
    """Compare the parameterization of a checkpoint with others, on images of a run.

    Raises:
        InputError: not even a single term fits into memory.
    """
    evaluator = Evaluator(checkpoint, images, seed=seed, device=device, batch=batch)
    checker = Checker(checkpoint, images, evaluator.evaluate, raises_outside=device.type == "cpu")
    user_network = user_errors(checkpoint.network_name)
    with user_network, evaluating_checkpoint(checkpoint), strict_float32():
        return checker.check()


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluator:
    """Evaluates the terms of candidates; for its fields see `check_parameterization`."""

    given: Checkpoint
    images: ImageSet
    seed: int
    device: torch.device
    batch: BatchSize

    def evaluate(self, candidates: Sequence[Candidate], terms: TermIndex) -> list[TermTable | None]:
        """The terms of candidates that share network outputs, as `scores.Evaluate`."""
        checkpoint = candidates[0].checkpoint
        terms_pass = TermsPass(
            checkpoint, self.images, seed=self.seed, decoder="exact", device=self.device
        )
        processes = [self._process(candidate.checkpoint) for candidate in candidates]
        parts: list[list[TermTable]] = []
        start = 0
        try:
            while start < len(terms):

                def compute(count: int, start: int = start) -> list[TermTable]:
                    some = terms[start : start + count]
                    return terms_pass.short_terms(some, processes, self._noise(terms_pass, some))

                parts.append(self.batch.attempt(compute))
                start += len(parts[-1][0])
        except Exception as error:
            # A network may raise anything for a time outside its range.
            if checkpoint is self.given or is_out_of_memory(error):
                raise
            return [None] * len(candidates)
        return [concatenate(tables) for tables in zip(*parts, strict=True)]

    @cached_property
    def _processes(self) -> dict[object, GaussianDiffusion]:
        """By what candidates differ in: many of them are evaluated more than once."""
        return {}

    def _process(self, checkpoint: Checkpoint) -> GaussianDiffusion:
        key = (
            *(checkpoint.schedule, checkpoint.prediction, checkpoint.variance),
            *(checkpoint.clip, checkpoint.data_range),
        )
        if key not in self._processes:
            self._processes[key] = checkpoint.diffusion.to(self.device)
        return self._processes[key]

    @cached_property
    def _last_noise(self) -> dict[bytes, Tensor]:
        """The noise of the last terms: those of many candidates are the same."""
        return {}

    def _noise(self, terms_pass: TermsPass, terms: TermIndex) -> Tensor:
        key = np.stack([terms.image, terms.t, terms.draw]).tobytes()
        if key not in self._last_noise:
            self._last_noise.clear()
            self._last_noise[key] = terms_pass.noise(terms)
        return self._last_noise[key]


CheckRecord: TypeAlias = dict[str, Any]
"""The fields of `check` in `summary.json`; see `check_record`."""


def check_record(check: SanityCheck) -> CheckRecord:
    """The result as JSON.

    - warning: one line; None where nothing significant speaks against the parameterization.
    - likely: the parameters that the network was likely trained with, `prediction=v`; None if there
      are none.
    - num_evaluations: network evaluations of the check, which do not count towards the run.
    - outcome: one of `Outcome`.
    - better: the parameters that are better, likely or not; None if there are none.
    """
    return {
        "warning": _warning(check),
        "likely": check.likely,
        "num_evaluations": check.num_evaluations,
        "outcome": str(check.outcome),
        "better": check.better,
    }


_DIFFERENCES = (
    *("difference", "standard_error", "bound_difference", "bound_standard_error"),
    *("eps_difference", "eps_standard_error"),
)


def check_frame(check: SanityCheck) -> pd.DataFrame:
    """One row per candidate and timestep, the given parameterization first.

    `difference` is the increase of the area over the given one's, in bits, `bound_difference` that
    of the bound, in bits/dim, as estimated from these timesteps, and `eps_difference` the relative
    increase of eps_mse at the first timesteps, if it was evaluated there. Standard errors are over
    images; a single image has none. `x_start_mse` is for images on [0, 1].
    """
    columns = ("parameterization", "num_images", *_DIFFERENCES, "t", "eps_mse", "x_start_mse")
    rows: list[dict[str, object]] = []

    def add(name: str, score: Score, **differences: float) -> None:
        errors = score.eps_mse.mean(0), score.x_start_mse.mean(0) / score.squared_width
        for t, eps, x_start in zip(score.timesteps, *errors, strict=True):
            values = {"t": int(t), "eps_mse": float(eps), "x_start_mse": float(x_start)}
            rows.append(
                {"parameterization": name, "num_images": score.num_images, **differences, **values}
            )

    if check.given is not None:
        add("as given", check.given)
    for other in check.others:
        add(
            other.score.candidate.name,
            other.score,
            difference=-other.gain / NATS_PER_BIT,
            standard_error=other.standard_error / NATS_PER_BIT,
            bound_difference=-other.bound_gain / NATS_PER_BIT,
            bound_standard_error=other.bound_standard_error / NATS_PER_BIT,
        )
    if (offset := check.offset) is not None:
        rows.append(
            {
                "parameterization": offset.candidate.name or "one timestep off",
                "num_images": 0,
                "eps_difference": -offset.gain,
                "eps_standard_error": offset.standard_error,
                "t": 0,
            }
        )
    return pd.DataFrame(rows, columns=list(columns))


def note(record: CheckRecord) -> str | None:
    """A note for a check without a warning; None where there is a warning."""
    if record["warning"] is not None:
        return None
    evaluations = f"sanity check, {record['num_evaluations']:,} network evaluations: "
    match record["outcome"]:
        case Outcome.TOO_FEW_IMAGES:
            return f"the sanity check takes {NUM_IMAGES} images or more: nothing was checked"
        case Outcome.UNDECIDED:
            return evaluations + (
                "undecided; something is unusual for a trained model, but not significantly "
                "(see check.csv)"
            )
    return evaluations + "nothing speaks against the parameterization"


def _warning(check: SanityCheck) -> str | None:
    """One line with the parameters and the numbers; None where nothing is significant."""
    if check.given is None or check.outcome in (Outcome.PASSED, Outcome.UNDECIDED):
        return None
    begin = f"`ckpt={check.given.candidate.checkpoint.source}`: "
    fault, candidate = check.evidence.fault, check.candidate
    if check.outcome is Outcome.FAULT and fault is not None:
        return (
            f"{begin}the parameterization is wrong, or the weights are not those of a trained "
            f"model: {_fault(fault)}; no common prediction, time input, schedule or data range "
            "mends it"
        )
    assert candidate is not None
    if check.outcome is Outcome.LIKELY:
        return (
            f"{begin}was likely trained with {candidate.quoted}: {_numbers(check)}; give "
            f"{'it' if len(candidate.parameters) == 1 else 'them'}, or `check=False` to keep what "
            "was given"
        )
    better = candidate.quoted or f"the times of the {_neighbor(check)} timestep"
    return f"{begin}is better with {better}: {_numbers(check)}; {_remedy(candidate)}"


def _neighbor(check: SanityCheck) -> str:
    return "next" if check.offset is not None and check.offset.is_later else "previous"


def _remedy(candidate: Candidate) -> str:
    """What to do about a candidate that is better, but likely not what the network learned."""
    if not candidate.is_exact:
        return (
            "its images were perhaps normalized channel by channel, which `data_range` states on "
            "average only"
        )
    if "schedule" in candidate.parameters:
        return (
            "it was perhaps trained with a schedule that the check does not try; look it up and "
            "give it as `schedule`"
        )
    if candidate.is_given:
        return "its schedule perhaps has one more entry; give that of its training as `schedule`"
    return "another parameter may be wrong, too; compare all of them with those of its training"


def _numbers(check: SanityCheck) -> str:
    """The evidence for the candidate."""
    if check.best is not None:
        assert check.given is not None
        t, own, other = furthest_apart(check.given, check.best.score)
        bits = check.best.bound_gain / NATS_PER_BIT
        error = check.best.bound_standard_error / NATS_PER_BIT
        return (
            f"on {check.best.score.num_images} images its bound is about {bits:.2f} "
            f"(+- {2 * error:.2f}) bits/dim lower, and eps_mse at t = {t} is {_short(other)} "
            f"instead of {_short(own)}"
        )
    assert check.offset is not None
    first, last = check.offset.timesteps
    return (
        f"at t = {first}..{last} of {check.offset.num_images} images eps_mse is "
        f"{check.offset.gain:.1%} lower (+- {2 * check.offset.standard_error:.1%})"
    )


def _fault(fault: Fault) -> str:
    if fault.name == "nats":
        value, limit = fault.value / NATS_PER_BIT, fault.limit / NATS_PER_BIT
        return (
            f"half the area under eps_mse over log SNR is {value:.2f} bits, that of a trained "
            f"model below {limit:.2f}, that of independent pixels"
        )
    unit = " of the pixels' variance" if fault.name == "x_start_mse" else ""
    return (
        f"{fault.name} at t = {fault.t} is {_short(fault.value)}{unit}, that of a trained model "
        f"below {fault.limit:g}"
    )


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2g}"


@dataclasses.dataclass(frozen=True, eq=False)
class PreliminaryCheck:
    """The sanity check before a run.

    Attributes:
        requested: whether to check; None checks before long runs only.
        num_evaluations: network evaluations of the run, as far as known.
        seed: seed of the noise.
        batch_size: terms per network evaluation; None for what suits the device.
        listener: the listener of the run; it receives a note before the check, and one after it if
            there is no warning.
    """

    requested: bool | None
    num_evaluations: int
    seed: int = 0
    batch_size: int | None = None
    listener: RunListener = dataclasses.field(default_factory=RunListener)

    @property
    def is_needed(self) -> bool:
        """Whether to check: because it is requested, or the run is long."""
        is_long = self.num_evaluations >= MIN_EVALUATIONS
        return is_long if self.requested is None else self.requested

    def run(
        self, checkpoint: Checkpoint, images: ImageSet, session: Session, folder: RunFolder | None
    ) -> CheckRecord | None:
        """Check on rank 0, or read the record of an interrupted run.

        The folder is None if the run is kept in memory.

        Returns:
            The record; None if there was no check.

        Raises:
            InputError: the folder cannot be written, or not even a single term fits into memory.
        """
        if not self.is_needed:
            return None
        return session.ranks.once(lambda: self._record(checkpoint, images, session.device, folder))

    def _record(
        self,
        checkpoint: Checkpoint,
        images: ImageSet,
        device: torch.device,
        folder: RunFolder | None,
    ) -> CheckRecord:
        record, tell = None if folder is None else _kept_record(folder), self.listener
        if record is None:
            tell.note(_ANNOUNCEMENT)
            shape = images.pixels.shape[1:]
            batch = BatchSize(self.batch_size, device=device, image_shape=shape, warn=tell.warn)
            check = check_parameterization(
                checkpoint, images, seed=self.seed, device=device, batch=batch
            )
            record = check_record(check)
            if folder is not None:
                folder.write_frame(TABLE, check_frame(check))
                checksum = folder.checksum_of(TABLE)
                folder.write_json(RECORD, {**record, _TABLE_CHECKSUM: checksum})
            if (line := note(record)) is not None:
                tell.note(line)
        if record["warning"] is not None:
            tell.warn(record["warning"])
        return record


def recorded_check(folder: Path) -> CheckRecord | None:
    """The record in a run folder; None where it is missing or damaged."""
    try:
        record = read_json(folder / RECORD)
    except DamageError:
        return None
    extra = (CHECKSUMS, _TABLE_CHECKSUM)
    return {name: value for name, value in record.items() if name not in extra} or None


def _kept_record(folder: RunFolder) -> CheckRecord | None:
    """The record of an earlier session with an intact table; None where there is none."""
    record = recorded_check(folder.path)
    if record is None:
        return None
    known = read_json(folder.path / RECORD)[_TABLE_CHECKSUM]
    return record if folder.keeps_table(TABLE, known) else None
