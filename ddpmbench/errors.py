"""The exceptions a user is meant to see."""


class InputError(Exception):
    """A mistake the user can mend: an option, a file or its format.

    The message is one line that names the file or option and says what to do. The command line
    prints it and exits with status 2.
    """


class ReportedError(InputError):
    """A mistake that another process of the run has come upon, and reports."""


class ProcessLostError(Exception):
    """Another process of the run has stopped; the same command goes on from what is kept.

    The command line prints the message and exits with status 1.
    """
