"""Fixtures that several floors share: a small network of the real kind, and small real images."""

import contextlib
import dataclasses
import gc
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from processes import undrawn
from run_folders import Runs
from unet_configs import TINY_CONFIG

from ddpmbench.checkpoints.native import write_native
from ddpmbench.data.images import ImageSet
from ddpmbench.data.load import load_images
from ddpmbench.diffusion.model import Checkpoint
from ddpmbench.diffusion.process import Prediction, Variance
from ddpmbench.diffusion.schedule import NoiseSchedule
from ddpmbench.evaluate import page
from ddpmbench.unet.unet import UNet

# Networks as small as these lose by threads, most of all on a busy machine; commands that are
# started in processes of their own inherit this.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
# No test cuts the power, and to wait for the disk takes milliseconds a file.
os.fsync = os.fstat


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Look for no garbage while tests are collected, nor later among all that was collected."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files with slow tests first: one that comes last is waited for by one process.

    A test that hangs fails where it stands; a row of benchmarks/ may take longer.
    """
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(300, method="signal"))
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Draw the same random weights in a test and its fixtures, whichever tests ran before."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def drawn() -> Iterator[Callable[..., Path]]:
    """Commands draw no page, which takes seconds, but in tests that use `pages`."""
    page_of = page.page_of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "page_of", undrawn)
        yield page_of


@pytest.fixture
def pages(drawn, monkeypatch) -> None:
    """Commands draw their pages."""
    monkeypatch.setattr(page, "page_of", drawn)


@pytest.fixture(scope="session")
def sketching() -> Callable[[], AbstractContextManager]:
    """While it is entered, figures are empty files: for tests of which are drawn, and when."""

    def save(figure: Figure, path: Path, **how: object) -> None:
        path.write_text("<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 9 9'></svg>")

    @contextlib.contextmanager
    def empty() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Figure, "savefig", save)
            patch.setattr(Figure, "get_layout_engine", lambda figure: None)
            yield

    return empty


@pytest.fixture
def sketched(sketching) -> Iterator[None]:
    """Figures are empty files in a test."""
    with sketching():
        yield


@pytest.fixture(scope="session")
def small_model() -> Checkpoint:
    """A U-Net with random weights, attention and all, for 8x8 grey images at T = 40."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet(TINY_CONFIG).eval()
    return Checkpoint(
        network=network,
        schedule=NoiseSchedule.linear(40),
        prediction=Prediction.EPSILON,
        variance=Variance.FIXED_LARGE,
        channels=1,
        image_size=8,
        size_multiple=2,
        family="native",
        source="small",
        sha256="0" * 64,
    )


@pytest.fixture(scope="session")
def small_checkpoint(small_model, tmp_path_factory) -> Path:
    """The same in a native file."""
    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    write_native(path, small_model)
    return path


@pytest.fixture(scope="session")
def small_images() -> ImageSet:
    """Crops from the middle of six shipped images."""
    whole = load_images("fashion-mnist:test", num_images=6)
    pixels = np.ascontiguousarray(whole.pixels[:, :, 10:18, 10:18])
    return dataclasses.replace(whole, pixels=pixels, source="crops", split=None)


@pytest.fixture(scope="session")
def small_npz(small_images, tmp_path_factory) -> Path:
    """The same in an npz file."""
    path = tmp_path_factory.mktemp("images") / "crops.npz"
    np.savez(path, arr_0=small_images.pixels.transpose(0, 2, 3, 1))
    return path


@pytest.fixture(scope="session")
def runs(small_model, small_images, tmp_path_factory) -> Iterator[Runs]:
    """A finished run of every kind, for tests that only read: `runs[kind]`."""
    made = Runs(small_model, small_images, tmp_path_factory.mktemp("finished"))
    yield made
    made.close()


@pytest.fixture
def copied(runs, tmp_path) -> Callable[[str], Path]:
    """Copies a run of a kind for a test that changes it."""
    return lambda kind: runs.copied(kind, tmp_path / "copied")
