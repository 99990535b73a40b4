"""The figure and the page of `scaling.py`."""

import shlex
from pathlib import Path

import numpy as np
import pandas as pd
from scaling_model import Costs
from scaling_simulation import Cluster

from ddpmbench.execution.folder import write_figure
from ddpmbench.report.figures.style import (
    COLORS,
    DASHES,
    INK,
    MARKERS,
    axes_panels,
    drawing,
    finish,
    log_axis,
)


@drawing()
def draw(simulated: pd.DataFrame, checked: pd.DataFrame | None, out: Path) -> None:
    """Seconds and efficiency against ranks, and the runs that were measured.

    Args:
        simulated: see `scaling.simulation`.
        checked: see `scaling.measure`; None where nothing was measured.
        out: the folder; the figure goes into its `figures/`.
    """
    figure, (left, middle, right) = axes_panels(3)
    for index, (name, rows) in enumerate(simulated.groupby("scenario", sort=False)):
        style = {"color": COLORS[index], "marker": MARKERS[index], "ls": DASHES[index]}
        middle.plot(rows.ranks, rows["median"], **style, label=name)
        middle.fill_between(rows.ranks, rows.low, rows.high, color=COLORS[index], alpha=0.2, lw=0)
        right.plot(rows.ranks, rows.efficiency, **style)
    if checked is not None:
        for index, (name, rows) in enumerate(checked.groupby("estimator", sort=False)):
            left.plot(
                rows.processes, rows.measured, MARKERS[index], color=COLORS[index], label=name
            )
            left.plot(rows.processes, rows.predicted, color=COLORS[index], ls=DASHES[index])
        left.set_xticks(checked.processes.unique())
        left.set_ylim(0, None)
        left.legend()
    finish(left, "Measured, and the formula (lines)", x="processes", y="seconds")
    log_axis(middle, "x", "y")
    finish(middle, "Simulated", x="ranks", y="seconds")
    middle.legend(loc="best")
    log_axis(right, "x")
    right.axhline(0.8, color=INK, lw=0.6)
    right.set_ylim(0, 1)
    finish(right, "Time in the network, of all ranks'", x="ranks", y="efficiency")
    numbers = simulated if checked is None else pd.concat([checked, simulated])
    write_figure(out, "scaling", figure, numbers)


def readme(
    costs: Costs,
    checked: pd.DataFrame,
    simulated: pd.DataFrame,
    *,
    cluster: Cluster,
    command: list[str],
) -> str:
    """The page of the folder, markdown.

    Args:
        costs: what was measured of the parts.
        checked: see `scaling.measure`.
        simulated: see `scaling.simulation`.
        cluster: what was assumed there.
        command: which made it.
    """
    worst = checked.error.abs().max()
    return f"""# What many processes gain

Made, this page too, by

```sh
{shlex.join(command)}
```

on the machine of `environment.json`, one thread a process. The formula and what follows from it:
[docs/scaling.md](../../docs/scaling.md).

![Seconds and efficiency against ranks](figures/scaling.png)

## Measured: what the parts take

{_costs_table(costs)}

## Measured: whole runs beside the formula

`ddpmbench nll` under `torchrun --nproc-per-node P`, from the command to its end. The formula is
off by {100 * worst:.0f} % at most. It knows what processes beside others lose, from a network call
timed in as many processes at once; what rank 0 does whatever the rows it has from a small run's
command given again, which makes no call.

{_checked_table(checked)}

## Simulated: 1 to 1,024 ranks

Not measured: a discrete-event simulation from the parts above, each rank with a core or device of
its own; meetings take the longer the more meet. Assumed of the cluster: speeds differ by
{100 * cluster.spread:.0f} % (standard deviation), {100 * cluster.slow_share:.0f} % of the ranks
take {cluster.slow_factor:g} times as long, and all readers together get
{cluster.bytes_per_second / 1e9:g} GB/s. `efficiency` is the part of all ranks' time in which the
network is called, in full batches.

{_simulated_table(simulated)}

## Columns

`checked.csv`: `estimator, num_evaluations, processes, measured, predicted, error`.
`simulated.csv`: `scenario, ranks, group` (ranks a run), `formula`, and of the trials `median, low,
high` (the middle 90 %), `efficiency`. All times are seconds. `costs.json` is what was measured;
with `--costs FILE` that of another machine is simulated.
"""


def _costs_table(costs: Costs) -> str:
    texts = {
        "torchrun, until its processes begin": costs.launch,
        "a process: imports": costs.start,
        "a process: checkpoint and images": costs.read,
        "a network call, whatever its rows": costs.batch,
        "a row of it, besides": costs.row,
        "a shard: written": costs.write,
        "a shard: read by rank 0, whenever it is": costs.gather,
        "a meeting, for each process": costs.meet,
    }
    rows = [f"| {name} | {_significant(1000 * seconds)} |" for name, seconds in texts.items()]
    size = f"{costs.read_bytes / 1e6:,.1f} MB are read; {costs.batch_rows} rows share a call."
    return "\n".join(["| part | ms |", "|---|---|", *rows, "", size])


def _checked_table(checked: pd.DataFrame) -> str:
    rows = [
        f"| {row.estimator} | {row.num_evaluations:,} | {row.processes} | {row.measured:.1f} | "
        f"{row.predicted:.1f} | {100 * row.error:+.0f} % |"
        for row in checked.itertuples()
    ]
    head = "| estimator | calls | processes | measured, s | formula, s | off by |"
    return "\n".join([head, "|---|---|---|---|---|---|", *rows])


def _simulated_table(simulated: pd.DataFrame) -> str:
    shown = simulated[simulated.ranks.isin([1, 4, 16, 64, 256, 1024])]
    head = "| what | ranks | ranks a run | seconds | middle 90 % | efficiency |"
    rows = [
        f"| {row.scenario} | {row.ranks:,} | {row.group} | {_significant(row.median)} | "
        f"{_significant(row.low)} to {_significant(row.high)} | {100 * row.efficiency:.0f} % |"
        for row in shown.itertuples()
    ]
    return "\n".join([head, "|---|---|---|---|---|---|", *rows])


def _significant(value: float) -> str:
    """To three figures, without an exponent."""
    decimals = max(0, 2 - int(np.floor(np.log10(max(value, 1e-9)))))
    return f"{round(value, decimals):,.{min(decimals, 4)}f}"
