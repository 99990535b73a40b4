import pytest

from ddpmbench import Checkpoint, load_checkpoint


@pytest.fixture(scope="session")
def shipped() -> Checkpoint:
    return load_checkpoint()
