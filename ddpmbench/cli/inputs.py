"""From the options to the checkpoint and the images they name."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from ddpmbench.checkpoints.load import load_checkpoint
from ddpmbench.checkpoints.settings import CheckpointSettings
from ddpmbench.cli import options
from ddpmbench.data.images import ImageSet, load_images
from ddpmbench.diffusion.data_range import EightBit
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.errors import InputError
from ddpmbench.execution.devices import resolve_device, resolve_precision
from ddpmbench.execution.samples import SampleSettings
from ddpmbench.samples.samplers import SamplerChoice
from ddpmbench.unet.precision import Precision

DEFAULT_DATA = "fashion-mnist:test"


def open_inputs(given: dict[str, Any]) -> tuple[Checkpoint, ImageSet]:
    """The checkpoint under the conventions asked for, and the images.

    Args:
        given: the options of `options.INPUTS`.

    Raises:
        InputError: one of them is missing or does not fit.
    """
    checkpoint = open_checkpoint({name: given[name] for name in options.CHECKPOINT})
    return checkpoint, open_images(checkpoint, given["data"], given)


def open_images(checkpoint: Checkpoint, data: str | None, given: dict[str, Any]) -> ImageSet:
    """Images with the labels asked for.

    Args:
        checkpoint: whose classes the labels are.
        data: what they are; None for those that come with the package.
        given: the options of `options.DATA`.

    Raises:
        InputError: they cannot be read, or do not fit.
    """
    images = load_images(
        DEFAULT_DATA if data is None else data,
        num_images=given["num_images"],
        on_bad=given["on_bad"],
        convert=given["convert"],
        pad=given["pad"],
        class_names=_class_names(given["class_names"]),
    )
    if given["label"] is not None:
        images = _with_label(images, given["label"], checkpoint)
    return images


def open_checkpoint(given: dict[str, Any]) -> Checkpoint:
    """The checkpoint under the conventions asked for.

    Args:
        given: the options of `options.CHECKPOINT`.

    Raises:
        InputError: it is missing or lacks a setting.
    """
    settings = {name: value for name, value in given.items() if name not in ("ckpt", "timesteps")}
    checkpoint = load_checkpoint(given["ckpt"], CheckpointSettings(**settings))
    steps = given["timesteps"]
    if steps == options.CONTINUOUS:
        return checkpoint.in_continuous_time()
    return checkpoint if steps is None else checkpoint.respaced(steps)


def sample_settings(given: dict[str, Any], *, eight_bit: str, local_rank: int) -> SampleSettings:
    """Sample settings from the options, which are removed from those given.

    Args:
        given: the options of the command.
        eight_bit: conversion of samples to pixels.
        local_rank: index of the process on this machine.

    Raises:
        InputError: they do not go together, or the device does not have the precision.
    """
    device = resolve_device(given["device"], local_rank)
    precision = resolve_precision(given.pop("precision"), device, on_cuda=Precision.BF16)
    return SampleSettings(
        sampler=SamplerChoice(
            given.pop("sampler"), **{name: given.pop(name) for name in options.SAMPLER}
        ),
        eight_bit=EightBit(eight_bit),
        image_size=given.pop("image_size"),
        label=given.pop("label"),
        seed=given.pop("seed"),
        precision=precision,
    )


def _class_names(given: str | None) -> list[str] | None:
    """The names in a text file, one a line, or those between commas."""
    if given is None:
        return None
    try:
        is_file = Path(given).is_file()
        names = Path(given).read_text("utf-8").splitlines() if is_file else given.split(",")
    except (OSError, ValueError) as error:
        raise InputError(f"`class_names={given}`: cannot be read ({error})") from error
    return [name.strip() for name in names if name.strip()]


def _with_label(images: ImageSet, label: int, checkpoint: Checkpoint) -> ImageSet:
    if not checkpoint.has_class(label):
        if not checkpoint.num_classes:
            raise InputError(f"`label={label}`: the checkpoint has no classes; leave it out")
        raise InputError(f"`label={label}`: the checkpoint has {checkpoint.classes}")
    labels = np.full(len(images), label, dtype=np.int64)
    return dataclasses.replace(images, labels=labels, classes=())
