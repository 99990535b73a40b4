"""Names of parameterizations and processes. Imports no torch, so that help is fast."""

from enum import StrEnum


class Prediction(StrEnum):
    """The quantity that the network predicts from x_t and t."""

    EPSILON = "eps"
    """The noise in x_t (Ho et al. 2020, eq. 11)."""
    X_START = "x_start"
    """The data."""
    V = "v"
    """sqrt(alphas_cumprod) eps - sqrt(1 - alphas_cumprod) x_start (Salimans & Ho 2022)."""
    PREVIOUS_MEAN = "previous_mean"
    """The mean of q(x_{t-1} | x_t, x_start)."""
    SCORE = "score"
    """The gradient of log q(x_t), -eps / s with x_t = a x_start + s eps (Song & Ermon 2019)."""
    VELOCITY = "velocity"
    """eps - x_start, the change of x_t along a straight path (Lipman et al. 2023)."""
    EDM = "edm"
    """The network F inside the preconditioning of Karras et al. 2022; see `preconditioning`."""


class Process(StrEnum):
    """The family of the forward process x_t = a x_start + s eps; see `diffusion.forward_process`.

    A network takes x_t at the scale of its family.
    """

    VP = "vp"
    """a^2 + s^2 = 1, variance preserving (Ho et al. 2020)."""
    SUB_VP = "sub-vp"
    """a^2 + s = 1 (Song et al. 2021)."""
    VE = "ve"
    """a = 1, variance exploding (Song & Ermon 2019)."""
    FLOW = "flow"
    """a + s = 1, a straight path (Lipman et al. 2023; Liu et al. 2023)."""


class Variance(StrEnum):
    """The variance of p(x_{t-1} | x_t)."""

    FIXED_SMALL = "fixed_small"
    """The posterior variance; at t = 1, where it is 0, that of t = 2."""
    FIXED_LARGE = "fixed_large"
    """beta; at t = 1 the posterior variance of t = 2 (Ho et al. 2020, section 3.2)."""
    LEARNED_RANGE = "learned_range"
    """Interpolated in log space between the two by the network (Nichol & Dhariwal 2021, eq. 15)."""
    LEARNED = "learned"
    """The log variance, an output of the network."""

    @property
    def is_learned(self) -> bool:
        """Whether the network has output channels for the variance."""
        return self in (Variance.LEARNED_RANGE, Variance.LEARNED)


class TimeInput(StrEnum):
    """The network's time input at timestep t = 1..T of the schedule it was trained on."""

    INDEX = "index"
    """t - 1"""
    ONE_BASED = "one-based"
    """t"""
    FRACTION = "fraction"
    """t / T"""
    RESCALED_1000 = "rescaled-1000"
    """(t - 1) 1000 / T"""
    REVERSED_INDEX = "reversed-index"
    """T - t, the level of a network that counts from the most noise"""
    SIGMA = "sigma"
    """the standard deviation of the noise in the network's x_t; s / a inside EDM's
    preconditioning"""
    LOG_SIGMA = "log-sigma"
    """the logarithm of that"""
    QUARTER_LOG_SIGMA = "quarter-log-sigma"
    """a quarter of that (Karras et al. 2022)"""
    LOG_SNR = "log-snr"
    """the logarithm of the signal-to-noise ratio"""

    @property
    def is_of_noise(self) -> bool:
        """Whether it is a function of the noise in x_t, however the timesteps are numbered."""
        return self in (
            TimeInput.SIGMA,
            TimeInput.LOG_SIGMA,
            TimeInput.QUARTER_LOG_SIGMA,
            TimeInput.LOG_SNR,
        )
