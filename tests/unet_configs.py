"""Configurations of the U-Net: small ones, and published ones."""

import dataclasses

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
SMALL_CONFIG = UNetConfig(
    in_channels=1,
    out_channels=1,
    model_channels=32,
    channels=(32, 64),
    num_blocks=1,
    attention=(False, True),
)
"""With the 32 groups that most projects have."""
TINY_CONFIG = dataclasses.replace(SMALL_CONFIG, model_channels=8, channels=(8, 16), norm_groups=4)
