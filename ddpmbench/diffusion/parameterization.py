"""Parameterization of a network: its prediction and variance. Imports no torch, so help is fast."""

from enum import StrEnum


class Prediction(StrEnum):
    """What the network was trained to output, given x_t and t."""

    EPSILON = "eps"
    """The noise in x_t (Ho et al. 2020, eq. 11)."""
    X_START = "x_start"
    """The data."""
    V = "v"
    """sqrt(alphas_cumprod) eps - sqrt(1 - alphas_cumprod) x_start (Salimans & Ho 2022)."""
    PREVIOUS_MEAN = "previous_mean"
    """The mean of q(x_{t-1} | x_t, x_start)."""


class Variance(StrEnum):
    """The variance of p(x_{t-1} | x_t)."""

    FIXED_SMALL = "fixed_small"
    """The posterior variance; at t = 1, where it is 0, that of t = 2."""
    FIXED_LARGE = "fixed_large"
    """beta; at t = 1 the posterior variance of t = 2 (Ho et al. 2020, section 3.2)."""
    LEARNED_RANGE = "learned_range"
    """Interpolated in log space between the two by the network (Nichol & Dhariwal 2021, eq. 15)."""
    LEARNED = "learned"
    """The network's own log variance."""

    @property
    def is_learned(self) -> bool:
        """Whether the network has a second set of channels for the variance."""
        return self in (Variance.LEARNED_RANGE, Variance.LEARNED)
