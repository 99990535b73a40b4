"""A store: the entries saved are the entries read, once, in order; damaged shards are removed."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sealing import edit_npz

from ddpmbench import checksums
from ddpmbench.errors import InputError
from ddpmbench.execution import store as module
from ddpmbench.execution.store import (
    FolderStore,
    MemoryStore,
    drop_damaged,
    gaps_between,
    gathered,
    recomputed,
)

SIZE = 50


def save(store, start, stop, seconds=1.0, device="cpu"):
    arrays = {"value": np.arange(start, stop) * 10, "square": np.arange(start, stop)[:, None] ** 2}
    store.save(start, arrays, seconds=seconds, device=device)


@pytest.fixture
def store(tmp_path):
    return FolderStore(tmp_path / "shards", "x", run="a")


@pytest.fixture
def folder(store):
    """Three shards of one run."""
    for start in range(0, 3 * SIZE, SIZE):
        save(store, start, start + SIZE)
    return store.folder


def paths(folder):
    return sorted(folder.iterdir())


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def flip(path, place=400):
    changed = bytearray(path.read_bytes())
    changed[place] ^= 4
    path.write_bytes(changed)


# ---- what is saved is read


def test_entries_come_back_once_and_in_order(store):
    for start, stop in [(6, 9), (0, 4), (1, 3), (2, 7)]:  # another batch size wrote the last
        save(store, start, stop)
    assert store.missing(9) == []
    assert gathered(store, "value", 9).tolist() == [10 * i for i in range(9)]
    assert gathered(store, "square", 5).tolist() == [[i**2] for i in range(5)]
    assert {name for arrays in store.read(9) for name in arrays} == {"value", "square"}
    assert {name for arrays in store.read(9, ["value"]) for name in arrays} == {"value"}


def test_gaps_are_what_no_shard_covers(store):
    assert store.missing(10) == [(0, 10)]
    save(store, 3, 5)
    save(store, 7, 8)
    assert store.missing(10) == [(0, 3), (5, 7), (8, 10)]
    assert store.missing(4) == [(0, 3)]
    save(store, 0, 9)
    save(store, 1, 2)  # a shorter one within it
    assert store.missing(10) == [(9, 10)]


@given(
    ranges=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=6),
    length=st.integers(0, 40),
)
def test_gaps_between_are_the_indices_of_no_range(ranges, length):
    ranges = sorted((min(pair), max(pair) + 1) for pair in ranges if min(pair) < length)
    covered = {index for start, stop in ranges for index in range(start, stop)}
    gaps = gaps_between(ranges, length)
    assert [index for start, stop in gaps for index in range(start, stop)] == [
        index for index in range(length) if index not in covered
    ]


def test_memory_keeps_what_a_folder_keeps(store):
    memory = MemoryStore()
    assert memory.missing(3) == [(0, 3)]
    for each in (memory, store):
        save(each, 0, 2, seconds=1.5, device="one")
        save(each, 2, 5, seconds=2.0, device="other")
        assert each.missing(5) == []
        assert each.missing(7) == [(5, 7)]
        assert gathered(each, "value", 5).tolist() == [0, 10, 20, 30, 40]
        assert each.seconds(5) == 3.5
        assert each.devices(5) == {"one", "other"}


@pytest.mark.parametrize("length", [1, 4, 6, 10, 13, 15])
def test_entries_beyond_the_length_asked_for_are_not_there(store, length):
    for start, stop in [(0, 4), (4, 10), (8, 13), (13, 15)]:
        save(store, start, stop, seconds=stop - start, device=f"from {start}")
    assert gathered(store, "value", length).tolist() == [10 * i for i in range(length)]
    assert store.missing(length) == []
    # Entries 8 and 9 were computed twice, and took their time twice.
    assert store.seconds(length) == pytest.approx(length + min(max(length - 8, 0), 2))
    assert ("from 13" in store.devices(length)) == (length > 13)


def test_the_shards_of_one_name_are_none_of_another(store):
    save(FolderStore(store.folder, "x-y", run="a"), 0, 5)
    assert store.missing(5) == [(0, 5)]


def test_what_is_not_there_is_not_made_up(store, monkeypatch):
    monkeypatch.setattr(module, "ARRIVAL_SECONDS", 0.1)
    save(store, 0, 3)
    with pytest.raises(InputError, match="entries 3 to 4 were computed but are not there"):
        gathered(store, "value", 5)


# ---- a reader names a damaged shard


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:0]),
        lambda path: path.write_bytes(path.read_bytes()[:-40]),
        flip,
        lambda path: edit_npz(path, value=np.arange(3)),
        lambda path: edit_npz(path, shard_start=np.int64(1)),
        lambda path: edit_npz(path, shard_start=None),
        lambda path: edit_npz(path, square=None),
    ],
)
def test_a_damaged_shard_is_named(store, damage):
    save(store, 0, 4)
    (path,) = paths(store.folder)
    damage(path)
    with pytest.raises(InputError, match=r"x-0{12}-000000000004\.npz: damaged; run the command"):
        list(store.read(4, ["value", "square"]))


@pytest.mark.parametrize("read", ["seconds", "devices", "read"])
def test_a_shard_that_vanishes_once_it_was_verified_is_named(store, monkeypatch, read):
    save(store, 0, 4)

    def vanish(path):
        result = checksums.is_whole(path)
        path.unlink()
        return result

    monkeypatch.setattr(module, "is_whole", vanish)
    words = r"0004\.npz: cannot be read \(no such file or directory\); try again"
    with pytest.raises(InputError, match=words):
        list(getattr(store, read)(4))


def test_a_shard_under_another_name_is_named(store):
    save(store, 0, 4)
    (path,) = paths(store.folder)
    for stop in (3, 5):
        path = path.rename(store.folder / store.name_of(0, stop))
        with pytest.raises(InputError, match=f"{path.name}: damaged"):
            list(store.read(stop))


# ---- damaged shards are removed, and nothing else


@pytest.mark.parametrize("where", [0.0, 0.3, 0.5, 0.7, 0.9, 0.99999])
def test_a_damaged_one_is_removed(folder, where):
    path = paths(folder)[1]
    flip(path, int(where * path.stat().st_size))
    assert checksums.is_whole(path) is not True
    assert drop_damaged(folder, "a") == [path.name]
    assert len(paths(folder)) == 2


@pytest.mark.parametrize("name", ["000000000000-000000000049", "000000000001-000000000051"])
def test_one_under_another_name_is_removed(folder, name):
    paths(folder)[0].rename(folder / f"x-{name}.npz")
    assert drop_damaged(folder, "a") == [f"x-{name}.npz"]


def test_what_is_no_shard_is_left(folder):
    for name in ("x.npz", "x-1-2.npz", "notes.txt"):
        (folder / name).write_bytes(b"")
    assert drop_damaged(folder, "a") == []
    assert len(paths(folder)) == 6


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_what_cannot_be_read_is_kept(folder, monkeypatch, code):
    flip(paths(folder)[0])
    kept, opened, unreadable = content(folder), Path.open, paths(folder)[1]

    def fail(path, *mode):
        if path == unreadable:
            raise OSError(code, os.strerror(code))
        return opened(path, *mode)

    monkeypatch.setattr(Path, "open", fail)
    words = rf"0100\.npz: cannot be read \({os.strerror(code).lower()}\); try again"
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


def test_those_of_another_run_are_kept(folder):
    flip(paths(folder)[0])
    kept = content(folder)
    with pytest.raises(InputError, match="is of another run; move it out of the folder"):
        drop_damaged(folder, "b")
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
    intact = path.read_bytes()
    flip(path)
    remove = module.remove_if

    def remove_late(place, fault):
        place.write_bytes(intact)  # after it was judged, before it is removed
        return remove(place, fault)

    monkeypatch.setattr(module, "remove_if", remove_late)
    assert drop_damaged(folder, "a") == []
    assert path.read_bytes() == intact
    assert len(paths(folder)) == 3


@pytest.mark.parametrize("name", ["outline_of_npz", "remove_if"])  # before either
def test_one_that_another_process_removed_is_no_error(folder, monkeypatch, name):
    path = paths(folder)[1]
    flip(path)
    then = getattr(module, name)

    def gone(place, *of):
        path.unlink(missing_ok=True)
        return then(place, *of)

    monkeypatch.setattr(module, name, gone)
    assert drop_damaged(folder, "a") == []
    assert len(paths(folder)) == 2


def test_shards_are_not_loaded_to_be_verified(folder, monkeypatch):
    monkeypatch.setattr(module, "read_npz", None)
    assert drop_damaged(folder, "a") == []


def test_the_line_about_removed_shards():
    assert recomputed(["a"]) == "a was damaged and is computed again"
    assert recomputed([*"abcde"]) == "a, b, c and 2 more were damaged and are computed again"
