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


@pytest.fixture
def refused(said, tmp_path, monkeypatch):
    """Runs a command that must be refused, in an empty folder; returns the line it says."""
    empty = tmp_path / "here"
    empty.mkdir()
    monkeypatch.chdir(empty)

    def check(*arguments):
        status, printed, told = said(*arguments)
        assert status == 2, told
        assert printed == ""
        assert told.startswith("Error: ")
        assert told.count("\n") == 1, told
        assert not list(empty.iterdir()), "something was written"
        return told

    return check
