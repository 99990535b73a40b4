"""The coder: exact inverses, exact lengths, and how far its tables are from a normal."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from ddpmbench.codec.rans import Coder, DamageError, NormalTable, start_words

ONE = 1 << 32


class ScalarCoder:
    """The same coder symbol by symbol, in whole numbers of any size."""

    def __init__(self, lanes):
        below = iter(start_words(10_000).tolist())
        words = [next(below) for _ in range(3 * lanes)][::-1]
        self.states = [
            (1 << 48) + (words[i] << 32) + (words[lanes + i] << 16) + words[2 * lanes + i]
            for i in range(lanes)
        ]
        self.words = []

    def push(self, intervals):
        for begin in range(0, len(intervals), len(self.states)):
            group = intervals[begin : begin + len(self.states)]
            for _ in range(2):
                for lane, (_, f) in enumerate(group):
                    if self.states[lane] >= f << 32:
                        self.words.append(self.states[lane] & 0xFFFF)
                        self.states[lane] >>= 16
            for lane, (lower, f) in enumerate(group):
                x = self.states[lane]
                self.states[lane] = ((x // f) << 32) + lower + x % f

    def flushed(self):
        return self.words + [x >> s & 0xFFFF for s in (48, 32, 16, 0) for x in self.states]


def test_words_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    frequency = np.exp2(rng.uniform(0, 32, 1000)).astype(np.uint64).clip(1, ONE - 1)
    lower = (rng.random(1000) * (ONE - frequency)).astype(np.uint64)
    scalar, coder = ScalarCoder(7), Coder()
    coder.set_lanes(7)
    scalar.push(list(zip(lower.tolist(), frequency.tolist(), strict=True)))
    coder.push(lower, frequency)
    coder.flush()
    assert coder.words.tolist() == scalar.flushed()


def test_known_answers():
    assert start_words(4).tolist() == [57319, 11269, 47163, 17117]
    coder = Coder()
    coder.set_lanes(1)
    coder.push(*(np.array(x, np.uint64) for x in ([0, 3 << 30, 5], [1 << 31, 1 << 30, 1])))
    coder.flush()
    assert coder.words.tolist() == [57319, 60421, 13, 49624, 0, 5]


@st.composite
def cases(draw):
    scale = draw(st.floats(0.02, 60.0))
    radius = draw(st.integers(1, 400))
    limits = draw(st.sampled_from([None, (0, radius)]))
    seed, count = draw(st.integers(0, 2**32 - 1)), draw(st.integers(0, 200))
    table = NormalTable(scale, 2 * radius, draw(st.integers(1, 9)), limits)
    rng = np.random.default_rng(seed)
    middle = 0 if limits is None else radius / 2
    mean = middle + rng.uniform(-radius / 2, radius / 2, count)
    symbol = rng.integers(-radius // 2, radius // 2 + 1, count) + round(middle)
    return table, mean, symbol.clip(*limits) if limits else symbol, draw(st.integers(1, 70))


@settings(max_examples=60, deadline=None)
@given(cases())
def test_push_and_pop_undo_each_other(case):
    table, mean, symbol, lanes = case
    coder = Coder()
    coder.set_lanes(lanes)
    before = coder.bits
    lower, frequency = table.at(mean).interval(symbol)
    coder.push(lower, frequency)
    spent = np.sum(32 - np.log2(frequency.astype(float)))
    assert coder.bits - before == pytest.approx(spent, rel=1e-3, abs=0.05)
    words = coder.words
    drawn = coder.pop(table.at(mean[::-1]))
    coder.push(*table.at(mean[::-1]).interval(drawn))
    np.testing.assert_array_equal(coder.words[len(coder.words) - len(words) :], words)
    coder.flush()
    other = Coder(coder.words, may_borrow=False)
    other.restore(lanes)
    np.testing.assert_array_equal(other.pop(table.at(mean)), symbol)
    other.set_lanes(0)
    assert other.is_untouched()
    assert len(other) == coder.borrowed


@pytest.mark.parametrize("limits", [None, (0, 255)])
@pytest.mark.parametrize(("scale", "phases"), [(16.0, 8), (0.94, 35), (0.03, 2), (300.0, 1)])
def test_the_total_variation_is_below_its_bound(scale, phases, limits):
    radius = 300 if limits is None else 255
    table = NormalTable(scale, radius, phases, limits)
    count = 2 * radius + 1
    for phase in range(phases):
        mean = phase / phases + (0 if limits is None else 3)
        first, last = limits or (-radius, radius)
        symbol = np.arange(first, last + 1)
        lower, frequency = table.at(np.full(len(symbol), mean)).interval(symbol)
        assert frequency.min() >= 1
        assert int(frequency.sum()) == ONE
        np.testing.assert_array_equal(lower[1:], np.cumsum(frequency)[:-1])
        ends = ndtr((np.arange(first, last) + 0.5 - mean) / scale)
        exact = np.diff(ends, prepend=0.0, append=1.0)
        assert np.abs(frequency / ONE - exact).sum() / 2 <= count / ONE


def test_random_bits_draw_the_distribution():
    coder, table, count = Coder(), NormalTable(16.0, 300, 8), 40_000
    coder.set_lanes(64)
    mean = np.linspace(-50, 50, count)
    z = (coder.pop(table.at(mean)) - mean) / 16
    assert abs(z.mean()) < 4 / count**0.5
    assert abs(np.square(z).mean() - 1) < 4 * (2 / count) ** 0.5 + 1 / 12 / 16**2
    assert abs(np.mean(np.abs(z) > 3) - 0.0027) < 4 * (0.0027 / count) ** 0.5


def test_a_probability_is_the_same_in_any_array():
    z = np.random.default_rng(0).normal(0, 4, 1003)
    whole = ndtr(z)
    for size in (1, 2, 3, 5, 8, 17, 64):
        np.testing.assert_array_equal(
            np.concatenate([ndtr(z[i : i + size]) for i in range(0, len(z), size)]), whole
        )


def test_what_is_borrowed_is_known():
    coder = Coder()
    coder.set_lanes(5)
    table = NormalTable(16.0, 300, 1)
    symbols = coder.pop(table.at(np.zeros(100)))
    coder.push(*table.at(np.zeros(100)).interval(symbols))
    coder.set_lanes(0)
    assert coder.is_untouched()
    assert len(coder) == coder.borrowed > 0
    words = coder.words
    words[3] ^= 1
    assert not Coder(words).is_untouched()


def test_a_decoder_takes_nothing_that_is_not_there():
    with pytest.raises(DamageError):
        Coder(np.zeros(7, np.uint16), may_borrow=False).restore(2)
    with pytest.raises(DamageError):
        Coder(np.zeros(8, np.uint16), may_borrow=False).restore(2)  # no states
    coder = Coder(np.full(8, 7, np.uint16), may_borrow=False)
    coder.restore(2)
    with pytest.raises(DamageError):
        coder.pop(NormalTable(16.0, 300, 1).at(np.zeros(1000)))
    with pytest.raises(DamageError):
        coder.set_lanes(0)  # states that no encoder began with
    with pytest.raises(DamageError):
        NormalTable(16.0, 300, 1).at(np.zeros(1)).interval(np.array([301]))
