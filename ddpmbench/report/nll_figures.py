"""Figures of a bound: over the timesteps, over how many there are, and over the images."""

import numpy as np
import pandas as pd
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from ddpmbench.errors import counted
from ddpmbench.execution.stored_images import Extremes
from ddpmbench.likelihood.regression import log_bins
from ddpmbench.report.figures import (
    COLORS,
    DASHES,
    INK,
    NORMAL,
    Drawn,
    axes_panels,
    curve,
    draw_pictures,
    drawing,
    finish,
    histogram,
    legend_below,
    log_axis,
    note,
    panels,
    points,
    shown,
    written_out,
)

SPACINGS = ("evenly spaced", "best")
TALLEST = 3
"""The axes end at so many times the least bound: a few timesteps can cost thousands of bits."""
_WRITTEN_OUT = 1e6
_GROUPS = 10  # of timesteps, evenly in log t
_PLACES = {"t": "at whole timesteps, as in training", "u": "between them"}
_FEW = 50  # timesteps, up to which each is a point


def step_groups(num_timesteps: int) -> NDArray[np.int64]:
    """(T,) the group of each timestep t = 1..T, 0, 1, ... without gaps.

    They are equally wide in log t where timesteps are close enough; t = 1 is one of its own.
    """
    if num_timesteps == 1:
        return np.zeros(1, dtype=np.int64)
    return np.append(0, 1 + log_bins(num_timesteps)).astype(np.int64)


def by_group(timesteps: pd.DataFrame) -> pd.DataFrame:
    """One row per group of neighboring timesteps; see `step_groups`.

    Args:
        timesteps: the columns of `report.tables.per_timestep` and of `rate`, t = 1..T.

    Returns:
        `t_first`, `t_last`, `bits_per_dim` summed over the group and its `half_width`;
        `cumulative` over the group, all later timesteps and the prior, and its
        `cumulative_half_width`; 95 %.
    """
    variance = np.square(timesteps.standard_error)
    sums = timesteps.assign(variance=variance).groupby(step_groups(len(timesteps)))
    first = sums.t.min().to_numpy()
    # What is sent once x_{t-1} is known are the terms of t and all later timesteps.
    known = timesteps.set_index("t").reindex(first - 1)
    cumulative = known.rate_bits_per_dim.to_numpy(copy=True)
    error = known.rate_standard_error.to_numpy(copy=True)
    last = timesteps.iloc[0]
    cumulative[0] = last.rate_bits_per_dim + last.bits_per_dim
    error[0] = np.hypot(last.rate_standard_error, last.standard_error)
    return pd.DataFrame(
        {
            "t_first": first,
            "t_last": sums.t.max().to_numpy(),
            "bits_per_dim": sums.bits_per_dim.sum().to_numpy(),
            "half_width": NORMAL * np.sqrt(sums.variance.sum(min_count=1).to_numpy()),
            "cumulative": cumulative,
            "cumulative_half_width": NORMAL * error,
        }
    )


@drawing()
def bound_figure(per_timestep: pd.DataFrame, rates: pd.DataFrame) -> Drawn:
    """The bits of a timestep, and those sent so far, over t; 95 % intervals.

    Returns:
        The figure, and the rows of `by_group` with `bits_per_step` and its `half_width` on average
        over the group. In continuous time a group goes from `u_first` to `u_last`.
    """
    rates = rates[["t", "rate_bits_per_dim", "rate_standard_error"]]
    numbers = by_group(per_timestep.merge(rates, on="t"))
    size, first, last = numbers.t_last - numbers.t_first + 1, numbers.t_first, numbers.t_last
    if "u" in per_timestep:
        u = per_timestep.u.to_numpy()
        numbers["u_first"], numbers["u_last"] = u[(first - 2).clip(lower=0)], u[last - 1]
        first, last = numbers.u_first, numbers.u_last
        size = (last - first).where(numbers.t_last > 1, 1)
    numbers["bits_per_dim"] /= size
    numbers["half_width"] /= size
    numbers = numbers.rename(columns={"bits_per_dim": "bits_per_step"})

    figure, (each, total) = axes_panels(2)
    center = np.sqrt(first * last)
    decoder, kl = numbers.iloc[:1], numbers.iloc[1:]
    points(each, center[1:], kl.bits_per_step, kl.half_width, 0)
    points(each, center[:1], decoder.bits_per_step, decoder.half_width, 1, ms=5)
    log_axis(each, "x", "y")
    # Errors that reach 0 would stretch the axis without end.
    positive = numbers.bits_per_step[numbers.bits_per_step > 0]
    if len(positive):
        each.set_ylim(positive.min() / 2.5, positive.max() * 2.5)
        note(each, "decoder, t = 1", at=(1, decoder.bits_per_step.iloc[0]), offset=(8, 0))
    finish(each, "Bits per timestep", x="timestep t", y="bits/dim")

    curve(total, first, numbers.cumulative, numbers.cumulative_half_width, 0)
    whole = numbers.cumulative.iloc[0]
    points(total, [1], [whole], None, 1, ms=5)
    note(total, f"total: {whole:.4f}", at=(1, whole), offset=(8, 0))
    total.set_ylim(bottom=min(0, (numbers.cumulative - numbers.cumulative_half_width).min()))
    log_axis(total, "x")
    finish(total, "Cumulative bits from T", x="timestep t", y="bits/dim")
    return figure, numbers


@drawing()
def calls_figure(
    per_timestep: pd.DataFrame,
    density: pd.DataFrame,
    *,
    num_images: int,
    num_sampled: int,
    num_replicates: int,
) -> Drawn:
    """Network evaluations per timestep: actual, expected, and of every pair.

    Args:
        per_timestep: see `report.tables.per_timestep`.
        density: `t`, `density` of the importance estimator, t = 2..T.
        num_images: N, the evaluations of every pair at each timestep.
        num_sampled: how many images were evaluated.
        num_replicates: how often each of them had a timestep of the density.

    Returns:
        The figure, and one row per timestep: `t`, `num_evaluations`, `expected` by the density
        (empty at t = 1, where every such image is), `every_pair`.
    """
    expected = density.assign(expected=num_replicates * num_sampled * density.density)
    numbers = (
        per_timestep[["t", "num_evaluations"]]
        .merge(expected[["t", "expected"]], on="t", how="left")
        .assign(every_pair=num_images)
    )
    groups = numbers.groupby(step_groups(len(numbers)))
    first, last = groups.t.min().to_numpy(), groups.t.max().to_numpy()
    mean = groups.num_evaluations.mean().to_numpy()
    figure, (axes,) = axes_panels(1)
    few = numbers.iloc[1:].iloc[shown(len(numbers) - 1)]
    axes.axhline(num_images, color=INK, lw=0.9, ls="--")
    axes.plot(few.t, few.expected, color=COLORS[0], lw=1.2)
    axes.plot(np.sqrt(first * last), mean, color=COLORS[1], marker="o", ls="none")
    log_axis(axes, "x", "y")
    evaluated = mean[mean > 0]
    low, high = min(evaluated.min(), few.expected.min()), max(num_images, evaluated.max())
    axes.set_ylim(low / 2, high * 3)
    note(axes, "every pair", at=(first[-1], 1.4 * num_images), offset=(-1, 2))
    middle = few.iloc[np.abs(np.log(few.t) - np.log(last[-1]) / 2).argmin()]
    note(axes, "expected", at=(middle.t, middle.expected), offset=(9, 6))
    note(axes, "evaluated", at=(1, mean[0]), offset=(7, -11))
    unit, x = "timestep", "timestep t"
    if "u" in per_timestep:
        unit, x = "part", "part of continuous time"
    finish(axes, f"Network evaluations per {unit}", x=x, y="evaluations")
    return figure, numbers


@drawing()
def continuous_figure(terms: pd.DataFrame) -> Drawn:
    """Mean squared error of the noise at whole timesteps and between them; 95 % intervals.

    Both are of the same images and noise, and a place lies below its timestep, where the error is a
    little larger. A network that cannot take fractional timesteps shows a gap.

    Returns:
        The figure, and one row per group of timesteps: the means of the columns of
        `report.tables.continuous_frame`, and the half widths of the errors.
    """
    edges = np.unique(np.geomspace(2, terms.t.max() + 1, _GROUPS + 1).round())
    groups = terms.groupby(np.searchsorted(edges, terms.t, side="right"))
    numbers = groups[["t", "u", "eps_mse", "eps_mse_at_t"]].mean()
    errors = groups[["eps_mse", "eps_mse_at_t"]].sem() * NORMAL
    numbers = numbers.join(errors.add_suffix("_half_width")).reset_index(drop=True)
    figure, (axes,) = axes_panels(1)
    for color, (x, y) in enumerate((("t", "eps_mse_at_t"), ("u", "eps_mse"))):
        points(axes, numbers[x], numbers[y], numbers[f"{y}_half_width"], color)
        axes.plot([], [], color=COLORS[color], marker="o", ls="none", label=_PLACES[x])
    log_axis(axes, "x", "y")
    legend_below(axes)
    finish(axes, "Error of the predicted noise", x="timestep", y="mean squared error")
    return figure, numbers


@drawing()
def sub_schedules_figure(table: pd.DataFrame) -> Drawn:
    """Bound over the number of timesteps, a panel per variance, all with the same axes.

    What is far above the least bound is written in the panel; a panel all of whose bounds are
    has an axis of its own.

    Returns:
        The figure, and the table (`report.conventions.SUB_SCHEDULE_COLUMNS`) without `steps`.
    """
    variances = list(dict.fromkeys(table.variance))
    figure, parts = axes_panels(len(variances))
    common = _range(table.bits_per_dim)
    for variance, axes in zip(variances, parts, strict=True):
        rows = table[table.variance == variance]
        low, high = common if rows.bits_per_dim.min() < common[1] else _range(rows.bits_per_dim)
        for k, spacing in enumerate(SPACINGS):
            line = rows[rows.spacing == spacing].sort_values("num_timesteps")
            if line.empty:
                continue
            look = {"color": COLORS[1 - k], "ls": DASHES[1 - k], "label": spacing}
            # Of a bound beyond the axis, a part of the interval would stand in the panel alone.
            half_width = line.half_width.where(line.bits_per_dim <= high)
            points(axes, line.num_timesteps, line.bits_per_dim, half_width, k, **look)
        log_axis(axes, "x")
        legend_below(axes)
        finish(axes, f"Variance {variance}", x="number of timesteps", y="bound, bits/dim")
        axes.set_xlim(table.num_timesteps.min() / 1.1, table.num_timesteps.max() * 1.1)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: written_out(value)))
        axes.set_ylim(low - (0.05 * (high - low) or 0.05), high)
        beyond = rows[rows.bits_per_dim > high]
        if len(beyond):
            steps, most = beyond.num_timesteps.min(), beyond.bits_per_dim.max()
            bits = f"{most:,.0f}" if most < _WRITTEN_OUT else f"{most:.1e}"
            axes.text(
                0.98,
                0.98,
                f"up to {bits}\nat {counted(int(steps), 'timestep')}",
                transform=axes.transAxes,
                ha="right",
                va="top",
                fontsize="small",
            )
    return figure, table.drop(columns="steps", errors="ignore")


def _range(bits: "pd.Series[float]") -> tuple[float, float]:
    """The least of bounds, and where an axis that begins there ends."""
    low, most = float(bits.min()), float(bits.max())
    return low, min(most + 0.1 * (most - low), TALLEST * low)


@drawing()
def images_figure(bits: NDArray[np.float64], what: str, extremes: Extremes | None) -> Drawn:
    """A histogram of the images' bits, and the pictures at its two ends, if there are any.

    Args:
        bits: (N,) bits per dimension, NaN where they are unknown.
        what: the name of the bits for the title.
        extremes: the pictures.

    Returns:
        The figure, and one row per bin: `bits_from`, `bits_to`, `num_images`.
    """
    figure, (first, *rest) = panels(1 if extremes is None else 3)
    axes = first.subplots()
    known = bits[np.isfinite(bits)]
    mean = float(known.mean())
    counts, edges = histogram(axes, known, mean, f"mean {mean:.3f}")
    finish(axes, f"{what} per image", x="bits/dim", y="images")
    ends = () if extremes is None else extremes.ends
    for part, (end, index, pixels) in zip(rest, ends, strict=True):
        draw_pictures(part, f"{end.capitalize()} bits", pixels, bits[index])
    return figure, pd.DataFrame(
        {"bits_from": edges[:-1], "bits_to": edges[1:], "num_images": counts}
    )


@drawing()
def schedule_figure(steps: pd.DataFrame) -> Drawn:
    """The share of the signal, its ratio to the noise, and the noise added, over t.

    Args:
        steps: `t`, `beta`, `alphas_cumprod`, `log_snr`; see `Inspection.schedule`.

    Returns:
        The figure, and the frame.
    """
    few, color = steps.iloc[shown(len(steps))], COLORS[0]
    marker = "o" if len(steps) <= _FEW else None
    figure, (signal, ratio, added) = axes_panels(3)
    signal.plot(few.t, few.alphas_cumprod, color=color, marker=marker)
    signal.set_ylim(0, 1.02)
    finish(signal, "Signal left in x_t", x="timestep t", y="alphas_cumprod")
    t, left = steps.t.iloc[-1], steps.alphas_cumprod.iloc[-1]
    # In the corner that a falling curve leaves free.
    note(signal, f"{left:.2g} at t = {t:,}", at=(t, 0.95), offset=(-3, 0))
    ratio.axhline(0, color=INK, lw=0.9, ls="--")
    ratio.plot(few.t, few.log_snr, color=color, marker=marker)
    if len(drowned := steps.t[steps.log_snr <= 0]):
        note(ratio, "as much noise as signal", at=(drowned.iloc[0], 0), offset=(8, 8))
    finish(ratio, "Signal against noise", x="timestep t", y="log SNR, nats")
    added.plot(few.t, few.beta, color=color, marker=marker)
    added.set_ylim(bottom=0)
    for axes in (signal, ratio, added):
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    finish(added, "Noise added at a timestep", x="timestep t", y="beta")
    return figure, steps
