"""A checkpoint that is recognized but does not say all that is needed to evaluate it."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ddpmbench.errors import InputError


class UnsettledError(InputError):
    """A file of a known family that leaves something open which an option has to settle.

    Attributes:
        family: the family it was recognized as, as in `Checkpoint.family`.
        path: the file.
        weights: what is known of the network: the names and tensors of its weights, as the file
            has them.
        missing: the options that would settle it, each with a placeholder of a value:
            `--schedule linear:T:START:END`.
    """

    def __init__(
        self,
        message: str,
        *,
        family: str,
        path: Path,
        weights: Mapping[str, Tensor],
        missing: tuple[str, ...],
    ) -> None:
        """Keep what is known beside the one line that is shown."""
        super().__init__(message)
        self.family = family
        self.path = path
        self.weights = weights
        self.missing = missing
