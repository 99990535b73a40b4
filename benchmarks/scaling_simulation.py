"""Runs on a cluster, event by event: processes that differ, and files that they share.

The formula of `scaling_model` takes all processes as alike and files as always at hand. Here a run
waits for its slowest process, and reads queue at one file server.
"""

import dataclasses
import heapq

import numpy as np
from numpy.typing import NDArray
from scaling_model import Costs, Job, meeting_seconds, num_shards, shares


@dataclasses.dataclass(frozen=True)
class Cluster:
    """What is assumed of a cluster.

    Attributes:
        spread: standard deviation of the logarithm of the processes' speeds.
        slow_share: part of the processes that are slow besides.
        slow_factor: how much longer those take.
        bytes_per_second: of the file server, all readers together.
    """

    spread: float = 0.03
    slow_share: float = 0.01
    slow_factor: float = 1.5
    bytes_per_second: float = 2e9


ALIKE = Cluster(0.0, 0.0, 1.0, float("inf"))
"""Processes that are alike, and files at hand."""


class _Server:
    """Serves one request after another."""

    def __init__(self) -> None:
        self._free = 0.0

    def serve(self, now: float, count: int, seconds: float) -> NDArray[np.float64]:
        """(count,) when each of so many requests made now is served; each takes so long."""
        begin = max(now, self._free)
        served: NDArray[np.float64] = begin + seconds * np.arange(1, count + 1)
        self._free = float(served[-1])
        return served


def simulate(
    job: Job, costs: Costs, cluster: Cluster, *, groups: tuple[int, int, int], seed: int
) -> float:
    """Seconds from the first command to the last page.

    Args:
        job: what each run computes.
        costs: of the parts.
        cluster: what is assumed of it.
        groups: how many groups of processes there are, how many processes in each, and how many
            runs they have to do; a group that is done takes the next run.
        seed: of the processes' speeds.
    """
    num_groups, size, left = groups
    generator = np.random.default_rng(seed)
    server = _Server()
    slow = [_slowness(cluster, size, generator) for _ in range(num_groups)]
    events = [(0.0, group, "free") for group in range(num_groups)]
    last = 0.0
    while events:
        now, group, what = heapq.heappop(events)
        factor = slow[group]
        match what:
            case "free":
                last = max(last, now)
                if left == 0:
                    continue
                left -= 1
                then = now + costs.launch + costs.start * float(factor.max()), "first reads"
            case "first reads":
                (served,) = server.serve(now, 1, costs.read_bytes / cluster.bytes_per_second)
                then = served + costs.read * factor[0], "others read" if size > 1 else "computes"
            case "others read":
                served = server.serve(now, size - 1, costs.read_bytes / cluster.bytes_per_second)
                then = float((served + costs.read * factor[1:]).max()), "computes"
            case "computes":
                then = now + _rounds(job, costs, factor), "ends"
            case _:
                alone = costs.gather * num_shards(job, costs, size) + job.tables
                met = meeting_seconds(job, costs, size)
                then = now + met + alone * float(factor[0]), "free"
        heapq.heappush(events, (then[0], group, then[1]))
    return last


def _rounds(job: Job, costs: Costs, factor: NDArray[np.float64]) -> float:
    """Each round ends when the slowest process has its rows."""
    size, seconds = len(factor), 0.0
    for rows in job.rounds:
        share = shares(rows, size, costs.batch_rows)
        each = share.seconds(costs) + costs.write * share.files(costs)
        seconds += float((each * factor).max())
    return seconds


def _slowness(cluster: Cluster, size: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """(size,) how much longer each process takes; 1 in the median."""
    factor = np.exp(cluster.spread * generator.standard_normal(size))
    is_slow = generator.random(size) < cluster.slow_share
    return np.where(is_slow, cluster.slow_factor * factor, factor)
