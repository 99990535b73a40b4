"""The exceptions a user is meant to see."""

from collections.abc import Sequence


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


_MOST_LISTED = 3


def refusal(subject: object, reason: str) -> InputError:
    """The error to raise: one line, whatever a path or another library's message holds."""
    return InputError(f"{subject}: {reason}")


def listed(names: Sequence[str]) -> str:
    """The first of these names, and how many more there are."""
    more = f" and {len(names) - _MOST_LISTED:,} more" if len(names) > _MOST_LISTED else ""
    return f"{', '.join(names[:_MOST_LISTED])}{more}"


def count_to_read(num_images: int | None, total: int, source: object) -> int:
    """How many images to take of those there are.

    Raises:
        InputError: if `num_images` lies outside 1..total.
    """
    if num_images is None:
        return total
    if not 1 <= num_images <= total:
        raise refusal(
            f"`num_images={num_images}`",
            f"{source} holds {total} images; give a number from 1 to {total}",
        )
    return num_images
