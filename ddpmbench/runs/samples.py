"""Samples: how they are made, and the files they are kept in."""

import dataclasses
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray

from ddpmbench.checksums import seal
from ddpmbench.errors import InputError
from ddpmbench.files import replacing, writing_to
from ddpmbench.inputs.checkpoints.own_code import own_errors
from ddpmbench.process.units import EightBit
from ddpmbench.quality.sampling import Sampler
from ddpmbench.runs.engine import Engine
from ddpmbench.runs.parts import Arrays, PartStore
from ddpmbench.runs.parts_run import PartsRun

Pixels = NDArray[np.uint8]
SAMPLES = "samples.npz"
_CHUNK = 4096  # samples written at a time


@dataclasses.dataclass(frozen=True, eq=False)
class SamplesRun:
    """What makes samples.

    Attributes:
        engine: calls the network.
        sampler: takes the steps.
        shape: (C, H, W) of a sample.
        labels: the classes of samples by their indices; None where there are no classes.
        eight_bit: how a sample becomes 8-bit pixels.
        parts: in which batches, and by which processes; it counts network calls.
    """

    engine: Engine
    sampler: Sampler
    shape: tuple[int, int, int]
    labels: Callable[[NDArray[np.int64]], NDArray[np.int64]] | None
    eight_bit: EightBit
    parts: PartsRun

    @property
    def num_timesteps(self) -> int:
        """T: network calls a sample."""
        return self.sampler.checkpoint.schedule.num_timesteps

    def compute(self, num_samples: int, store: PartStore) -> None:
        """Make the samples that are missing, as `pixels`.

        Args:
            num_samples: samples 0..N - 1.
            store: holds what an earlier sitting made, and receives the rest.

        Raises:
            InputError: a sample is not finite; or see `PartsRun.compute`.
            ProcessLostError: another process has stopped.
        """
        with own_errors(self.engine.network_name), self.engine.running():
            self.parts.compute(num_samples, store, self.sampled, calls=self.num_timesteps)

    def sampled(self, index: NDArray[np.int64], told: Callable[[int], None]) -> Arrays:
        """(B, C, H, W) uint8 `pixels` of the samples with these indices."""
        sample = torch.from_numpy(index).to(self.parts.device)
        labels = None
        if self.labels is not None:
            labels = torch.from_numpy(self.labels(index)).to(self.parts.device)
        x_t = self.sampler.start(sample, self.shape)
        steps = self.sampler.steps(x_t, self.num_timesteps, sample=sample, labels=labels)
        for taken in steps:
            x_t = taken.x_previous
            told(len(index) * (self.num_timesteps + 1 - taken.t))
        pixels = self.sampler.diffusion.data_range.to_pixels(x_t, self.eight_bit)
        return {"pixels": pixels.cpu().numpy()}


def write_samples(path: Path, pixels: Pixels, labels: NDArray[np.int64] | None) -> None:
    """Write images as the published evaluations read them: arr_0 uint8 NHWC, arr_1 the labels.

    Args:
        path: an .npz; written atomically, and the same for the same images.
        pixels: (N, C, H, W).
        labels: (N,) classes, if any.

    Raises:
        InputError: it cannot be written.
    """
    count, channels, height, width = pixels.shape
    header = npy.header_data_from_array_1_0(pixels[:0])
    header |= {"shape": (count, height, width, channels), "fortran_order": False}
    with writing_to(path.parent), replacing(path) as temporary:
        with zipfile.ZipFile(temporary, "w") as archive:
            with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as file:
                npy.write_array_header_1_0(file, header)
                for start in range(0, count, _CHUNK):
                    part = pixels[start : start + _CHUNK].transpose(0, 2, 3, 1)
                    file.write(np.ascontiguousarray(part).tobytes())
            if labels is not None:
                with archive.open(zipfile.ZipInfo("arr_1.npy"), "w", force_zip64=True) as file:
                    npy.write_array(file, labels, allow_pickle=False)
        seal(temporary)


def write_pngs(folder: Path, pixels: Pixels) -> None:
    """Write each image as a PNG named by its index; those that are there are left.

    Raises:
        InputError: the folder cannot be written, or Pillow is missing.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError(
            f"--png: Pillow, which writes them, cannot be imported ({error}): pip install pillow"
        ) from error
    with writing_to(folder.parent):
        folder.mkdir(exist_ok=True)
        for index, image in enumerate(pixels):
            place = folder / f"{index:06d}.png"
            if not place.exists():
                array = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
                with replacing(place) as temporary:
                    Image.fromarray(np.ascontiguousarray(array)).save(temporary, format="PNG")
