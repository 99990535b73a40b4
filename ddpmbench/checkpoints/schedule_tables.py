"""Noise schedules in tables beside the weights: betas, their products, and functions of either.

A name is not enough: `alpha` is 1 - beta or its cumulative product, and entry 0 is of t = 1 or of
t = 0. Two tables of one module are read under any name if one is the cumulative product that the
other implies; a single table needs an unambiguous name. All else is refused.
"""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpmbench.checkpoints.weights import is_plain, leaves_in, numbers_held
from ddpmbench.diffusion.schedule import MAX_TIMESTEPS, NoiseSchedule
from ddpmbench.errors import InputError

BUFFERS = "buffers"
"""The form of `schedule` that takes the tables beside the weights."""

_NAMES = {
    "betas": "betas beta beta_t betas_t b_t",
    "products": (
        "alphas_cumprod alpha_cumprod alphas_cum_prod alpha_cum_prod alphas_cumulative alphas_bar "
        "alpha_bar alpha_bars alphas_bars alphabar alpha_hat alphabar_t alphabars alpha_bar_t "
        "alphas_bar_t alpha_bars_t ab_t"
    ),
    "unclear": "alphas alpha alpha_t alphas_t a_t",
}
_KINDS = {name: kind for kind, names in _NAMES.items() for name in names.split()}
# Names of minDiffusion and what descends from it, whose tables begin with an entry for t = 0.
_FROM_ZERO = {"oneover_sqrta", "sqrtab", "sqrtmab", "mab_over_sqrtmab", "mab_over_sqrtmab_inv"}
_TIMESTEPS = {
    *("timesteps", "num_timesteps", "n_timesteps", "num_train_timesteps", "train_timesteps"),
    *("diffusion_steps", "num_diffusion_steps", "num_diffusion_timesteps", "n_diffusion_steps"),
    *("noise_steps", "num_noise_steps", "n_T", "T"),
}
_LEAST_UNNAMED = 4
"""Two shorter rows of numbers may agree by chance."""
_MOST_TOGETHER = 64
"""Of one module; a schedule has some twenty tables."""
_MOST_ENTRIES = 2**20
"""Of all tables of one module; comparing them takes some 300 bytes an entry."""
_LEAST_KNOWN = 10
"""Fewer numbers may be spaced evenly by chance."""
_EVEN = 0.01
"""Largest distance from a line, as a share of its rise, of numbers that are spaced evenly."""
_LOG_LEAST_OF_BETAS = math.log(1e-30)
"""Of alphas_cumprod; the usual schedules end above 1e-18."""

Array = NDArray[np.float64]


class _ContradictionError(InputError):
    """Two tables of a file are of different schedules; `what` names them."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; name the schedule it was trained on")
        self.what = what


@dataclasses.dataclass(frozen=True, eq=False)
class _Candidate:
    """alphas_cumprod as a table may mean it.

    Attributes:
        name: of the table.
        products: (L,) values; the first is 1 where entry 0 is of t = 0.
        betas: (L,) variance of each entry; None where the table is of products.
        is_longer: whether entry 0 is not in the table.
    """

    name: str
    products: Array
    betas: Array | None = None
    is_longer: bool = False

    def agrees(self, other: Self) -> bool:
        """Whether both have the same products."""
        return len(self.products) == len(other.products) and _near(self.products, other.products)

    def schedule(self, num_timesteps: int) -> NoiseSchedule:
        """The schedule of the last T entries."""
        first = len(self.products) - num_timesteps
        if self.betas is None:
            return NoiseSchedule.from_alphas_cumprod(self.products[first:], name=BUFFERS)
        betas = self.betas[first:].copy()
        # the variance of the entries before t = 1 is in x_1, too
        betas[0] = -np.expm1(np.log1p(-self.betas[: first + 1]).sum())
        return NoiseSchedule.from_betas(betas, name=BUFFERS)


@dataclasses.dataclass(eq=False)
class _Agreement:
    """A table of single timesteps and one of products that agree.

    Attributes:
        candidate: their products.
        names: of all tables that agree.
        is_clear: whether no other candidate has as many tables that agree.
    """

    candidate: _Candidate
    names: set[str]
    is_clear: bool = True


@dataclasses.dataclass(frozen=True, eq=False)
class ScheduleTables:
    """The tables of a schedule in a file, by their names there.

    Attributes:
        betas: tables called betas, (T,) or (T + 1,) each.
        products: tables called a product of alphas, likewise.
        unclear: tables called alpha, which may be either.
        others: monotone rows of numbers under other names, which may be functions of either.
        steps: whole numbers under a name of T.
        source: the file, named in messages.
    """

    betas: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    products: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    unclear: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    others: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    steps: Mapping[str, int] = dataclasses.field(default_factory=dict)
    source: str = "the file"

    @classmethod
    def among(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The tables among the tensors of a file.

        Args:
            tensors: by name, whose last part may tell the kind.
        """
        tables: dict[str, dict[str, Tensor]] = {kind: {} for kind in (*_NAMES, "others")}
        for name, tensor in tensors.items():
            kind = _KINDS.get(_leaf(name), "others")
            if _is_table(tensor, is_named=kind != "others"):
                tables[kind][name] = tensor
        return cls(**tables, steps=_steps_in(tensors))  # type: ignore[arg-type]

    @classmethod
    def within(cls, content: Mapping[str, object], *, source: str) -> Self:
        """The tables anywhere in a file: beside the weights, among them or in a dict around them.

        Args:
            content: from `read_state`.
            source: the file to name in an error.
        """
        leaves = dict(leaves_in(content))
        tensors = {n: row for n, value in leaves.items() if (row := _row(value)) is not None}
        return dataclasses.replace(cls.among(tensors), steps=_steps_in(leaves), source=source)

    @property
    def names(self) -> frozenset[str]:
        """The names of the tables, and of all rows as long in the module of those that agree."""
        names = frozenset().union(self.betas, self.products, self.unclear, self.steps)
        if self._agreed is None:
            return names
        places = {(_module(n), len(self._all[n])) for n in self._agreed.names}
        return names | {n for n, table in self.others.items() if (_module(n), len(table)) in places}

    @property
    def example(self) -> str:
        """A value to begin with where `schedule` is missing."""
        if self:
            return BUFFERS
        totals = set(self.steps.values())
        if totals == {1000}:
            return "linear:1000"
        return f"linear:{totals.pop() if len(totals) == 1 else 'T'}:START:END"

    def __bool__(self) -> bool:
        """Whether a schedule can be read from them."""
        return bool(self.betas or self.products or (self._agreed and self._agreed.is_clear))

    def notes(self, schedule: NoiseSchedule) -> tuple[str, ...]:
        """A line where the schedule that was read from them leaves an entry out."""
        table, total = self._table(), schedule.num_original_timesteps
        if len(table.products) == total:
            return ()
        return (f"{self._has_entries(table)}, the first for t = 0: T = {total:,}",)

    def schedule(self, num_timesteps: int | None = None) -> NoiseSchedule:
        """The schedule of the tables; of the betas where there are any.

        Args:
            num_timesteps: T, where the tables have as many entries or one more; None where they
                tell it.

        Raises:
            InputError: there are none, they contradict each other, or they are ambiguous.
        """
        table = self._table()
        entries, includes_zero = len(table.products), table.products[0] == 1
        if num_timesteps is None:
            num_timesteps = self._timesteps_of(table)
        elif num_timesteps != entries - 1 and (includes_zero or num_timesteps != entries):
            raise InputError(f"{self._has_entries(table)}; take {_forms(table)}")
        # An entry for t = 0 of betas alone enters the products for some and not for others.
        skips = num_timesteps < entries and not includes_zero
        if skips and table.betas is not None and self._agreed is None:
            raise InputError(
                f"{self.source}'s {table.name} has an entry for t = 0, {table.betas[0]:g}, and no "
                "table beside it tells whether the products of 1 - beta include it; pass them as "
                "alphas_cumprod:FILE, t = 1 first"
            )
        return table.schedule(num_timesteps)

    @property
    def readings(self) -> tuple[NoiseSchedule, ...]:
        """The possible schedules: one, two where T is ambiguous, none where they are unreadable."""
        try:
            table = self._table()
        except InputError:
            return ()
        try:
            return (table.schedule(self._timesteps_of(table)),)
        except InputError:
            return tuple(table.schedule(len(table.products) - skipped) for skipped in (0, 1))

    @property
    def contradiction(self) -> str | None:
        """The contradiction between two of the tables; None where there is none."""
        try:
            self._table()
        except _ContradictionError as error:
            return error.what
        except InputError:
            return None
        return None

    @property
    def read_from(self) -> str:
        """The name of the table that the schedule is read from, an unambiguous one if possible.

        Raises:
            InputError: they cannot be read.
        """
        named = {*self.betas, *self.products}
        agreed = named & self._agreed.names if self._agreed is not None else set()
        return min(agreed, default=self._table().name)

    def _has_entries(self, table: _Candidate) -> str:
        return f"{self.source}'s {table.name} has {len(table.products):,} entries"

    def _timesteps_of(self, table: _Candidate) -> int:
        """T, if entry 0, a number in the file or the number of entries tells it."""
        entries = len(table.products)
        if table.products[0] == 1:
            return entries - 1
        stated = {entries, entries - 1} & set(self.steps.values())
        if len(stated) == 1:
            return stated.pop()
        from_zero = any(_leaf(name) in _FROM_ZERO for name in self.others)
        hinted = from_zero or not _is_plainly_named(table.name)
        usual, one_less_usual = _is_usual(entries), _is_usual(entries - 1)
        if usual > one_less_usual and not from_zero:
            return entries
        if one_less_usual > usual and hinted:
            return entries - 1
        if usual == one_less_usual and not hinted:
            return entries
        raise InputError(
            f"{self._has_entries(table)}, and does not say which is of t = 1; take "
            f"`schedule={_forms(table)}`"
        )

    def _table(self) -> _Candidate:
        """The table that the schedule is read from.

        Raises:
            InputError: there is none, or several contradict each other.
        """
        agreed, named = self._agreed, {**self.betas, **self.products}
        if agreed is not None and not agreed.is_clear:
            raise InputError(
                f"{self.source}'s {' and '.join(sorted(agreed.names))} can be read as two "
                "schedules; name the schedule it was trained on"
            )
        if not self and self.unclear:
            raise InputError(
                f"{self.source} has {next(iter(self.unclear))}, which is 1 - beta to some and "
                "its product to others; pass the product as alphas_cumprod:FILE"
            )
        if not self:
            raise InputError(
                f"{self.source} holds no betas and no alphas_cumprod; name the schedule it was "
                "trained on"
            )
        for name, tensor in named.items():
            if (size := tensor.element_size()) < 4:
                raise InputError(
                    f"{self.source}'s {name} has {8 * size} bits, too few; name the schedule"
                )
        if agreed is not None:
            first, apart = agreed.candidate, sorted(named.keys() - agreed.names)
        else:
            first, *others = [self._alone(name) for name in named]
            apart = [other.name for other in others if not first.agrees(other)]
        if apart:
            raise _ContradictionError(
                f"{self.source}'s {first.name} and {apart[0]} contradict each other"
            )
        return first

    def _alone(self, name: str) -> _Candidate:
        """A table that its name alone explains."""
        values, is_betas = _values(self._all[name]), name in self.betas
        check, of_zero = (betas_schedule, 0) if is_betas else (products_schedule, 1)
        try:
            check(values[1:] if values[0] == of_zero else values)
        except InputError as error:
            raise InputError(f"{self.source}'s {name}: {error}") from error
        return _Candidate(name, *((1 - values).cumprod(), values) if is_betas else (values,))

    @cached_property
    def _all(self) -> dict[str, Tensor]:
        return {**self.betas, **self.products, **self.unclear, **self.others}

    @cached_property
    def _agreed(self) -> _Agreement | None:
        """None where no two tables of one module are of the same schedule."""
        modules: dict[str, list[str]] = {}
        for name, table in self._all.items():
            if table.element_size() >= 4 and len(table) >= self._least(name):
                modules.setdefault(_module(name), []).append(name)
        pairs = [pair for names in modules.values() for pair in self._pairs(names)]
        agreements: list[_Agreement] = []
        for candidate, *names in sorted(pairs, key=lambda pair: pair[1] not in self.betas):
            for known in agreements:
                if known.candidate.agrees(candidate):
                    known.names.update(names)
                    break
            else:
                agreements.append(_Agreement(candidate, set(names)))
        if not agreements:
            return None
        # A pair that is of another schedule as square roots is settled by any third table.
        first, *others = sorted(agreements, key=lambda agreement: -len(agreement.names))
        first.is_clear = not others or len(others[0].names) < len(first.names)
        return first

    def _least(self, name: str) -> int:
        return _LEAST_UNNAMED if name in self.others else 2

    def _pairs(self, names: list[str]) -> Iterator[tuple[_Candidate, str, str]]:
        """Any two tables that agree: their candidate and both names."""
        entries = sum(len(self._all[name]) for name in names)
        if len(names) > _MOST_TOGETHER or entries > _MOST_ENTRIES:
            return  # no schedule's, and too many to compare
        steps: list[_Candidate] = []
        products: list[_Candidate] = []
        for name in names:
            for alphas, betas in self._meanings(name):
                steps += _of_steps(name, alphas, betas) if name not in self.products else []
                products += _of_products(name, alphas) if name not in self.betas else []
        for product, step in itertools.product(products, steps):
            if product.name != step.name and (joint := _joined(product, step)) is not None:
                yield joint, step.name, product.name

    def _meanings(self, name: str) -> Iterator[tuple[Array, Array]]:
        """What a table may mean: alpha, of a timestep or a product of them, and 1 - alpha."""
        x = _values(self._all[name])
        if name in self.betas:
            yield 1 - x, x
        elif name in self.products or name in self.unclear:
            yield x, 1 - x
        elif x.max() <= 1:
            yield from ((1 - x, x), (1 - x**2, x**2), (x, 1 - x), (x**2, 1 - x**2))
        elif x.min() >= 1:
            yield x**-2, 1 - x**-2


def _of_steps(name: str, alphas: Array, betas: Array) -> Iterator[_Candidate]:
    """A table of single timesteps: as it is, and with an entry for t = 0 before it or in it."""
    if not ((alphas > 0) & (alphas <= 1)).all():
        return
    products = alphas.cumprod()
    yield _Candidate(name, products, betas)
    yield _Candidate(name, np.append(1.0, products), np.append(0.0, betas), is_longer=True)
    if betas[0] > 0:
        yield _Candidate(name, np.append(1.0, alphas[1:].cumprod()), np.append(0.0, betas[1:]))


def _of_products(name: str, alphas: Array) -> Iterator[_Candidate]:
    """A table of products: as it is, and with the product of t = 0 before it."""
    if ((alphas > 0) & (alphas <= 1)).all() and (np.diff(alphas) < 0).all():
        yield _Candidate(name, alphas)
        if alphas[0] < 1:
            yield _Candidate(name, np.append(1.0, alphas), is_longer=True)


def _joined(product: _Candidate, step: _Candidate) -> _Candidate | None:
    """The candidate of two tables that agree; None if they do not."""
    mine, theirs = product.products, step.products
    if len(mine) != len(theirs) or (product.is_longer and step.is_longer):
        return None
    # the last first, as a network may have many short rows
    if not math.isclose(mine[-1], theirs[-1], rel_tol=1e-2, abs_tol=1e-5):
        return None
    if not _near(mine[1:], theirs[1:]):
        return None
    if mine[0] == 1:
        # An entry 0 set to 1 leaves the variance there in the products behind it.
        return dataclasses.replace(step, products=np.append(1.0, theirs[1:]))
    return step if _near(mine[:1], theirs[:1]) else None


def _near(one: Array, other: Array) -> bool:
    """Whether products are equal up to the rounding of float32 tables, at both of their ends."""
    return bool(
        np.allclose(one, other, rtol=1e-3, atol=1e-6)
        and np.allclose(1 - one, 1 - other, rtol=1e-2, atol=1e-6)
    )


def _forms(table: _Candidate) -> str:
    """The forms of `schedule` that settle which entry is of t = 1."""
    entries = len(table.products)
    skipped = f"{BUFFERS}:{entries - 1} where the first is for t = 0"
    if table.products[0] == 1:
        return skipped
    return f"{BUFFERS}:{entries} where the first is for t = 1, {skipped}"


def _is_usual(count: int) -> bool:
    """Whether it is a number of timesteps that people choose."""
    return count > 4 and (count % 5 == 0 or count & (count - 1) == 0)


def _is_plainly_named(name: str) -> bool:
    return _KINDS.get(_leaf(name)) in ("betas", "products") and not name.endswith("_t")


def betas_schedule(values: Array, *, name: str = "betas") -> NoiseSchedule:
    """The schedule of a row of betas, t = 1 first.

    Args:
        values: (T,).
        name: of the schedule.

    Raises:
        InputError: they are no betas, or look like something else.
    """
    _check_row(values)
    inside = (values > 0) & (values < 1)
    if values[0] == 0 and inside[1:].all():
        raise InputError(
            "its first number is 0, which is for no noise: leave it out, t = 1 comes first"
        )
    if not inside.all():
        raise InputError("not all of its numbers lie strictly between 0 and 1, as betas do")
    if values[0] > values[-1]:
        raise InputError(
            f"its numbers fall from {values[0]:g} to {values[-1]:g}, and betas rise from the data "
            f"on: {_remedy_where_they_fall(values)} (alphas are 1 - beta)"
        )
    ends = float(np.log1p(-values).sum())
    if ends < _LOG_LEAST_OF_BETAS or values[-1] > 0.9:
        what = _likely_meaning(values)
        if what is not None:
            raise InputError(f"these look like {what[0]}, not like betas; pass {what[1]}")
    if ends < _LOG_LEAST_OF_BETAS:
        raise InputError(
            f"as betas they leave 1e{ends / math.log(10):.0f} of the data's variance, so they are "
            "likely something else; pass the products of 1 - beta as alphas_cumprod:FILE"
        )
    return NoiseSchedule.from_betas(values, name=name)


def products_schedule(values: Array, *, name: str = "alphas_cumprod") -> NoiseSchedule:
    """The schedule of a row of products of 1 - beta, t = 1 first.

    Args:
        values: (T,).
        name: of the schedule.

    Raises:
        InputError: they are no products, or look like something else.
    """
    _check_row(values)
    if values[0] == 1 and _has_16_bits(values):
        raise InputError(
            "its numbers were rounded to 16 bits, too few for a schedule; compute them in float32 "
            "or float64, or name the schedule"
        )
    if values[0] == 1 and values[1] < 1:
        raise InputError(
            "its first number is 1, which is that of no step: leave it out, t = 1 comes first"
        )
    if not ((values > 0) & (values < 1)).all() or not (np.diff(values) < 0).all():
        raise InputError(
            "its numbers do not fall strictly from below 1 to above 0, as products of 1 - beta do"
        )
    if values[-1] > 0.5 and _look_like_alphas(values):
        raise InputError(
            f"its last number is {values[-1]:g}, more than half of the data's variance: these "
            "look like alphas = 1 - beta; take their cumulative product"
        )
    return NoiseSchedule.from_alphas_cumprod(values, name=name)


def _remedy_where_they_fall(values: Array) -> str:
    """To reverse betas only helps where that makes betas of them."""
    with contextlib.suppress(InputError):
        betas_schedule(values[::-1])
        return "reverse them, or say what they are"
    return "say what they are, as products of alphas in alphas_cumprod:FILE"


def _has_16_bits(values: Array) -> bool:
    """Whether each of several numbers is one of float16."""
    return len(values) > 4 and bool((values.astype(np.float16) == values).all())


def _likely_meaning(values: Array) -> tuple[str, str] | None:
    """Which table of a usual schedule these rising numbers are, and what to pass; None if unclear.

    It is clear where the betas that they imply are spaced evenly, they or their square roots or
    logarithms, and the numbers themselves are not.
    """
    backwards = values[::-1]
    if len(values) < _LEAST_KNOWN:
        return None
    if values[0] > 0.5:
        if _unevenness(1 - backwards) < _EVEN:
            return "1 - beta, the last timestep first", "1 - values[::-1]"
        return None
    if _unevenness(values) < _EVEN:
        return None
    one, root, reverse = (
        _unevenness_of_products(p) for p in (1 - values, 1 - values**2, backwards)
    )
    least = min(one, root, reverse)
    if least < _EVEN:
        if least == reverse:
            return (
                "alphas_cumprod or its square roots, the last timestep first",
                "alphas_cumprod:FILE with t = 1 first",
            )
        if least == one:
            return "1 - alphas_cumprod", "1 - values as alphas_cumprod:FILE"
        return "sqrt(1 - alphas_cumprod)", "1 - values**2 as alphas_cumprod:FILE"
    if _unevenness(values**2) < _EVEN:
        return "square roots of betas", "values**2"
    return None


def _unevenness_of_products(products: Array) -> float:
    """That of the betas that products imply."""
    kept = products > 0.1  # behind them the rounding of float32 tells
    return _unevenness(_betas_of(products[kept])) if kept.sum() >= _LEAST_KNOWN else math.inf


def _betas_of(products: Array) -> Array:
    betas: Array = -np.diff(products, prepend=1.0) / np.append(1.0, products[:-1])
    return betas


def _unevenness(row: Array) -> float:
    """How far positive rising numbers are from a line, as a share of its rise.

    Or their square roots or logarithms, whichever are nearest to one.
    """
    if not (row > 0).all() or not row[-1] > row[0]:
        return math.inf
    shares = []
    for scaled in (row, np.sqrt(row), np.log(row)):
        line = np.linspace(scaled[0], scaled[-1], len(scaled))
        shares.append(float(np.abs(scaled - line).max() / (scaled[-1] - scaled[0])))
    return min(shares)


def _look_like_alphas(values: Array) -> bool:
    """Whether falling numbers are 1 - beta of single timesteps and not their products.

    Then 1 - values, its square root or its logarithm is spaced evenly; as products they would imply
    a variance that falls after the first timestep.
    """
    rounding = 2.0**-23
    betas = _betas_of(values)
    if betas[1] < betas[0] - 4 * rounding:
        return True
    rest = 1 - values
    scales: tuple[tuple[Array, Array], ...] = (
        (rest, np.full_like(rest, rounding)),
        (np.sqrt(rest), rounding / np.sqrt(rest)),
        (np.log(rest), rounding / rest),
    )
    return len(values) > 2 and any(
        bool((np.abs(np.diff(row, 2)) <= 1e-3 * np.diff(row).mean() + 4 * error[1:-1]).all())
        for row, error in scales
    )


def alike(one: NoiseSchedule, other: NoiseSchedule) -> bool:
    """Whether two schedules are equal up to the rounding of float32 tables."""
    if one.num_timesteps != other.num_timesteps:
        return False
    return _near(one.alphas_cumprod.numpy(), other.alphas_cumprod.numpy())


def _check_row(values: Array) -> None:
    if values.ndim != 1 or len(values) < 2:
        raise InputError(
            f"its shape is {values.shape}, not one row of a number a step; save T numbers, (T,)"
        )
    if len(values) > MAX_TIMESTEPS:
        raise InputError(f"has {len(values):,} numbers, more than {MAX_TIMESTEPS:,} steps")
    if not np.isfinite(values).all():
        raise InputError("not all of its numbers are finite")


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _is_table(tensor: Tensor, *, is_named: bool) -> bool:
    """Whether a tensor may be a table: one monotone number a timestep.

    Under a name of betas or products the numbers lie in (0, 1), which no norm's beta does, but for
    an entry 0 that may be of t = 0; under another they may be roots or inverses.
    """
    if not is_plain(tensor) or tensor.ndim != 1 or not 2 <= len(tensor) <= MAX_TIMESTEPS:
        return False
    if len(tensor) > (numbers_held(tensor) or 0):
        return False
    values = _values(tensor)
    if not np.isfinite(values).all():
        return False
    rises = np.diff(values) >= 0
    if rises.any() and not rises.all():
        return False
    if is_named:
        inside = values[1:] if values[0] in (0, 1) else values
        return bool(((inside > 0) & (inside < 1)).all())
    in_range = values.min() >= 0 and (values.max() <= 1 or values.min() >= 1)
    return bool(in_range and values[0] != values[-1])


def _values(tensor: Tensor) -> Array:
    values: Array = tensor.detach().cpu().double().numpy()
    return values


def _row(value: object) -> Tensor | None:
    """A tensor, or a row of numbers in a list or an array."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return torch.from_numpy(value.astype(f"f{min(value.itemsize, 8)}"))
    if isinstance(value, list | tuple) and len(value) >= _LEAST_UNNAMED:  # an optimizer's are 2
        return torch.tensor(value, dtype=torch.float64)
    return None


def _steps_in(values: Mapping[str, object]) -> dict[str, int]:
    """Whole numbers that may be T, by the names that say so."""
    named = {name: value for name, value in values.items() if _leaf(name) in _TIMESTEPS}
    return {n: count for n, value in named.items() if (count := _count(value)) is not None}


def _count(value: object) -> int | None:
    if isinstance(value, Tensor | np.ndarray | np.generic):
        is_whole = str(value.dtype).rpartition(".")[2].startswith("int")
        value = value.item() if is_whole and np.prod(value.shape) == 1 else None
    return value if type(value) is int and 2 <= value <= MAX_TIMESTEPS else None
