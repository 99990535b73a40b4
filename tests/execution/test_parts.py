"""Arrays in parts: what was kept is what comes back, once, in order."""

import errno

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpmbench import checksums
from ddpmbench.errors import InputError
from ddpmbench.execution import chunks, term_store
from ddpmbench.execution.chunks import FolderParts, MemoryParts, blocks, gathered


def part(start, stop):
    return {"value": np.arange(start, stop) * 10, "square": np.arange(start, stop)[:, None] ** 2}


def save(store, start, stop, seconds=1.0, device="cpu"):
    store.save(start, part(start, stop), seconds=seconds, device=device)


@pytest.fixture
def store(tmp_path):
    return FolderParts(tmp_path / "parts")


def test_parts_come_back_once_and_in_order(store):
    for start, stop in [(6, 9), (0, 4), (1, 3), (2, 7)]:  # another batch size wrote the last
        save(store, start, stop)
    assert store.missing(9) == []
    assert gathered(store, "value", 9).tolist() == [10 * i for i in range(9)]
    assert gathered(store, "square", 5).tolist() == [[i**2] for i in range(5)]


def test_gaps_are_what_no_part_covers(store):
    assert store.missing(10) == [(0, 10)]
    save(store, 3, 5)
    save(store, 7, 8)
    assert store.missing(10) == [(0, 3), (5, 7), (8, 10)]
    assert store.missing(4) == [(0, 3)]
    save(store, 0, 9)
    save(store, 1, 2)  # a shorter one within it
    assert store.missing(10) == [(9, 10)]
    assert MemoryParts().missing(3) == [(0, 3)]


def test_a_new_look_finds_the_same(store):
    save(store, 0, 4, seconds=1.5, device="cpu, 1 threads")
    save(store, 4, 6, seconds=2.0, device="other")
    again = FolderParts(store.folder)
    assert again.seconds(6) == 3.5
    assert again.devices(6) == {"cpu, 1 threads", "other"}
    assert again.seconds(4) == 1.5


@pytest.mark.parametrize("cut", [0, 30, -40])
def test_a_damaged_part_is_named(store, cut):
    save(store, 0, 4)
    path = store.folder / "000000000-000000004.npz"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match=r"000000000-000000004\.npz: damaged; run the command"):
        list(store.parts(4))


def test_a_part_whose_bytes_changed_is_named(store):
    save(store, 0, 4)
    path = store.folder / "000000000-000000004.npz"
    content = bytearray(path.read_bytes())
    place = content.index(np.arange(4).__mul__(10).tobytes())
    content[place + 8] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        list(store.parts(4))


def test_a_part_that_holds_less_than_its_name_says_is_named(store):
    save(store, 0, 3)
    (store.folder / "000000000-000000003.npz").rename(store.folder / "000000000-000000004.npz")
    with pytest.raises(InputError, match="damaged"):
        list(store.parts(4))


def only(store):
    (path,) = store.folder.iterdir()
    return path


def test_whole_parts_are_not_loaded_to_be_checked(store, monkeypatch):
    save(store, 0, 4)
    loaded, read = [], chunks.read_npz

    def count(path, names=None, **how):
        loaded.append(names)
        return read(path, names, **how)

    monkeypatch.setattr(chunks, "read_npz", count)
    assert store.drop_damaged() == []
    assert loaded == [("part_start",)]


@pytest.mark.parametrize("name", ["000000000-000000005", "000000001-000000005"])
def test_a_part_under_another_name_is_removed(store, name):
    save(store, 0, 4)
    only(store).rename(store.folder / f"{name}.npz")
    assert store.drop_damaged() == [f"parts/{name}.npz"]
    assert store.missing(4) == [(0, 4)]


@pytest.mark.parametrize("where", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_part_of_which_a_bit_changed_is_removed(store, where):
    save(store, 0, 4)
    content = bytearray(only(store).read_bytes())
    content[int(where * len(content))] ^= 2
    only(store).write_bytes(content)
    assert store.drop_damaged() == ["parts/000000000-000000004.npz"]


def test_a_part_that_cannot_be_read_is_kept(store, monkeypatch):
    save(store, 0, 4)
    kept = only(store).read_bytes()

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checksums, "_digest", fail)
    checksums._is_whole.cache_clear()
    with pytest.raises(InputError, match=r"4\.npz: cannot be read \(input/output error\); try"):
        store.drop_damaged()
    assert only(store).read_bytes() == kept


def test_a_part_of_an_earlier_version_is_kept(store):
    store.folder.mkdir()
    path = store.folder / "000000000-000000004.npz"
    np.savez(path, **part(0, 4), part_seconds=1.0, part_device="cpu")
    with pytest.raises(InputError, match="an earlier version wrote it; name a new --out"):
        store.drop_damaged()
    assert only(store) == path


@given(
    st.lists(st.integers(1, 40), max_size=6),
    st.integers(1, 9),
)
def test_blocks_are_the_gaps_cut_at_multiples(lengths, rows):
    edges = np.cumsum([0, *lengths])
    gaps = [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=False)]
    cut = blocks(gaps, rows)
    covered = [i for start, stop in cut for i in range(start, stop)]
    assert covered == [i for start, stop in gaps for i in range(start, stop)]
    inside = {edge for gap in gaps for edge in gap}
    for start, stop in cut:
        assert 0 < stop - start <= rows
        assert start % rows == 0 or start in inside
        assert stop % rows == 0 or stop in inside


def test_what_is_not_there_is_not_made_up(store, monkeypatch):
    monkeypatch.setattr(term_store, "ARRIVAL_SECONDS", 0.1)
    save(store, 0, 3)
    with pytest.raises(InputError, match="parts 3 to 4 are not there"):
        gathered(store, "value", 5)
