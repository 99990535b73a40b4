"""A compressed file of several blocks, and what it was made of."""

import pytest
from coded import OPTIONS, SILENT, linear_model
from normal_data import normal_images

import ddpmbench as db


@pytest.fixture(scope="session")
def model():
    return linear_model()


@pytest.fixture(scope="session")
def images():
    return normal_images(70)


@pytest.fixture(scope="session")
def coded(model, images, tmp_path_factory):
    """70 images in blocks of 30, the first of them verified."""
    folder = tmp_path_factory.mktemp("codec")
    db.evaluate_nll(model, images, estimator="every-pair", draws=2, out=folder / "run", **SILENT)
    how = {**OPTIONS, "verify": "first", "run": folder / "run"}
    return db.compress(model, images, folder / "images.ddpmc", **how)


@pytest.fixture
def options(coded):
    """Those of `coded`, which verify nothing."""
    return {**OPTIONS, "run": coded.file.with_name("run")}
