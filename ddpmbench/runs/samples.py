"""Making samples: in batches, kept as they come, by one process or many."""

import dataclasses
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray

from ddpmbench.errors import InputError
from ddpmbench.files import naming, replacing
from ddpmbench.process.units import EightBit, to_pixels
from ddpmbench.quality.sampling import Sampler
from ddpmbench.runs.distributed import Ranks
from ddpmbench.runs.engine import BatchSize, device_name
from ddpmbench.runs.parts import PartStore, blocks
from ddpmbench.runs.rows import RunListener, RunProgress

Pixels = NDArray[np.uint8]
SAMPLES = "samples.npz"
_CHUNK = 4096  # samples written at a time


@dataclasses.dataclass(frozen=True, eq=False)
class SamplesRun:
    """What makes samples.

    Attributes:
        sampler: takes the steps.
        shape: (C, H, W) of a sample.
        labels: the classes of samples by their indices; None where there are no classes.
        eight_bit: how a sample becomes 8-bit pixels.
        device: where the network runs.
        batch: how many chains at once.
        ranks: the processes among which the samples are divided.
        listener: who is told how it goes; it counts network calls.
    """

    sampler: Sampler
    shape: tuple[int, int, int]
    labels: Callable[[NDArray[np.int64]], NDArray[np.int64]] | None
    eight_bit: EightBit
    device: torch.device
    batch: BatchSize
    ranks: Ranks
    listener: RunListener

    @property
    def num_timesteps(self) -> int:
        """T: network calls a sample."""
        return self.sampler.checkpoint.schedule.num_timesteps

    def compute(self, num_samples: int, store: PartStore) -> None:
        """Make the samples that are missing, and wait until every process has.

        Args:
            num_samples: samples 0..N - 1.
            store: holds what an earlier sitting made, and receives the rest.

        Raises:
            InputError: a sample is not finite, the batch does not fit into memory, or the store
                cannot be written.
            ProcessLostError: another process has stopped.
        """
        gaps = self.ranks.once(lambda: store.missing(num_samples))
        missing = sum(stop - start for start, stop in gaps)
        part = blocks(gaps, self.batch.rows)[self.ranks.rank :: self.ranks.count]
        own = sum(stop - start for start, stop in part)
        done, total = (num_samples - missing) * self.num_timesteps, num_samples * self.num_timesteps
        self.listener.start(missing * self.num_timesteps)
        self.listener.progress(RunProgress(done, total))
        made = 0

        def on_step(calls: int) -> None:
            # Other processes are taken to be as fast as this one.
            now = done + round((made * self.num_timesteps + calls) * missing / max(own, 1))
            self.listener.progress(RunProgress(now, total))

        def compute() -> None:
            nonlocal made
            for first, stop in part:
                start = first
                while start < stop:
                    since = time.perf_counter()
                    pixels = self.batch.attempt(self._attempt(start, stop, on_step))
                    seconds = time.perf_counter() - since
                    device = device_name(self.device)
                    store.save(start, {"pixels": pixels}, seconds=seconds, device=device)
                    start += len(pixels)
                    made += len(pixels)

        self.ranks.together(compute)
        self.ranks.wait()

    def _attempt(
        self, start: int, stop: int, on_step: Callable[[int], None]
    ) -> Callable[[int], Pixels]:
        return lambda rows: self._sampled(np.arange(start, min(start + rows, stop)), on_step)

    def _sampled(self, index: NDArray[np.int64], on_step: Callable[[int], None]) -> Pixels:
        """(B, C, H, W) the samples with these indices."""
        sample = torch.from_numpy(index).to(self.device)
        labels = None
        if self.labels is not None:
            labels = torch.from_numpy(self.labels(index)).to(self.device)
        x_t = self.sampler.start(sample, self.shape)
        steps = self.sampler.steps(x_t, self.num_timesteps, sample=sample, labels=labels)
        for taken in steps:
            x_t = taken.x_previous
            on_step(len(index) * (self.num_timesteps + 1 - taken.t))
        pixels: Pixels = to_pixels(x_t, self.eight_bit).cpu().numpy()
        return pixels


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
    with (
        naming(path.parent),
        replacing(path) as temporary,
        zipfile.ZipFile(temporary, "w") as archive,
    ):
        with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as file:
            npy.write_array_header_1_0(file, header)
            for start in range(0, count, _CHUNK):
                part = pixels[start : start + _CHUNK].transpose(0, 2, 3, 1)
                file.write(np.ascontiguousarray(part).tobytes())
        if labels is not None:
            with archive.open(zipfile.ZipInfo("arr_1.npy"), "w", force_zip64=True) as file:
                npy.write_array(file, labels, allow_pickle=False)


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
    with naming(folder.parent):
        folder.mkdir(exist_ok=True)
        for index, image in enumerate(pixels):
            place = folder / f"{index:06d}.png"
            if not place.exists():
                array = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
                with replacing(place) as temporary:
                    Image.fromarray(np.ascontiguousarray(array)).save(temporary, format="PNG")
