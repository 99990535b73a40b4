"""A figure that a notebook shows without pyplot."""

import io
from typing import Any

from matplotlib.figure import Figure


class NotebookFigure(Figure):
    """A figure as IPython asks for it."""

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        kept: Any = {"dpi": 110, "facecolor": "white"}
        self.savefig(png, format="png", **kept)
        return png.getvalue()
