"""Networks that others have published, as ours."""

from ddpmbench.unet.unet import UNetConfig

DDPM_CIFAR10 = UNetConfig(
    in_channels=3,
    out_channels=3,
    model_channels=128,
    channels=(128, 256, 256, 256),
    num_blocks=2,
    attention=(False, True, False, False),
)
"""google/ddpm-cifar10-32, of Ho et al. 2020."""
