"""The one exception a user is meant to see."""


class InputError(Exception):
    """A mistake the user can mend: an option, a file or its format.

    The message is one line that names the file or option and says what to do. The command line
    prints it and exits with status 2.
    """
