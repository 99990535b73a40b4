"""Which rows are computed: a design is a finite sequence of rows, addressed by position."""

import dataclasses
from typing import Protocol

import numpy as np

from ddpmbench.likelihood.terms import Rows


class Design(Protocol):
    """A sequence of rows."""

    def __len__(self) -> int:
        """Number of rows, which is the number of network calls."""

    def rows(self, start: int, stop: int) -> Rows:
        """The rows at positions start..stop - 1."""


@dataclasses.dataclass(frozen=True)
class EveryPair:
    """Every image at every step, each with the same number of draws.

    Rows are ordered by image, then step, then draw.

    Attributes:
        num_images: N.
        num_timesteps: T.
        draws: noise draws a pair; the error of the noise is known from two on.
    """

    num_images: int
    num_timesteps: int
    draws: int

    def __len__(self) -> int:
        """Number of rows, which is the number of network calls."""
        return self.num_images * self.num_timesteps * self.draws

    def rows(self, start: int, stop: int) -> Rows:
        """The rows at positions start..stop - 1."""
        position = np.arange(start, stop, dtype=np.int64)
        pair, draw = np.divmod(position, self.draws)
        image, step = np.divmod(pair, self.num_timesteps)
        return Rows(image=image, t=step + 1, draw=draw)
