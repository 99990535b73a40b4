"""What runs take on many processes, as a formula of what their parts take.

Rows are independent, so a run is parts that divide by the number of processes, parts that every
process has, and parts that rank 0 has alone.
"""

import dataclasses
import functools

import numpy as np
from numpy.typing import NDArray

from ddpmbench.execution.distributed import Ranks
from ddpmbench.execution.terms import SHARD_SECONDS
from ddpmbench.likelihood.designs import EveryPair, Pilot, num_rows
from ddpmbench.likelihood.stopping import first_rotations


@dataclasses.dataclass(frozen=True)
class Costs:
    """Seconds that the parts of a run take on a machine.

    Attributes:
        launch: torchrun, until its processes begin.
        start: a process, until it can read: its imports.
        read: a process, for checkpoint and images, once their bytes are there.
        read_bytes: bytes of both.
        batch: a network call, whatever its rows.
        row: more for each of its rows.
        batch_rows: rows a call at most.
        write: a shard.
        gather: rank 0, for a shard, in all that reads it.
        meet: when all processes wait for one another, for each of them.
    """

    launch: float
    start: float
    read: float
    read_bytes: int
    batch: float
    row: float
    batch_rows: int
    write: float
    gather: float
    meet: float

    @property
    def full_row(self) -> float:
        """A row of a full batch."""
        return self.row + self.batch / self.batch_rows

    def slowed(self, factor: float) -> "Costs":
        """Those of processes that share cores: all that a core does takes so much longer."""
        names = ("start", "read", "batch", "row", "write")
        return dataclasses.replace(self, **{name: getattr(self, name) * factor for name in names})


@dataclasses.dataclass(frozen=True)
class Job:
    """A checkpoint on images.

    Attributes:
        rounds: rows that are divided at once, one round after another.
        tables: seconds of rank 0 for all that is no row: reductions, tables, page.
        meetings: how often all processes wait for one another.
    """

    rounds: tuple[int, ...]
    tables: float
    meetings: int = 0

    @property
    def rows(self) -> int:
        """Network calls."""
        return sum(self.rounds)

    @classmethod
    def sampled(cls, num_images: int, num_timesteps: int, *, tables: float) -> "Job":
        """A rotated warp that the first look finds narrow enough."""
        pilot = len(Pilot(num_images, num_timesteps, 0))
        rounds = pilot, num_rows(num_images, first_rotations(num_images))
        return cls(rounds, tables, meetings=23)

    @classmethod
    def every_pair(cls, num_images: int, num_timesteps: int, *, tables: float) -> "Job":
        """Every step of every image, one draw."""
        return cls((len(EveryPair(num_images, num_timesteps, 1)),), tables, meetings=14)


@dataclasses.dataclass(frozen=True, eq=False)
class Shares:
    """What each of G processes has of a round.

    Attributes:
        rows: (G,) rows.
        batches: (G,) network calls that they come in.
        shards: (G,) files, before long work is written in more of them.
    """

    rows: NDArray[np.int64]
    batches: NDArray[np.int64]
    shards: NDArray[np.int64]

    def seconds(self, costs: Costs) -> NDArray[np.float64]:
        """(G,) seconds of each for its network calls."""
        return costs.batch * self.batches + costs.row * self.rows

    def files(self, costs: Costs) -> NDArray[np.float64]:
        """(G,) shards that each writes."""
        return self.shards + np.floor(self.seconds(costs) / SHARD_SECONDS)


@functools.cache
def shares(rows: int, ranks: int, batch_rows: int) -> Shares:
    """How the package divides so many rows among processes.

    Args:
        rows: of the round; none of them is there yet.
        ranks: processes.
        batch_rows: rows a network call at most.
    """
    found = np.zeros((3, ranks), dtype=np.int64)
    for rank in range(ranks):
        for start, stop in Ranks(rank, ranks).share([(0, rows)], 1, batch=batch_rows):
            found[:, rank] += stop - start, -(-(stop - start) // batch_rows), 1
    return Shares(*found)


def num_shards(job: Job, costs: Costs, ranks: int) -> int:
    """Files that the rows of a run are written in."""
    every = (shares(rows, ranks, costs.batch_rows).files(costs).sum() for rows in job.rounds)
    return int(sum(every))


def meeting_seconds(job: Job, costs: Costs, ranks: int) -> float:
    """Of all of a run's meetings, taken to grow as the number of processes does, which is the
    worst that they can.
    """
    return costs.meet * ranks * job.meetings if ranks > 1 else 0.0


def seconds_of(job: Job, costs: Costs, ranks: int, *, others: float = 1.0) -> float:
    """What a run takes from its command to its page, if all processes are alike.

    The checkpoint and the images are read twice, because rank 0 reads them first: it may have to
    download them.

    Args:
        job: what is computed.
        costs: of the parts.
        ranks: processes.
        others: how much slower each is because all of them are at work.
    """
    busy = costs.slowed(others)
    files = num_shards(job, costs, ranks)
    rounds = 0.0
    for rows in job.rounds:
        share = shares(rows, ranks, costs.batch_rows)
        rounds += float((share.seconds(busy) + busy.write * share.files(costs)).max())
    reads = costs.read + busy.read * (ranks > 1)
    end = costs.gather * files + job.tables + meeting_seconds(job, costs, ranks)
    return costs.launch + busy.start + reads + rounds + end


def efficiency(job: Job, costs: Costs, ranks: int, *, seconds: float, jobs: int = 1) -> float:
    """The part of all processes' time in which the network is called, in full batches."""
    return jobs * job.rows * costs.full_row / (ranks * seconds)
