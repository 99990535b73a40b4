"""Noise schedules in tables beside the weights: betas or their products, known by their names.

Entry 0 of a table is of t = 1 or of t = 0. Where nothing in the file tells which, it is refused.
"""

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ddpmbench.checkpoints.schedule_files import ROWS, Array
from ddpmbench.checkpoints.weights import is_plain, leaves_in, numbers_held
from ddpmbench.diffusion.named_schedules import MAX_TIMESTEPS
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.errors import InputError

BUFFERS = "buffers"
"""The form of a schedule that takes the tables beside the weights."""
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
_FROM_ZERO = {"oneover_sqrta", "sqrtab", "sqrtmab", "mab_over_sqrtmab", "mab_over_sqrtmab_inv"}
"""Names of minDiffusion and its descendants, whose tables begin with an entry for t = 0."""
_TIMESTEPS = {
    *("timesteps", "num_timesteps", "n_timesteps", "num_train_timesteps", "train_timesteps"),
    *("diffusion_steps", "num_diffusion_steps", "num_diffusion_timesteps", "n_diffusion_steps"),
    *("noise_steps", "num_noise_steps", "n_T", "T"),
}
_LEAST_LISTED = 4
"""The betas of an optimizer are a list of fewer."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Table:
    """A table of betas or alphas_cumprod.

    Attributes:
        name: in the file.
        products: (L,) alphas_cumprod, without an entry of 1 for t = 0.
        betas: (L,) of each entry; None where the table is of products.
        has_zero: whether the file has such an entry.
    """

    name: str
    products: Array
    betas: Array | None
    has_zero: bool

    @property
    def num_entries(self) -> int:
        """As the file has them."""
        return len(self.products) + self.has_zero

    def agrees(self, other: Self) -> bool:
        """Whether both have the same products, apart from one more at the beginning of one."""
        lengths = len(self.products), len(other.products)
        common = min(lengths)
        is_near = _near(self.products[-common:], other.products[-common:])
        return max(lengths) - common <= 1 and is_near

    def schedule(self, num_timesteps: int) -> NoiseSchedule:
        """The schedule of the last T entries."""
        first = len(self.products) - num_timesteps
        if self.betas is None:
            return NoiseSchedule.from_alphas_cumprod(self.products[first:], name=BUFFERS)
        betas = self.betas[first:].copy()
        # the variance of the entries before t = 1 is in x_1, too
        betas[0] = -np.expm1(np.log1p(-self.betas[: first + 1]).sum())
        return NoiseSchedule.from_betas(betas, name=BUFFERS)


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
        tables, steps = {}, {}
        for name, value in leaves_in(content):
            row = value
            if isinstance(value, list | tuple) and len(value) >= _LEAST_LISTED:
                row = torch.tensor(value, dtype=torch.float64)
            if isinstance(row, Tensor) and _is_table(row, is_named=_kind(name) != "other"):
                tables[name] = row
            elif _leaf(name) in _TIMESTEPS and (count := _count(value)) is not None:
                steps[name] = count
        return cls(tables, steps, source)

    @cached_property
    def names(self) -> frozenset[str]:
        """The names of the tables, and of all monotone rows as long beside betas or products."""
        places = {(_module(name), len(self.tables[name])) for name in self._named}
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
        """Whether there are betas or products."""
        return bool(self._named)

    def notes(self, schedule: NoiseSchedule) -> tuple[str, ...]:
        """A line where the schedule that was read from them leaves an entry out."""
        table, total = self._table, schedule.num_original_timesteps
        if table.num_entries == total:
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
        totals = self._possible_totals
        remedy = f"{BUFFERS}:{totals[-1]} where the first is for t = 0"
        if len(totals) > 1:
            remedy = f"{BUFFERS}:{totals[0]} where it is for t = 1, {remedy}"
        if num_timesteps is None:
            num_timesteps, *others = self._totals
            if others:
                raise InputError(
                    f"{self._has_entries(table)}, and does not say which is of t = 1; take "
                    f"`schedule={remedy}`"
                )
        elif num_timesteps not in totals:
            raise InputError(f"{self._has_entries(table)}; take {remedy}")
        # An entry for t = 0 of betas alone enters the products for some and not for others.
        is_alone = all(each.betas is not None for each in self._read)
        if table.betas is not None and is_alone and num_timesteps < len(table.products):
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
            first, *others = self._read
        except InputError:
            return None
        apart = next((other.name for other in others if not first.agrees(other)), None)
        return apart and f"{self.source}'s {first.name} and {apart} contradict each other"

    @cached_property
    def readings(self) -> tuple[NoiseSchedule, ...]:
        """The possible schedules: one, two where T is ambiguous, none where they are unreadable."""
        try:
            return tuple(self._table.schedule(total) for total in self._totals)
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
        return f"the table {self._table.name} says another, of {of_steps} steps"

    def _has_entries(self, table: _Table) -> str:
        return f"{self.source}'s {table.name} has {table.num_entries:,} entries"

    @property
    def _possible_totals(self) -> tuple[int, ...]:
        """T, if a table has an entry of no noise or one entry less; else both that it may be."""
        lengths = {len(table.products) for table in self._read}
        if len(lengths) > 1 or any(table.has_zero for table in self._read):
            return (min(lengths),)
        return (max(lengths), max(lengths) - 1)

    @property
    def _totals(self) -> tuple[int, ...]:
        """The same, if a number in the file or the number of entries tells which; else both."""
        totals = self._possible_totals
        stated = set(totals) & set(self.steps.values())
        if len(totals) == 1 or len(stated) == 1:
            return tuple(stated) or totals
        from_zero = any(_leaf(name) in _FROM_ZERO for name in self.tables)
        is_hinted = from_zero or self._table.name.endswith("_t")
        usual, one_less_usual = map(_is_usual, totals)
        if usual > one_less_usual and not from_zero:
            return totals[:1]
        if usual < one_less_usual and is_hinted:
            return totals[1:]
        return totals[:1] if usual == one_less_usual and not is_hinted else totals

    @cached_property
    def _named(self) -> list[str]:
        """The names of betas, and then of products."""
        return [name for kind in ROWS for name in self.tables if _kind(name) == kind]

    @cached_property
    def _read(self) -> list[_Table]:
        """The tables of betas, and then of products.

        Raises:
            InputError: there is none, or one is something else.
        """
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
        tables = []
        for name in self._named:
            if (size := self.tables[name].element_size()) < 4:
                raise InputError(
                    f"{self.source}'s {name} has {8 * size} bits, too few; name the schedule"
                )
            values, kind = _values(self.tables[name]), _kind(name)
            has_zero = bool(values[0] == (0 if kind == "betas" else 1))
            values = values[1:] if has_zero else values
            try:
                ROWS[kind](values)
            except InputError as error:
                raise InputError(f"{self.source}'s {name}: {error}") from error
            betas = values if kind == "betas" else None
            products = values if betas is None else (1 - betas).cumprod()
            tables.append(_Table(name, products, betas, has_zero))
        return tables

    @property
    def _table(self) -> _Table:
        """The table that the schedule is read from.

        Raises:
            InputError: there is none, or several contradict each other.
        """
        if self.contradiction is not None:
            raise InputError(f"{self.contradiction}; name the schedule it was trained on")
        return self._read[0]


NO_TABLES = ScheduleTables()
"""The tables of a file without any."""


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
    """What the name of a table says: betas, alphas_cumprod, unclear or other."""
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


def _count(value: object) -> int | None:
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_floating_point():
        value = value.item()
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return int(value) if is_whole and 2 <= value <= MAX_TIMESTEPS else None  # type: ignore[call-overload, operator]
