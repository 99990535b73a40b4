"""The run folder: what a run is, and the shards of terms it has computed so far.

A shard is a parquet file named by the positions of its rows in the design. Whatever is on disk is
whole, because every file is written beside its place and then moved there; so a run that was
killed goes on with the positions that no shard covers.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ddpmbench.errors import InputError
from ddpmbench.likelihood.terms import VALUE_COLUMNS, Rows, TermTable
from ddpmbench.runs.files import naming, replacing

_IDENTITY = "run.json"
_SHARD = re.compile(r"terms-(\d{12})-(\d{12})\.parquet")
_SECONDS = b"seconds"


class RunFolder:
    """A folder that holds one run.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        """Begin a run in a new or empty folder, or go on with the same run in its folder.

        Args:
            path: the folder.
            identity: everything that determines the run's numbers, as JSON can hold it.

        Raises:
            InputError: the path is no folder, holds something else, or cannot be written.
        """
        self.path = path
        self._shards = path / "shards"
        with naming(path):
            if path.exists() and not path.is_dir():
                raise InputError(f"--out {path}: is a file; name a folder")
            if (path / _IDENTITY).exists():
                _refuse_another_run(path, identity)
            elif path.exists() and any(path.iterdir()):
                raise InputError(
                    f"--out {path}: holds files but no run of ddpmbench; name a new folder"
                )
            self._shards.mkdir(parents=True, exist_ok=True)
            self.write_text(_IDENTITY, json.dumps(identity, indent=2) + "\n")
            for leftover in self._shards.glob("*.tmp"):
                leftover.unlink()

    def write_text(self, name: str, text: str) -> None:
        """Write a text file atomically."""
        with self.replacing(name) as temporary:
            temporary.write_text(text, encoding="utf-8")

    @contextlib.contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """A path to write to, which takes the place of the file `name` if nothing fails."""
        with naming(self.path), replacing(self.path / name) as temporary:
            yield temporary

    def save(self, start: int, table: TermTable, *, seconds: float) -> None:
        """Keep the terms of the rows at positions start, start + 1, ...

        Args:
            start: position of the first row.
            table: the terms.
            seconds: how long they took.
        """
        columns = {"image": table.rows.image, "t": table.rows.t, "draw": table.rows.draw}
        arrow = pa.table({**columns, **table.values})
        arrow = arrow.replace_schema_metadata({_SECONDS: repr(seconds).encode()})
        name = f"terms-{start:012d}-{start + len(table):012d}.parquet"
        with self.replacing(f"shards/{name}") as temporary:
            pq.write_table(arrow, temporary)

    def missing(self, length: int) -> list[tuple[int, int]]:
        """The gaps: ranges of positions below `length` that no shard covers."""
        gaps, covered = [], 0
        for start, stop, _ in self._ranges():
            if start > covered:
                gaps.append((covered, start))
            covered = max(covered, stop)
        if covered < length:
            gaps.append((covered, length))
        return gaps

    def tables(self) -> Iterator[TermTable]:
        """The terms of every row computed so far, once each, in the order of the design.

        Raises:
            InputError: a shard cannot be read.
        """
        covered = 0
        for start, stop, path in self._ranges():
            if stop <= covered:
                continue
            yield _read_shard(path, stop - start)[max(0, covered - start) :]
            covered = stop

    def seconds(self) -> float:
        """How long the rows computed so far took, all interruptions left out."""
        total = 0.0
        for _, _, path in self._ranges():
            metadata = pq.read_schema(path).metadata or {}
            total += float(metadata.get(_SECONDS, b"0"))
        return total

    def write_frame(self, name: str, frame: pd.DataFrame) -> None:
        """Write a table as csv, atomically; floating point numbers keep all their digits."""
        with self.replacing(name) as temporary:
            frame.to_csv(temporary, index=False)

    def _ranges(self) -> list[tuple[int, int, Path]]:
        matches = ((_SHARD.fullmatch(path.name), path) for path in self._shards.iterdir())
        return sorted((int(m[1]), int(m[2]), path) for m, path in matches if m)


def _refuse_another_run(path: Path, identity: dict[str, Any]) -> None:
    try:
        found = json.loads((path / _IDENTITY).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"--out {path}: {_IDENTITY} is damaged; name a new folder") from error
    for name in [*identity, *found]:
        if found.get(name) != identity.get(name):
            raise InputError(
                f"--out {path}: holds another run ({name} is {found.get(name)} there, "
                f"{identity.get(name)} here); name a new folder"
            )


def _read_shard(path: Path, length: int) -> TermTable:
    try:
        frame = pq.read_table(path).to_pandas()
        rows = Rows(*(frame[name].to_numpy() for name in ("image", "t", "draw")))
        table = TermTable(rows, {name: frame[name].to_numpy() for name in VALUE_COLUMNS})
    except (pa.ArrowException, OSError, KeyError) as error:
        raise InputError(f"{path}: damaged; delete this shard and run the command again") from error
    if len(table) != length:
        raise InputError(
            f"{path}: does not hold the rows it names; delete this shard and run the command again"
        )
    return table
