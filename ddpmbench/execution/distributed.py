"""The processes that torchrun started for a run; without torchrun there is one.

They share the run folder, where each keeps the entries that it computes on its own, and what rank 0
decides: which entries are missing, what the bound is, whether to go on. They wait for each other
before and after each pass over entries, when rank 0 reduces them, and when all is written.
"""

import contextlib
import dataclasses
import datetime
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar, cast

from ddpmbench.errors import InputError, ProcessLostError, ReportedError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


T = TypeVar("T")

STRIPES = 8
"""Number of parts in the share of a process, if there are enough batches."""
PATIENCE = datetime.timedelta(days=30)
"""How long a process waits for a slower one; a dead one is noticed at once."""


@dataclasses.dataclass(frozen=True, eq=False)
class Ranks:
    """The processes of a run, seen from one of them.

    Attributes:
        rank: index of this process, 0 <= rank < count; rank 0 reports.
        count: number of processes.
        local_rank: index of this process on its machine.
        group: the process group; None for a single process.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    group: "ProcessGroup | None" = None

    @property
    def reports(self) -> bool:
        """Whether this process prints and writes the tables."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait for all processes.

        Raises:
            ProcessLostError: another process has stopped.
        """
        self.together(lambda: None)

    def once(self, compute: Callable[[], T]) -> T:
        """The result of rank 0, sent to all processes.

        Raises:
            ProcessLostError: another process has stopped.
        """
        if self.group is None:
            return compute()
        import torch.distributed as dist

        with _noticing_loss():
            dist.barrier(self.group)
        value = self.together(lambda: compute() if self.rank == 0 else None)
        sent = [value]
        with _noticing_loss():
            dist.broadcast_object_list(sent, src=0, group=self.group)
        return cast(T, value if self.rank == 0 else sent[0])

    def together(self, compute: Callable[[], T]) -> T:
        """The result of each process's own computation, if all succeed.

        Raises:
            InputError: this process failed.
            ReportedError: another process failed.
            ProcessLostError: another process has stopped.
        """
        if self.group is None:
            return compute()
        import torch.distributed as dist

        value: T | None = None
        error: InputError | None = None
        try:
            value = compute()
        except InputError as raised:
            error = raised
        failed: list[bool] = [False] * self.count
        with _noticing_loss():
            dist.all_gather_object(failed, error is not None, group=self.group)
        if error is not None:
            raise error
        if any(failed):
            raise ReportedError(f"rank {failed.index(True)} reports the error")
        return cast(T, value)

    def first_one(self, compute: Callable[[], T]) -> T:
        """The result of each process's own computation, on rank 0 first, since it may download."""
        # Results are not sent: they may be too large, or tied to a process.
        first = self.together(lambda: compute() if self.rank == 0 else None)
        return self.together(lambda: cast(T, first) if self.rank == 0 else compute())

    def share(self, batches: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """This process's share of batches, in order.

        The shares are disjoint, cover all batches and differ in size by at most one. They are
        interleaved, so that each process sees entries of every kind.

        Args:
            batches: ranges of indices.
        """
        sizes = [len(batches[rank :: self.count]) for rank in range(self.count)]
        stripes = max(1, min(STRIPES, min(sizes)))
        share, start = [], 0
        for stripe in range(stripes):
            for rank, size in enumerate(sizes):
                stop = start + size * (stripe + 1) // stripes - size * stripe // stripes
                if rank == self.rank:
                    share += batches[start:stop]
                start = stop
        return share


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that torchrun started with this one, until the end of the block.

    An existing process group, as in the user's own program, is reused.

    Source: the environment variables of `torchrun`.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or "MASTER_ADDR" not in os.environ:
        yield Ranks()
        return
    import torch.distributed as dist

    # The processes exchange a few bytes between two estimates; gloo does that on any device.
    was_initialized = dist.is_initialized()
    if not was_initialized:
        dist.init_process_group("gloo", timeout=PATIENCE)
    group = cast("ProcessGroup", dist.new_group(backend="gloo", timeout=PATIENCE))
    try:
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        yield Ranks(dist.get_rank(), dist.get_world_size(), local_rank, group)
    finally:
        dist.destroy_process_group(None if not was_initialized else group)


@contextlib.contextmanager
def _noticing_loss() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ProcessLostError(
            "another process of this run has stopped; run the same command again"
        ) from error
