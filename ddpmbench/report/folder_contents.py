"""The figures of run folders, checked when they are read."""

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from ddpmbench.errors import InputError


def read_svgs(path: Path, names: Sequence[str]) -> dict[str, str]:
    """Figures of a run folder by name; missing ones are left out.

    Raises:
        InputError: one is damaged; the message names it.
    """
    places = {name: path / "figures" / f"{name}.svg" for name in names}
    return {name: _svg(place) for name, place in places.items() if place.exists()}


def _svg(place: Path) -> str:
    try:
        text = place.read_text(encoding="utf-8")
        _ = ElementTree.fromstring(text).attrib["viewBox"]
    except (OSError, ValueError, KeyError, ElementTree.ParseError) as error:
        raise InputError(f"{place}: damaged; remove it, or draw it again") from error
    return text
