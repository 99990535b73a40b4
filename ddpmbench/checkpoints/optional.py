"""Packages that some families need, and that the project does not install by itself."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

from ddpmbench.checkpoints.weights import FileError, first_line


@contextlib.contextmanager
def importing(extra: str, source: str | Path, why: str, *, remedy: str = "") -> Iterator[None]:
    """Inside, a package of an extra is imported without its warnings.

    Args:
        extra: of the project, which has the package.
        source: the checkpoint, for the message.
        why: what the package is for, as "its network runs through PACKAGE".
        remedy: another one than to install it, as ", or ...".

    Raises:
        InputError: the package is missing.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImportError as error:
        raise FileError(
            source,
            f"{why}, which cannot be imported ({first_line(error)}): "
            f"pip install 'ddpmbench[{extra}]'{remedy}",
        ) from error
