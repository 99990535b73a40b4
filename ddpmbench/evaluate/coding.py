"""The code of a model: its checkpoint on a device, its timesteps, variances and bound."""

import contextlib
import dataclasses
import hashlib
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import scipy
import torch
from numpy.typing import NDArray

from ddpmbench.codec.chain import Chain, ReverseProcess
from ddpmbench.codec.container import Bound
from ddpmbench.codec.rans import DamageError
from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.data_range import NATS_PER_BIT
from ddpmbench.diffusion.model import OUTPUT, Checkpoint
from ddpmbench.diffusion.parameterization import Prediction, Variance
from ddpmbench.errors import InputError
from ddpmbench.evaluate.evaluation import conventions_of, labels_sha256, model_identity
from ddpmbench.evaluate.page import load_report
from ddpmbench.execution.devices import device_name
from ddpmbench.execution.engine import Engine
from ddpmbench.execution.engine_choice import at_once
from ddpmbench.execution.finished_runs import SUMMARY, FinishedRun
from ddpmbench.execution.folder import IDENTITY, refuse_other
from ddpmbench.execution.session import Session, session
from ddpmbench.execution.worker import RunListener, RunProgress
from ddpmbench.files import sha256_of
from ddpmbench.likelihood.decoders import log_variances
from ddpmbench.likelihood.sub_schedules import (
    BEST,
    SubScheduleCosts,
    TimestepErrors,
    Transitions,
    can_skip,
)
from ddpmbench.report.nll import NllReport
from ddpmbench.report.tables import SCHEMA
from ddpmbench.unet.timed_unet import Precision
from ddpmbench.user_code import user_errors

BEST_CONSTANT = "best_constant"
VARIANCES = (BEST_CONSTANT, str(Variance.FIXED_SMALL), str(Variance.FIXED_LARGE))
"""The variances of a code's reverse process; the decoder always has the posterior's at t_2."""
Values = NDArray[np.float64]


# ---- the checkpoint, set up for encoding or decoding


@dataclasses.dataclass(frozen=True, eq=False)
class CodingSession:
    """A checkpoint set up for encoding or decoding.

    Attributes:
        checkpoint: on the device, after the network check.
        device: where the network is evaluated.
        engine: evaluates the network.
    """

    checkpoint: Checkpoint
    device: torch.device
    engine: Engine

    def chain(self, process: ReverseProcess) -> Chain:
        """The code with these timesteps and variances."""
        output = self.engine.model_output
        return Chain(self.checkpoint, process, device=self.device, model_output=output)

    @property
    def machine(self) -> dict[str, Any]:
        """What the floating-point numbers of a code depend on."""
        return {
            "device": device_name(self.device),
            "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
            "engine": str(self.engine.choice),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
        }


@contextlib.contextmanager
def coding(checkpoint: Checkpoint, shape: tuple[int, ...], device: str) -> Iterator[CodingSession]:
    """The checkpoint on a device, set up so that equal inputs always give equal outputs."""
    if checkpoint.schedule.is_continuous:
        raise InputError("`checkpoint`: a code visits whole timesteps; leave out continuous time")
    with session(device, None) as run_session:
        _refuse_processes(run_session)
        checkpoint = run_session.checked(checkpoint, shape)
        target = run_session.device
        choice = at_once(checkpoint, target, Precision.FP32)
        engine = Engine(checkpoint, device=target, choice=choice)
        with (
            user_errors(checkpoint.network_name),
            engine.running(),
            _same_kernels(),
            torch.inference_mode(),
        ):
            yield CodingSession(checkpoint, target, engine)


@contextlib.contextmanager
def _same_kernels() -> Iterator[None]:
    """Within, cuDNN uses the same deterministic kernels for the same shapes."""
    cudnn: Any = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before


def _refuse_processes(run_session: Session) -> None:
    if run_session.ranks.count > 1:
        raise InputError("a code is written by one process; start the command without torchrun")


def model_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """What identifies a model and the conventions of its code."""
    table = checkpoint.schedule.log_alphas_cumprod.numpy().tobytes()
    return {
        "checkpoint": checkpoint.sha256,
        "prediction": str(checkpoint.prediction),
        "clip": checkpoint.clip,
        "time_input": str(checkpoint.time_input),
        "process": str(checkpoint.schedule.process),
        "schedule": hashlib.sha256(table).hexdigest(),
        **checkpoint.data_range.record,
        "network": checkpoint.fingerprint,
        OUTPUT: list(checkpoint.output_numbers),
    }


@contextlib.contextmanager
def damage_as(refusal: InputError) -> Iterator[None]:
    """Raise this error where the bits were damaged."""
    try:
        yield
    except DamageError as error:
        raise refusal from error


class Counter:
    """Reports the number of images done to the listener."""

    def __init__(self, reporter: RunListener, total: int, done: int = 0) -> None:
        self._reporter, self._total, self._done = reporter, total, done
        self(0)

    def __call__(self, images: int) -> None:
        """Add images to those done."""
        self._done += images
        self._reporter.progress(RunProgress(self._done, self._total))


# ---- the timesteps, the variances and the bound

_MODEL_FIELDS = (
    *("checkpoint", "num_timesteps", "process", "prediction", "clip", "time_input"),
    *("data_range", "levels", "schedule_sha256", "network", OUTPUT),
)
"""What a run and a code must agree in, by the names of `model_identity`; the variance of the
network and the decoder may differ."""


def digest_of(run: Path) -> str:
    """SHA-256 of a run's summary, which holds the checksums of its tables.

    Raises:
        InputError: the folder is no finished run of nll.
    """
    return sha256_of(_opened(run).path / SUMMARY)


def finished_run(run: Path, checkpoint: Checkpoint, images: ImageSet) -> tuple[NllReport, bool]:
    """A run of `evaluate_nll` of the same model, and whether it is on the same images.

    Args:
        run: the run folder.
        checkpoint: the model, checked.
        images: the images to encode.

    Raises:
        InputError: the folder is no finished run of nll, or one of another model; the message
            names the first difference.
    """
    theirs = _opened(run).identity
    if not theirs:
        raise InputError(
            f"`run={run}`: has no {IDENTITY}, which identifies its model; name the folder that nll "
            "wrote, or leave it out"
        )
    conventions = conventions_of(checkpoint, images, decoder=theirs.get("decoder", ""))
    ours = model_identity(checkpoint, conventions)
    remedy = "name a run of this one, or leave it out"
    refuse_other(f"`run={run}`: is of another model", theirs, ours, remedy, names=_MODEL_FIELDS)
    if as_coded(checkpoint).clip != checkpoint.clip:
        raise InputError(
            f"`run={run}`: has the errors of the clipped x_start, and a code of a predicted mean "
            "clips nothing; leave it out, or take `clip=False` for both"
        )
    labels = labels_sha256(checkpoint, images)
    is_same = (theirs.get("data"), theirs.get("labels_sha256")) == (images.sha256, labels)
    return cast(NllReport, load_report(run)), is_same


def _opened(run: Path) -> FinishedRun:
    return FinishedRun.open(run, option="`run`", schema=SCHEMA)


def as_coded(checkpoint: Checkpoint) -> Checkpoint:
    """The model whose runs have the same errors of x_start as the code.

    A code does not clip where the network predicts the mean. The bound is the same, but a run that
    clips has other errors in its tables.
    """
    is_mean = checkpoint.prediction is Prediction.PREVIOUS_MEAN
    return dataclasses.replace(checkpoint, clip=False) if is_mean else checkpoint


def chosen_process(
    checkpoint: Checkpoint, run: NllReport, timesteps: int, variance: str
) -> ReverseProcess:
    """The best timesteps according to a run of `evaluate_nll`, and the reverse process on them.

    Args:
        checkpoint: the model.
        run: a run on the same images.
        timesteps: how many timesteps to visit.
        variance: one of `VARIANCES`.

    Raises:
        InputError: the model has fewer timesteps.

    Source: Watson et al. 2021, algorithm 1; Bao et al. 2022, theorem 1.
    """
    schedule, mse = checkpoint.schedule, _errors(run)
    kind = None if variance == BEST_CONSTANT else Variance(variance)
    total = schedule.num_timesteps
    if timesteps > total:
        raise InputError(f"`timesteps={timesteps}`: the checkpoint has {total}; take at most those")
    visited = schedule.evenly_spaced(timesteps)
    if can_skip(schedule) and 1 < timesteps < total:
        zero = np.zeros(total)
        costs = SubScheduleCosts(
            schedule=schedule,
            prior=0.0,
            errors=TimestepErrors(mse, None, zero, zero),
            decoder=_decoder(run, checkpoint),
            decoder_variance=0.0,
            decoder_over_freedom=0.0,
        )
        visited = next(iter(costs.best_timesteps(kind, [timesteps])), visited)
        if (row := _row(run, timesteps, variance)) is not None:
            visited = _steps(row, visited)  # the timesteps whose bound the run reports
    steps = np.asarray(visited)
    s, t = steps[:-1], steps[1:]
    skips, own = Transitions(schedule), schedule.subset(visited)
    log_variance = skips.log_variance(s, t)
    if kind is None:
        log_variance += np.log1p(skips.snr_gain(s, t) * mse[t - 1])
    elif kind is Variance.FIXED_LARGE:
        log_variance = own.log_forward_variance.numpy()[1:]
    variances = np.exp(np.append(float(own.log_decoder_variance), log_variance))
    return ReverseProcess(tuple(visited), tuple(variances.tolist()), variance)


def bound_of(run: NllReport, process: ReverseProcess) -> Bound | None:
    """The bound of the model that a code realizes, according to a run of `evaluate_nll`.

    Half of the run's terms chose the timesteps; the bound is estimated from the other half.

    Args:
        run: a run on the same images.
        process: the timesteps and variances of the code.

    Returns:
        None where the run has no bound for these timesteps.
    """
    row = _row(run, len(process.timesteps), process.variance)
    visited = list(process.timesteps)
    if row is None or _steps(row, visited) != visited:
        return None
    half_width = float(row["half_width"])
    return Bound(
        bits_per_dim=float(row["bits_per_dim"]),
        half_width=None if np.isnan(half_width) else half_width,
        num_evaluations=run.summary["num_evaluations"],
    )


def _row(run: NllReport, timesteps: int, variance: str) -> "pd.Series[Any] | None":
    """The best model with this number of timesteps in the run's table, or that with all of them."""
    frame = run.sub_schedules
    if frame.empty:
        return None
    rows = frame[(frame.variance == variance) & (frame.num_timesteps == timesteps)]
    is_all = rows.num_timesteps == frame.num_timesteps.max()
    rows = rows[(rows.spacing == BEST) | is_all].sort_values("spacing")
    return None if rows.empty else rows.iloc[0]


def _steps(row: "pd.Series[Any]", default: list[int]) -> list[int]:
    """The timesteps of a row, which are listed for the best models alone."""
    steps = row["steps"]
    return [int(t) for t in steps.split()] if isinstance(steps, str) and steps else default


def _errors(run: NllReport) -> Values:
    """(T,) mean squared error of x_start, interpolated where a small run has no term."""
    mse = run.per_timestep["x_start_mse"].to_numpy(np.float64)
    known = np.isfinite(mse) & (mse > 0)
    log_t = np.log(np.arange(1, len(mse) + 1))
    return np.asarray(np.exp(np.interp(log_t, log_t[known], np.log(mse[known]))))


def _decoder(run: NllReport, checkpoint: Checkpoint) -> Values:
    """(7,) decoder term in nats at `log_variances`, interpolated between the two in the run."""
    frame = run.conventions
    is_own = (frame.decoder == "exact") & (frame["clip"] == frame["clip"].iloc[0])
    is_full = is_own & (frame.num_timesteps == checkpoint.schedule.num_timesteps)
    ends = [
        frame[is_full & (frame.decoder_variance == name)].decoder_bits_per_dim.iloc[0]
        * NATS_PER_BIT
        for name in ("posterior", "beta")
    ]
    nodes = log_variances(checkpoint.schedule)
    if nodes[0] == nodes[-1]:
        return np.full(len(nodes), ends[0])
    return np.asarray(np.interp(nodes, nodes[[0, -1]], ends))
