"""Asymmetric numeral systems (rANS) on many lanes, and tables of normal distributions.

A coder is a stack of bits: `push` adds symbols under a distribution, `pop` removes them, and each
undoes the other exactly. Popping bits that were not pushed as such symbols draws from the
distribution, which is how bits-back coding samples.
"""

import functools
import hashlib
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

Integers = NDArray[np.int64]
Words = NDArray[np.uint64]

PRECISION: Final = 32
"""Bits of a probability."""
_ONE = 1 << PRECISION
_SHIFT, _MASK = np.uint64(PRECISION), np.uint64(_ONE - 1)
_COARSE = 12  # bits of a probability by which a symbol is looked up
_FINE = np.uint64(PRECISION - _COARSE)
_WORD, _WORD_MASK = np.uint64(16), np.uint64(0xFFFF)
_LOWEST = np.uint64(1 << 48)  # a state lies in [2^48, 2^64)
_WORDS_OF_LANE, _WORDS_OF_STATE = 3, 4


class DamageError(Exception):
    """The bits of a coder are not those that were pushed."""


@functools.lru_cache(maxsize=2)
def _start_words(count: int) -> NDArray[np.uint16]:
    digest = hashlib.shake_256(b"ddpmbench codec start").digest(2 * count)
    return np.frombuffer(digest, "<u2").astype(np.uint16)


def start_words(count: int) -> NDArray[np.uint16]:
    """The first words of the stream below an empty stack: SHAKE-256 of a fixed text."""
    return _start_words(1 << max(count, 1 << 12).bit_length())[:count]


class Coder:
    r"""A stack of bits with the arithmetic of rANS.

    A symbol with the interval [c, c + f) of 2^32 turns the state x of a lane into

    .. math:: x' = 2^{32} \lfloor x / f \rfloor + c + (x \bmod f),

    so that log2 x grows by 32 - log2 f bits. States lie in [2^48, 2^64); the excess goes to a stack
    of 16-bit words that the lanes share. Rounding loses about 2^-32 per symbol.

    Below the stack lies a stream of pseudorandom words that both sides know, `start_words`; `pop`
    borrows from it when the stack is empty.

    Attributes:
        borrowed: words borrowed from the stream.

    Source: Duda 2013; Giesen 2014, "Interleaved entropy coders", for the lanes.
    """

    def __init__(self, words: NDArray[np.uint16] | None = None, *, may_borrow: bool = True) -> None:
        """Create a coder without lanes.

        Args:
            words: the stack, its top last; None for an empty one.
            may_borrow: whether `pop` may borrow words.
        """
        self._stack = np.zeros(1024, np.uint16) if words is None else words.astype(np.uint16)
        self._size = 0 if words is None else len(words)
        self._states = np.zeros(0, np.uint64)
        self._may_borrow = may_borrow
        self.borrowed = 0

    def __len__(self) -> int:
        """Words on the stack, without those of the lanes."""
        return self._size

    @property
    def bits(self) -> float:
        """Information on the stack and the lanes, including borrowed words."""
        return 16.0 * self._size + float(np.log2(self._states.astype(np.float64)).sum())

    @property
    def words(self) -> NDArray[np.uint16]:
        """The stack without the lanes, its top last."""
        return self._stack[: self._size].copy()

    def set_lanes(self, count: int) -> None:
        """Open or close lanes, the last ones first; the words of their states come from the stack.

        A lane opens with a state in [2^48, 2^49) from three words. It can be closed only in such a
        state, which it has once everything since has been undone.

        Raises:
            DamageError: a state is outside the interval.
        """
        have = len(self._states)
        if count > have:
            words = self._take(_WORDS_OF_LANE * (count - have)).astype(np.uint64)
            first, second, third = words.reshape(3, -1)
            opened = _LOWEST + (first << np.uint64(32)) + (second << _WORD) + third
            self._states = np.concatenate([self._states, opened])
            return
        closed = self._states[count:]
        if (closed >= 2 * _LOWEST).any():
            raise DamageError
        parts = [closed >> np.uint64(32), closed >> _WORD, closed]
        self._put(np.concatenate(parts) & _WORD_MASK)
        self._states = self._states[:count]

    def flush(self) -> None:
        """Push the states of all lanes, four words each, onto the stack."""
        parts = [self._states >> np.uint64(shift) for shift in (48, 32, 16, 0)]
        self._put(np.concatenate(parts) & _WORD_MASK)
        self._states = self._states[:0]

    def restore(self, lanes: int) -> None:
        """Undo `flush` for this number of lanes.

        Raises:
            DamageError: the words are too few, or are not states.
        """
        parts = self._take(_WORDS_OF_STATE * lanes).astype(np.uint64).reshape(4, -1)
        states = np.zeros(lanes, np.uint64)
        for part in parts:
            states = (states << _WORD) + part
        if (states < _LOWEST).any():
            raise DamageError
        self._states = states

    def push(self, lower: Words, frequency: Words) -> None:
        """Add symbols; the lanes take them in turn.

        Args:
            lower: (n,) lower end of each symbol's interval, of 2^32.
            frequency: (n,) length of the interval, 1 to 2^32 - 1.
        """
        lanes, limit = len(self._states), frequency << _SHIFT
        for begin in range(0, len(lower), lanes):
            part = slice(begin, begin + lanes)
            f = frequency[part]
            x = self._states[: len(f)]
            for _ in range(2):
                is_full = x >= limit[part]
                if not is_full.any():
                    break
                self._put(x[is_full] & _WORD_MASK)
                x = np.where(is_full, x >> _WORD, x)
            quotient = x // f
            self._states[: len(f)] = (quotient << _SHIFT) + lower[part] + (x - quotient * f)

    def pop(self, symbols: "Symbols") -> Integers:
        """Remove as many symbols as `push` added, undoing it.

        Args:
            symbols: the distributions of the symbols.

        Returns:
            (n,) the symbols.

        Raises:
            DamageError: the stack is empty, and the coder may not borrow.
        """
        lanes, count = len(self._states), len(symbols)
        popped = np.empty(count, np.int64)
        for begin in reversed(range(0, count, lanes)):
            part = slice(begin, min(begin + lanes, count))
            x = self._states[: part.stop - begin]
            u = x & _MASK
            popped[part], lower, frequency = symbols.find(u, part)
            x = frequency * (x >> _SHIFT) + (u - lower)
            for least in (_LOWEST >> _WORD, _LOWEST):
                is_short = x < least
                if is_short.any():
                    x[is_short] = (x[is_short] << _WORD) + self._take(int(is_short.sum()))
            self._states[: len(x)] = x
        return popped

    def is_untouched(self) -> bool:
        """Whether nothing is left but the words that an encoder borrowed."""
        return not len(self._states) and np.array_equal(
            self._stack[: self._size], start_words(self._size)[::-1]
        )

    def _put(self, words: NDArray[np.unsignedinteger]) -> None:
        end = self._size + len(words)
        if end > len(self._stack):
            self._stack = np.concatenate([self._stack, np.zeros(end, np.uint16)])
        self._stack[self._size : end] = words
        self._size = end

    def _take(self, count: int) -> NDArray[np.uint16]:
        """The top words, in the order in which they were pushed."""
        if count > self._size:
            if not self._may_borrow:
                raise DamageError
            missing = count - self._size
            below = start_words(self.borrowed + missing)[self.borrowed :][::-1]
            self._stack = np.concatenate([below, self._stack[: self._size]])
            self._size += missing
            self.borrowed += missing
        self._size -= count
        return self._stack[self._size : self._size + count].copy()


class NormalTable:
    r"""Integer intervals of a normal distribution on the integers, for any mean.

    .. math::
        F_\phi(j) = \lfloor (2^{32} - N)\, \Phi\bigl((j - \tfrac12 - \phi) / \sigma\bigr) \rfloor
        + j + R, \qquad F_\phi(-R) = 0, \quad F_\phi(R + 1) = 2^{32}

    for the offsets j = -R..R from the integer part of the mean, and its fractional part phi, for
    means rounded to multiples of 1 / P. Each of the N = 2R + 1 offsets has at least one of 2^32, so
    the total variation distance from the normal distribution with the rounded mean, whose tails
    count to the end offsets, is below N / 2^32.

    Attributes:
        scale: sigma, in units of the integers.
        radius: R.
        phases: P.
        limits: the lowest and the highest symbol, which absorb the tails beyond; None for no
            limits.
    """

    def __init__(
        self, scale: float, radius: int, phases: int, limits: tuple[int, int] | None = None
    ) -> None:
        self.scale, self.radius, self.phases, self.limits = scale, radius, phases, limits
        count = 2 * radius + 1
        offsets = np.arange(-radius, radius + 2)
        fractions = np.arange(phases)[:, None] / phases
        below = np.floor(ndtr((offsets - 0.5 - fractions) / scale) * (_ONE - count))
        ends = below.astype(np.uint64) + np.arange(count + 1, dtype=np.uint64)
        ends[:, 0], ends[:, -1] = 0, _ONE
        rows = np.arange(phases, dtype=np.uint64)[:, None] << _SHIFT
        self.ends: Words = (ends + rows).ravel()
        """The table's rows, one after another, each 2^32 above the previous one."""
        coarse = np.arange(phases << _COARSE, dtype=np.uint64) << _FINE
        self._coarse: Integers = np.searchsorted(self.ends, coarse, side="right") - 1

    def find(self, place: Words) -> Integers:
        """(n,) the index of the last of `ends` that is not above each place."""
        index = self._coarse[place >> _FINE]
        for _ in range(2):
            index += self.ends[index + 1] <= place
        behind = np.flatnonzero(self.ends[index + 1] <= place)  # in the tails
        if len(behind):
            index[behind] = np.searchsorted(self.ends, place[behind], side="right") - 1
        return np.asarray(index)

    def at(self, mean: NDArray[np.float64]) -> "Symbols":
        """The distributions with (n,) means, each within `radius` of every possible symbol."""
        return Symbols(self, mean)


class Symbols:
    """The distributions of n symbols: one table, a mean each."""

    def __init__(self, table: NormalTable, mean: NDArray[np.float64]) -> None:
        place = np.rint(mean * table.phases).astype(np.int64)
        self._table = table
        self._integer, phase = np.divmod(place, table.phases)
        self._row: Words = phase.astype(np.uint64) << _SHIFT
        self._zero = phase * (2 * table.radius + 2) + table.radius  # the index of offset 0

    def __len__(self) -> int:
        return len(self._row)

    def interval(self, symbol: Integers) -> tuple[Words, Words]:
        """Lower end and length, of 2^32, of the interval of each symbol.

        Raises:
            DamageError: a symbol is further from its mean than the table reaches.
        """
        offset = symbol - self._integer
        if len(offset) and max(offset.max(), -offset.min()) > self._table.radius:
            raise DamageError
        return self._ends(symbol, self._zero + offset, self._row)

    def find(self, u: Words, part: slice) -> tuple[Integers, Words, Words]:
        """The symbols of a part whose intervals contain u of 2^32, and those intervals."""
        row, zero, integer = self._row[part], self._zero[part], self._integer[part]
        index = self._table.find(u + row)
        symbol = integer + (index - zero)
        if self._table.limits is not None:
            symbol = symbol.clip(*self._table.limits)
            index = zero + (symbol - integer)
        return symbol, *self._ends(symbol, index, row)

    def _ends(self, symbol: Integers, index: Integers, row: Words) -> tuple[Words, Words]:
        lower, upper = self._table.ends[index], self._table.ends[index + 1]
        if self._table.limits is not None:
            lowest, highest = self._table.limits
            lower = np.where(symbol == lowest, row, lower)
            upper = np.where(symbol == highest, row + np.uint64(_ONE), upper)
        return lower - row, upper - lower
