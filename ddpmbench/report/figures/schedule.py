"""What a noise schedule does to the data."""

from typing import TYPE_CHECKING

import pandas as pd

from ddpmbench.report.figures.style import COLORS, INK, axes_panels, drawing, finish, note, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FEW = 50
"""With at most so many timesteps each is a point."""


@drawing()
def schedule_figure(steps: pd.DataFrame) -> tuple["Figure", pd.DataFrame]:
    """The share of the signal, its ratio to the noise, and the noise added, over t.

    Args:
        steps: one row a timestep, `t`, `beta`, `alphas_cumprod`, `log_snr`; see
            `Inspection.schedule`.

    Returns:
        The figure, and the frame.
    """
    from matplotlib.ticker import MaxNLocator

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
