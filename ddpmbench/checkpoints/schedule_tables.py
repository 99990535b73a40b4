"""Noise schedules in tables beside the weights: betas, their products, and functions of either.

A name is not enough: `alpha` may be 1 - beta or its cumulative product, and entry 0 may be t = 1 or
t = 0. Two tables of one module are read under any name if one is the cumulative product that the
other implies; a single table needs an unambiguous name. Anything else is refused.
"""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ddpmbench.checkpoints.schedules import (
    BUFFERS,
    FILES,
    Array,
    array_names,
    betas_schedule,
    products_schedule,
    read_table,
)
from ddpmbench.checkpoints.weights import leaves_in, numbers_held, why_not_plain
from ddpmbench.diffusion.model import betas_apart
from ddpmbench.diffusion.named_schedules import MAX_TIMESTEPS
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError

_NAMES = {
    "betas": "betas beta beta_t betas_t b_t",
    "alphas_cumprod": (
        "alphas_cumprod alpha_cumprod alphas_cum_prod alpha_cum_prod alphas_cumulative alphas_bar "
        "alpha_bar alpha_bars alphas_bars alphabar alpha_hat alphabar_t alphabars alpha_bar_t "
        "alphas_bar_t alpha_bars_t ab_t"
    ),
    "unclear": "alphas alpha alpha_t alphas_t a_t",
}
_KINDS = {name: kind for kind, names in _NAMES.items() for name in names.split()}
# Names in minDiffusion and its descendants, whose tables begin with an entry for t = 0.
_FROM_ZERO = {"oneover_sqrta", "sqrtab", "sqrtmab", "mab_over_sqrtmab", "mab_over_sqrtmab_inv"}
_TIMESTEPS = {
    *("timesteps", "num_timesteps", "n_timesteps", "num_train_timesteps", "train_timesteps"),
    *("diffusion_steps", "num_diffusion_steps", "num_diffusion_timesteps", "n_diffusion_steps"),
    *("noise_steps", "num_noise_steps", "n_T", "T"),
}
_LEAST_UNNAMED = 4
"""Least length of unnamed tables; shorter ones may agree by chance."""
_MOST_TOGETHER, _MOST_ENTRIES = 64, 2**20
"""Most tables and entries of one module; a schedule has about twenty tables, and comparing takes
300 bytes per entry."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Table:
    """alphas_cumprod from one table, or from two that agree.

    Attributes:
        name: of the table that is read.
        num_entries: of that table.
        products: (L,) without a possible entry of 1 for t = 0.
        betas: (L,) variance of each entry; None for a table of products.
        is_settled: whether entry 0 of `products` is known to be t = 1.
    """

    name: str
    num_entries: int
    products: Array
    betas: Array | None
    is_settled: bool

    @property
    def totals(self) -> tuple[int, ...]:
        """Possible values of T."""
        entries = len(self.products)
        return (entries,) if self.is_settled else (entries, entries - 1)

    def agrees(self, other: Self) -> bool:
        """Whether both have the same products."""
        return len(self.products) == len(other.products) and _near(self.products, other.products)

    def schedule(self, num_timesteps: int) -> NoiseSchedule:
        """The schedule of the last T entries."""
        first = len(self.products) - num_timesteps
        if self.betas is None:
            return NoiseSchedule.from_alphas_cumprod(self.products[first:], name=BUFFERS)
        return NoiseSchedule.from_betas(_without(first, self.betas), name=BUFFERS)


def _without(first: int, betas: Array) -> Array:
    """Betas without the first entries, whose variance is added to that of x_1."""
    rest = betas[first:].copy()
    rest[0] = -np.expm1(np.log1p(-betas[: first + 1]).sum())
    return rest


@dataclasses.dataclass(frozen=True, eq=False)
class ScheduleTables:
    """Possible tables of a schedule in a file, by name.

    Attributes:
        tables: monotone numbers, (T,) or (T + 1,) each.
        steps: whole numbers with a name for T.
        source: the file, named in messages.
    """

    tables: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    steps: Mapping[str, int] = dataclasses.field(default_factory=dict)
    source: str = "the file"

    @classmethod
    def within(cls, content: Mapping[str, object], *, source: str = "the file") -> Self:
        """The tables in a file: beside the weights, among them, or in an enclosing dict."""
        tables, steps = {}, {}
        for name, value in leaves_in(content):
            row = value
            if isinstance(value, list | tuple) and len(value) >= _LEAST_UNNAMED:
                row = torch.tensor(value, dtype=torch.float64)  # an optimizer has two betas
            if isinstance(row, Tensor) and _is_table(row, is_named=_kind(name) != "other"):
                tables[name] = row
            elif _leaf(name) in _TIMESTEPS and (count := _count(value)) is not None:
                steps[name] = count
        return cls(tables, steps, source)

    @cached_property
    def names(self) -> frozenset[str]:
        """The names of the tables, and of equally long rows in the module of agreeing ones."""
        _, agreed, _ = self._agreed
        places = {(_module(n), len(self.tables[n])) for n in agreed}
        return frozenset(self.steps) | {
            name
            for name, table in self.tables.items()
            if _kind(name) != "other" or (_module(name), len(table)) in places
        }

    @property
    def example(self) -> str:
        """An example of `schedule`, if it is missing."""
        if self:
            return BUFFERS
        totals = set(self.steps.values())
        if totals == {1000}:
            return "linear:1000"
        return f"linear:{totals.pop() if len(totals) == 1 else 'T'}:START:END"

    def __bool__(self) -> bool:
        """Whether a schedule can be read from them."""
        table, _, is_clear = self._agreed
        return bool(self._named) or (table is not None and is_clear)

    def notes(self, schedule: NoiseSchedule) -> tuple[str, ...]:
        """A note if the schedule leaves out an entry of the tables."""
        table, total = self._table, schedule.num_original_timesteps
        if table.num_entries == total:
            return ()
        return (f"{self._has_entries(table)}, the first for t = 0: T = {total:,}",)

    def schedule(self, num_timesteps: int | None = None) -> NoiseSchedule:
        """The schedule of the tables, from betas if there are any.

        Args:
            num_timesteps: T, if the tables have T or T + 1 entries; None if they determine it.

        Raises:
            InputError: there are no tables, or they are contradictory or ambiguous.
        """
        table = self._table
        remedy = f"{BUFFERS}:{table.totals[-1]} where the first is for t = 0"
        if not table.is_settled:
            remedy = f"{BUFFERS}:{table.totals[0]} where it is for t = 1, {remedy}"
        if num_timesteps is None:
            num_timesteps, *others = self._totals_of(table)
            if others:
                raise InputError(
                    f"{self._has_entries(table)}, and does not say which is of t = 1; take "
                    f"`schedule={remedy}`"
                )
        elif num_timesteps not in table.totals:
            raise InputError(f"{self._has_entries(table)}; take {remedy}")
        # With betas alone, some projects include an entry for t = 0 in the products, others do not.
        skips = num_timesteps < len(table.products)
        if skips and table.betas is not None and self._agreed[0] is None:
            raise InputError(
                f"{self.source}'s {table.name} has an entry for t = 0, {table.betas[0]:g}, and no "
                "table beside it tells whether the products of 1 - beta include it; pass them as "
                "alphas_cumprod:FILE, t = 1 first"
            )
        return table.schedule(num_timesteps)

    @cached_property
    def contradiction(self) -> str | None:
        """A contradiction between two of the tables, if any."""
        try:
            first, apart = self._first_and_apart
        except InputError:
            return None
        return (
            f"{self.source}'s {first.name} and {apart[0]} contradict each other" if apart else None
        )

    @cached_property
    def candidates(self) -> tuple[NoiseSchedule, ...]:
        """The possible schedules: one, two if T is ambiguous, none if the tables cannot be read."""
        try:
            return tuple(self._table.schedule(total) for total in self._totals_of(self._table))
        except InputError:
            return ()

    def contradiction_of(self, schedule: NoiseSchedule) -> str | None:
        """The contradiction of the tables to a schedule; None if they agree or are inconclusive."""
        if self.contradiction is not None or not self.candidates:
            return self.contradiction
        for theirs in self.candidates:
            visited = theirs
            if theirs.num_timesteps == schedule.num_original_timesteps:
                visited = theirs.subset(schedule.original_timesteps.tolist())
            if _alike(schedule, theirs) or _alike(schedule, visited):
                return None
        of_steps = " or ".join(f"{theirs.num_timesteps:,}" for theirs in self.candidates)
        _, agreed, _ = self._agreed
        name = min(self._named.keys() & agreed, default=self._table.name)
        apart = ""
        if len(self.candidates) == 1 and self.candidates[0].num_timesteps == schedule.num_timesteps:
            apart = betas_apart(self.candidates[0], schedule)
        return f"the table {name} says another, of {of_steps} steps{apart}"

    def _has_entries(self, table: _Table) -> str:
        return f"{self.source}'s {table.name} has {table.num_entries:,} entries"

    def _totals_of(self, table: _Table) -> tuple[int, ...]:
        """T, if entry 0, a number in the file or the length determines it; else both values."""
        totals = table.totals
        stated = set(totals) & set(self.steps.values())
        if table.is_settled or len(stated) == 1:
            return totals if table.is_settled else tuple(stated)
        from_zero = any(_leaf(name) in _FROM_ZERO for name in self.tables)
        is_plain_name = _kind(table.name) in ("betas", "alphas_cumprod") and table.name[-2:] != "_t"
        hinted = from_zero or not is_plain_name
        usual, one_less_usual = map(_is_usual, totals)
        if usual > one_less_usual and not from_zero:
            return totals[:1]
        if usual < one_less_usual and hinted:
            return totals[1:]
        return totals[:1] if usual == one_less_usual and not hinted else totals

    @cached_property
    def _named(self) -> dict[str, Tensor]:
        """The tables that are unambiguous by name, betas first."""
        return {
            name: table
            for kind in ("betas", "alphas_cumprod")
            for name, table in self.tables.items()
            if _kind(name) == kind
        }

    @property
    def _table(self) -> _Table:
        """The table that the schedule is read from.

        Raises:
            InputError: there is no table, or several contradict each other.
        """
        if self.contradiction is not None:
            raise InputError(f"{self.contradiction}; name the schedule it was trained on")
        return self._first_and_apart[0]

    @cached_property
    def _first_and_apart(self) -> tuple[_Table, list[str]]:
        """The table to read, and the names of tables that contradict it.

        Raises:
            InputError: there is no table to read.
        """
        table, agreed, is_clear = self._agreed
        if not is_clear:
            raise InputError(
                f"{self.source}'s {' and '.join(sorted(agreed))} can be read as two "
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
        for name, tensor in self._named.items():
            if (size := tensor.element_size()) < 4:
                raise InputError(
                    f"{self.source}'s {name} has {8 * size} bits, too few; name the schedule"
                )
        if table is not None:
            return table, sorted(self._named.keys() - agreed)
        first, *others = map(self._alone, self._named)
        return first, [other.name for other in others if not first.agrees(other)]

    def _alone(self, name: str) -> _Table:
        """A table that is unambiguous by name."""
        values, is_betas = _values(self.tables[name]), _kind(name) == "betas"
        check, of_zero = (betas_schedule, 0) if is_betas else (products_schedule, 1)
        has_zero = bool(values[0] == of_zero)
        rest = values[1:] if has_zero else values
        try:
            check(rest)
        except InputError as error:
            raise InputError(f"{self.source}'s {name}: {error}") from error
        products, betas = ((1 - rest).cumprod(), rest) if is_betas else (rest, None)
        return _Table(name, len(values), products, betas, has_zero)

    @cached_property
    def _agreed(self) -> tuple[_Table | None, set[str], bool]:
        """The schedule that tables of one module agree on, their names, and if it is unambiguous.

        A pair may also be the square roots of another schedule; a third table decides.
        """
        modules: dict[str, list[str]] = {}
        for name, table in self.tables.items():
            least = _LEAST_UNNAMED if _kind(name) == "other" else 2
            if table.element_size() >= 4 and len(table) >= least:
                modules.setdefault(_module(name), []).append(name)
        pairs = [pair for names in modules.values() for pair in self._pairs(names)]
        agreed: list[tuple[_Table, set[str]]] = []
        for joined, other in sorted(pairs, key=lambda pair: _kind(pair[0].name) != "betas"):
            names = next((names for known, names in agreed if known.agrees(joined)), None)
            if names is None:
                agreed.append((joined, names := set()))
            names |= {joined.name, other}
        if not agreed:
            return None, set(), True
        first, *others = sorted(agreed, key=lambda pair: -len(pair[1]))
        return *first, not others or len(others[0][1]) < len(first[1])

    def _pairs(self, names: list[str]) -> Iterator[tuple[_Table, str]]:
        """For any two tables that agree: the one of single timesteps, and the name of the other."""
        entries = sum(len(self.tables[name]) for name in names)
        if len(names) > _MOST_TOGETHER or entries > _MOST_ENTRIES:
            return  # not a schedule's, and too many to compare
        meanings = [
            (name, row) for name in names for row in _meanings(_kind(name), self.tables[name])
        ]
        for (name, (_, step)), (other, (product, _)) in itertools.product(meanings, repeat=2):
            if name == other or _kind(name) == "alphas_cumprod" or _kind(other) == "betas":
                continue
            if (table := _joined(name, step, product)) is not None:
                yield table, other


NO_TABLES = ScheduleTables()
"""The tables of a file without tables."""


def notes_on(form: str) -> tuple[str, ...]:
    """A note if the .npz file of a schedule also holds another one.

    Args:
        form: of a schedule that `read_schedule` has read.
    """
    name, _, rest = form.partition(":")
    tables = {}
    for other in array_names(path := Path(rest)) if name in FILES else ():
        with contextlib.suppress(InputError):  # not a table
            tables[other] = torch.from_numpy(read_table(path, other))
    contradiction = ScheduleTables.within(tables).contradiction if name in tables else None
    if contradiction is None:
        return ()
    return (f"`schedule={form}`: {contradiction}; its {name} are taken",)


def _meanings(kind: str, table: Tensor) -> Iterator[tuple[Array, Array]]:
    """Possible meanings of a table: alpha, of one timestep or cumulative, and 1 - alpha."""
    x = _values(table)
    meanings: tuple[tuple[Array, Array], ...] = ()
    if kind == "betas":
        meanings = ((1 - x, x),)
    elif kind != "other":
        meanings = ((x, 1 - x),)
    elif x.max() <= 1:
        meanings = ((1 - x, x), (1 - x**2, x**2), (x, 1 - x), (x**2, 1 - x**2))
    elif x.min() >= 1:
        meanings = ((x**-2, 1 - x**-2),)
    yield from (pair for pair in meanings if ((pair[0] > 0) & (pair[0] <= 1)).all())


def _joined(name: str, step: Array, product: Array) -> _Table | None:
    """The table of betas and products that agree; either may begin with an entry for t = 0."""
    betas, theirs = step[int(step[0] == 0) :], product[int(product[0] == 1) :]
    first = len(betas) - len(theirs)
    if first not in (0, 1) or not (np.diff(theirs) < 0).all():
        return None
    is_settled = first == 1 or step[0] == 0 or product[0] == 1
    # the products may or may not include the variance of the entry for t = 0
    for rest in (_without(first, betas), betas[first:])[: 1 + first]:
        ours = (1 - rest).cumprod()
        # compare the last entries first, as a network may have many short rows
        ends_alike = math.isclose(ours[-1], theirs[-1], rel_tol=1e-2, abs_tol=1e-5)
        if ends_alike and _near(ours, theirs):
            return _Table(name, max(len(step), len(product)), ours, rest, bool(is_settled))
    return None


def _near(one: Array, other: Array) -> bool:
    """Whether products are equal up to the rounding of float32 tables, at both ends."""
    return bool(
        np.allclose(one, other, rtol=1e-3, atol=1e-6)
        and np.allclose(1 - one, 1 - other, rtol=1e-2, atol=1e-6)
    )


def _alike(one: NoiseSchedule, other: NoiseSchedule) -> bool:
    has_as_many = one.num_timesteps == other.num_timesteps
    return has_as_many and _near(one.alphas_cumprod.numpy(), other.alphas_cumprod.numpy())


def _is_usual(count: int) -> bool:
    """Whether it is a usual number of timesteps."""
    return count > 4 and (count % 5 == 0 or count & (count - 1) == 0)


def _kind(name: str) -> str:
    """The kind of a table by its name: betas, alphas_cumprod, unclear or other."""
    return _KINDS.get(_leaf(name), "other")


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _is_table(tensor: Tensor, *, is_named: bool) -> bool:
    """Whether a tensor may be a table: one number per timestep, monotone.

    Under a name of betas or products the numbers are in (0, 1), unlike a normalization's beta,
    except for an entry 0 that may be t = 0; under other names they may be roots or inverses.
    """
    if why_not_plain(tensor) or tensor.ndim != 1 or not 2 <= len(tensor) <= MAX_TIMESTEPS:
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


def _count(value: object) -> int | None:
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_floating_point():
        value = value.item()
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return int(value) if is_whole and 2 <= value <= MAX_TIMESTEPS else None  # type: ignore[call-overload, operator]
