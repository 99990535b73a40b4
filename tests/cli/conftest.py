"""Commands run within the test's own process."""

import pytest

from ddpmbench.cli.main import run


@pytest.fixture
def invoke(capsys):
    """Runs a command; returns its status, standard output and standard error."""

    def call(*arguments):
        capsys.readouterr()
        status = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def completed(invoke):
    """Runs a command that must succeed; returns standard output and standard error."""

    def call(*arguments):
        status, printed, message = invoke(*arguments)
        assert status == 0, message
        return printed, message

    return call


@pytest.fixture
def refused(invoke, tmp_path, monkeypatch):
    """Runs a command that must be refused, in an empty folder; returns its error line."""
    empty = tmp_path / "here"
    empty.mkdir()
    monkeypatch.chdir(empty)

    def check(*arguments):
        status, printed, message = invoke(*arguments)
        assert status == 2, message
        assert printed == ""
        assert message.startswith("Error: ")
        assert message.count("\n") == 1, message
        assert not list(empty.iterdir()), "something was written"
        return message

    return check
