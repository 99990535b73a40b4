"""Which terms are evaluated: every pair, or a stratified importance sample of the timesteps.

The terms vary mostly between timesteps and between images. So the decoder term (t = 1), which
varies most, is evaluated for every sampled image; each replicate adds one term per image, at a
timestep drawn from a proposal density over t = 2..T. The density follows the standard deviations of
the terms in a small pilot. Images are sampled in random blocks. Within a block and replicate the
timesteps are stratified: each image, in random order, draws from one of as many equal strata of the
proposal's distribution function.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ddpmbench.diffusion.noise import philox_4x32
from ddpmbench.likelihood.terms import TermIndex, TermTable, image_blocks
from ddpmbench.records import short_repr


class Design(Protocol):
    """A sequence of terms."""

    def __len__(self) -> int:
        """Number of terms, which is the number of network evaluations."""

    def index(self, start: int, stop: int) -> TermIndex:
        """The index of the terms at positions start..stop - 1."""


@dataclasses.dataclass(frozen=True)
class EveryPairDesign:
    """Every image at every timestep: N T K terms, ordered by image, timestep and draw.

    Attributes:
        num_images: N.
        num_timesteps: T.
        draws: K noise draws of each pair; the error of the noise is known from two on.
    """

    num_images: int
    num_timesteps: int
    draws: int

    def __len__(self) -> int:
        """Number of terms."""
        return self.num_images * self.num_timesteps * self.draws

    def index(self, start: int, stop: int) -> TermIndex:
        """The index of the terms at positions start..stop - 1."""
        position = np.arange(start, min(stop, len(self)), dtype=np.int64)
        pair, draw = np.divmod(position, self.draws)
        image, t = np.divmod(pair, self.num_timesteps)
        return TermIndex(image=image, t=t + 1, draw=draw)


# What random numbers are for. Counters of the noise are (image, t, draw, block) with t >= 1; those
# of the designs have 0 for t, and the purpose for the block.
REPLICATE, REDRAW, PILOT, CORRECTION_OF_DECODER, CORRECTION_OF_KL, CORRECTION_TIMESTEP = range(6)
CONTINUOUS_OF_KL, CONTINUOUS_TIMESTEP = 6, 7
PER_IMAGE, BLOCK = 8, 9


def words(count: int, seed: int, *, turn: int, purpose: int) -> NDArray[np.uint64]:
    """(2, count) random 64-bit numbers, uniform on [0, 2^64): two for each image.

    They differ between turns and between purposes, the constants above.
    """
    return words_of_turns(count, seed, turns=slice(turn, turn + 1), purpose=purpose)[:, 0]


def words_of_turns(count: int, seed: int, *, turns: slice, purpose: int) -> NDArray[np.uint64]:
    """(2, turns, count) `words` of several turns.

    Source: Salmon et al. 2011 (Philox).
    """
    turn = np.arange(turns.start, turns.stop)[:, None]
    zero, purpose_word = np.array([0]), np.array([purpose])
    numbers = np.empty((2, len(turn), count), dtype=np.uint64)
    for part in image_blocks(count, len(turn)):
        counter = (np.arange(part.start, part.stop), zero, turn, purpose_word)
        word = [w.astype(np.uint64) for w in philox_4x32(counter, seed)]
        numbers[0, :, part] = (word[0] << np.uint64(32)) | word[1]
        numbers[1, :, part] = (word[2] << np.uint64(32)) | word[3]
    return numbers


def unit_interval(numbers: NDArray[np.uint64]) -> NDArray[np.float64]:
    """The upper 53 bits as numbers in [0, 1)."""
    return np.asarray((numbers >> np.uint64(11)) * 2.0**-53)


def ranks(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The rank of each number in its row; a random permutation if the numbers are random."""
    rank = np.empty(keys.shape, dtype=np.int64)
    order = np.argsort(keys, axis=-1, kind="stable")
    np.put_along_axis(rank, order, np.arange(keys.shape[-1]), axis=-1)
    return rank


PILOT_IMAGES = 16
PILOT_DRAW = 2**30
"""Draw of the pilot's terms; no term of an estimate shares their noise."""
REDRAWN_IMAGES = 64
"""Least number of images with a second draw of the decoder term; at least one in ten."""

BLOCK_IMAGES, MOST_BLOCKS = 200, 50
"""Least images in a block, unless it is the only one; and the most blocks."""

_PILOT_TIMESTEPS = 22
_LEAST_DENSITY = 1e-5  # of a timestep, or 1 % spread evenly if that is less
_BANDWIDTH = 0.25  # of the pilot's smoothing, in log t; its timesteps are 0.3 apart at T = 1000
_POWER_OF_T = 0.15  # the regression explains less of later terms
_STEPS_PER_LOG = 64  # standard deviations are rounded to 1/64 in the logarithm


@dataclasses.dataclass(frozen=True)
class PilotDesign:
    """A few images at a few timesteps, whose terms set the proposal density.

    Ordered by image, then timestep; not part of the estimate.

    Attributes:
        num_images: N.
        num_timesteps: T, at least 2.
        seed: chooses the images, 0 <= seed < 2^64.
    """

    num_images: int
    num_timesteps: int
    seed: int

    def __post_init__(self) -> None:
        """Refuse a design without timesteps after the first."""
        _check(self.num_images, self.num_timesteps)

    @cached_property
    def image(self) -> NDArray[np.int64]:
        """The images, at most `PILOT_IMAGES`."""
        return random_images(self.num_images, PILOT_IMAGES, self.seed, PILOT)

    @cached_property
    def t(self) -> NDArray[np.int64]:
        """Increasing, from 2 to T: at most 22, evenly spaced in log t."""
        t = np.geomspace(2, self.num_timesteps, _PILOT_TIMESTEPS)
        return np.unique(t.round().astype(np.int64))

    def __len__(self) -> int:
        """Number of terms."""
        return len(self.image) * len(self.t)

    def index(self, start: int, stop: int) -> TermIndex:
        """The index of the terms at positions start..stop - 1."""
        position = np.arange(start, min(stop, len(self)), dtype=np.int64)
        image, t = np.divmod(position, len(self.t))
        draw = np.full(len(image), PILOT_DRAW, dtype=np.int64)
        return TermIndex(image=self.image[image], t=self.t[t], draw=draw)


def proposal_density(pilot: PilotDesign, tables: Iterable[TermTable]) -> NDArray[np.float64]:
    r"""The proposal density over t = 2..T, by the terms' standard deviations.

    .. math:: q(t) \propto t^{0.15} \sigma_t, \quad
              \sigma_t^2 = \mathrm{Var}_n(L_{t-1}) + (\mathrm{E}_n L_{t-1} / n)^2

    over the pilot's n images, smoothed in log t, interpolated by power laws, and raised to a floor.
    The power of t, omitted with a single image, models the residuals of a regression, which
    explains less at later timesteps. An estimate is unbiased whatever the pilot's terms; a poor
    proposal only costs evaluations.

    Args:
        pilot: the design of the terms.
        tables: every term, in order, in any portions.

    Returns:
        (T - 1,) positive, sums to 1.

    Raises:
        ValueError: a term is missing or not finite.

    Source: Neyman 1934 for the proportionality.
    """
    nats = np.concatenate([table.values["nats"] for table in tables])
    if len(nats) != len(pilot) or not np.isfinite(nats).all():
        raise ValueError("the tables do not hold every term of the pilot, all finite")
    by_image = nats.reshape(len(pilot.image), len(pilot.t)) / (np.abs(nats).max() or 1.0)
    # A share of the mean keeps a timestep likely where the few images happen to agree. With a
    # single image the terms vary over timesteps only, and the mean is the right density.
    mean_share = by_image.mean(0) / len(by_image)
    deviation = np.hypot(by_image.std(axis=0, ddof=len(by_image) > 1), mean_share)
    if len(by_image) > 1:
        deviation *= pilot.t**_POWER_OF_T
    log_t = np.log(np.arange(2, pilot.num_timesteps + 1))
    density = np.ones(pilot.num_timesteps - 1)
    if deviation.max() > 0:
        knots = np.log(pilot.t)
        log_deviation = np.log(np.maximum(deviation / deviation.max(), 1e-9))
        # Rounded, so that the last bits of the pilot's terms, which depend on batch size and
        # device, do not move the timesteps.
        log_deviation = np.round(log_deviation * _STEPS_PER_LOG) / _STEPS_PER_LOG
        density = np.exp(np.interp(log_t, knots, _local_lines(knots, log_deviation)))
    density = np.maximum(density / density.sum(), min(_LEAST_DENSITY, 0.01 / len(density)))
    return np.asarray(density / density.sum())


def _local_lines(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    # A local mean would flatten the ends, and t = 2 has most of the density.
    smooth = np.empty_like(y)
    for i, center in enumerate(x):
        weight = np.exp(-0.5 * np.square((x - center) / _BANDWIDTH))
        offset = x - center - weight @ (x - center) / weight.sum()
        spread = weight @ np.square(offset)
        slope = weight @ (offset * y) / spread if spread > 1e-12 else 0.0
        smooth[i] = weight @ y / weight.sum() + slope * offset[i]
    return smooth


@dataclasses.dataclass(frozen=True, eq=False)
class ImportanceDesign:
    r"""Stratified importance sampling: the decoder term and one more term per replicate.

    The images are divided into `blocks_of` random blocks of equal size, and the first blocks are
    evaluated. In replicate j image n, in a block of b images, has the timestep

    .. math:: t = F^{-1}\Bigl(\frac{\pi_j(n) + u_{jn}}{b}\Bigr)

    and draw j, with F the distribution function of the proposal density, :math:`\pi_j` a random
    permutation of the block and u uniform on [0, 1), all functions of (seed, j, n). So every image
    is at timestep t with probability q(t), exactly.

    The order of the terms, block by block: t = 1 of every image; t = 1 with draw 1 of some images,
    for the variance of the decoder's noise; replicates 0 and 1. Further replicates follow once all
    images are evaluated, every second one preceded by a new draw of t = 1 for every image, because
    the decoder's noise must fall with the error of the timesteps. More blocks, and then more
    replicates, extend the sequence without changing earlier terms.

    Attributes:
        num_images: N, of the whole set.
        num_timesteps: T, at least 2.
        density: (T - 1,) q over t = 2..T, positive, sums to 1.
        seed: 0 <= seed < 2^64.
        num_replicates: r; the error of the estimate is known from two on.
        num_blocks: blocks that are evaluated; None for all. With fewer there are two replicates.

    Raises:
        ValueError: the density is not one over t = 2..T, or the number of replicates or blocks is
            out of range.

    Source: Cranley & Patterson 1976 for randomized replicates; Owen 1992 for the strata.
    """

    num_images: int
    num_timesteps: int
    density: NDArray[np.float64]
    seed: int
    num_replicates: int = 2
    num_blocks: int | None = None

    __repr__ = short_repr

    def __post_init__(self) -> None:
        """Refuse a density under which some term could never be drawn."""
        _check(self.num_images, self.num_timesteps)
        check_density(self.density, self.num_timesteps)
        if self.num_replicates < 1:
            raise ValueError("there must be at least one replicate")
        most = blocks_of(self.num_images)
        if not 1 <= self.blocks <= most or (self.blocks < most and self.num_replicates != 2):
            raise ValueError(f"there are {most} blocks, and fewer of them have two replicates")

    @property
    def blocks(self) -> int:
        """Number of blocks that are evaluated."""
        return blocks_of(self.num_images) if self.num_blocks is None else self.num_blocks

    @cached_property
    def block_ends(self) -> NDArray[np.int64]:
        """(blocks + 1,) 0, then the number of images up to the end of each block."""
        return _shares(self.num_images, self.num_images)[: self.blocks + 1]

    @property
    def num_sampled(self) -> int:
        """M, the number of images that are evaluated."""
        return int(self.block_ends[-1])

    @cached_property
    def image(self) -> NDArray[np.int64]:
        """(M,) the images that are evaluated, block by block, increasing in each."""
        if blocks_of(self.num_images) == 1:
            return np.arange(self.num_images)
        key, _ = words(self.num_images, self.seed, turn=0, purpose=BLOCK)
        order = np.argsort(key, kind="stable")
        return np.concatenate([np.sort(order[block]) for block in self._block_slices])

    @cached_property
    def position(self) -> NDArray[np.int64]:
        """(N,) position of each image in `image`; -1 if it is not evaluated."""
        position = np.full(self.num_images, -1, dtype=np.int64)
        position[self.image] = np.arange(self.num_sampled)
        return position

    @property
    def num_strata(self) -> NDArray[np.int64]:
        """(M,) number of strata of the block of each image."""
        sizes = np.diff(self.block_ends)
        return np.repeat(sizes, sizes)

    @property
    def stratum(self) -> NDArray[np.int64]:
        """(r, M) pi_j(n): the stratum of each image in each replicate, from 0 in its block."""
        return self._strata_and_timesteps[0]

    @property
    def t(self) -> NDArray[np.int64]:
        """(r, M) timestep of each image in each replicate."""
        return self._strata_and_timesteps[1]

    @cached_property
    def _strata_and_timesteps(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """`stratum` and `t`, from two random numbers for each image and replicate."""
        stratum = np.empty((self.num_replicates, self.num_sampled), dtype=np.int64)
        t, cumulative = np.empty_like(stratum), np.cumsum(self.density)[:-1]
        for turns in image_blocks(self.num_replicates, self.num_images):
            numbers = words_of_turns(self.num_images, self.seed, turns=turns, purpose=REPLICATE)
            keys, within = numbers[:, :, self.image]
            for block in self._block_slices:
                stratum[turns, block] = ranks(keys[:, block])
            position = (stratum[turns] + unit_interval(within)) / self.num_strata
            t[turns] = 2 + np.searchsorted(cumulative, position, side="right")
        return stratum, t

    @cached_property
    def redrawn(self) -> NDArray[np.int64]:
        """The images with a second decoder draw from the start, block by block."""
        keys = words(self.num_images, self.seed, turn=0, purpose=REDRAW)[0][self.image]
        parts = [
            self.image[block][ranks(keys[block]) < count]
            for block, count in zip(self._block_slices, np.diff(self._redrawn_ends), strict=True)
        ]
        return np.concatenate(parts)

    @property
    def _block_slices(self) -> list[slice]:
        return [slice(*ends) for ends in itertools.pairwise(self.block_ends.tolist())]

    @property
    def _redrawn_ends(self) -> NDArray[np.int64]:
        return _shares(_redrawn(self.num_images), self.num_images)[: self.blocks + 1]

    @cached_property
    def _runs(self) -> NDArray[np.int64]:
        """(4, K) start, first place (in `image` or `redrawn`), draw, replicate or -1 at t = 1."""
        runs, start, size = [], 0, self.num_sampled

        def add(first: int, length: int, draw: int, replicate: int) -> None:
            nonlocal start
            runs.append((start, first, draw, replicate))
            start += length

        ends, redrawn = self.block_ends.tolist(), (self._redrawn_ends + size).tolist()
        blocks = zip(itertools.pairwise(ends), itertools.pairwise(redrawn), strict=True)
        for (first, last), (again, last_again) in blocks:
            add(first, last - first, 0, -1)
            add(again, last_again - again, 1, -1)
            for j in range(min(2, self.num_replicates)):
                add(first, last - first, j, j)
        for j in range(2, self.num_replicates):
            if decoder_draws(j + 1) > decoder_draws(j):
                add(0, size, decoder_draws(j + 1), -1)
            add(0, size, j, j)
        return np.array(runs).T

    def __len__(self) -> int:
        """Number of terms."""
        return num_terms(self.num_images, self.num_replicates, self.blocks)

    def index(self, start: int, stop: int) -> TermIndex:
        """The index of the terms at positions start..stop - 1."""
        position = np.arange(start, min(stop, len(self)), dtype=np.int64)
        starts, firsts, draws, replicates = self._runs
        run = np.searchsorted(starts, position, side="right") - 1
        place, t = position - starts[run] + firsts[run], np.ones_like(position)
        again = place - self.num_sampled
        image = self.image[np.where(again < 0, place, 0)]
        image[again >= 0] = self.redrawn[again[again >= 0]]
        later = replicates[run] >= 0
        t[later] = self.t[replicates[run[later]], place[later]]
        return TermIndex(image=image, t=t, draw=draws[run])


def blocks_of(num_images: int) -> int:
    """Number of blocks that a set of images is divided into."""
    return max(1, min(num_images // BLOCK_IMAGES, MOST_BLOCKS))


def decoder_draws(num_replicates: int) -> int:
    """Draws of the decoder term of every image, not counting the redrawn images."""
    return 1 + max(num_replicates - 1, 0) // 2


def num_terms(num_images: int, num_replicates: int, num_blocks: int | None = None) -> int:
    """Number of terms of an `ImportanceDesign`."""
    blocks = blocks_of(num_images) if num_blocks is None else num_blocks
    sampled, redrawn = (
        int(_shares(total, num_images)[blocks]) for total in (num_images, _redrawn(num_images))
    )
    return sampled * (num_replicates + decoder_draws(num_replicates)) + redrawn


def _shares(total: int, num_images: int) -> NDArray[np.int64]:
    """Cumulative counts by block if a total is shared evenly among the blocks."""
    blocks = blocks_of(num_images)
    return np.arange(blocks + 1, dtype=np.int64) * total // blocks


def _redrawn(num_images: int) -> int:
    return min(num_images, max(REDRAWN_IMAGES, -(-num_images // 10)))


def _check(num_images: int, num_timesteps: int) -> None:
    if num_images < 1 or num_timesteps < 2:
        raise ValueError(f"needs an image and two timesteps, not {num_images} and {num_timesteps}")


def check_density(density: NDArray[np.float64], num_timesteps: int) -> None:
    """Raise ValueError if this is not a density over t = 2..T that is positive everywhere."""
    if density.shape != (num_timesteps - 1,) or not (density > 0).all():
        raise ValueError(f"density must be positive over t = 2..{num_timesteps}")
    if not math.isclose(density.sum(), 1.0, rel_tol=1e-9):
        raise ValueError("density must sum to 1")


def random_images(num_images: int, count: int, seed: int, purpose: int) -> NDArray[np.int64]:
    """(count,) or all indices of a random sample of the images, in order."""
    key, _ = words(num_images, seed, turn=0, purpose=purpose)
    return np.flatnonzero(ranks(key) < count)
