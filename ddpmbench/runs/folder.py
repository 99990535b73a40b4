"""The run folder: what a run is, and the shards of terms it has computed so far.

A shard is a parquet file named by the positions of its rows in the design. Whatever is on disk is
whole, because every file is written beside its place and then moved there; so a run that was
killed goes on with the positions that no shard covers.
"""

import contextlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ddpmbench.errors import InputError
from ddpmbench.files import naming, replacing
from ddpmbench.likelihood.terms import VALUE_COLUMNS, Rows, TermTable

_IDENTITY = "run.json"
_SHARD = re.compile(r"terms-(\d{12})-(\d{12})\.parquet")
_SECONDS, _DEVICE = b"seconds", b"device"
LEFTOVER_SECONDS = 600.0
"""A temporary file older than this was left by a run that was killed."""


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
            elif path.exists() and any(map(_is_foreign, path.iterdir())):
                raise InputError(
                    f"--out {path}: holds files but no run of ddpmbench; name a new folder"
                )
            path.mkdir(parents=True, exist_ok=True)
            if not (path / _IDENTITY).exists():
                self.write_text(_IDENTITY, json.dumps(identity, indent=2) + "\n")
            self._shards.mkdir(exist_ok=True)
            _remove_leftovers(path)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file atomically."""
        with self.replacing(name) as temporary:
            temporary.write_text(text, encoding="utf-8")

    @contextlib.contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """A path to write to, which takes the place of the file `name` if nothing fails."""
        with naming(self.path), replacing(self.path / name) as temporary:
            yield temporary

    def save(self, start: int, table: TermTable, *, seconds: float, device: str) -> None:
        """Keep the terms of the rows at positions start, start + 1, ...

        Args:
            start: position of the first row.
            table: the terms.
            seconds: how long they took.
            device: where they were computed.
        """
        columns = {"image": table.rows.image, "t": table.rows.t, "draw": table.rows.draw}
        arrow = pa.table({**columns, **table.values})
        metadata = {_SECONDS: repr(seconds).encode(), _DEVICE: device.encode()}
        arrow = arrow.replace_schema_metadata(metadata)
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
        return sum(float(metadata[_SECONDS]) for metadata in self._metadata())

    def devices(self) -> list[str]:
        """Where the rows were computed."""
        return sorted({metadata[_DEVICE].decode() for metadata in self._metadata()})

    def write_frame(self, name: str, frame: pd.DataFrame) -> None:
        """Write a table as csv, atomically; floating point numbers keep all their digits."""
        with self.replacing(name) as temporary:
            frame.to_csv(temporary, index=False)

    def _metadata(self) -> Iterator[dict[bytes, bytes]]:
        for _, _, path in self._ranges():
            yield pq.read_schema(path).metadata

    def _ranges(self) -> list[tuple[int, int, Path]]:
        matches = ((_SHARD.fullmatch(path.name), path) for path in self._shards.iterdir())
        return sorted((int(m[1]), int(m[2]), path) for m, path in matches if m)


def _is_foreign(path: Path) -> bool:
    """Whether a file is none that a run killed at its very start can have left."""
    return path.suffix != ".tmp" and not (path.name == "shards" and not any(path.iterdir()))


def _remove_leftovers(path: Path) -> None:
    """Remove what killed runs were writing; a file that is being written now is younger."""
    for leftover in path.rglob("*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                leftover.unlink()


def _refuse_another_run(path: Path, identity: dict[str, Any]) -> None:
    try:
        found = dict(json.loads((path / _IDENTITY).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
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
