"""Files that were joined: a reader of one archive or array passes over the other."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpmbench import CheckpointSettings, load_checkpoint, load_images
from ddpmbench.errors import InputError
from ddpmbench.metrics.statistics import read_statistics


def images(path: Path) -> None:
    np.savez(path, arr_0=np.zeros((2, 8, 8), np.uint8))


def statistics(path: Path) -> None:
    np.savez(path, mu=np.zeros(2), sigma=np.eye(2))


def betas(path: Path) -> None:
    np.savez(path, betas=np.linspace(1e-4, 0.02, 10))


def weights(path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, path)


OPENERS = {
    "images": ("images.npz", images, load_images),
    "statistics": ("statistics.npz", statistics, read_statistics),
    "betas": (
        "betas.npz",
        betas,
        lambda path: load_checkpoint("default", CheckpointSettings(schedule=f"betas:{path}")),
    ),
    "weights": ("weights.pt", weights, load_checkpoint),
}


@pytest.mark.parametrize("opener", OPENERS)
def test_a_file_of_two_archives_is_refused(opener, tmp_path):
    name, write, read = OPENERS[opener]
    path = tmp_path / name
    write(path)
    path.write_bytes(2 * path.read_bytes())
    with pytest.raises(InputError, match=f"{name}.*other data before its zip archive"):
        read(path)


def test_an_array_before_another_is_not_read_alone(tmp_path):
    for name, array in (("pixels", np.zeros((2, 8, 8), np.uint8)), ("betas", np.geomspace(0.1, 1))):
        with (tmp_path / f"{name}.npy").open("wb") as file:
            np.save(file, array)
            np.save(file, array)
    with pytest.raises(InputError, match=r"pixels\.npy.*followed by other data"):
        load_images(tmp_path / "pixels.npy")
    schedule = CheckpointSettings(schedule=f"betas:{tmp_path}/betas.npy")
    with pytest.raises(InputError, match=r"betas\.npy.*other data after its array"):
        load_checkpoint("default", schedule)


def test_images_in_a_tar_of_archives_are_not_those_of_the_last(tmp_path):
    for name in ("1.npz", "2.npz"):
        images(tmp_path / name)
    with tarfile.open(tmp_path / "both.tar", "w") as both:
        both.add(tmp_path / "1.npz", "1.npz")
        both.add(tmp_path / "2.npz", "2.npz")
    with pytest.raises(InputError, match=r"both\.tar"):
        load_images(tmp_path / "both.tar")
