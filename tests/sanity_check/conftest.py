import pytest
from retrained import remembering

from ddpmbench import Checkpoint, load_checkpoint
from ddpmbench.data.images import ImageSet
from ddpmbench.data.load import load_images


@pytest.fixture(scope="session")
def shipped() -> Checkpoint:
    """The shipped model; the tests ask for many of its terms more than once."""
    return remembering(load_checkpoint())


@pytest.fixture(scope="session")
def images() -> ImageSet:
    return load_images("fashion-mnist:test")
