"""Figures within a page: one svg a panel, in the page's own colors, with names of its own."""

import copy
import re
from collections.abc import Iterator, Mapping
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from ddpmbench.report.figures.style import COLORS, GRID, INK

_SVG = "{http://www.w3.org/2000/svg}"
_HREFS = ("{http://www.w3.org/1999/xlink}href", "href")
_PANEL = re.compile(r"subfigure_\d+")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_FONT = re.compile(r"font-family:[^;]*;?\s*")
# What draws, and no more: nothing that runs, links or loads.
_SHAPES = {"path", "rect", "circle", "ellipse", "line", "polyline", "polygon", "text", "tspan"}
_PAINT = {"linearGradient", "radialGradient", "stop", "pattern", "mask", "clipPath"}
_DRAWN = _SHAPES | _PAINT | {"svg", "g", "defs", "use", "image"}

VARIABLES: Mapping[str, str] = {
    INK: "var(--ink)",
    GRID: "var(--grid)",
    **{color: f"var(--data-{k})" for k, color in enumerate(COLORS, 1)},
}
"""The figures' colors to the page's."""


def inline_panels(svg: str, name: str, label: str) -> list[str]:
    """The panels of a figure as elements of a page, in order; without panels the figure whole.

    Args:
        svg: the file's text.
        name: what the names within it shall begin with.
        label: what it shows, for those who hear the page.

    Raises:
        ElementTree.ParseError: the text is no svg.
    """
    root = ElementTree.fromstring(svg)
    _keep_what_draws(root)
    for element in root.iter():
        _dress(element, f"{name}-")
    left, top, width, height = map(float, root.attrib["viewBox"].split())
    parts = [part for part in root.iter(f"{_SVG}g") if _is_panel(part, name)]
    if not parts:
        return [_element(root, list(root), (left, top, width, height), label)]
    width /= len(parts)
    panels = []
    for k, part in enumerate(parts):
        box = (left + k * width, top, width, height)
        which = label if len(parts) == 1 else f"{label}, {k + 1} of {len(parts)}"
        panels.append(_element(root, [part], box, which))
    return panels


def _is_panel(element: Element, name: str) -> bool:
    own = element.get("id", "")
    return own.startswith(f"{name}-") and bool(_PANEL.fullmatch(own[len(name) + 1 :]))


def _keep_what_draws(parent: Element) -> None:
    for child in list(parent):
        tag = child.tag if isinstance(child.tag, str) else ""
        if tag.removeprefix(_SVG) in _DRAWN and tag.startswith(_SVG):
            _keep_what_draws(child)
        else:
            parent.remove(child)


def _dress(element: Element, prefix: str) -> None:
    for name, value in list(element.attrib.items()):
        if name.startswith("on"):
            del element.attrib[name]
        elif name == "id":
            element.set(name, prefix + value)
        elif name in _HREFS:
            del element.attrib[name]
            if value.startswith("#"):
                element.set("href", f"#{prefix}{value[1:]}")
            elif value.startswith("data:image/"):
                element.set("href", value)
        else:
            element.set(name, _REFERENCE.sub(rf"url(#{prefix}\1)", value))
    style = _FONT.sub("", element.get("style", ""))
    for color, variable in VARIABLES.items():
        style = re.sub(color, variable, style, flags=re.IGNORECASE)
    if style:
        element.set("style", style)
    if "d" in element.attrib:
        element.set("d", " ".join(element.attrib["d"].split()))


def _element(
    root: Element, parts: list[Element], box: tuple[float, float, float, float], label: str
) -> str:
    """An svg of its own around some parts of another, with the definitions that they use."""
    own = Element(f"{_SVG}svg", {"viewBox": " ".join(f"{x:g}" for x in box)})
    own.attrib |= {"role": "img", "aria-label": label}
    defined = {of.attrib["id"]: of for of in root.iter() if "id" in of.attrib}
    there = {of.attrib["id"] for part in parts for of in part.iter() if "id" in of.attrib}
    missing = sorted({name for part in parts for name in _used(part)} - there)
    definitions = [copy.deepcopy(defined[name]) for name in missing if name in defined]
    if definitions:
        ElementTree.SubElement(own, f"{_SVG}defs").extend(definitions)
    own.extend(parts)
    _strip(own)
    return ElementTree.tostring(own, encoding="unicode", short_empty_elements=True)


def _used(part: Element) -> Iterator[str]:
    for element in part.iter():
        for name, value in element.attrib.items():
            if name == "href" and value.startswith("#"):
                yield value[1:]
            else:
                yield from _REFERENCE.findall(value)


def _strip(element: Element) -> None:
    """Names as html has them, and no space that only indents."""
    for of in element.iter():
        of.tag = of.tag.removeprefix(_SVG)
        if of.tag not in ("text", "tspan"):
            of.text = None
        if of.tag != "tspan":
            of.tail = None
