"""A result as Python shows it: short text, a table in notebooks, figures."""

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from ddpmbench.errors import InputError
from ddpmbench.report.text import typeset

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_MOST_LINES, _MOST_CHARACTERS, _LONGEST_LINES = 8, 500, range(70, 10, -1)
# Only the notebook's own colors, readable in light and dark.
_LEFT = 'style="text-align: left; color: inherit; background: none"'
_TABLE = Markup("<table {}><caption {}><b>{}</b></caption>\n{}\n</table>")
_ROW = Markup('<tr {}><th scope="row" {}>{}</th><td {}>{}</td></tr>')


@dataclass(frozen=True)
class Card:
    """The content of a result's display.

    Attributes:
        headline: the number, with its interval.
        numbers: further numbers with their intervals, by name.
        facts: settings that they depend on, by name.
    """

    headline: str
    numbers: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)


def in_folder(facts: Mapping[str, str], folder: Path | None) -> dict[str, str]:
    """The facts with the folder inserted before the last, the device."""
    own = {} if folder is None else {"folder": str(folder)}
    device = {name: value for name, value in facts.items() if name == "device"}
    return {name: value for name, value in facts.items() if name not in device} | own | device


Draw = Callable[[], "tuple[Figure, pd.DataFrame]"]


class Shown(abc.ABC):
    """A result with a short repr, a table for notebooks, and figures."""

    @abc.abstractmethod
    def _card(self) -> Card:
        """The card of the result."""

    def _figures(self) -> Mapping[str, Draw]:
        """Functions that draw the figures, by name; the first is the default."""
        return {}

    def plot(self, figure: str | None = None) -> "Figure":
        """One of the figures of its page.

        Args:
            figure: its name; None for the first.

        Returns:
            A matplotlib figure, on white.

        Raises:
            InputError: there is no figure of that name; the message lists all.
        """
        known = self._figures()
        name = figure or next(iter(known), "")
        if name not in known:
            kind = type(self).__name__
            choices = f"; choose from {', '.join(known)}" if known else ""
            raise InputError(f"plot({figure!r}): {kind} has no such figure{choices}")
        drawn, _ = known[name]()
        drawn.set_facecolor("white")
        return drawn

    def __repr__(self) -> str:
        """The headline, the first facts and the last two, in less than 500 characters."""
        card = self._card()
        lines = [f"{type(self).__name__}: {card.headline}"]
        lines += [f"  {name:<11} {value}" for name, value in card.facts.items()]
        if len(lines) > _MOST_LINES:
            lines = lines[: _MOST_LINES - 2] + lines[-2:]
        texts = ("\n".join(_shortened(line, most) for line in lines) for most in _LONGEST_LINES)
        return next(text for text in texts if len(text) < _MOST_CHARACTERS)

    def _repr_html_(self) -> str:
        card = self._card()
        rows = [
            _ROW.format(Markup(_LEFT), Markup(_LEFT), name, Markup(_LEFT), typeset(value))
            for name, value in [*card.numbers.items(), *card.facts.items()]
        ]
        style = Markup(_LEFT)
        headline = f"{type(self).__name__}: {typeset(card.headline)}"
        return str(_TABLE.format(style, style, headline, Markup("\n").join(rows)))


def _shortened(line: str, most: int) -> str:
    line = " ".join(line.splitlines())
    return line if len(line) <= most else f"{line[: most - 3]}..."
