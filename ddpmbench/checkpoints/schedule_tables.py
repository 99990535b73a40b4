"""The tables of a noise schedule beside the weights: betas and products that training code keeps.

Names do not tell what a table is: "alpha" is 1 - beta to some and its product to others, and entry
0 is that of the first step or that of no noise. What can be checked is: of two tables, one is the
cumulative product of what the other says of single steps. The rest is refused.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
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

_BETAS = ("betas", "beta", "beta_t", "betas_t", "b_t")
_PRODUCTS = (
    *("alphas_cumprod", "alpha_cumprod", "alphas_cum_prod", "alpha_cum_prod", "alphas_cumulative"),
    *("alphas_bar", "alpha_bar", "alpha_bars", "alphas_bars", "alphabar", "alpha_hat"),
    *("alphabar_t", "alphabars", "alpha_bar_t", "alphas_bar_t", "alpha_bars_t", "ab_t"),
)
_UNCLEAR = ("alphas", "alpha", "alpha_t", "alphas_t", "a_t")
# Names of minDiffusion and what descends from it, whose tables begin with an entry for t = 0.
_FROM_ZERO = ("oneover_sqrta", "sqrtab", "sqrtmab", "mab_over_sqrtmab", "mab_over_sqrtmab_inv")
_STEPS = (
    *("timesteps", "num_timesteps", "n_timesteps", "num_train_timesteps", "train_timesteps"),
    *("diffusion_steps", "num_diffusion_steps", "num_diffusion_timesteps", "n_diffusion_steps"),
    *("noise_steps", "num_noise_steps", "n_T", "T"),
)
_LEAST_UNNAMED = 4
"""Two shorter rows of numbers may agree by chance."""
_MOST_TOGETHER = 64
"""Of one module; a schedule has some twenty tables."""
_MOST_ENTRIES = 2**20
"""Of all tables of one module; comparing them takes some 300 bytes an entry."""

Array = NDArray[np.float64]


class _ContradictionError(InputError):
    """Tables of a file are of several schedules; `what` names two of them."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; name the schedule it was trained on")
        self.what = what


@dataclasses.dataclass(frozen=True, eq=False)
class _Track:
    """alphas_cumprod by the entries of a file's tables.

    Attributes:
        name: of the table that it is computed from.
        products: (L,) values; the first is 1 where entry 0 is that of no noise.
        betas: (L,) what each entry takes off; None where the table is of products.
        is_longer: whether entry 0 is not in the table.
    """

    name: str
    products: Array
    betas: Array | None = None
    is_longer: bool = False

    def agrees(self, other: Self) -> bool:
        """Whether both have the same products."""
        mine, theirs = self.products, other.products
        return len(mine) == len(theirs) and _near(mine, theirs)

    def schedule(self, num_timesteps: int) -> NoiseSchedule:
        """Of T steps, the last so many entries."""
        first = len(self.products) - num_timesteps
        if self.betas is None:
            return NoiseSchedule.from_alphas_cumprod(self.products[first:], name=BUFFERS)
        betas = self.betas[first:].copy()
        # a variance before the first step is there, too
        betas[0] = -np.expm1(np.log1p(-self.betas[: first + 1]).sum())
        return NoiseSchedule.from_betas(betas, name=BUFFERS)


@dataclasses.dataclass(frozen=True, eq=False)
class _Agreement:
    """What a table of single steps and one of products say together.

    Attributes:
        track: it.
        names: of all tables that say so.
        is_clear: whether no others, or the same as roots of what they are, say something else.
    """

    track: _Track
    names: frozenset[str]
    is_clear: bool = True


@dataclasses.dataclass(frozen=True, eq=False)
class ScheduleTables:
    """What is there of a schedule, by the names of the file.

    Attributes:
        betas: tables called betas, (T,) or (T + 1,) each.
        products: tables called a product of alphas, likewise.
        unclear: tables called alpha, which may be either.
        others: rows of numbers under other names, some of which may be such tables.
        steps: whole numbers under a name of T.
        source: the file they are in, where a line names it.
    """

    betas: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    products: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    unclear: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    others: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    steps: Mapping[str, int] = dataclasses.field(default_factory=dict)
    source: str = "the file"

    @classmethod
    def among(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Those among the tensors of a file.

        Args:
            tensors: by name, whose last part may tell what it is.
        """
        found: dict[str, dict[str, Tensor]] = {"betas": {}, "products": {}, "unclear": {}}
        others = {}
        for name, tensor in tensors.items():
            called = name.rpartition(".")[2]
            kind = next((kind for kind, names in _NAMES.items() if called in names), None)
            if kind is not None and _may_be_table(tensor):
                found[kind][name] = tensor
            elif kind is None and _may_be_unnamed(tensor):
                others[name] = tensor
        steps = _steps_in(tensors)
        return cls(found["betas"], found["products"], found["unclear"], others, steps)

    @classmethod
    def within(cls, content: Mapping[str, object], *, source: str) -> Self:
        """Those anywhere in a file: beside the weights, among them or in a dict around them.

        Args:
            content: what `read_state` gave.
            source: the file to name in an error.
        """
        leaves = dict(leaves_in(content))
        tensors = {n: row for n, value in leaves.items() if (row := _row(value)) is not None}
        return dataclasses.replace(cls.among(tensors), steps=_steps_in(leaves), source=source)

    @property
    def names(self) -> frozenset[str]:
        """What the file calls them, with whatever else it keeps of as many entries beside them."""
        found = frozenset().union(self.betas, self.products, self.unclear, self.steps)
        if self._agreed is None:
            return found
        places = {(n.rpartition(".")[0], len(self._all[n])) for n in self._agreed.names}
        beside = {n for n, t in self.others.items() if (n.rpartition(".")[0], len(t)) in places}
        return found | beside

    @property
    def num_timesteps(self) -> int | None:
        """T as the file has it in words; None where it does not say, or says several."""
        found = set(self.steps.values())
        return found.pop() if len(found) == 1 else None

    @property
    def example(self) -> str:
        """A value to begin with where `schedule` is missing."""
        if self:
            return BUFFERS
        if self.num_timesteps == 1000:
            return "linear:1000"
        return f"linear:{self.num_timesteps or 'T'}:START:END"

    def __bool__(self) -> bool:
        """Whether a schedule can be read from them."""
        agreed = self._agreed
        return bool(self.betas or self.products or (agreed is not None and agreed.is_clear))

    def notes(self, schedule: NoiseSchedule) -> tuple[str, ...]:
        """What is worth saying of a schedule that was read from them, a line each."""
        track = self._track()
        if len(track.products) == schedule.num_original_timesteps:
            return ()
        return (
            f"{self.source}'s {track.name} has {len(track.products):,} entries, the first for "
            f"t = 0: T = {schedule.num_original_timesteps:,}",
        )

    def schedule(self, num_timesteps: int | None = None) -> NoiseSchedule:
        """The schedule of the tables; by its betas where there are any.

        Args:
            num_timesteps: T, where the tables have as many entries or one more; None where they
                tell it.

        Raises:
            InputError: there are none, they contradict each other, or what they are is not clear.
        """
        track = self._track()
        entries = len(track.products)
        if num_timesteps is None:
            num_timesteps = self._steps_of(track)
        possible = [entries - 1] if track.products[0] == 1 else [entries, entries - 1]
        if num_timesteps not in possible:
            raise InputError(
                f"{self.source}'s {track.name} has {entries:,} entries; take {self._forms(track)}"
            )
        self._check_first(track, num_timesteps)
        return track.schedule(num_timesteps)

    @property
    def readings(self) -> tuple[NoiseSchedule, ...]:
        """The schedule of the tables; where they do not tell T, both; where unreadable, none."""
        try:
            track = self._track()
        except InputError:
            return ()
        entries = len(track.products)
        try:
            return (track.schedule(self._steps_of(track)),)
        except InputError:
            return (track.schedule(entries), track.schedule(entries - 1))

    @property
    def contradiction(self) -> str | None:
        """Which of the tables contradict each other; None where none do."""
        try:
            self._track()
        except _ContradictionError as error:
            return error.what
        except InputError:
            return None
        return None

    @property
    def read_from(self) -> str:
        """The name of the table that says what they are read as, a plain name where one does.

        Raises:
            InputError: they cannot be read.
        """
        named = {*self.betas, *self.products}
        agreed = named & self._agreed.names if self._agreed is not None else set()
        return min(agreed, default=self._track().name)

    def _forms(self, track: _Track) -> str:
        entries = len(track.products)
        skipped = f"{BUFFERS}:{entries - 1} where the first is for t = 0"
        if track.products[0] == 1:
            return skipped
        return f"{BUFFERS}:{entries} where the first is for t = 1, {skipped}"

    def _steps_of(self, track: _Track) -> int:
        """T, if entry 0, a number in the file or the number of entries tells it."""
        entries = len(track.products)
        if track.products[0] == 1:
            return entries - 1
        stated = {entries, entries - 1} & set(self.steps.values())
        if len(stated) == 1:
            return stated.pop()
        from_zero = any(name.rpartition(".")[2] in _FROM_ZERO for name in self.others)
        hinted = from_zero or not _is_plainly_named(track.name)
        usual, one_less_usual = _is_usual(entries), _is_usual(entries - 1)
        if usual > one_less_usual and not from_zero:
            return entries
        if one_less_usual > usual and hinted:
            return entries - 1
        if usual == one_less_usual and not hinted:
            return entries
        raise InputError(
            f"{self.source}'s {track.name} has {entries:,} entries, and does not say which is of "
            f"t = 1; take `schedule={self._forms(track)}`"
        )

    def _check_first(self, track: _Track, num_timesteps: int) -> None:
        """Refuse betas alone with an entry for t = 0, which counts for some and not for others."""
        skipped = num_timesteps < len(track.products) and track.products[0] < 1
        if skipped and track.betas is not None and self._agreed is None:
            raise InputError(
                f"{self.source}'s {track.name} has an entry for t = 0, {track.betas[0]:g}, and no "
                "table beside it tells whether the products of 1 - beta include it; pass them as "
                "alphas_cumprod:FILE, t = 1 first"
            )

    def _track(self) -> _Track:
        if self._agreed is not None and not self._agreed.is_clear:
            raise InputError(
                f"{self.source}'s {' and '.join(sorted(self._agreed.names))} can be read as two "
                "schedules; name the schedule it was trained on"
            )
        if not self:
            if self.unclear:
                raise InputError(
                    f"{self.source} has {next(iter(self.unclear))}, which is 1 - beta to some and "
                    "its product to others; pass the product as alphas_cumprod:FILE"
                )
            raise InputError(
                f"{self.source} holds no betas and no alphas_cumprod; name the schedule it was "
                "trained on"
            )
        for name, tensor in {**self.betas, **self.products}.items():
            if (size := tensor.element_size()) < 4:
                raise InputError(
                    f"{self.source}'s {name} has {8 * size} bits, too few; name the schedule"
                )
        if self._agreed is not None:
            agreed = self._agreed
            apart = sorted({*self.betas, *self.products} - agreed.names)
            if apart:
                raise self._contradiction(agreed.track.name, apart[0])
            return agreed.track
        tracks = [
            *(self._alone(name, table, _betas_track) for name, table in self.betas.items()),
            *(self._alone(name, table, _products_track) for name, table in self.products.items()),
        ]
        first, *others = tracks
        for other in others:
            if not first.agrees(other):
                raise self._contradiction(first.name, other.name)
        return first

    def _contradiction(self, one: str, other: str) -> InputError:
        return _ContradictionError(f"{self.source}'s {one} and {other} contradict each other")

    def _alone(self, name: str, table: Tensor, make: Callable[[str, Array], _Track]) -> _Track:
        try:
            return make(name, _values(table))
        except InputError as error:
            raise InputError(f"{self.source}'s {name}: {error}") from error

    @cached_property
    def _all(self) -> dict[str, Tensor]:
        return {**self.betas, **self.products, **self.unclear, **self.others}

    @cached_property
    def _agreed(self) -> _Agreement | None:
        """None where no two tables of one module are of the same steps."""
        together: dict[str, list[str]] = {}
        for name, table in self._all.items():
            if table.element_size() >= 4 and len(table) >= self._least(name):
                together.setdefault(name.rpartition(".")[0], []).append(name)
        pairs = [pair for names in together.values() for pair in self._pairs(names)]
        if not pairs:
            return None
        readings: list[_Agreement] = []
        for track, *names in sorted(pairs, key=lambda pair: pair[1] not in self.betas):
            for i, known in enumerate(readings):
                if known.track.agrees(track):
                    readings[i] = _Agreement(known.track, known.names.union(names))
                    break
            else:
                readings.append(_Agreement(track, frozenset(names)))
        # A pair that is of another schedule as square roots is settled by any third table.
        first, *others = sorted(readings, key=lambda reading: -len(reading.names))
        clear = not others or len(others[0].names) < len(first.names)
        return dataclasses.replace(first, is_clear=clear)

    def _least(self, name: str) -> int:
        return _LEAST_UNNAMED if name in self.others else 2

    def _pairs(self, names: list[str]) -> Iterator[tuple[_Track, str, str]]:
        """What any two of the tables say together, with both of their names."""
        entries = sum(len(self._all[name]) for name in names)
        if len(names) > _MOST_TOGETHER or entries > _MOST_ENTRIES:
            return  # no schedule's, and too many to compare
        steps: list[_Track] = []
        products: list[_Track] = []
        for name in names:
            for left, lost in self._shares(name, self._all[name]):
                steps += _step_tracks(name, left, lost) if name not in self.products else []
                products += _product_tracks(name, left) if name not in self.betas else []
        for product, step in itertools.product(products, steps):
            if product.name == step.name:
                continue
            if (track := _together(product, step)) is not None:
                yield track, step.name, product.name

    def _shares(self, name: str, table: Tensor) -> Iterator[tuple[Array, Array]]:
        """What a table may say of the variance: the share that is left, and the share lost."""
        x = _values(table)
        if name in self.betas:
            yield 1 - x, x
        elif name in self.products or name in self.unclear:
            yield x, 1 - x
        elif x.max() <= 1:
            yield from ((1 - x, x), (1 - x**2, x**2), (x, 1 - x), (x**2, 1 - x**2))
        elif x.min() >= 1:
            yield x**-2, 1 - x**-2


_NAMES = {"betas": _BETAS, "products": _PRODUCTS, "unclear": _UNCLEAR}


def _step_tracks(name: str, left: Array, lost: Array) -> Iterator[_Track]:
    """A table of single steps: as it is, and with an entry for no noise before it or in it."""
    if not ((left > 0) & (left <= 1)).all():
        return
    yield _Track(name, left.cumprod(), lost)
    yield _Track(name, np.append(1.0, left.cumprod()), np.append(0.0, lost), is_longer=True)
    if lost[0] > 0:
        yield _Track(name, np.append(1.0, left[1:].cumprod()), np.append(0.0, lost[1:]))


def _product_tracks(name: str, left: Array) -> Iterator[_Track]:
    """A table of products: as it is, and with the product of no steps before it."""
    if ((left > 0) & (left <= 1)).all() and (np.diff(left) < 0).all():
        yield _Track(name, left)
        if left[0] < 1:
            yield _Track(name, np.append(1.0, left), is_longer=True)


def _together(product: _Track, step: _Track) -> _Track | None:
    """What both say, where they say the same."""
    mine, theirs = product.products, step.products
    if len(mine) != len(theirs) or (product.is_longer and step.is_longer):
        return None
    # the last first, as a network may have many short rows
    if not math.isclose(mine[-1], theirs[-1], rel_tol=1e-2, abs_tol=1e-5):
        return None
    if not _near(mine[1:], theirs[1:]):
        return None
    if mine[0] == 1:
        # An entry 0 set to 1 leaves what is taken off there in the products behind it.
        return dataclasses.replace(step, products=np.append(1.0, theirs[1:]))
    return step if _near(mine[:1], theirs[:1]) else None


def _near(one: Array, other: Array) -> bool:
    """Whether products are one but for the rounding of float32 tables, at both of their ends."""
    return bool(
        np.allclose(one, other, rtol=1e-3, atol=1e-6)
        and np.allclose(1 - one, 1 - other, rtol=1e-2, atol=1e-6)
    )


def _betas_track(name: str, values: Array) -> _Track:
    betas_schedule(values[1:] if values[0] == 0 else values)
    return _Track(name, (1 - values).cumprod(), values)


def _products_track(name: str, values: Array) -> _Track:
    products_schedule(values[1:] if values[0] == 1 else values)
    return _Track(name, values)


def _is_usual(count: int) -> bool:
    """Whether it is a number of steps that people choose."""
    return count > 4 and (count % 5 == 0 or count & (count - 1) == 0)


def _is_plainly_named(name: str) -> bool:
    called = name.rpartition(".")[2]
    return called in _BETAS + _PRODUCTS and not called.endswith("_t")


def betas_schedule(values: Array, *, name: str = "betas") -> NoiseSchedule:
    """The schedule of so many betas, t = 1 first.

    Args:
        values: (T,).
        name: what to call the schedule.

    Raises:
        InputError: they are none, or look like something else.
    """
    _check_row(values)
    if not ((values > 0) & (values < 1)).all():
        raise InputError("not all of its numbers lie strictly between 0 and 1, as betas do")
    if values[0] > values[-1]:
        raise InputError(
            f"its numbers fall from {values[0]:g} to {values[-1]:g}, and betas rise from the data "
            "on: reverse them, or say what they are (alphas are 1 - beta)"
        )
    return NoiseSchedule.from_betas(values, name=name)


def products_schedule(values: Array, *, name: str = "alphas_cumprod") -> NoiseSchedule:
    """The schedule of so many products of 1 - beta, t = 1 first.

    Args:
        values: (T,).
        name: what to call the schedule.

    Raises:
        InputError: they are none, or look like something else.
    """
    _check_row(values)
    if values[0] == 1:
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


def _look_like_alphas(values: Array) -> bool:
    """Whether falling numbers are 1 - beta of single steps and not their products.

    1 - them is then spaced evenly, or its square root or logarithm is; as products they would be
    of a variance that falls after the first step.
    """
    rounding = 2.0**-23
    betas = -np.diff(values, prepend=1.0) / np.append(1.0, values[:-1])
    if betas[1] < betas[0] - 4 * rounding:
        return True
    lost = 1 - values
    scales: tuple[tuple[Array, Array], ...] = (
        (lost, np.full_like(lost, rounding)),
        (np.sqrt(lost), rounding / np.sqrt(lost)),
        (np.log(lost), rounding / lost),
    )
    return len(values) > 2 and any(
        bool((np.abs(np.diff(row, 2)) <= 1e-3 * np.diff(row).mean() + 4 * error[1:-1]).all())
        for row, error in scales
    )


def alike(one: NoiseSchedule, other: NoiseSchedule) -> bool:
    """Whether two schedules are one but for the rounding of float32 tables."""
    if one.num_timesteps != other.num_timesteps:
        return False
    return _near(one.alphas_cumprod.numpy(), other.alphas_cumprod.numpy())


def _may_be_table(tensor: Tensor) -> bool:
    """Whether it is one number a step, in (0, 1) and monotone; no norm's beta is.

    Entry 0 may be that of no noise, 0 or 1.
    """
    if not _is_row(tensor):
        return False
    values = _values(tensor)
    inside = values[1:] if values[0] in (0, 1) else values
    return bool(((inside > 0) & (inside < 1)).all()) and _is_monotone(values)


def _may_be_unnamed(tensor: Tensor) -> bool:
    """Whether it may be such a table whatever it is called, or a root or inverse of one."""
    if not _is_row(tensor):
        return False
    values = _values(tensor)
    if not np.isfinite(values).all() or values.min() < 0 or values[0] == values[-1]:
        return False
    return bool(values.max() <= 1 or values.min() >= 1) and _is_monotone(values)


def _is_row(tensor: Tensor) -> bool:
    if not is_plain(tensor) or tensor.ndim != 1 or not 2 <= len(tensor) <= MAX_TIMESTEPS:
        return False
    return len(tensor) <= (numbers_held(tensor) or 0)


def _is_monotone(values: Array) -> bool:
    rises = np.diff(values) >= 0
    return bool(rises.all() or not rises.any())


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
    called = {name: value for name, value in values.items() if name.rpartition(".")[2] in _STEPS}
    return {n: count for n, value in called.items() if (count := _count(value)) is not None}


def _count(value: object) -> int | None:
    """A whole number that may be T."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        is_whole = str(value.dtype).rpartition(".")[2].startswith("int")
        value = value.item() if is_whole and np.prod(value.shape) == 1 else None
    if type(value) is not int or not 2 <= value <= MAX_TIMESTEPS:
        return None
    return value


def _check_row(values: Array) -> None:
    if values.ndim != 1 or len(values) < 2:
        raise InputError(f"its shape is {values.shape}, not one row of a number a step")
    if not np.isfinite(values).all():
        raise InputError("not all of its numbers are finite")
