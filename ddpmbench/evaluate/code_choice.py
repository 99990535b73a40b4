"""Which model a code realizes: the best timesteps and variances, and the bound of that model."""

import numpy as np
from numpy.typing import NDArray

from ddpmbench.codec.container import Bound, Process
from ddpmbench.diffusion.data_range import NATS_PER_BIT
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.parameterization import Variance
from ddpmbench.errors import InputError
from ddpmbench.evaluate.nll import NllReport
from ddpmbench.likelihood.decoders import log_variances
from ddpmbench.likelihood.sub_schedules import (
    BEST,
    SubScheduleCosts,
    TimestepErrors,
    Transitions,
    can_skip,
)

BEST_CONSTANT = "best_constant"
VARIANCES = (BEST_CONSTANT, str(Variance.FIXED_SMALL), str(Variance.FIXED_LARGE))
"""The variances of a code's reverse process; the decoder's is the posterior's of t_2 in all."""
Values = NDArray[np.float64]


def chosen_process(
    checkpoint: Checkpoint, run: NllReport, timesteps: int, variance: str
) -> Process:
    """The best timesteps by a run of `evaluate_nll`, and the variances of their reverse process.

    Args:
        checkpoint: the model.
        run: on the same images.
        timesteps: how many.
        variance: one of `VARIANCES`.

    Raises:
        InputError: there are not as many.

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
    steps = np.asarray(visited)
    s, t = steps[:-1], steps[1:]
    skips, own = Transitions(schedule), schedule.subset(visited)
    log_variance = skips.log_variance(s, t)
    if kind is None:
        log_variance += np.log1p(skips.snr_gain(s, t) * mse[t - 1])
    elif kind is Variance.FIXED_LARGE:
        log_variance = own.log_forward_variance.numpy()[1:]
    variances = np.exp(np.append(float(own.log_decoder_variance), log_variance))
    return Process(steps.tolist(), variances.tolist(), variance)


def bound_of(checkpoint: Checkpoint, run: NllReport, process: Process) -> Bound:
    r"""The bound of the model that a code realizes, by a run of `evaluate_nll`.

    .. math::
        L = L_T + L_0 + \sum_i \frac12 \left( \log \frac{v_i}{\tilde\beta_i}
        + \frac{\tilde\beta_i}{v_i} - 1
        + \frac{\tilde\beta_i}{v_i} (\mathrm{SNR}_{i-1} - \mathrm{SNR}_i)\, \mathrm{mse}_i \right)

    with variance v and posterior variance beta-tilde of each step.

    Args:
        checkpoint: the model.
        run: on the same images.
        process: timesteps and variances.

    Source: Ho, Jain & Abbeel 2020, eq. 5.
    """
    steps = np.asarray(process.timesteps)
    s, t = steps[:-1], steps[1:]
    skips, schedule = Transitions(checkpoint.schedule), checkpoint.schedule
    log_ratio = np.log(process.variances[1:]) - skips.log_variance(s, t)
    gain = skips.snr_gain(s, t) * _errors(run)[t - 1]
    terms = (np.expm1(-log_ratio) + log_ratio + np.exp(-log_ratio) * gain) / 2
    log_decoder = np.log(process.variances[0])
    decoder = float(np.interp(log_decoder, log_variances(schedule), _decoder(run, checkpoint)))
    nats = float(terms.sum()) + decoder + run.summary["prior"] * NATS_PER_BIT
    return Bound(
        bits_per_dim=nats / NATS_PER_BIT,
        half_width=_half_width(run, process),
        num_evaluations=run.summary["num_evaluations"],
    )


def _errors(run: NllReport) -> Values:
    """(T,) mean squared error of x_start, which some timesteps of a small run lack."""
    mse = run.per_timestep["x_start_mse"].to_numpy(np.float64)
    known = np.isfinite(mse) & (mse > 0)
    log_t = np.log(np.arange(1, len(mse) + 1))
    return np.asarray(np.exp(np.interp(log_t, log_t[known], np.log(mse[known]))))


def _decoder(run: NllReport, checkpoint: Checkpoint) -> Values:
    """(7,) the exact decoder at `log_variances`, in nats: between the two that the run has."""
    frame = run.conventions
    is_own = (frame.decoder == "exact") & (frame["clip"] == frame["clip"].iloc[0])
    whole = is_own & (frame.num_timesteps == checkpoint.schedule.num_timesteps)
    ends = [
        frame[whole & (frame.decoder_variance == name)].decoder_bits_per_dim.iloc[0] * NATS_PER_BIT
        for name in ("posterior", "beta")
    ]
    nodes = log_variances(checkpoint.schedule)
    if nodes[0] == nodes[-1]:
        return np.full(len(nodes), ends[0])
    return np.asarray(np.interp(nodes, nodes[[0, -1]], ends))


def _half_width(run: NllReport, process: Process) -> float | None:
    """That of the bounds with the nearest numbers of timesteps; None where it is unknown."""
    frame, count = run.sub_schedules, len(process.timesteps)
    if frame.empty:
        return None
    frame = frame[(frame.variance == process.variance) & frame.half_width.notna()]
    best = frame[(frame.spacing == BEST) | (frame.num_timesteps == frame.num_timesteps.max())]
    if best.empty:
        return None
    best = best.sort_values("num_timesteps")
    return float(np.interp(count, best.num_timesteps, best.half_width))
