"""What is removed of a run folder that is gone on with: what is damaged, and nothing else."""

import errno
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ddpmbench import checksums
from ddpmbench.errors import InputError
from ddpmbench.execution import term_store
from ddpmbench.execution.chunks import made_again
from ddpmbench.execution.term_store import Shards, drop_damaged
from ddpmbench.likelihood.terms import VALUE_COLUMNS, TermIndex, TermTable

SIZE = 50


@pytest.fixture
def folder(tmp_path):
    """Three shards of one run."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for start in range(0, 3 * SIZE, SIZE):
        save(folder, start)
    return folder


def save(folder, start):
    zeros = np.zeros(SIZE, dtype=np.int64)
    table = TermTable(
        TermIndex(zeros, zeros, zeros), {name: zeros.astype(float) for name in VALUE_COLUMNS}
    )
    Shards(folder, "terms", run="a").save(start, table, seconds=1.0, device="cpu")


def paths(folder):
    return sorted(folder.glob("*.parquet"))


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def of_an_earlier_version(path):
    """Without checksum, run and first position."""
    table = pq.read_table(path)
    old = {b"seconds": b"1.0", b"device": b"cpu"}
    pq.write_table(table.replace_schema_metadata(old), path)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("where", [0.0, 0.3, 0.5, 0.7, 0.9, 0.99999])
def test_a_damaged_one_is_removed(folder, where):
    path = paths(folder)[1]
    flip(path, int(where * path.stat().st_size))
    if where < 0.99:  # else its checksum is not where the length of the footer says
        assert checksums.is_whole(path) is False
    assert drop_damaged(folder, "a") == [path.name]
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_what_cannot_be_read_is_kept(folder, monkeypatch, code):
    flip(paths(folder)[0], 200)
    kept, opened = content(folder), Path.open

    def fail(path, *mode):
        if path == folder / "terms-000000000050-000000000100.parquet":
            raise OSError(code, os.strerror(code))
        return opened(path, *mode)

    monkeypatch.setattr(Path, "open", fail)
    words = rf"000100\.parquet: cannot be read \({os.strerror(code).lower()}\); try again"
    with pytest.raises(InputError, match=words):
        drop_damaged(folder, "a")
    monkeypatch.undo()
    assert content(folder) == kept


def test_a_disk_that_fails_within_a_file_removes_none(folder, monkeypatch):
    kept = content(folder)

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(checksums, "_digest", fail)
    checksums._is_whole.cache_clear()
    with pytest.raises(InputError, match=r"cannot be read \(input/output error\)"):
        drop_damaged(folder, "a")
    assert content(folder) == kept


def test_those_of_an_earlier_version_are_kept(folder):
    flip(paths(folder)[0], 200)
    of_an_earlier_version(paths(folder)[2])
    kept = content(folder)
    with pytest.raises(InputError, match="an earlier version wrote it; name a new --out"):
        drop_damaged(folder, "a")
    assert content(folder) == kept


def test_a_folder_in_the_place_of_one_is_kept(folder):
    path = paths(folder)[1]
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match="it is no plain file"):
        drop_damaged(folder, "a")
    assert path.is_dir()


def test_one_that_another_process_computed_again_is_kept(folder, monkeypatch):
    path = paths(folder)[1]
    whole = path.read_bytes()
    flip(path, 200)
    remove = term_store.remove_if

    def remove_late(place, fault):
        place.write_bytes(whole)  # between the look at it and its removal
        return remove(place, fault)

    monkeypatch.setattr(term_store, "remove_if", remove_late)
    assert drop_damaged(folder, "a") == []
    assert path.read_bytes() == whole
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize("when", ["before it is read", "before it is removed"])
def test_one_that_another_process_removed_is_no_error(folder, monkeypatch, when):
    path = paths(folder)[1]
    flip(path, 200)
    name = "status_of" if when == "before it is read" else "remove_if"
    then = getattr(term_store, name)

    def gone(place, *of):
        path.unlink(missing_ok=True)
        return then(place, *of)

    monkeypatch.setattr(term_store, name, gone)
    assert drop_damaged(folder, "a") == []
    assert len(paths(folder)) == 2


def test_what_is_said_of_them():
    assert made_again(["a"]) == "a was damaged and is computed again"
    assert made_again(["a", "b"]) == "a, b were damaged and are computed again"
    assert made_again([*"abcde"]) == "a, b, c and 2 more were damaged and are computed again"
