"""A run on a machine: its processes, its device, its folder and the record of them."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.errors import InputError
from ddpmbench.execution.devices import resolve_device
from ddpmbench.execution.distributed import Ranks, joined, open_folder, refuse_other_runs
from ddpmbench.execution.engine import Engine
from ddpmbench.execution.folder import RunFolder, environment
from ddpmbench.execution.network_check import check_network
from ddpmbench.files import named_path


@dataclasses.dataclass(frozen=True, eq=False)
class Session:
    """Where a run takes place.

    Attributes:
        ranks: its processes.
        device: that its networks run on.
        out: the path of its folder; None if the run is kept in memory.
        command: the command line, for the record; None when called from Python.
    """

    ranks: Ranks
    device: torch.device
    out: Path | None
    command: list[str] | None = None

    def checked(self, checkpoint: Checkpoint, shape: tuple[int, ...]) -> Checkpoint:
        """The checkpoint on the device, after the network check; see `check_network`.

        Args:
            checkpoint: the model.
            shape: (C, H, W) of an image.
        """
        return check_network(checkpoint, shape, device=self.device, ranks=self.ranks)

    def agree(self, identity: Mapping[str, Any], **settings: object) -> None:
        """Refuse processes that are not of this run.

        Args:
            identity: what determines the run's numbers.
            settings: what else must be the same in all processes.

        Raises:
            InputError: another process differs; the first difference is named.
        """
        refuse_other_runs({**identity, **settings}, self.ranks)

    def folder(self, identity: Mapping[str, Any]) -> RunFolder | None:
        """The run folder, new or to be resumed; None if the run is kept in memory.

        Raises:
            InputError: it cannot be written, or holds another run.
        """
        return None if self.out is None else open_folder(self.out, dict(identity), self.ranks)

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
            batch_size: as it was given.
            engine: that the network was called with; None if it is not known or there is none.
        """
        own: dict[str, object] = {
            "device": str(self.device),
            "batch_size": batch_size or "auto",
            "processes": self.ranks.count,
        }
        if engine is not None:
            own["engine"] = str(engine.choice)
        return environment(self.device, given=self.command, resolved={**resolved, **own})


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
