"""What the command line takes as the name of a file or folder."""

import unicodedata
from pathlib import Path

import click

from ddpmbench.errors import escaped

_LONGEST_NAME, _LONGEST_PATH = 255, 4095  # bytes; those of Linux, and of most file systems


def text(value: str) -> str:
    """The type of an option that takes a path or a name, which stays as it was given.

    Raises:
        click.BadParameter: it can be neither; an empty one would be the current folder.
    """
    if not value.strip():
        raise click.BadParameter("is empty; name a file or folder, or leave it out")
    if any(unicodedata.category(letter) == "Cc" for letter in value):
        raise click.BadParameter(f"{escaped(value)} holds a control character; rename it")
    longest = max(len(part.encode(errors="surrogateescape")) for part in value.split("/"))
    if longest > _LONGEST_NAME:
        raise click.BadParameter(
            f"has a name of {longest:,} bytes, and a file system takes {_LONGEST_NAME}; name it "
            "more briefly"
        )
    if len(value) > _LONGEST_PATH:
        raise click.BadParameter(f"has {len(value):,} characters; name it more briefly")
    return value


def path(value: str | Path) -> Path:
    """The type of an option that takes a path.

    Raises:
        click.BadParameter: it can be none; see `text`.
    """
    return Path(text(str(value)))
