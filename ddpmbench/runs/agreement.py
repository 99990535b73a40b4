"""What all processes of a run must agree on before it begins: what it is, and its folder."""

from pathlib import Path
from typing import Any

from ddpmbench.errors import InputError
from ddpmbench.runs.distributed import Ranks
from ddpmbench.runs.folder import IDENTITY, RunFolder


def refuse_other_runs(here: dict[str, Any], ranks: Ranks) -> None:
    """All processes must be the same run: by options, files and package.

    Raises:
        InputError: this one differs from process 0.
    """
    there = ranks.once(lambda: here)

    def compare() -> None:
        for name, value in here.items():
            if value != there.get(name):
                raise InputError(
                    f"process {ranks.rank}: {name} is {value}, but {there.get(name)} in process 0; "
                    "start all with the same options, files and version"
                )

    ranks.together(compare)


def open_folder(path: Path, identity: dict[str, Any], ranks: Ranks) -> RunFolder:
    """The folder, which rank 0 makes and the others find, without the shards that are damaged.

    Raises:
        InputError: it holds something else, cannot be written, or is not shared.
    """

    def opened() -> RunFolder:
        folder = RunFolder(path, identity)
        folder.dropped = tuple(folder.drop_damaged_shards())
        return folder

    folder = ranks.once(opened)

    def find() -> RunFolder:
        if not (path / IDENTITY).exists():
            raise InputError(
                f"--out {path}: another process made it, but it is not there; name a folder on a "
                "file system that all machines share"
            )
        return folder

    return ranks.together(find)
