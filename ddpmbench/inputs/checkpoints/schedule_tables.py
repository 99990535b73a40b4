"""The tables of a noise schedule beside the weights: betas and products that training code keeps.

Names do not tell what a table is: "alpha" is 1 - beta to some and its product to others. What can
be checked is checked, and the rest is refused.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpmbench.errors import InputError
from ddpmbench.inputs.checkpoints.nested import tensors_in
from ddpmbench.process.schedule import NoiseSchedule

BUFFERS = "buffers"
"""What `--schedule` calls the tables beside the weights."""

_BETAS = ("betas", "beta")
_PRODUCTS = (
    *("alphas_cumprod", "alpha_cumprod", "alphas_cum_prod", "alpha_cum_prod", "alphas_cumulative"),
    *("alphas_bar", "alpha_bar", "alpha_bars", "alphas_bars", "alphabar", "alpha_hat"),
)
_UNCLEAR = ("alphas", "alpha")

Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class ScheduleTables:
    """What is there of a schedule, by the names of the file.

    Attributes:
        betas: tables called betas, (T,) each.
        products: tables called a product of alphas, (T,) each.
        unclear: tables called alpha, which may be either, (T,) each.
        source: the file they are in, where a line names it.
    """

    betas: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    products: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    unclear: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    source: str = "the file"

    @classmethod
    def among(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Those among the tensors of a file, told by the last part of a name.

        Args:
            tensors: by name.
        """

        def called(names: tuple[str, ...]) -> dict[str, Tensor]:
            return {
                name: tensor
                for name, tensor in tensors.items()
                if name.rpartition(".")[2] in names and _may_be_table(tensor)
            }

        return cls(called(_BETAS), called(_PRODUCTS), called(_UNCLEAR))

    @classmethod
    def within(cls, content: Mapping[str, object], *, source: str) -> Self:
        """Those anywhere in a file: beside the weights, among them or in a dict around them.

        Args:
            content: what `read_state` gave.
            source: the file to name in an error.
        """
        return dataclasses.replace(cls.among(dict(tensors_in(content))), source=source)

    @property
    def names(self) -> frozenset[str]:
        """What the file calls them."""
        return frozenset().union(self.betas, self.products, self.unclear)

    def __bool__(self) -> bool:
        """Whether a schedule can be read from them."""
        return bool(self.betas or self.products)

    def schedule(self) -> NoiseSchedule:
        """The schedule of the tables; by its betas where there are any.

        Raises:
            InputError: there are none, they contradict each other, or what they are is not clear.
        """
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
        made = {
            **self._made(self.betas, betas_schedule),
            **self._made(self.products, products_schedule),
        }
        (first, schedule), *others = made.items()
        for name, other in others:
            if not alike(schedule, other):
                raise InputError(
                    f"{self.source}'s {first} and {name} contradict each other; name the schedule "
                    "it was trained on"
                )
        return schedule

    def _made(
        self, tables: Mapping[str, Tensor], make: Callable[..., NoiseSchedule]
    ) -> dict[str, NoiseSchedule]:
        made = {}
        for name, tensor in tables.items():
            what = f"{self.source}'s {name}"
            if (size := tensor.element_size()) < 4:
                raise InputError(f"{what} has {8 * size} bits, too few; name the schedule")
            try:
                made[name] = make(tensor.detach().cpu().double().numpy(), name=BUFFERS)
            except InputError as error:
                raise InputError(f"{what}: {error}") from error
        return made


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
    if values[-1] > 0.5:
        raise InputError(
            f"its last number is {values[-1]:g}, more than half of the data's variance: these "
            "look like alphas = 1 - beta; take their cumulative product"
        )
    return NoiseSchedule.from_alphas_cumprod(values, name=name)


def alike(one: NoiseSchedule, other: NoiseSchedule) -> bool:
    """Whether two schedules are one but for the rounding of float32 tables."""
    if one.num_timesteps != other.num_timesteps:
        return False
    products = one.alphas_cumprod, other.alphas_cumprod
    return torch.allclose(*products, rtol=1e-3, atol=1e-6)


def _may_be_table(tensor: Tensor) -> bool:
    """Whether it is one number a step, in (0, 1) and monotone; no norm's beta is."""
    if tensor.ndim != 1 or len(tensor) < 2 or not tensor.is_floating_point():
        return False
    values = tensor.detach()
    rises = values.diff() >= 0
    is_between = bool(((values > 0) & (values < 1)).all())
    return is_between and (bool(rises.all()) or not bool(rises.any()))


def _check_row(values: Array) -> None:
    if values.ndim != 1 or len(values) < 2:
        raise InputError(f"its shape is {values.shape}, not one row of a number a step")
    if not np.isfinite(values).all():
        raise InputError("not all of its numbers are finite")
