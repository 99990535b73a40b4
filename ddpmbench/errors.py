"""The exceptions a user is meant to see."""


def escaped(text: str) -> str:
    """The text with what no terminal should obey as escapes: names stand in messages."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable(text: str) -> str:
    """The same on one line."""
    return escaped(" ".join(line.strip() for line in text.splitlines()))


class InputError(Exception):
    """A mistake the user can mend: an option, a file or its format.

    The message is one line that names the file or option and says what to do. The command line
    prints it and exits with status 2.
    """

    def __init__(self, message: object) -> None:
        super().__init__(printable(str(message)))


class ReportedError(InputError):
    """A mistake that another process of the run has come upon, and reports."""


class ProcessLostError(Exception):
    """Another process of the run has stopped; the same command goes on from what is kept.

    The command line prints the message and exits with status 1.
    """
