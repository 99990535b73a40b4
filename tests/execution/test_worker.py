"""A worker: every entry is computed once, in the same batches whoever computes it."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddpmbench.errors import InputError
from ddpmbench.execution import worker as module
from ddpmbench.execution.distributed import STRIPES, Ranks
from ddpmbench.execution.store import FolderStore, MemoryStore, gathered
from ddpmbench.execution.worker import RunListener, Worker, cut

CPU = torch.device("cpu")


def worker(rows=4, **listener):
    return Worker.of(CPU, (1, 8, 8), batch_size=rows, listener=RunListener(**listener))


class Squares:
    """Computes i^2, and keeps the batches."""

    def __init__(self):
        self.batches = []

    def __call__(self, index, report):
        self.batches.append((int(index[0]), int(index[-1]) + 1))
        return {"square": index**2}


@pytest.fixture
def store(tmp_path):
    return FolderStore(tmp_path / "shards", "x", run="a")


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(module, "SHARD_BYTES", 1)


@pytest.mark.parametrize("rows", [1, 3, 4, 100])
@pytest.mark.parametrize("whole", [1, 2, 5])
@pytest.mark.usefixtures("small_shards")
def test_every_entry_is_computed_once(store, rows, whole):
    squares = Squares()
    for each in (store, MemoryStore()):
        worker(rows).map_chunks(squares, each, 20, whole=whole)
        assert gathered(each, "square", 20).tolist() == [i**2 for i in range(20)]
    assert sum(stop - start for start, stop in squares.batches) == 2 * 20
    worker(rows).map_chunks(None, store, 20, whole=whole)  # nothing is missing
    for path in store.folder.iterdir():
        assert all(int(edge) % whole == 0 for edge in path.stem.split("-")[1:])


@pytest.mark.usefixtures("small_shards")
def test_an_entry_shares_its_batch_with_the_same_neighbors(store):
    first, second = Squares(), Squares()

    def stop(now):
        if now.done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        worker(progress=stop).map_chunks(first, store, 20)
    assert store.missing(20) == [(8, 20)]
    (store.folder / store.name_of(0, 4)).unlink()
    worker().map_chunks(second, store, 18)
    assert second.batches == [(0, 4), (8, 12), (12, 16), (16, 18)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, InputError("not finite")])
@pytest.mark.parametrize(("whole", "kept"), [(1, 8), (5, 5)])
def test_what_stops_a_run_keeps_complete_batches_of_whole_entries(store, error, whole, kept):
    def broken(index, report):
        if index[-1] >= 9:
            raise error
        return {"square": index**2}

    with pytest.raises(type(error) if isinstance(error, InputError) else error):
        worker().map_chunks(broken, store, 20, whole=whole)
    assert store.missing(20) == [(kept, 20)]


def test_an_interruption_of_writing_keeps_the_batches(store, small_shards, monkeypatch):
    save, interruptions = FolderStore.save, iter([KeyboardInterrupt])

    def interrupted(*of, **more):
        for error in interruptions:
            raise error
        save(*of, **more)

    monkeypatch.setattr(FolderStore, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        worker().map_chunks(Squares(), store, 20)
    assert store.missing(20) == [(4, 20)]
    assert gathered(store, "square", 4).tolist() == [0, 1, 4, 9]


def test_a_batch_that_does_not_fit_is_halved(store):
    sizes = []

    def small_memory(index, report):
        if len(index) > 2:
            raise MemoryError
        sizes.append(len(index))
        return {"square": index**2}

    warnings = []
    adaptive = Worker.of(CPU, (1, 8, 8), listener=RunListener(warn=warnings.append))
    adaptive.map_chunks(small_memory, store, 9)
    assert sizes == [2, 2, 2, 2, 1]
    assert warnings
    assert gathered(store, "square", 9).tolist() == [i**2 for i in range(9)]


def test_progress_counts_the_evaluations_of_the_run(store):
    worker().map_chunks(Squares(), store, 4)
    seen = []

    def slow(index, report):
        report(7)  # of the 3 * len(index) of this batch
        return {"square": index**2}

    bounds = iter(["rough", "better"])
    worker(progress=seen.append).map_chunks(
        slow, store, 12, cost=3, before=100, after=1000, watch=lambda arrays: next(bounds)
    )
    assert [now.done - 100 for now in seen] == [12, 19, 24, 31, 36]
    assert {now.total for now in seen} == {100 + 36 + 1000}
    assert [now.bound for now in seen] == [None, None, "rough", "rough", "better"]


# ---- who computes what


def of_all(ranges):
    return [index for start, stop in ranges for index in range(start, stop)]


@st.composite
def gaps_of(draw):
    edges = np.cumsum(draw(st.lists(st.integers(1, 40), max_size=8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=False)]


@given(gaps=gaps_of(), rows=st.integers(1, 9))
def test_batches_are_the_gaps_cut_at_multiples(gaps, rows):
    batches = cut(gaps, rows)
    assert of_all(batches) == of_all(gaps)
    ends = {edge for gap in gaps for edge in gap}
    for start, stop in batches:
        assert 0 < stop - start <= rows
        assert start % rows == 0 or start in ends
        assert stop % rows == 0 or stop in ends


@given(gaps=gaps_of(), rows=st.integers(1, 9), count=st.integers(1, 9))
def test_the_shares_of_all_processes_are_the_batches(gaps, rows, count):
    batches = cut(gaps, rows)
    shares = [Ranks(rank, count).share(batches) for rank in range(count)]
    assert sorted(batch for share in shares for batch in share) == batches
    assert all(share == sorted(share) for share in shares)
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_every_process_sees_entries_from_the_beginning_and_the_end():
    batches = cut([(0, 1000)], 1)
    for rank in range(5):
        share = Ranks(rank, 5).share(batches)
        assert share[0][0] < 150
        assert share[-1][1] > 850
        breaks = sum(a[1] != b[0] for a, b in itertools.pairwise(share))
        assert breaks == STRIPES - 1


class Alike(Ranks):
    """One of several processes that all see the same."""

    def once(self, compute):
        return compute()

    def together(self, compute):
        return compute()


@pytest.mark.parametrize("length", [3 * 8, 8 * 7 + 2, 1000])
@pytest.mark.parametrize("whole", [1, 2])
def test_balanced_processes_compute_equally_many(tmp_path, length, whole):
    rounds, computed = -(-length // (3 * 8)), []
    for rank in range(3):
        store, squares = FolderStore(tmp_path / str(rank), "x"), Squares()
        each = Worker(CPU, worker(8).batch, Alike(rank, 3), RunListener())
        each.map_chunks(squares, store, length, whole=whole, balanced=True)
        computed.append(of_all(squares.batches))
        assert len(squares.batches) <= rounds
        assert max(stop - start for start, stop in squares.batches) <= 8
        assert len(computed[-1]) <= length / 3 + rounds * whole
    assert sorted(index for own in computed for index in own) == list(range(length))
