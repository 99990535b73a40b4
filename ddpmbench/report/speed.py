"""What a measurement of speed found, as frames and as the object of `summary.json`."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd

from ddpmbench.runs.call_speed import CallSpeed
from ddpmbench.runs.row_parts import PartSeconds
from ddpmbench.runs.speed import MeasuredSpeed
from ddpmbench.runs.workloads import RowSeconds, Workload

SCHEMA = "ddpmbench.speed/1"


def calls_frame(found: MeasuredSpeed) -> pd.DataFrame:
    """One row a way to call the network and a batch size.

    Its columns are `engine` in words, `precision`, `channels_last`, `compiled`, `cuda_graph`,
    `batch_size`, `evaluations_per_second`, `ms_per_batch`, `tflops`, `share_of_peak` of the matrix
    product of that precision, `eps_error`, `first_seconds`, and `break_even_evaluations`, from
    which on compiling has won its time back (empty where it is not compiled, or never).
    """
    rows = []
    for call in found.calls:
        flops = found.flop_per_call * call.per_second
        peak = found.peaks.get(call.choice.precision, np.nan)
        rows.append(
            {
                "engine": str(call.choice),
                **dataclasses.asdict(call.choice),
                "precision": str(call.choice.precision),
                "batch_size": call.batch_size,
                "evaluations_per_second": call.per_second,
                "ms_per_batch": 1000 * call.seconds * call.batch_size,
                "tflops": flops / 1e12,
                "share_of_peak": flops / peak,
                "eps_error": call.eps_error,
                "first_seconds": call.first_seconds,
                "break_even_evaluations": _break_even(call, found.calls),
            }
        )
    return pd.DataFrame(rows)


def _break_even(call: CallSpeed, calls: Sequence[CallSpeed]) -> float:
    if not call.choice.compiled:
        return np.nan
    plain = [
        other
        for other in calls
        if not other.choice.compiled
        and (other.choice.precision, other.batch_size) == (call.choice.precision, call.batch_size)
    ]
    saved = min((other.seconds for other in plain), default=0.0) - call.seconds
    return call.first_seconds / saved if saved > 0 else np.nan


def parts_frame(found: MeasuredSpeed) -> pd.DataFrame:
    """One row a kind of row and precision, in milliseconds: `row`, `precision`, `network`, ..."""
    return pd.DataFrame(
        [
            {
                "row": part.row,
                "precision": str(precision),
                "ms": 1000 * part.seconds,
                "network": 1000 * part.network,
                "noise": 1000 * part.noise,
                "rest": 1000 * part.rest,
            }
            for precision, parts in found.parts.items()
            for part in parts
        ]
    )


def predictions_frame(found: MeasuredSpeed, works: Sequence[Workload]) -> pd.DataFrame:
    """One row a question and precision: `question`, `command`, `num_evaluations`, `seconds`."""
    return pd.DataFrame(
        [
            {
                "question": work.name,
                "command": work.command,
                "num_evaluations": work.num_evaluations,
                "precision": str(precision),
                "seconds": work.seconds(row_seconds(parts)),
            }
            for work in works
            for precision, parts in found.parts.items()
        ]
    )


def row_seconds(parts: Sequence[PartSeconds]) -> RowSeconds:
    """What the kinds of rows take: at t = 1, after it where a model has such steps, and of samples.

    Args:
        parts: of one precision, in that order.
    """
    first, *later, step = (part.seconds for part in parts)
    return RowSeconds(first, later[0] if later else 0.0, step)
