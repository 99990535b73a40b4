"""Commands run within the test's own process."""

import pytest

from ddpmbench.cli.main import run


@pytest.fixture
def said(capsys):
    """Runs a command; returns its status, what it printed and what it said."""

    def call(*arguments):
        capsys.readouterr()
        status = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call
