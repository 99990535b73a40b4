"""The measured subjects: two networks, images for them, and models with few timesteps."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from cases import CIFAR10, SHIPPED

import ddpmbench as db
from ddpmbench.data.images import ImageSet
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.unet.unet import UNet, UNetConfig


def cifar10_config(width: int = 128) -> UNetConfig:
    """The architecture of google/ddpm-cifar10-32, whose width is 128."""
    return UNetConfig(
        in_channels=3,
        out_channels=3,
        model_channels=width,
        channels=(width, 2 * width, 2 * width, 2 * width),
        num_blocks=2,
        attention=(False, True, False, False),
    )


CIFAR10_CONFIG = cifar10_config()
"""google/ddpm-cifar10-32: 35,746,307 parameters."""
_SIZE = 32


def load_subject(model: str, ckpt: Path | str | None = None) -> Checkpoint:
    """The checkpoint that rows of this model measure.

    Args:
        model: one of `cases.MODELS`.
        ckpt: the value of `--ckpt`, in place of either.
    """
    if ckpt is not None:
        return db.load_checkpoint(str(ckpt))
    return db.load_checkpoint() if model == SHIPPED else cifar10_checkpoint()


def cifar10_checkpoint(width: int = 128) -> Checkpoint:
    """The architecture with seeded random weights, which do not affect the speed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet(cifar10_config(width)).eval().requires_grad_(False)
    checkpoint = db.wrap_network(network, schedule=NoiseSchedule.linear(1000), channels=3)
    return dataclasses.replace(
        checkpoint,
        image_size=_SIZE,
        size_multiple=CIFAR10_CONFIG.size_multiple,
        source=f"{CIFAR10} architecture, random weights",
    )


def images_for(checkpoint: Checkpoint, count: int) -> ImageSet:
    """The shipped images if they fit, else random pixels."""
    if fits_shipped_images(checkpoint):
        return db.load_images("fashion-mnist:test", num_images=count)
    generator = np.random.default_rng(0)
    size = checkpoint.image_size or _SIZE
    shape = (count, checkpoint.channels or 3, size, size)
    classes = checkpoint.num_classes
    return ImageSet(
        pixels=generator.integers(0, 256, shape, dtype=np.uint8),
        ids=[str(index) for index in range(count)],
        source="random pixels",
        labels=np.arange(count) % classes if classes else None,
    )


def fits_shipped_images(checkpoint: Checkpoint) -> bool:
    """Whether the model is of 28x28 gray images without classes."""
    return (
        checkpoint.channels == 1
        and checkpoint.image_size in (None, 28)
        and 28 % checkpoint.size_multiple == 0
        and not checkpoint.num_classes
    )


def shortened(checkpoint: Checkpoint, num_timesteps: int) -> Checkpoint:
    """A model with few timesteps, whose network gets t - 1 at timestep t.

    Its samples are useless; peers do the same arithmetic, timestep by timestep.
    """
    schedule = checkpoint.schedule.respaced(num_timesteps)
    return dataclasses.replace(
        checkpoint, schedule=NoiseSchedule.from_betas(schedule.betas, name="shortened")
    )
