"""Figures in a page: one svg per panel, in the page's colors, with unique ids."""

import copy
import math
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import jinja2
from markupsafe import Markup

from ddpmbench.report.figures import COLORS, GRID, INK, NORMAL
from ddpmbench.report.text import digits_by, typeset
from ddpmbench.version import __version__

_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_PANEL = re.compile(r"subfigure_\d+")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_FONT = re.compile(r"font-family:[^;]*;?\s*")

VARIABLES: Mapping[str, str] = {
    INK: "var(--ink)",
    GRID: "var(--grid)",
    **{color: f"var(--data-{k})" for k, color in enumerate(COLORS, 1)},
}
"""From the figures' colors to the page's."""


def inline_panels(svg: str, name: str, label: str) -> list[Markup]:
    """The panels of a figure as page elements, in order; without panels the whole figure.

    Args:
        svg: from `write_figure`.
        name: prefix of the ids within it.
        label: its description, for screen readers.
    """
    root = ElementTree.fromstring(svg)
    for element in list(root.iter()):
        for child in [*element.iterfind(f"{_SVG}metadata"), *element.iterfind(f"{_SVG}style")]:
            element.remove(child)  # the page has its own
        _dress(element)
    left, top, width, height = map(float, root.attrib["viewBox"].split())
    parts = [part for part in root.iter("g") if _PANEL.fullmatch(part.get("id", ""))]
    if not parts:
        return [_element(root, list(root), (left, top, width, height), name, label)]
    width /= len(parts)
    panels = []
    for k, part in enumerate(parts):
        box = (left + k * width, top, width, height)
        which = label if len(parts) == 1 else f"{label}, {k + 1} of {len(parts)}"
        panels.append(_element(root, [part], box, f"{name}-{k + 1}", which))
    return panels


def _dress(element: Element) -> None:
    """Apply html's names and the page's colors and font, and drop indentation."""
    element.tag = element.tag.removeprefix(_SVG)
    if element.tag not in ("text", "tspan"):
        element.text = None
    if element.tag != "tspan":
        element.tail = None
    if _HREF in element.attrib:
        element.set("href", element.attrib.pop(_HREF))
    style = _FONT.sub("", element.get("style", ""))
    for color, variable in VARIABLES.items():
        style = re.sub(color, variable, style, flags=re.IGNORECASE)
    if style:
        element.set("style", style)
    if "d" in element.attrib:
        element.set("d", " ".join(element.attrib["d"].split()))


def _element(
    root: Element,
    parts: list[Element],
    box: tuple[float, float, float, float],
    name: str,
    label: str,
) -> Markup:
    """A separate svg of some parts of another, with the definitions that they use."""
    own = Element("svg", {"viewBox": " ".join(f"{x:g}" for x in box)})
    own.attrib |= {"class": "panel", "role": "img", "aria-label": label}
    defined = {element.attrib["id"]: element for element in root.iter() if "id" in element.attrib}
    present = {
        element.attrib["id"] for part in parts for element in part.iter() if "id" in element.attrib
    }
    used = {use for part in parts for use in _uses(part)}
    missing = [defined[use] for use in sorted(used - present) if use in defined]
    if missing:
        ElementTree.SubElement(own, "defs").extend(missing)
    own.extend(parts)
    # Each panel gets its own copy of shared definitions.
    own = copy.deepcopy(own)
    for element in own.iter():
        _rename(element, used, name)
    return Markup(ElementTree.tostring(own, encoding="unicode"))


def _uses(part: Element) -> Iterator[str]:
    for element in part.iter():
        for name, value in element.attrib.items():
            if name == "href" and value.startswith("#"):
                yield value[1:]
            else:
                yield from _REFERENCE.findall(value)


def _rename(element: Element, used: Set[str], name: str) -> None:
    """Give used elements ids unique to this panel; drop unused ids."""
    for attribute, value in list(element.attrib.items()):
        if attribute == "id":
            if value in used:
                element.set("id", f"{name}-{value}")
            else:
                del element.attrib["id"]
        elif attribute == "href" and value.startswith("#"):
            element.set("href", f"#{name}-{value[1:]}")
        else:
            element.set(attribute, _REFERENCE.sub(rf"url(#{name}-\1)", value))


UNKNOWN = "unknown"
"""Placeholder for an unknown number."""


def rendered(
    template: str,
    *,
    notes: Iterable[str | None] = (),
    environment: Mapping[str, Any] | None = None,
    **values: object,
) -> str:
    """A page.

    Args:
        template: the file's name in `report/templates`.
        notes: notes at the top; None for one that does not apply.
        environment: the object of `environment.json`, if any.
        **values: the template's values; a missing one is an error.
    """
    loader = jinja2.Environment(
        loader=jinja2.PackageLoader("ddpmbench", "report/templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    loader.filters |= _FILTERS
    css = (Path(__file__).parent / "templates" / "page.css").read_text(encoding="utf-8")
    shared = {"css": Markup(css), "version": __version__, "notes": [note for note in notes if note]}
    page = loader.get_template(template)
    try:
        return page.render({**shared, **_reproducibility(environment), **values})
    except jinja2.UndefinedError as error:
        raise LookupError(str(error)) from error


def drawn(
    svgs: Mapping[str, str],
    captions: Mapping[str, str],
    strips: Mapping[str, tuple[str, str]] | None = None,
) -> dict[str, Any]:
    """The figures of a page as values of its template.

    Args:
        svgs: figures by name; missing ones are left out.
        captions: of the figures, by name.
        strips: title and text of strips of pictures, by name.
    """
    return {
        "captions": captions,
        "figures": {
            name: inline_panels(svgs[name], name, caption) if name in svgs else None
            for name, caption in captions.items()
        },
        "strips": [
            {"title": title, "text": text, "figure": inline_panels(svgs[name], name, title)}
            for name, (title, text) in (strips or {}).items()
            if name in svgs
        ],
    }


def _reproducibility(record: Mapping[str, Any] | None) -> dict[str, object]:
    """Values of the section on reproducibility."""
    if record is None:
        return {"environment": None}
    arguments = record["arguments"]
    return {
        "environment": {
            "source revision": record.get("git_revision") or "an installed package",
            "platform": record.get("platform") or UNKNOWN,
            "device": record.get("device") or UNKNOWN,
        },
        "versions": {name: value or "not there" for name, value in record["versions"].items()},
        "command": shlex.join(map(str, arguments.get("given") or [])),
        "resolved": {
            name: "none" if value is None else value
            for name, value in (arguments.get("resolved") or {}).items()
        },
    }


def _fixed(value: float | None, digits: int = 4, *, sign: str = "") -> str:
    if value is None or math.isnan(value):
        return UNKNOWN
    return f"{value:{sign},.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _half_width(standard_error: float | None) -> float | None:
    return None if standard_error is None or math.isnan(standard_error) else NORMAL * standard_error


_FILTERS: dict[str, Callable[..., object]] = {
    "fixed": _fixed,
    "signed": lambda value, digits=4: _fixed(value, digits, sign="+"),
    "percent": lambda share: f"{100 * share:.{int(0 < share < 1)}f} %",
    "count": lambda value: f"{value:,}",
    "times": lambda value: f"{value:,.{0 if value >= 10 else 1}f}",
    "half_width": _half_width,
    "typeset": lambda value: typeset(str(value)),
    "digits": digits_by,
    "fixed_half_width": lambda value: _fixed(value, digits_by(value)),
}
