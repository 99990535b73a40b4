"""Which model a result is of, in one line."""

from collections.abc import Mapping
from typing import Any


def checkpoint_line(checkpoint: Mapping[str, Any]) -> str:
    """A checkpoint as the printed results name it: where it came from, and what the file is.

    Args:
        checkpoint: `checkpoint` of a summary. Whether its weights are averaged over the training
            stands there where that is known.
    """
    kind = checkpoint.get("weights")
    kinds = [checkpoint["family"], *([kind] if kind else []), checkpoint["sha256"][:12]]
    return f"{checkpoint['source']} ({', '.join(kinds)})"
