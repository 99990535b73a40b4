"""The session of a run: its processes, its device, its folder and its environment."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.errors import InputError
from ddpmbench.execution.devices import resolve_device
from ddpmbench.execution.distributed import Ranks, joined
from ddpmbench.execution.engine import Engine
from ddpmbench.execution.folder import (
    IDENTITY,
    SHARDS,
    RunFolder,
    environment,
    refuse_other,
    run_store,
    tag,
)
from ddpmbench.execution.network_check import check_continuous, check_network
from ddpmbench.execution.store import MemoryStore, Store, drop_damaged, recomputed
from ddpmbench.execution.worker import RunListener, Worker
from ddpmbench.files import named_path


@dataclasses.dataclass(frozen=True, eq=False)
class Session:
    """The processes, the device and the folder of a run.

    Attributes:
        ranks: the processes.
        device: the device of the networks.
        out: the path of the run folder; None if the run is kept in memory.
        command: the command line, for the record; None when called from Python.
    """

    ranks: Ranks
    device: torch.device
    out: Path | None
    command: list[str] | None = None

    def checked(self, checkpoint: Checkpoint, shape: tuple[int, ...]) -> Checkpoint:
        """The checkpoint on the device, after the network check.

        See `check_network`, and `check_continuous` for a model at fractional timesteps.

        Args:
            checkpoint: the model.
            shape: (C, H, W) of an image.
        """
        trained = check_network(checkpoint.as_trained, shape, device=self.device, ranks=self.ranks)
        checked = dataclasses.replace(trained, schedule=checkpoint.schedule)
        if checked.schedule.trained is not None:
            most = checked.schedule.num_original_timesteps
            remedy = f"choose `timesteps` of at most {most:,}"
            self.ranks.once(lambda: check_continuous(checked, shape, self.device, remedy=remedy))
        return checked

    def dtype_of_tables(self, checkpoint: Checkpoint) -> str:
        """The dtype that the tables of a schedule have on the device."""
        return str(checkpoint.diffusion.to(self.device).dtype)

    def agree(self, identity: Mapping[str, Any], **settings: object) -> None:
        """Raise InputError unless all processes belong to the same run.

        Args:
            identity: what determines the run's numbers.
            settings: other values that must be equal in all processes.

        Raises:
            InputError: this process differs from process 0; the first difference is named.
        """
        ours = {**identity, **settings}
        theirs = self.ranks.once(lambda: ours)
        what = f"process {self.ranks.rank}: has another run than process 0"
        remedy = "start all with the same options, files and version"
        self.ranks.together(lambda: refuse_other(what, theirs, ours, remedy))

    def folder(self, identity: Mapping[str, Any], warn: Callable[[str], None]) -> RunFolder | None:
        """The run folder, new or resumed, without damaged shards.

        Args:
            identity: what determines the run's numbers.
            warn: called with a line if there were damaged shards.

        Returns:
            None if the run is kept in memory.

        Raises:
            InputError: it cannot be written, holds another run, or is not shared by the processes.
        """
        path = self.out
        if path is None:
            return None

        def opened() -> tuple[RunFolder, list[str]]:
            folder = RunFolder(path, dict(identity))
            return folder, drop_damaged(path / SHARDS, tag(path))

        folder, dropped = self.ranks.once(opened)

        def find() -> None:
            if not (path / IDENTITY).exists():
                raise InputError(
                    f"`out={path}`: another process created it, but it is not there; name a folder "
                    "on a file system that all machines share"
                )

        self.ranks.together(find)
        if dropped:
            warn(recomputed(dropped))
        return folder

    def worker(
        self, shape: tuple[int, ...], *, batch_size: int | None, listener: RunListener
    ) -> Worker:
        """A worker that computes entries of stores in batches of images (C, H, W)."""
        return Worker.of(
            self.device, shape, batch_size=batch_size, ranks=self.ranks, listener=listener
        )

    def store(self, name: str) -> Store:
        """The store of this name, in the run folder or in memory."""
        return MemoryStore() if self.out is None else run_store(self.out, name)

    def environment(
        self,
        resolved: Mapping[str, object],
        *,
        batch_size: int | None,
        engine: Engine | None = None,
    ) -> dict[str, object]:
        """The object of `environment.json`.

        Args:
            resolved: the settings of the run.
            batch_size: as given by the user.
            engine: the engine of the network; None if unknown or without a network.
        """
        fields: dict[str, object] = {
            "device": str(self.device),
            "batch_size": batch_size or "auto",
            "processes": self.ranks.count,
        }
        if engine is not None:
            fields["engine"] = str(engine.choice)
        return environment(self.device, given=self.command, resolved={**resolved, **fields})


@contextlib.contextmanager
def session(
    device: str, out: str | Path | None, command: list[str] | None = None
) -> Iterator[Session]:
    """Join the processes of a run until the end of the block.

    Args:
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        out: the path of the run folder; None keeps the run in memory.
        command: the command line, for the record.

    Raises:
        InputError: there is no such device, or several processes have no folder to share.
        ProcessLostError: another process has stopped.
    """
    with joined() as ranks:
        if ranks.count > 1 and out is None:
            raise InputError("`out`: several processes need a folder that they share; name one")
        path = None if out is None else named_path(out)
        yield Session(ranks, resolve_device(device, ranks.local_rank), path, command)
