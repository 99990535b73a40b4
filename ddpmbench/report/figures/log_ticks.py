"""Numbers on a logarithmic axis, however short it is."""

from typing import Any

from matplotlib.ticker import LogLocator, MaxNLocator


class LogTicks(LogLocator):
    """Powers of ten on a long axis, their 1, 2 and 5 on a short one, even steps on a very short."""

    def tick_values(self, vmin: float, vmax: float) -> Any:  # noqa: ANN401, D102
        low, high = sorted((vmin, vmax))
        if not low > 0 or high >= 300 * low:
            return LogLocator().tick_values(vmin, vmax)
        if high >= 5 * low:
            return LogLocator(subs=(1.0, 2.0, 5.0)).tick_values(vmin, vmax)
        return MaxNLocator(6).tick_values(vmin, vmax)
