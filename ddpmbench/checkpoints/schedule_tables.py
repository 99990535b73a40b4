"""Noise schedules in tables beside the weights: betas, their products, and functions of either.

A name is not enough: `alpha` is 1 - beta or its cumulative product, and entry 0 is of t = 1 or of
t = 0. Two tables of one module are read under any name if one is the cumulative product that the
other implies; a single table needs an unambiguous name. All else is refused.
"""

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

from ddpmbench.checkpoints.schedule_files import (
    betas_schedule,
    products_schedule,
)
from ddpmbench.checkpoints.weights import is_plain, leaves_in, numbers_held
from ddpmbench.diffusion.named_schedules import MAX_TIMESTEPS
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError

Array = NDArray[np.float64]

BUFFERS = "buffers"
"""The form of a schedule that takes the tables beside the weights."""
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
_MOST_TOGETHER, _MOST_ENTRIES = 64, 2**20
"""Of one module, where a schedule has some twenty tables; to compare takes 300 bytes an entry."""


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
    """The tables that a file may have of a schedule, by their names there.

    Attributes:
        tables: monotone rows of numbers, (T,) or (T + 1,) each.
        steps: whole numbers under a name of T.
        source: the file, named in messages.
    """

    tables: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    steps: Mapping[str, int] = dataclasses.field(default_factory=dict)
    source: str = "the file"

    @classmethod
    def within(cls, content: Mapping[str, object], *, source: str = "the file") -> Self:
        """The tables anywhere in a file: beside the weights, among them or in a dict around them.

        Args:
            content: from `read_state`, or tensors by name; the last part of a name tells the kind.
            source: the file to name in an error.
        """
        leaves = dict(leaves_in(content))
        rows = {name: row for name, value in leaves.items() if (row := _row(value)) is not None}
        tables = {n: row for n, row in rows.items() if _is_table(row, is_named=_kind(n) != "other")}
        named = {name: value for name, value in leaves.items() if _leaf(name) in _TIMESTEPS}
        steps = {n: count for n, value in named.items() if (count := _count(value)) is not None}
        return cls(tables, steps, source)

    @cached_property
    def names(self) -> frozenset[str]:
        """The names of the tables, and of all rows as long in the module of those that agree."""
        agreed = self._agreed.names if self._agreed is not None else ()
        places = {(_module(n), len(self.tables[n])) for n in agreed}
        return frozenset(self.steps) | {
            name
            for name, table in self.tables.items()
            if _kind(name) != "other" or (_module(name), len(table)) in places
        }

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
        return bool(self._named) or (self._agreed is not None and self._agreed.is_clear)

    def notes(self, schedule: NoiseSchedule) -> tuple[str, ...]:
        """A line where the schedule that was read from them leaves an entry out."""
        table, total = self._table, schedule.num_original_timesteps
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
        table = self._table
        entries, includes_zero = len(table.products), table.products[0] == 1
        skipped = f"{BUFFERS}:{entries - 1} where the first is for t = 0"
        remedy = (
            skipped if includes_zero else f"{BUFFERS}:{entries} where it is for t = 1, {skipped}"
        )
        if num_timesteps is None:
            num_timesteps, *others = self._totals_of(table)
            if others:
                raise InputError(
                    f"{self._has_entries(table)}, and does not say which is of t = 1; take "
                    f"`schedule={remedy}`"
                )
        elif num_timesteps != entries - 1 and (includes_zero or num_timesteps != entries):
            raise InputError(f"{self._has_entries(table)}; take {remedy}")
        # An entry for t = 0 of betas alone enters the products for some and not for others.
        skips = num_timesteps < entries and not includes_zero
        if skips and table.betas is not None and self._agreed is None:
            raise InputError(
                f"{self.source}'s {table.name} has an entry for t = 0, {table.betas[0]:g}, and no "
                "table beside it tells whether the products of 1 - beta include it; pass them as "
                "alphas_cumprod:FILE, t = 1 first"
            )
        return table.schedule(num_timesteps)

    @cached_property
    def contradiction(self) -> str | None:
        """The contradiction between two of the tables; None where there is none."""
        try:
            first, apart = self._first_and_apart
        except InputError:
            return None
        return (
            f"{self.source}'s {first.name} and {apart[0]} contradict each other" if apart else None
        )

    @cached_property
    def readings(self) -> tuple[NoiseSchedule, ...]:
        """The possible schedules: one, two where T is ambiguous, none where they are unreadable."""
        try:
            return tuple(self._table.schedule(total) for total in self._totals_of(self._table))
        except InputError:
            return ()

    def contradiction_of(self, schedule: NoiseSchedule) -> str | None:
        """How the tables contradict a schedule; None if they agree or tell nothing."""
        if self.contradiction is not None or not self.readings:
            return self.contradiction
        for theirs in self.readings:
            kept = theirs
            if theirs.num_timesteps == schedule.num_original_timesteps:
                kept = theirs.subset(schedule.original_timesteps.tolist())
            if _alike(schedule, theirs) or _alike(schedule, kept):
                return None
        of_steps = " or ".join(f"{theirs.num_timesteps:,}" for theirs in self.readings)
        agreed = self._agreed.names if self._agreed is not None else set()
        name = min(self._named.keys() & agreed, default=self._table.name)
        return f"the table {name} says another, of {of_steps} steps"

    def _has_entries(self, table: _Candidate) -> str:
        return f"{self.source}'s {table.name} has {len(table.products):,} entries"

    def _totals_of(self, table: _Candidate) -> tuple[int, ...]:
        """T, if entry 0, a number in the file or the number of entries tells it; else both."""
        entries = len(table.products)
        both = (entries, entries - 1)
        if table.products[0] == 1:
            return (entries - 1,)
        stated = set(both) & set(self.steps.values())
        if len(stated) == 1:
            return tuple(stated)
        from_zero = any(_leaf(name) in _FROM_ZERO for name in self.tables)
        is_plain_name = _kind(table.name) in ("betas", "products") and table.name[-2:] != "_t"
        hinted = from_zero or not is_plain_name
        usual, one_less_usual = map(_is_usual, both)
        if usual > one_less_usual and not from_zero:
            return (entries,)
        if usual < one_less_usual and hinted:
            return (entries - 1,)
        return (entries,) if usual == one_less_usual and not hinted else both

    @cached_property
    def _named(self) -> dict[str, Tensor]:
        """The tables whose names alone explain them, those of betas first."""
        return {
            name: table
            for kind in ("betas", "products")
            for name, table in self.tables.items()
            if _kind(name) == kind
        }

    @property
    def _table(self) -> _Candidate:
        """The table that the schedule is read from.

        Raises:
            InputError: there is none, or several contradict each other.
        """
        if self.contradiction is not None:
            raise InputError(f"{self.contradiction}; name the schedule it was trained on")
        return self._first_and_apart[0]

    @cached_property
    def _first_and_apart(self) -> tuple[_Candidate, list[str]]:
        """The table to read, and the names of those that contradict it.

        Raises:
            InputError: there is none to read.
        """
        agreed = self._agreed
        if agreed is not None and not agreed.is_clear:
            raise InputError(
                f"{self.source}'s {' and '.join(sorted(agreed.names))} can be read as two "
                "schedules; name the schedule it was trained on"
            )
        unclear = [name for name in self.tables if _kind(name) == "unclear"]
        if not self and unclear:
            raise InputError(
                f"{self.source} has {unclear[0]}, which is 1 - beta to some and its product to "
                "others; pass the product as alphas_cumprod:FILE"
            )
        if not self:
            raise InputError(
                f"{self.source} holds no betas and no alphas_cumprod; name the schedule it was "
                "trained on"
            )
        for name, table in self._named.items():
            if (size := table.element_size()) < 4:
                raise InputError(
                    f"{self.source}'s {name} has {8 * size} bits, too few; name the schedule"
                )
        if agreed is not None:
            return agreed.candidate, sorted(self._named.keys() - agreed.names)
        first, *others = map(self._alone, self._named)
        return first, [other.name for other in others if not first.agrees(other)]

    def _alone(self, name: str) -> _Candidate:
        """A table that its name alone explains."""
        values, is_betas = _values(self.tables[name]), _kind(name) == "betas"
        check, of_zero = (betas_schedule, 0) if is_betas else (products_schedule, 1)
        try:
            check(values[1:] if values[0] == of_zero else values)
        except InputError as error:
            raise InputError(f"{self.source}'s {name}: {error}") from error
        return _Candidate(name, *((1 - values).cumprod(), values) if is_betas else (values,))

    @cached_property
    def _agreed(self) -> _Agreement | None:
        """None where no two tables of one module are of the same schedule."""
        modules: dict[str, list[str]] = {}
        for name, table in self.tables.items():
            least = _LEAST_UNNAMED if _kind(name) == "other" else 2
            if table.element_size() >= 4 and len(table) >= least:
                modules.setdefault(_module(name), []).append(name)
        pairs = [pair for names in modules.values() for pair in self._pairs(names)]
        agreements: list[_Agreement] = []
        for candidate, *names in sorted(pairs, key=lambda pair: _kind(pair[1]) != "betas"):
            known = (a for a in agreements if a.candidate.agrees(candidate))
            if (same := next(known, None)) is not None:
                same.names.update(names)
            else:
                agreements.append(_Agreement(candidate, set(names)))
        if not agreements:
            return None
        # A pair that is of another schedule as square roots is settled by any third table.
        first, *others = sorted(agreements, key=lambda agreement: -len(agreement.names))
        first.is_clear = not others or len(others[0].names) < len(first.names)
        return first

    def _pairs(self, names: list[str]) -> Iterator[tuple[_Candidate, str, str]]:
        """Any two tables that agree: their candidate and both names."""
        entries = sum(len(self.tables[name]) for name in names)
        if len(names) > _MOST_TOGETHER or entries > _MOST_ENTRIES:
            return  # no schedule's, and too many to compare
        steps: list[_Candidate] = []
        products: list[_Candidate] = []
        for name in names:
            kind = _kind(name)
            for alphas, betas in _meanings(kind, _values(self.tables[name])):
                if ((alphas > 0) & (alphas <= 1)).all():
                    steps += _of_steps(name, alphas, betas) if kind != "products" else []
                    products += _of_products(name, alphas) if kind != "betas" else []
        for product, step in itertools.product(products, steps):
            if product.name != step.name and (joint := _joined(product, step)) is not None:
                yield joint, step.name, product.name


NO_TABLES = ScheduleTables()
"""The tables of a file without any."""


def _meanings(kind: str, x: Array) -> Iterator[tuple[Array, Array]]:
    """What a table may mean: alpha, of a timestep or a product of them, and 1 - alpha."""
    if kind == "betas":
        yield 1 - x, x
    elif kind != "other":
        yield x, 1 - x
    elif x.max() <= 1:
        yield from ((1 - x, x), (1 - x**2, x**2), (x, 1 - x), (x**2, 1 - x**2))
    elif x.min() >= 1:
        yield x**-2, 1 - x**-2


def _of_steps(name: str, alphas: Array, betas: Array) -> Iterator[_Candidate]:
    """A table of single timesteps: as it is, and with an entry for t = 0 before it or in it."""
    products = alphas.cumprod()
    yield _Candidate(name, products, betas)
    yield _Candidate(name, np.append(1.0, products), np.append(0.0, betas), is_longer=True)
    if betas[0] > 0:
        yield _Candidate(name, np.append(1.0, alphas[1:].cumprod()), np.append(0.0, betas[1:]))


def _of_products(name: str, alphas: Array) -> Iterator[_Candidate]:
    """A table of products: as it is, and with the product of t = 0 before it."""
    if (np.diff(alphas) < 0).all():
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


def _alike(one: NoiseSchedule, other: NoiseSchedule) -> bool:
    has_as_many = one.num_timesteps == other.num_timesteps
    return has_as_many and _near(one.alphas_cumprod.numpy(), other.alphas_cumprod.numpy())


def _is_usual(count: int) -> bool:
    """Whether it is a number of timesteps that people choose."""
    return count > 4 and (count % 5 == 0 or count & (count - 1) == 0)


def _kind(name: str) -> str:
    """What the name of a table says: betas, products, unclear or other."""
    return _KINDS.get(_leaf(name), "other")


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


def _count(value: object) -> int | None:
    if isinstance(value, Tensor | np.ndarray | np.generic):
        is_whole = str(value.dtype).rpartition(".")[2].startswith("int")
        value = value.item() if is_whole and np.prod(value.shape) == 1 else None
    return value if type(value) is int and 2 <= value <= MAX_TIMESTEPS else None
