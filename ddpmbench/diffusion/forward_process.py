r"""Families of forward processes: variance preserving, variance exploding, sub-VP, straight paths.

A forward process is

.. math:: x_t = a_t x_0 + s_t \epsilon.

Its likelihood depends only on the signal-to-noise ratio :math:`a_t^2 / s_t^2`, not on the scale of
x_t. So everything is computed with :math:`a_t^2 + s_t^2 = 1`. A family determines the scale
:math:`c = \sqrt{a^2 + s^2}` of the network's x_t, as a function of the ratio, the prior, and the
decoder's variance.
"""

from torch import Tensor
from torch.nn.functional import softplus

from ddpmbench.diffusion.parameterization import Process


def log_scale(process: Process, log_snr: Tensor) -> Tensor:
    r"""The log of the scale of x_t, relative to unit scale, :math:`a^2 + s^2 = 1`.

    With :math:`\sigma = s / a = e^{-\lambda / 2}`:

    .. math::
        c_{VP} = 1, \qquad c_{VE} = \sqrt{1 + \sigma^2}, \qquad
        c_{flow} = \frac{\sqrt{1 + \sigma^2}}{1 + \sigma}, \qquad
        c_{sub-VP} = \sqrt{1 - s + s^2}, \quad s = \frac{2}{1 + \sqrt{1 + 4 / \sigma^2}}

    Args:
        process: the family.
        log_snr: lambda, the log signal-to-noise ratio, any shape.

    Returns:
        The same shape.

    Source: Song et al. 2021, "Score-based generative modeling through stochastic differential
    equations", section 3.4; Lipman et al. 2023 for straight paths.
    """
    if process is Process.VP:
        return log_snr.new_zeros(log_snr.shape)
    log_sigma = -0.5 * log_snr
    exploding = 0.5 * softplus(2 * log_sigma, threshold=40.0)
    match process:
        case Process.FLOW:
            return exploding - softplus(log_sigma, threshold=40.0)
        case Process.SUB_VP:
            # a^2 = 1 - s: the ratio is (1 - s) / s^2.
            s = 2 / (1 + (1 + 4 * log_snr.exp()).sqrt())
            return 0.5 * (1 - s + s.square()).log()
    return exploding


SIGMA_DATA = 0.5
"""Standard deviation of the data in EDM's preconditioning, as in every published model."""


def preconditioning(log_snr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""EDM's factors of x_t and of the output in x_start, and of x_t in the network's input.

    .. math::
        x_0 = c_{skip}\, x_t + c_{out}\, F(c_{in} x_t), \qquad
        c_{in} = \frac{1}{\sqrt{s^2 + a^2 \sigma_d^2}}, \quad
        c_{skip} = a\, \sigma_d^2\, c_{in}^2, \quad c_{out} = s\, \sigma_d\, c_{in}

    for x_t of unit scale; the source has them at the scale of VE, a = 1.

    Args:
        log_snr: lambda, the log signal-to-noise ratio, any shape.

    Returns:
        c_skip, c_out and c_in, the same shape each.

    Source: Karras, Aittala, Aila & Laine 2022, table 1, with sigma_d of 0.5.
    """
    signal, noise = log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()
    c_in = (noise.square() + (SIGMA_DATA * signal).square()).rsqrt()
    return signal * (SIGMA_DATA * c_in).square(), noise * SIGMA_DATA * c_in, c_in


def log_prior_variance(process: Process, log_snr: Tensor) -> Tensor:
    r"""Log variance of the prior p(x_T), for x_T of unit scale.

    The prior is N(0, s_T^2) for VE, like the noise in x_T, and N(0, 1) for the others. Both
    variances are divided by :math:`c_T^2`.

    Args:
        process: the family.
        log_snr: lambda of x_T.
    """
    if process is Process.VE:
        return -softplus(log_snr, threshold=40.0)
    return -2 * log_scale(process, log_snr)
